"""Row 32, many devices (S1, S2): data, tensor and pipeline parallelism against one process, and what sharing costs.

A small Llama trains on 1, 2 and 4 ranks; weights are compared and the bytes that a rank sends are counted. "14 minutes"
is a division, and a table of what spoils it. The mixed-precision iteration is read off a real step: which tensor has
which type, and how many updates get lost where no float32 master copy catches them.
Source: S1, "Distributed training"; Micikevicius et al. 2018, figure 1; Amdahl 1967.
"""

import torch
import torch.distributed as dist
from torch import nn

from refimpl.experiments.harness import Claim
from refimpl.models import corpus
from refimpl.models.llama import Llama, LlamaConfig
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama
from refimpl.parallel import launch
from refimpl.parallel.accounting import Account
from refimpl.parallel.data import DataParallel, shard_batch
from refimpl.parallel.pipeline import LlamaStage, Pipeline
from refimpl.parallel.tensor import next_token_loss, split_llama, whole_state_dict

TITLE = "many devices: one process's weights, bytes sent, 14 minutes and what spoils them, mixed precision"
CONFIG = LlamaConfig(
    layers=4,
    model=48,
    heads=4,
    kv_heads=4,
    dim=12,
    ffn=96,
    vocab=256,
    context=64,
    rope_base=1e4,
    norm_eps=1e-5,
    tied=False,
)
RANKS, STEPS, ROWS, TOKENS, MICROS = (2, 4), 5, 8, 32, 4
DAYS, GPUS, BITS16 = 10, 1024, torch.bfloat16
SERIAL = (0.0, 1e-4, 1e-3, 1e-2)  # shares of the work that every GPU does alike
LR, LAYER, MIXED_STEPS, SEEDS = 1e-4, 256, 20, (0, 1, 2)


def model() -> Llama:
    lm = toy_llama(CONFIG)
    lm.embed_tokens.weight.mul_(0.05)  # small logits at the start
    return lm.double().requires_grad_(True).train()  # AdamW turns rounding of a gradient near 0 into a step of lr


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


def batches(tokens: int) -> torch.Tensor:
    """(STEPS, ROWS, tokens + 1) bytes of prose."""
    ids = ByteTokenizer().encode(corpus("prose"))[: STEPS * ROWS * (tokens + 1)]
    return torch.tensor(ids).view(STEPS, ROWS, tokens + 1)


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


# --- equal to one process --------------------------------------------------------------------------------------------


def alone(tokens: int) -> dict:
    """The weights after STEPS steps of one process."""
    lm = model()
    optimizer = adamw(lm.parameters())
    for ids in batches(tokens):
        optimizer.zero_grad()
        loss(lm(ids[:, :-1]), ids[:, 1:]).backward()
        optimizer.step()
    return lm.state_dict()


def by_data(ids: torch.Tensor):
    lm = model()
    data, optimizer = DataParallel(lm), adamw(lm.parameters())

    def step(ids):
        mine = shard_batch(ids, dist.get_rank(), dist.get_world_size())
        optimizer.zero_grad()
        loss(lm(mine[:, :-1]), mine[:, 1:]).backward()
        data.finish()
        optimizer.step()

    return step, lm.state_dict


def by_tensor(ids: torch.Tensor):
    lm = split_llama(model())
    optimizer = adamw(lm.parameters())

    def step(ids):
        optimizer.zero_grad()
        next_token_loss(lm, ids).backward()
        optimizer.step()

    return step, lambda: whole_state_dict(lm)


def by_pipeline(ids: torch.Tensor):
    stage = LlamaStage(model(), dist.get_rank(), dist.get_world_size())
    pipeline = Pipeline(stage, loss, micros=MICROS, between=stage.between, shared=stage.shared)
    optimizer = adamw(stage.parameters())

    def step(ids):
        optimizer.zero_grad()
        pipeline.step(ids[:, :-1], ids[:, 1:])
        optimizer.step()

    return step, stage.state_dict


METHODS = {"data": by_data, "tensor": by_tensor, "pipeline": by_pipeline}


def one_rank(tokens: int) -> dict:
    """On a rank: for each method how far its weights are from one process's, and the bytes of the last step."""
    reference, found = alone(tokens), {}
    for name, method in METHODS.items():
        step, weights = method(batches(tokens)[0])
        for ids in batches(tokens):
            with Account() as account:
                step(ids)
        apart = max((weight - reference[key]).abs().max().item() for key, weight in weights().items())
        found[name] = {"apart": apart, "sent": account.total}
    return found


# --- mixed precision -------------------------------------------------------------------------------------------------


def iteration() -> list[dict]:
    """One layer's training step as S1 draws it: every tensor of it, in order, with its type and bytes."""
    torch.manual_seed(0)
    master = nn.Parameter(torch.randn(LAYER, LAYER) / LAYER**0.5)
    optimizer = torch.optim.AdamW([master], lr=LR)
    work = master.detach().to(BITS16).requires_grad_()
    x = torch.randn(ROWS, LAYER).to(BITS16).requires_grad_()
    y = x @ work.T
    d_y = torch.randn(ROWS, LAYER).to(BITS16)
    y.backward(d_y)
    master.grad = work.grad.to(master.dtype)
    optimizer.step()
    state = optimizer.state[master]
    seen = {
        "master weights": master, "weights": work, "activations in": x, "activations out": y,
        "gradient of the output": d_y, "gradient of the input": x.grad, "gradient of the weights": work.grad,
        "momentum": state["exp_avg"], "variance": state["exp_avg_sq"],
    }  # fmt: skip
    return [
        {"tensor": name, "type": str(x.dtype).removeprefix("torch."), "bytes": x.nbytes} for name, x in seen.items()
    ]


