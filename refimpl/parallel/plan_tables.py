"""Four published tables, as printed and as the planner has them: ZeRO, LOMO, Llama 3 405B, and FPDT's strategies.

Printed cells are as the lectures show them (S1 and S2); what stands beside them is computed. Where the two differ the
table has a slip.
Sources: Rajbhandari et al. 2020, table 1; Lv et al. 2023, table 1; Llama Team 2024, table 4; Yao et al. 2024 (FPDT).
"""

from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

from refimpl.cost_model import ModelShape, parameters
from refimpl.parallel.hardware import A100_80GB, H100_80GB, Hardware, Methods
from refimpl.parallel.pipeline import predicted_bubble
from refimpl.parallel.plan_memory import largest_matrix, state_bytes
from refimpl.parallel.planner import Plan, plan

__all__ = [
    "LLAMA3_8B",
    "LLAMA3_405B",
    "LLAMA3_TABLE",
    "LLAMA_7B",
    "LOMO",
    "STRATEGIES",
    "ZERO",
    "Cell",
    "LomoRow",
    "Run",
    "Strategy",
    "lomo_parts",
    "lomo_table",
    "parameters_with_norms",
    "rank_order",
    "strategy_table",
    "zero_cell",
    "zero_table",
]

LLAMA_7B = ModelShape(layers=32, model=4096, heads=32, ffn=11008, vocab=32_000, gated=True, tied=False)
LLAMA3_8B = ModelShape(
    layers=32, model=4096, heads=32, kv_heads=8, ffn=14_336, vocab=128_256, gated=True, tied=False
)  # fmt: skip
LLAMA3_405B = ModelShape(
    layers=126, model=16_384, heads=128, kv_heads=8, ffn=53_248, vocab=128_256, gated=True, tied=False
)  # fmt: skip


# --- ZeRO: model states against data parallelism, decimal gigabytes --------------------------------------------------

SIZES = {"7.5B": 7_500_000_000, "128B": 128_000_000_000, "1T": 1_000_000_000_000}
ROUNDING = {"7.5B": ROUND_HALF_UP, "128B": ROUND_DOWN, "1T": ROUND_DOWN}  # no single rule gives the printed cells

# data parallelism -> for each size stages 1, 2, 3 (P_os, P_os+g, P_os+g+p), as printed
ZERO = {
    1: ("120", "120", "120", "2048", "2048", "2048", "16000", "16000", "16000"),
    4: ("52.5", "41.3", "30", "896", "704", "512", "7000", "5500", "4000"),
    16: ("35.6", "21.6", "7.5", "608", "368", "128", "4750", "2875", "1000"),
    64: ("31.4", "16.6", "1.88", "536", "284", "32", "4187", "2218", "250"),
    256: ("30.4", "15.4", "0.47", "518", "263", "8", "4046", "2054", "62.5"),
    1024: ("30.1", "15.1", "0.12", "513", "257", "2", "4011", "2013", "15.6"),
}


class Cell(NamedTuple):
    """One cell of the ZeRO table; `rounded` has as many digits as are printed."""

    size: str
    ranks: int
    stage: int
    printed: str
    gigabytes: float
    rounded: str


def zero_cell(size: str, ranks: int, stage: int) -> float:
    """Decimal gigabytes of model states per rank, Adam in mixed precision."""
    return sum(state_bytes(SIZES[size], ranks=ranks, stage=stage).values()) / 1e9


def zero_table(rounding: dict[str, str] | str | None = None) -> list[Cell]:
    """All 54 cells. `rounding` is one of `decimal`'s rules for all, or one per size; None rounds as the table does."""
    rules = dict.fromkeys(SIZES, rounding) if isinstance(rounding, str) else rounding or ROUNDING
    columns = [(size, stage) for size in SIZES for stage in (1, 2, 3)]
    cells = []
    for ranks, row in ZERO.items():
        for (size, stage), printed in zip(columns, row, strict=True):
            exact = zero_cell(size, ranks, stage)
            rounded = Decimal(repr(exact)).quantize(Decimal(printed), rules[size])
            cells.append(Cell(size, ranks, stage, printed, exact, str(rounded)))
    return cells


# --- LOMO: training LLaMA-7B, binary gigabytes -----------------------------------------------------------------------


class LomoRow(NamedTuple):
    """A row as printed, GiB; activations are the authors' measurement."""

    optimizer: str
    checkpointing: bool
    weights: float
    gradients: float
    states: float
    activations: float
    total: float


LOMO = [
    LomoRow("adam", False, 12.55, 12.55, 75.31, 45.61, 147.02),
    LomoRow("adam", True, 12.55, 12.55, 75.31, 1.79, 102.20),
    LomoRow("sgd", False, 12.55, 12.55, 25.10, 45.61, 96.81),
    LomoRow("sgd", True, 12.55, 12.55, 25.10, 1.79, 51.99),
    LomoRow("lomo", False, 12.55, 0.24, 0.00, 45.61, 59.40),
    LomoRow("lomo", True, 12.55, 0.24, 0.00, 1.79, 14.58),
]


def parameters_with_norms(model: ModelShape) -> int:
    """Matrices and the weights of two norms per layer and a last one: 6,738,415,616 for LLaMA-7B."""
    return sum(parameters(model).values()) + (2 * model.layers + 1) * model.model


