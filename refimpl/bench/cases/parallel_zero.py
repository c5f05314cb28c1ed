"""A training step of data parallelism and ZeRO on two gloo processes, against DDP, the sharded optimizer and FSDP2.

Both sides train the same residual network on the same batches, a barrier before each step, in turns within one start of
the processes, so that what disturbs one disturbs the other. Weights are compared after all steps: the same numbers came
out. gloo runs reduce-scatter as an all-reduce for both.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.parallel import launch
from refimpl.parallel.accounting import Account
from refimpl.parallel.data import DataParallel
from refimpl.parallel.zero import Zero

TITLE = "a training step of data parallelism and ZeRO against DDP, ZeroRedundancyOptimizer and FSDP2 (wall time)"
SHAPE = {"layers": 6, "model": 768, "batch": 64}
RANKS = 2
# ours -> its peer, and how many times the peer's time it may take
PAIRS = {
    "data": ("DDP", 1.5),
    "ZeRO-1": ("ZeroRedundancyOptimizer", 1.5),
    "ZeRO-2": ("ZeroRedundancyOptimizer", 1.5),  # PyTorch has no stage 2 alone; its stage 1 sends the same volume
    "ZeRO-3": ("FSDP2", 1.3),
}
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


class Residual(nn.Module):
    """x + GELU(W x + b)."""

    def __init__(self, model: int):
        super().__init__()
        self.linear = nn.Linear(model, model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.gelu(self.linear(x))


def network(layers: int, model: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Residual(model) for _ in range(layers)))


Contender = tuple[Callable[[torch.Tensor], None], Callable[[], dict]]  # a step; the weights by name


def _data(net: nn.Module) -> Contender:
    data, optimizer = DataParallel(net), ADAMW(net.parameters())

    def step(x):
        net(x).square().mean().backward()
        data.finish()
        optimizer.step()
        optimizer.zero_grad()

    return step, net.state_dict


def _zero(net: nn.Module, stage: int) -> Contender:
    zero = Zero(net, ADAMW, stage=stage, units=net)

    def step(x):
        net(x).square().mean().backward()
        zero.step()

    return step, zero.state_dict


def _ddp(net: nn.Module, *, sharded: bool) -> Contender:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = nn.parallel.DistributedDataParallel(net)
    optimizer = (
        ZeroRedundancyOptimizer(net.parameters(), torch.optim.AdamW, lr=1e-3) if sharded else ADAMW(net.parameters())
    )
    return _plain_step(model, optimizer), net.state_dict


def _fsdp2(net: nn.Module) -> Contender:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))  # given: on a machine with a GPU it would move there
    for module in (*net, net):
        fully_shard(module, mesh=mesh)
    return _plain_step(net, ADAMW(net.parameters())), lambda: {n: p.full_tensor() for n, p in net.named_parameters()}


def _plain_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[torch.Tensor], None]:
    def step(x):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


CONTENDERS = {
    "data": _data,
    "ZeRO-1": partial(_zero, stage=1),
    "ZeRO-2": partial(_zero, stage=2),
    "ZeRO-3": partial(_zero, stage=3),
    "DDP": partial(_ddp, sharded=False),
    "ZeroRedundancyOptimizer": partial(_ddp, sharded=True),
    "FSDP2": _fsdp2,
}


def measure(layers: int, model: int, batch: int, runs: int) -> dict:
    """On each rank: name -> seconds of each round, bytes sent by one step, difference of the weights to DDP's."""
    x = torch.randn(batch, model, generator=torch.Generator().manual_seed(dist.get_rank()))
    made = {name: make(network(layers, model)) for name, make in CONTENDERS.items()}

    def together(step):
        dist.barrier()
        step(x)

    calls = {name: partial(together, step) for name, (step, _) in made.items()}
    seconds = interleaved(calls, runs, clock=time.perf_counter)
    sent = {}
    for name, (step, _) in made.items():
        with Account() as account:
            step(x)
        sent[name] = account.total
    weights = {name: state() for name, (_, state) in made.items()}
    reference = weights["DDP"]
    apart = {
        name: max((state[key].detach() - reference[key]).abs().max().item() for key in reference)
        for name, state in weights.items()
    }
    return {"seconds": seconds, "sent": sent, "apart": apart}


def run(runs: int = 5, shape: dict | None = None) -> list[dict]:
    """One row per pair; under a minute."""
    first, *_ = launch(measure, RANKS, **(shape or SHAPE), runs=runs, backend="gloo", timeout=600)
    return [_row(first, ours, peer) for ours, (peer, _) in PAIRS.items()]


def _row(found: dict, ours: str, peer: str) -> dict:
    seconds = found["seconds"]
    return {
        "case": ours,
        "peer": peer,
        "seconds": round(statistics.median(seconds[ours]), 4),
        "peer_seconds": round(statistics.median(seconds[peer]), 4),
        "time_over_peer": round(median_ratio(seconds[ours], seconds[peer]), 2),
        "bytes": found["sent"][ours],
        "peer_bytes": found["sent"][peer],
        "weights_apart": max(found["apart"][ours], found["apart"][peer]),
    }


def problems(rows: list[dict]) -> list[str]:
    """Pairs that are too slow, or that did not compute the same, in words."""
    found = []
    for row in rows:
        limit = PAIRS[row["case"]][1]
        if row["time_over_peer"] > limit:
            found.append(f"{row['case']}: {row['time_over_peer']} times {row['peer']}'s time, at most {limit} allowed")
        if row["weights_apart"] > 1e-5:
            found.append(f"{row['case']}: its weights or {row['peer']}'s are {row['weights_apart']:.1e} from DDP's")
    return found