def lost_updates(seed: int) -> float:
    """Share of the weights that MIXED_STEPS AdamW steps leave as they were, where weights are kept in 16 bit alone."""
    torch.manual_seed(seed)
    start = (torch.randn(LAYER, LAYER) / LAYER**0.5).to(BITS16)
    kept, master = nn.Parameter(start.clone()), nn.Parameter(start.float())
    optimizers = [torch.optim.AdamW([p], lr=LR, weight_decay=0.0) for p in (kept, master)]
    for _ in range(MIXED_STEPS):
        gradient = torch.ones(LAYER, LAYER)  # always the same way: the steps should add up
        kept.grad, master.grad = gradient.to(BITS16), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = master.detach().to(BITS16) != start
    return ((kept.detach() == start) & moved).sum().item() / moved.sum().item()


# --- the record ------------------------------------------------------------------------------------------------------


def minutes(serial: float) -> float:
    """DAYS GPU-days on GPUS GPUs, where a share `serial` of the work is not divided."""
    return DAYS * 24 * 60 * (serial + (1 - serial) / GPUS)


def run(ranks=RANKS, start=launch) -> dict:
    """`start(fn, n, …)` runs fn on n ranks: real processes, or threads in a test."""
    counted = [
        {"ranks": n, "tokens": tokens, "methods": start(one_rank, n, tokens, backend="gloo", timeout=300)}
        for n in ranks
        for tokens in (TOKENS // 2, TOKENS)
    ]
    return {
        "weights": sum(p.numel() for p in model().parameters()), "counted": counted,
        "minutes": [{"serial": serial, "minutes": minutes(serial)} for serial in SERIAL],
        "iteration": iteration(), "lost": [lost_updates(seed) for seed in SEEDS],
    }  # fmt: skip


def _apart(result: dict, method: str) -> float:
    return max(rank[method]["apart"] for row in result["counted"] for rank in row["methods"])


def _sent(result: dict, method: str) -> list[int]:
    """Bytes of the first rank on the fewest ranks: half as many tokens, all."""
    return [row["methods"][0][method]["sent"] for row in result["counted"][:2]]


def claims(result: dict) -> list[Claim]:
    sizes = f"{result['weights']:,} weights, {STEPS} AdamW steps, ranks " + ", ".join(
        str(n) for n in sorted({row["ranks"] for row in result["counted"]})
    )
    types = {row["tensor"]: row["type"] for row in result["iteration"]}
    per_weight = {row["tensor"]: row["bytes"] / LAYER**2 for row in result["iteration"]}
    kept = ("weights", "gradient of the weights", "master weights", "momentum", "variance")
    states = [per_weight[name] for name in kept]
    slow = {row["serial"]: row["minutes"] for row in result["minutes"]}
    return [
        *(
            Claim(f"{method} parallelism trains the weights of one process: largest difference", source, 0,
                  _apart(result, method), _apart(result, method) < 1e-9, f"{sizes}; float64, gloo.")
            for method, source in (("data", "S1"), ("tensor", "S1, model parallelism"), ("pipeline", "S2"))
        ),
        Claim("10 GPU-days on 1024 GPUs take 14 minutes, ideally", "S1, distributed training", 14,
              round(slow[0.0], 2), round(slow[0.0]) == 14,
              f"If one part in 10,000 is not divided: {slow[1e-4]:.1f} minutes; in 1,000: {slow[1e-3]:.1f}; in 100: "
              f"{slow[1e-2]:.0f}. Communication that is not hidden is such a part."),
        Claim("data parallelism moves gradients, whatever the batch: bytes of twice the tokens / bytes", "S1", 1,
              _sent(result, "data")[1] / _sent(result, "data")[0], len(set(_sent(result, "data"))) == 1,
              f"{_sent(result, 'data')[1]:,} bytes from the first rank in a step."),
        Claim("a model split over devices moves activations: bytes of twice the tokens / bytes, in a pipeline", "S1", 2,
              round(_sent(result, "pipeline")[1] / _sent(result, "pipeline")[0], 3),
              _sent(result, "pipeline")[1] == 2 * _sent(result, "pipeline")[0],
              f"Tensor parallelism: {_sent(result, 'tensor')[1] / _sent(result, 'tensor')[0]:.3f}, which is "
              f"{TOKENS + 1} / {TOKENS // 2 + 1}, because there the last token goes through the model as well."),
        Claim("mixed precision, Adam: bytes per weight of weights, gradients, copy, momentum, variance", "S1, memory",
              "2 + 2 + 4 + 4 + 4", " + ".join(f"{size:g}" for size in states), states == [2, 2, 4, 4, 4],
              f"Read off a real step of one layer; activations and their gradients are {types['activations in']}."),
        Claim("16-bit weights alone lose updates, hence the float32 copy: share of weights that never move",
              "Micikevicius et al. 2018, section 3.1", "> 0", round(min(result["lost"]), 3), min(result["lost"]) > 0.5,
              f"{MIXED_STEPS} AdamW steps of {LR:g} in one direction on bfloat16 weights, of those that a float32 copy "
              f"moves; seeds {', '.join(f'{share:.3f}' for share in result['lost'])}."),
    ]  # fmt: skip
