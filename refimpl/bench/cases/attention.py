"""Attention at N = 8192 on one CPU thread: the tiled form against PyTorch's SDPA (time) and the naive form (memory)."""

import statistics

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.attention import naive_attention
from refimpl.bench.measure import in_fresh_process, interleaved, median_ratio, peak_growth
from refimpl.flash_attention.eager import flash_attention

TITLE = "tiled attention against PyTorch's SDPA (time) and the naive form (memory)"
SHAPE = {"batch": 1, "heads": 2, "seq": 8192, "dim": 64}
SLOWEST_OF_SDPA = 2.0  # the tiled form may take this many times SDPA's time
SMALLEST_SAVING = 15.0  # and must need this many times less extra memory than the naive form


def inputs(batch: int, heads: int, seq: int, dim: int) -> list[torch.Tensor]:
    """q, k, v in float32 from a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, seq, dim, generator=draw) for _ in range(3)]


def contenders(causal: bool) -> dict:
    """Name -> function of q, k, v."""
    return {
        "naive": lambda q, k, v: naive_attention(q, k, v, causal=causal),
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
        "tiled": lambda q, k, v: flash_attention(q, k, v, causal=causal),
    }


def extra_bytes(name: str, causal: bool, shape: dict) -> int:
    """Peak memory growth of one forward, to be called in a fresh process."""
    torch.set_num_threads(1)
    attend = contenders(causal)[name]
    attend(*inputs(1, 1, 32, shape["dim"]))  # libraries that load on first use are not this call's memory
    qkv = inputs(**shape)
    return peak_growth(lambda: attend(*qkv))


def run(runs: int = 5) -> list[dict]:
    """Causal and full, each contender; about a minute."""
    return [row for causal in (True, False) for row in _rows(causal, SHAPE, runs)]


def _rows(causal: bool, shape: dict, runs: int) -> list[dict]:
    qkv = inputs(**shape)
    calls = {name: lambda attend=attend: attend(*qkv) for name, attend in contenders(causal).items()}
    seconds = interleaved(calls, runs)
    memory = {n: in_fresh_process(__name__, "extra_bytes", name=n, causal=causal, shape=shape) for n in calls}
    return [
        {
            "causal": causal,
            "implementation": name,
            "seconds": round(statistics.median(seconds[name]), 4),
            "extra_mib": round(memory[name] / 2**20, 1),
            "time_over_sdpa": round(median_ratio(seconds[name], seconds["sdpa"]), 2),
            "memory_under_naive": round(memory["naive"] / max(memory[name], 1), 1),
        }
        for name in calls
    ]


def problems(rows: list[dict]) -> list[str]:
    """Where the tiled form misses its bounds, in words."""
    found = []
    for row in (r for r in rows if r["implementation"] == "tiled"):
        where = f"tiled, {'causal' if row['causal'] else 'full'}"
        if row["time_over_sdpa"] > SLOWEST_OF_SDPA:
            found.append(f"{where}: {row['time_over_sdpa']} times SDPA's time, at most {SLOWEST_OF_SDPA} allowed")
        if row["memory_under_naive"] < SMALLEST_SAVING:
            found.append(f"{where}: {row['memory_under_naive']} times less memory than naive, {SMALLEST_SAVING} asked")
    return found
