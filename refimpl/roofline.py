"""How fast this machine can be, measured: peak FLOP/s, peak bytes/s, and the roof they put over every operation.

attainable FLOP/s = min(peak FLOP/s, intensity * peak bytes/s): left of the ridge memory decides, right of it
arithmetic. Nothing about this machine is typed in; the one datasheet here says that it is one.
Source: Williams, Waterman & Patterson 2009.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from refimpl.cost_model import Cost

__all__ = ["A100_DATASHEET", "Machine", "Measured", "best_seconds", "measure_machine", "measure_work"]


@dataclass(frozen=True)
class Machine:
    """Two peaks, and where they come from."""

    name: str
    flop_per_s: float
    bytes_per_s: float
    dtype: str
    threads: int | None = None  # CPU threads; None on a GPU or from a datasheet

    @property
    def ridge(self) -> float:
        """FLOP per byte from which on arithmetic is the limit."""
        return self.flop_per_s / self.bytes_per_s

    def attainable(self, intensity: float) -> float:
        """FLOP/s under the roof at this many FLOP per byte."""
        return min(self.flop_per_s, intensity * self.bytes_per_s)

    def seconds(self, cost: Cost) -> float:
        """The least time this work can take: arithmetic and memory overlap, so the longer of the two."""
        return max(cost.flops / self.flop_per_s, cost.bytes / self.bytes_per_s)

    def limit(self, cost: Cost) -> str:
        """ "compute" or "memory": which of the two takes longer."""
        return "compute" if cost.intensity >= self.ridge else "memory"


# NVIDIA A100 80GB SXM datasheet, 2021: dense 16-bit tensor cores, HBM2e.
A100_DATASHEET = Machine("A100 80GB SXM (datasheet)", 312e12, 2.039e12, "float16")


@dataclass(frozen=True)
class Measured:
    """One operation on one machine: what it must cost, and how long it took."""

    cost: Cost
    seconds: float

    @property
    def flop_per_s(self) -> float:
        return self.cost.flops / self.seconds

    def share_of_roof(self, machine: Machine) -> float:
        """1 = as fast as the roof allows. Above 1 where data stays in cache, which the roof of main memory ignores."""
        return machine.seconds(self.cost) / self.seconds


def measure_machine(
    dtype: torch.dtype = torch.float32, *, device: str = "cpu", seconds: float = 1.0, copy_bytes: int = 2**28
) -> Machine:
    """Peak FLOP/s from square matmuls, peak bytes/s from a copy far larger than any cache; the best of many, each.

    seconds: time spent on each of the two. copy_bytes: size of the array that is copied, 256 MiB by default; a copy
    moves it twice, once in and once out.
    """
    flops = max(_matmul_rate(n, dtype, device, seconds / 3) for n in (512, 1024, 2048))
    source = torch.ones(copy_bytes // 4, dtype=torch.float32, device=device)
    target = torch.ones_like(source)  # written once before: fresh pages would be measured instead of memory
    bandwidth = 2 * copy_bytes / best_seconds(lambda: target.copy_(source), device=device, budget=seconds)
    on_cpu = torch.device(device).type == "cpu"
    name = "this CPU" if on_cpu else torch.cuda.get_device_name(device)
    threads = torch.get_num_threads() if on_cpu else None
    return Machine(name, flops, bandwidth, str(dtype).removeprefix("torch."), threads)


def _matmul_rate(n: int, dtype: torch.dtype, device: str, seconds: float) -> float:
    a = torch.rand(n, n, device=device).to(dtype)
    return 2 * n**3 / best_seconds(lambda: a @ a, device=device, budget=seconds)


def measure_work(call: Callable[[], object], cost: Cost, *, device: str = "cpu", budget: float = 0.3) -> Measured:
    """Time `call`, whose work is `cost`: one dot under the roof."""
    return Measured(cost, best_seconds(call, device=device, budget=budget))


def best_seconds(call: Callable[[], object], *, device: str = "cpu", budget: float = 0.3) -> float:
    """Shortest wall time of one call, over at least three and until `budget` seconds are spent.

    The shortest, because a peak is asked for and everything else on the machine can only add.
    """
    cuda = torch.device(device).type == "cuda"
    call()  # warm-up: allocations, thread pools, kernels that compile
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 3 or spent < budget:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        took = time.perf_counter() - start
        best, spent, calls = min(best, took), spent + took, calls + 1
    return best
