"""Row 36, Llama 3 405B (S2): what follows from the table of its three stages of pre-training, and what does not.

Arithmetic on the printed cells, and the planner on the model's sizes; nothing was run on the 16,384 GPUs it speaks of.
Sources: S2; Llama Team 2024, table 4.
"""

from dataclasses import asdict, replace

from refimpl.experiments.harness import Claim
from refimpl.parallel.hardware import H100_80GB
from refimpl.parallel.plan_tables import LLAMA3_405B, LLAMA3_TABLE, Run
from refimpl.parallel.planner import plan

TITLE = "Llama 3 405B: TP, CP, PP and DP, the tokens of a step, utilization, and 128K by context parallelism"
SOURCE = "S2, table 4"


def run() -> dict:
    long = LLAMA3_TABLE[2]
    # 128K tokens on the GPUs of the second row: all of its data parallelism, no context parallelism
    without = plan(LLAMA3_405B, H100_80GB, LLAMA3_TABLE[1].methods, tokens=long.length, batch=long.batch)
    return {
        "rows": [judged(row) for row in LLAMA3_TABLE],
        "third_row_with_dp_8": judged(replace(long, data=8)),
        "without_context": {"length": long.length, "bytes": without.bytes, "fits": without.fits},
        "peak_tflops": H100_80GB.machine.flop_per_s / 1e12,
        "memory_bytes": H100_80GB.memory_bytes,
    }


def judged(row: Run) -> dict:
    """The printed cells, what follows from them, and a plan: ring for the context, only layer inputs kept."""
    made = row.plan()
    return {
        "printed": asdict(row), "devices": row.devices, "tokens_per_step": row.tokens_per_step,
        "utilization": row.utilization, "fitting_data": row.fitting_data, "bubble_limit": row.bubble_limit,
        "bytes": made.bytes, "fits": made.fits, "longest": made.longest, "traffic": made.traffic,
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    rows = result["rows"]
    return [*_products(rows, result["third_row_with_dp_8"]), _utilization(rows), _context(rows, result), _bubble(rows)]


def _products(rows, right) -> list[Claim]:
    """Two products per row; the third row's are half of what is printed."""
    printed = [row["printed"] for row in rows]
    dp = rows[2]["fitting_data"]
    return [
        Claim("GPUs = TP x CP x PP x DP", SOURCE, ", ".join(f"{p['gpus']:,}" for p in printed),
              ", ".join(f"{row['devices']:,}" for row in rows),
              all(row["devices"] == row["printed"]["gpus"] for row in rows),
              f"The third row's DP of {printed[2]['data']} makes half of its GPUs; {dp:.0f} would make all of them."),
        Claim("tokens per step = DP x batch x length, in millions (2^20)", SOURCE,
              ", ".join(str(p["tokens"]) for p in printed),
              ", ".join(f"{row['tokens_per_step'] / 2**20:.0f}" for row in rows),
              all(row["tokens_per_step"] == row["printed"]["tokens"] * 2**20 for row in rows),
              "The same row: one slip explains both."),
        Claim("with DP = 8 the third row has its GPUs and its tokens", "arithmetic",
              f"{printed[2]['gpus']:,} and {printed[2]['tokens']}M",
              f"{right['devices']:,} and {right['tokens_per_step'] // 2**20}M",
              right["devices"] == printed[2]["gpus"] and right["tokens_per_step"] == printed[2]["tokens"] * 2**20),
    ]  # fmt: skip


def _utilization(rows) -> Claim:
    off = [row["printed"]["mfu"] for row in rows if abs(row["utilization"] - row["printed"]["mfu"]) >= 0.5]
    return Claim(
        "MFU = TFLOP/s per GPU over 989", SOURCE, ", ".join(f"{row['printed']['mfu']} %" for row in rows),
        ", ".join(f"{row['utilization']:.1f} %" for row in rows), not off,
        f"{' and '.join(f'{mfu} %' for mfu in off)} does not follow from 400 TFLOP/s; the others are rounded.",
    )  # fmt: skip


def _context(rows, result) -> Claim:
    short, long, tried = rows[1], rows[2], result["without_context"]
    needed = sum(tried["bytes"].values()) / 1e9
    return Claim(
        "from 8K to 128K, data parallelism is sacrificed for context parallelism", "S2",
        "CP 1 to 16, DP 128 to 8", f"without CP the longest is {short['longest'] // 1024}K, with 16 it is "
        f"{long['longest'] // 1024}K",
        not tried["fits"] and long["fits"] and short["longest"] < tried["length"] <= long["longest"],
        f"Planner, {result['memory_bytes'] / 1e9:.0f} GB, ring attention, layer inputs kept and the rest made again: "
        f"128K tokens without context ranks need {needed:.0f} GB on a GPU. TP x PP x (CP x DP) stays the same.",
    )  # fmt: skip


def _bubble(rows) -> Claim:
    first, second = rows[:2]
    return Claim(
        "utilization drops from the first stage to the second: fewer sequences per copy, so a longer bubble",
        "Llama Team 2024", "430 to 400 TFLOP/s",
        f"at most {100 * first['bubble_limit']:.0f} % to {100 * second['bubble_limit']:.0f} %",
        second["bubble_limit"] < first["bubble_limit"]
        and all(row["utilization"] < 100 * row["bubble_limit"] for row in rows),
        "m / (m + p - 1) for a plain pipeline of 16 stages with 32 and 16 micro-batches of one sequence. The real one "
        "interleaves its stages, so its drop is smaller.",
    )  # fmt: skip
