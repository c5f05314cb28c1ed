"""Training steps in tensor and pipeline parallelism against PyTorch's own, DTensor and torch.distributed.pipelining.

Two ranks, one process and one thread each, the same blocks, batches and AdamW on both sides, in turns. Seconds are
wall-clock from barrier to barrier; the slowest rank counts. After all rounds both sides must have the same weights.
DTensor's plan sums gradients behind each of a block's five column layers; ours once per sublayer, so it sends less.
"""

import copy
import statistics

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.bench.cases.parallel_ring import together
from refimpl.bench.measure import interleaved, median_ratio
from refimpl.models.llama import LlamaConfig
from refimpl.models.toy import toy_llama
from refimpl.parallel import tensor
from refimpl.parallel.accounting import Account
from refimpl.parallel.launch import launch
from refimpl.parallel.pipeline import Pipeline, gpipe, one_f_one_b
from refimpl.parallel.ring import spans

TITLE = "training steps: tensor and pipeline parallelism against DTensor and torch.distributed.pipelining"
SHAPE = {"layers": 4, "model": 256, "rows": 8, "seq": 64, "micros": 4}
RANKS = 2
MOST_TIME, MOST_DIFFERENCE = 1.5, 1e-5
SIDES = ("ours", "theirs")
PEERS = {"tensor": "DTensor", "gpipe": "ScheduleGPipe", "1f1b": "Schedule1F1B"}


class Stack(nn.Module):
    """Blocks of a Llama, from residual stream to residual stream."""

    def __init__(self, layers: int, model: int):
        super().__init__()
        config = LlamaConfig(
            layers=layers, model=model, heads=8, kv_heads=4, dim=model // 8, ffn=2 * model, vocab=8, context=1024,
            rope_base=1e4, norm_eps=1e-5,
        )  # fmt: skip
        self.layers = toy_llama(config).requires_grad_(True).layers

    def forward(self, x):
        positions = torch.arange(x.shape[1])
        for block in self.layers:
            x = block(x, positions)
        return x


def part(stack: Stack, rank: int, ranks: int) -> Stack:
    """The blocks of one stage."""
    stage = copy.deepcopy(stack)
    mine = spans(len(stack.layers), ranks)[rank]
    stage.layers = stage.layers[mine.start : mine.stop]
    return stage


# --- the two sides ---------------------------------------------------------------------------------------------------


def split(stack: Stack) -> Stack:
    """Ours."""
    for block in stack.layers:
        tensor.split_block(block)
    return stack


def split_by_dtensor(stack: Stack) -> Stack:
    """PyTorch's, with the plan of its tutorial: the same cuts, through tensors that know where they are."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in stack.layers:
        block.self_attn.heads //= mesh.size()
        block.self_attn.kv_heads //= mesh.size()
    columns = [f"self_attn.{name}_proj" for name in "qkv"] + ["mlp.gate_proj", "mlp.up_proj"]
    plan = {f"layers.*.{name}": ColwiseParallel() for name in columns}
    plan |= {f"layers.*.{name}": RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    return parallelize_module(stack, mesh, plan)


def pipeline_step(stage: Stack, schedule, micros: int):
    """Ours: call it with (x, target)."""
    return Pipeline(stage, F.mse_loss, micros=micros, schedule=schedule).step


def torch_pipeline_step(stage: Stack, schedule, micros: int):
    """PyTorch's, behind the same call."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    runner = schedule(PipelineStage(stage, rank, ranks, torch.device("cpu")), n_microbatches=micros, loss_fn=F.mse_loss)

    def step(x, target):
        runner.step(*[x] * (rank == 0), **({"target": target, "losses": []} if rank == ranks - 1 else {}))

    return step


def backward_step(stack: Stack):
    return lambda x, target: F.mse_loss(stack(x), target).backward()


def pairs(stack: Stack, micros: int) -> dict:
    """name -> (our modules, our step, the peer's modules, the peer's step)."""
    ours, theirs = split(copy.deepcopy(stack)), split_by_dtensor(copy.deepcopy(stack))
    found = {"tensor": (ours, backward_step(ours), theirs, backward_step(theirs))}
    for name, mine, peer in (("gpipe", gpipe, ScheduleGPipe), ("1f1b", one_f_one_b, Schedule1F1B)):
        a, b = (part(stack, dist.get_rank(), dist.get_world_size()) for _ in range(2))
        found[name] = a, pipeline_step(a, mine, micros), b, torch_pipeline_step(b, peer, micros)
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


def rounds(runs: int, layers: int, model: int, rows: int, seq: int, micros: int) -> dict:
    """On a rank: name -> seconds of our steps, of the peer's steps, and how far the weights are apart in the end."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, rows, seq, model, generator=draw)
    found = {}
    for name, (ours, our_step, theirs, their_step) in pairs(Stack(layers, model), micros).items():
        calls = {"ours": training(ours, our_step, x, target), "theirs": training(theirs, their_step, x, target)}
        seconds = interleaved(calls, runs, clock=together)
        sent = {side: counted(call) for side, call in calls.items()}
        found[name] = {"seconds": seconds, "sent": sent, "difference": apart(ours, theirs)}
    return found


def training(module: nn.Module, step, x, target):
    """One whole step: gradients and AdamW."""
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=1e-4
    )  # larger steps enlarge what rounding did to Adam's ratios

    def call():
        optimizer.zero_grad()
        step(x, target)
        optimizer.step()

    return call


def counted(call) -> int:
    """Bytes that this rank sends in one more step."""
    with Account() as account:
        call()
    return account.total


def apart(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest difference of any weight."""
    mine = tensor.whole_state_dict(ours)
    peers = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in theirs.named_parameters()}
    return max(float((mine[name] - peers[name]).detach().abs().max()) for name in peers)


def run(runs: int = 5, shape: dict = SHAPE, start=launch) -> list[dict]:
    """A row per method; about half a minute. `start` runs a function on ranks, as `launch` does."""
    found = start(rounds, RANKS, runs, **shape, backend="gloo", timeout=600)
    return [row(name, [rank[name] for rank in found]) for name in PEERS]


def row(name: str, ranks: list[dict]) -> dict:
    ours, theirs = ([max(each) for each in zip(*(r["seconds"][side] for r in ranks), strict=True)] for side in SIDES)
    return {
        "case": f"{name}, {len(ranks)} ranks",
        "peer": PEERS[name],
        "seconds": round(statistics.median(ours), 4),
        "peer_seconds": round(statistics.median(theirs), 4),
        "time_over_peer": round(median_ratio(ours, theirs), 2),
        "bytes_sent": max(r["sent"]["ours"] for r in ranks),
        "peer_bytes_sent": max(r["sent"]["theirs"] for r in ranks),
        "largest_difference": max(r["difference"] for r in ranks),
    }


def problems(rows: list[dict]) -> list[str]:
    """Steps that take too long, or that end with other weights, in words."""
    found = []
    for each in rows:
        if each["time_over_peer"] > MOST_TIME:
            found.append(
                f"{each['case']}: {each['time_over_peer']} times {each['peer']}'s time, {MOST_TIME} at most allowed"
            )
        if not each["largest_difference"] <= MOST_DIFFERENCE:
            found.append(f"{each['case']}: weights are {each['largest_difference']:.2g} from {each['peer']}'s")
    return found