def lomo_parts(optimizer: str, model: ModelShape = LLAMA_7B) -> tuple[float, float, float]:
    """(weights, gradients, optimizer states) in GiB, mixed precision, one device."""
    states = state_bytes(parameters_with_norms(model), optimizer=optimizer, largest=largest_matrix(model))
    weights, gradients = states.pop("weights"), states.pop("gradients")
    return weights / 2**30, gradients / 2**30, sum(states.values()) / 2**30


def lomo_table() -> list[dict[str, Any]]:
    """Each printed row beside the sum of its own parts and of ours; `slip` is printed total minus printed parts."""
    table = []
    for row in LOMO:
        ours = lomo_parts(row.optimizer)
        printed_sum = round(row.weights + row.gradients + row.states + row.activations, 2)
        table.append({
            "optimizer": row.optimizer, "checkpointing": row.checkpointing,
            "weights": ours[0], "gradients": ours[1], "states": ours[2],
            "sum": sum(ours) + row.activations, "printed sum": printed_sum, "total": row.total,
            "slip": round(row.total - printed_sum, 2),
        })  # fmt: skip
    return table


# --- Llama 3 405B: three stages of pre-training ----------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A row as printed in the lecture, and what follows from its other cells."""

    gpus: int
    tensor: int
    context: int
    pipeline: int
    data: int
    length: int
    batch: int  # sequences per copy of the model
    tokens: int  # millions of the binary kind
    tflops: int  # per GPU, measured
    mfu: int  # percent, printed

    @property
    def devices(self) -> int:
        """TP * CP * PP * DP."""
        return self.methods.devices

    @property
    def tokens_per_step(self) -> int:
        """DP * batch * length."""
        return self.data * self.batch * self.length

    @property
    def utilization(self) -> float:
        """Percent of the H100's dense 16-bit peak."""
        return 100 * self.tflops * 1e12 / H100_80GB.machine.flop_per_s

    @property
    def fitting_data(self) -> float:
        """The DP that makes the printed number of GPUs."""
        return self.gpus / (self.tensor * self.context * self.pipeline)

    @property
    def bubble_limit(self) -> float:
        """Share of the time that a plain pipeline works, one sequence per micro-batch: m / (m + p - 1)."""
        return 1 - predicted_bubble(self.pipeline, self.batch)

    @property
    def methods(self) -> Methods:
        return Methods(
            tensor=self.tensor, context=self.context, pipeline=self.pipeline, data=self.data, zero=2, sequence="ring",
            sequence_parallel=True, checkpoint="device",
        )  # fmt: skip

    def plan(self) -> Plan:
        """What the planner says of it: ring for the context, and layer inputs kept only (our choice, not printed)."""
        return plan(LLAMA3_405B, H100_80GB, self.methods, tokens=self.length, batch=self.batch)


LLAMA3_TABLE = [
    Run(8_192, 8, 1, 16, 64, 8_192, 32, 16, 430, 43),
    Run(16_384, 8, 1, 16, 128, 8_192, 16, 16, 400, 41),
    Run(16_384, 8, 16, 16, 4, 131_072, 16, 16, 380, 38),
]


# --- FPDT: how long a sequence Llama 3 8B trains on with 8 GPUs ------------------------------------------------------

K = 2**10


class Strategy(NamedTuple):
    """A row of the table: name, our reading of its check marks, and what is printed."""

    name: str
    methods: Methods
    length: int
    gigabytes: float
    mfu: float  # percent


STRATEGIES = [
    Strategy("TP", Methods(tensor=8), 32 * K, 64.3, 9.4),
    Strategy("TP, AC", Methods(tensor=8, checkpoint="device"), 128 * K, 61.2, 19.4),
    Strategy("TP, AC, OC", Methods(tensor=8, checkpoint="host"), 512 * K, 78.7, 32.7),
    *(Strategy(f"UL, ZeRO-{stage}", Methods(context=8, zero=stage), 64 * K, gigabytes, mfu)
      for stage, gigabytes, mfu in ((1, 58.9, 15.3), (2, 54.5, 15.3), (3, 52.3, 21.0))),
    *(Strategy(f"AC, OC, UL, ZeRO-{stage}", Methods(context=8, zero=stage, checkpoint="host"), 512 * K, gigabytes, mfu)
      for stage, gigabytes, mfu in ((1, 65.5, 46.8), (2, 65.5, 46.8), (3, 60.1, 47.2))),
    Strategy("FPDT, AC, OC, ZeRO-3", Methods(context=8, zero=3, checkpoint="host", chunk=64 * K), 4096 * K, 68.0, 55.7),
]  # fmt: skip


def strategy_table(hardware: Hardware = A100_80GB) -> list[dict[str, Any]]:
    """Per strategy: printed length beside the planner's, and at that length bytes and the bound on utilization.

    The length follows from what must be in memory, so order and ties are a prediction; gigabytes and utilization depend
    on kernels, allocator and network, and are shown beside the printed ones, not matched.
    """
    table = []
    for name, methods, length, gigabytes, mfu in STRATEGIES:
        made = plan(LLAMA3_8B, hardware, methods, tokens=length)
        table.append({
            "name": name, "printed length": length, "length": made.longest,
            "printed GB": gigabytes, "GB": made.fit.needed / 1e9, "moment": made.moment,
            "host GB": made.host_bytes / 1e9, "printed MFU": mfu, "MFU at most": 100 * made.utilization,
            "limit": made.limit,
        })  # fmt: skip
    return table


def rank_order(lengths: list[int]) -> list[int]:
    """Each length's place among the different ones: equal places are ties."""
    places = sorted(set(lengths))
    return [places.index(length) for length in lengths]
