"""Linear attention and the selective scan against softmax attention: cost as the sequence doubles."""

import math
import statistics

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.linear_attention import linear_attention, linear_attention_flops
from refimpl.state_space import selective_scan

TITLE = "linear attention and a selective scan against PyTorch's SDPA, causal, as the sequence doubles"
LENGTHS, HEADS, DIM, STATE, CHUNK = (4096, 8192), 2, 64, 16, 64
STEEPEST = 1.3  # exponent of the length; 1 is linear, SDPA's is 2


def calls(n: int) -> dict:
    """Name -> a causal pass over n tokens."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, n, DIM, generator=g) for _ in range(3))
    dt, log_a = torch.rand(1, HEADS, n, generator=g) * 0.1, torch.zeros(HEADS)
    b, c = (torch.randn(1, HEADS, n, STATE, generator=g) for _ in range(2))
    return {
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "linear attention": lambda: linear_attention(q, k, v, chunk=CHUNK),
        "selective scan": lambda: selective_scan(v, dt, log_a, b, c, chunk=CHUNK),
    }


def flops(name: str, n: int) -> int:
    """Matmul FLOPs of all heads; SDPA skips the upper triangle."""
    per_head = {
        "sdpa": 2 * n * n * DIM,
        "linear attention": linear_attention_flops(n, DIM, form="chunked", chunk=CHUNK),
        "selective scan": 2 * n * (CHUNK * (STATE + DIM) + 2 * STATE * DIM),
    }
    return HEADS * per_head[name]


def run(runs: int) -> list[dict]:
    rows = []
    for n in LENGTHS:
        seconds = interleaved(calls(n), runs)
        rows += [
            {
                "tokens": n, "implementation": name, "seconds": round(statistics.median(times), 4),
                "time_over_sdpa": round(median_ratio(times, seconds["sdpa"]), 3), "flops": flops(name, n),
            }
            for name, times in seconds.items()
        ]  # fmt: skip
    for row in rows:
        before = next(r for r in rows if r["implementation"] == row["implementation"])
        if row is not before:
            growth = math.log(row["seconds"] / before["seconds"]) / math.log(row["tokens"] / before["tokens"])
            row["exponent"] = round(growth, 2)
    return rows


def problems(rows: list[dict]) -> list[str]:
    """Where a linear form is not linear."""
    return [
        f"{row['implementation']}: time grows as the length to the {row['exponent']}, at most {STEEPEST} allowed"
        for row in rows
        if row["implementation"] != "sdpa" and row.get("exponent", 1) > STEEPEST
    ]
