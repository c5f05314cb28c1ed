"""Causal ring attention, forward and backward: what the layout is worth in time, and why.

Two ranks, one process and one thread each. The contiguous ring lets rank 1 compute three quarters of the mask; with
zigzag each has half, so the best that two ranks can gain is 1.5x. Wall-clock time between two barriers: the slowest
rank is what everybody waits for; beside it the CPU time of the busiest rank, which a loaded machine stretches less. The
work of larger rings is counted, from the very tiles that the code runs.
"""

import statistics
import time

import torch
import torch.distributed as dist

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.parallel.launch import launch
from refimpl.parallel.ring import LAYOUTS, positions, ring_attention, work

TITLE = "causal ring attention: contiguous, striped and zigzag layouts, forward and backward"
SHAPE = {"seq": 4096, "heads": 4, "dim": 64}
RANKS = 2
LEAST_GAIN = 1.2  # zigzag over contiguous at two ranks
COUNTED = (4, 8)
COUNTED_SEQ = 2**17


def run(runs: int = 5) -> list[dict]:
    """Timed at two ranks, counted at four and eight; about half a minute."""
    seconds = launch(rounds, RANKS, runs, **SHAPE, backend="gloo", timeout=600)
    return [*timed(seconds, **SHAPE), *(counted(ranks, layout) for ranks in COUNTED for layout in LAYOUTS)]


def rounds(runs: int, seq: int, heads: int, dim: int) -> dict[str, dict[str, list[float]]]:
    """On a rank: for every layout, per round, seconds from barrier to barrier and CPU seconds of this thread."""
    torch.set_num_threads(1)
    busy = {layout: [] for layout in LAYOUTS}
    calls = {layout: step(seq, heads, dim, layout, busy[layout]) for layout in LAYOUTS}
    return {"wall": interleaved(calls, runs, clock=together), "cpu": {name: busy[name][1:] for name in busy}}


def together() -> float:
    """The time once everybody is here."""
    dist.barrier()
    return time.perf_counter()


def step(seq: int, heads: int, dim: int, layout: str, busy: list[float]):
    """One forward and backward pass of this rank; its CPU seconds go into `busy`."""
    at = positions(seq, dist.get_world_size(), dist.get_rank(), layout)
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, seq, dim, generator=draw)[:, :, at].requires_grad_() for _ in range(3))

    def call():
        start = time.thread_time()
        ring_attention(q, k, v, seq=seq, causal=True, layout=layout).sum().backward()
        busy.append(time.thread_time() - start)

    return call


def timed(seconds: list[dict], seq: int, heads: int, dim: int) -> list[dict]:
    """A row per layout: the slowest rank, by both clocks, and the median over rounds of contiguous / this layout."""
    ranks = len(seconds)
    wall, cpu = (
        {layout: [max(each) for each in zip(*(s[clock][layout] for s in seconds), strict=True)] for layout in LAYOUTS}
        for clock in ("wall", "cpu")
    )
    return [
        {
            "case": f"{ranks} ranks, {seq} tokens",
            "layout": layout,
            "peer": "contiguous",
            "seconds": round(statistics.median(wall[layout]), 4),
            "speed_over_peer": round(median_ratio(wall["contiguous"], wall[layout]), 2),
            "busiest_cpu_seconds": round(statistics.median(cpu[layout]), 4),
            "cpu_over_peer": round(median_ratio(cpu["contiguous"], cpu[layout]), 2),
            "flops": 14 * heads * dim * sum(map(sum, work(seq, ranks, layout))),
            "max_over_mean_work": balance(seq, ranks, layout),
        }
        for layout in LAYOUTS
    ]


def counted(ranks: int, layout: str) -> dict:
    """The largest share of causal work over the mean: what speed the layout leaves."""
    case = f"{ranks} ranks, {COUNTED_SEQ} tokens"
    return {"case": case, "layout": layout, "max_over_mean_work": balance(COUNTED_SEQ, ranks, layout)}


def balance(seq: int, ranks: int, layout: str) -> float:
    each = [sum(steps) for steps in work(seq, ranks, layout)]
    return round(max(each) * ranks / sum(each), 4)


def problems(rows: list[dict]) -> list[str]:
    """Zigzag too slow, or unequal, in words."""
    found = []
    for row in (r for r in rows if r["layout"] == "zigzag"):
        if row.get("speed_over_peer", LEAST_GAIN) < LEAST_GAIN:
            found.append(f"zigzag is {row['speed_over_peer']} times as fast as contiguous, {LEAST_GAIN} asked")
        if row["max_over_mean_work"] != 1:
            found.append(f"zigzag, {row['case']}: largest over mean work is {row['max_over_mean_work']}, 1 asked")
    return found
