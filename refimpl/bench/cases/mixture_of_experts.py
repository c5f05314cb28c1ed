"""Experts in plain PyTorch against the same layer on PyTorch's own grouped matrix product, and against all experts."""

import statistics

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.mixture_of_experts.eager import dense_experts, expert_flops, grouped_experts
from refimpl.mixture_of_experts.routing import top_k_routing

TITLE = "eager mixture of experts against PyTorch's grouped matrix product, float32"
TOKENS, EXPERTS, MODEL, HIDDEN, CHOICES = 1024, 8, 256, 512, 2
SLOWEST = 1.5  # times the layer on PyTorch's grouped product


def library_matmul(rows: torch.Tensor, w: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return F.grouped_mm(rows, w, offs=counts.cumsum(0).to(torch.int32))


def layers() -> dict:
    """Name -> a call of the whole layer, routing given."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, MODEL, generator=g)
    routing = top_k_routing(torch.randn(TOKENS, EXPERTS, generator=g), CHOICES)
    w_1 = torch.randn(EXPERTS, MODEL, HIDDEN, generator=g) / MODEL**0.5
    w_2 = torch.randn(EXPERTS, HIDDEN, MODEL, generator=g) / HIDDEN**0.5
    ways = {
        "eager": lambda: grouped_experts(x, routing, w_1, w_2),
        "all experts": lambda: dense_experts(x, routing, w_1, w_2),
    }
    if hasattr(F, "grouped_mm"):
        ways["torch grouped_mm"] = lambda: grouped_experts(x, routing, w_1, w_2, matmul=library_matmul)
    return ways


def run(runs: int) -> list[dict]:
    seconds = interleaved(layers(), runs)
    flops = expert_flops(TOKENS, choices=CHOICES, model=MODEL, hidden=HIDDEN)
    rows = []
    for name, times in seconds.items():
        row = {"implementation": name, "seconds": round(statistics.median(times), 5)}
        row["flops"] = flops * EXPERTS // CHOICES if name == "all experts" else flops
        if "torch grouped_mm" in seconds:
            row["time_over_grouped_mm"] = round(median_ratio(times, seconds["torch grouped_mm"]), 2)
        rows.append(row)
    if "torch grouped_mm" not in seconds:
        rows.append({"implementation": "torch grouped_mm", "unavailable": f"not in torch {torch.__version__}"})
    return rows


def problems(rows: list[dict]) -> list[str]:
    """Where the eager layer is too slow."""
    (row,) = (row for row in rows if row["implementation"] == "eager")
    ratio = row.get("time_over_grouped_mm", 0)
    return [f"eager: {ratio} times grouped_mm's time, at most {SLOWEST} allowed"] if ratio > SLOWEST else []
