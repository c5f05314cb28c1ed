"""Counts that no formula went into: a block is run, and what it did is read off.

Modules of the reference come as arguments (`transformer`, `meter`), because nothing under course/ imports them.
"""

from collections import Counter
from itertools import pairwise
from typing import Any

import torch

BLOCKS = {"encoder": "EncoderBlock", "decoder": "DecoderBlock"}


def made(transformer: Any, kind: str, heads: int, model: int = 48) -> Any:
    """One block of the reference."""
    torch.manual_seed(0)
    config = transformer.TransformerConfig(vocab=1, model=model, heads=heads, layers=1)
    return getattr(transformer, BLOCKS[kind])(config)


def run(block: Any, kind: str, tokens: int, model: int, batch: int = 1, grad: bool = False) -> None:
    """One forward pass."""
    x = torch.zeros(batch, tokens, model, requires_grad=grad)
    block(x, torch.zeros(batch, tokens, model)) if kind == "decoder" else block(x)


def matmuls(transformer: Any, meter: Any, kind: str, heads: int, tokens: int = 6, model: int = 48) -> list[Any]:
    """The matmuls of one running block with every head on its own, as the slide counts them."""
    block = made(transformer, kind, heads, model)
    with torch.no_grad(), transformer.head_by_head(block), meter.Meter() as counter:
        run(block, kind, tokens, model)
    return list(counter.matmuls)


def line_in_heads(transformer: Any, meter: Any, kind: str) -> tuple[int, int]:
    """(a, b): a block with h heads does a h + b matmuls, found from runs with 1, 2, 3, 4 and 6 heads."""
    counts = {h: len(matmuls(transformer, meter, kind, h)) for h in (1, 2, 3, 4, 6)}
    slope = counts[2] - counts[1]
    if any(count != counts[1] + slope * (h - 1) for h, count in counts.items()):
        raise ValueError(f"matmuls of {kind} blocks are not linear in the heads: {counts}")
    return slope, counts[1] - slope


def roles(transformer: Any, meter: Any, kind: str, heads: int) -> dict[str, int]:
    """The same matmuls by what they are for, told apart by shape (tokens 6, width 48, hidden 192)."""
    tokens, model, hidden = 6, 48, 192
    dim = model // heads
    names = {
        (tokens, model, dim): "projections",
        (tokens, dim, tokens): "attention",
        (tokens, tokens, dim): "attention",
        (tokens, model, model): "output",
        (tokens, model, hidden): "ffn",
        (tokens, hidden, model): "ffn",
    }
    seen = matmuls(transformer, meter, kind, heads, tokens, model)
    return dict(Counter(names[m.rows, m.inner, m.cols] for m in seen))


def shape_count(transformer: Any, meter: Any, rows: str, inner: str, cols: str, heads: int = 4) -> int:
    """How many matmuls of an encoder block multiply (rows, inner) by (inner, cols), in the slide's letters."""
    sizes = {"l": 6, "d_m": 48, "d_k": 48 // heads, "d_v": 48 // heads, "d_ff": 192}
    wanted = (sizes[rows], sizes[inner], sizes[cols])
    return sum((m.rows, m.inner, m.cols) == wanted for m in matmuls(transformer, meter, "encoder", heads))


def flops(transformer: Any, meter: Any, tokens: int, model: int, part: str = "scores") -> int:
    """FLOPs of one block's two attention products (`scores`) or of all its matmuls (`all`)."""
    dim = model // 4
    seen = matmuls(transformer, meter, "encoder", 4, tokens, model)
    return sum(m.flops for m in seen if part == "all" or (m.rows, m.inner, m.cols) in
               {(tokens, dim, tokens), (tokens, tokens, dim)})  # fmt: skip


def largest_elements(transformer: Any, meter: Any, tokens: int, model: int = 16, heads: int = 4) -> int:
    """Elements of the largest tensor that a forward pass of one block makes."""
    block = made(transformer, "encoder", heads, model)
    with torch.no_grad(), meter.Meter() as counter:
        run(block, "encoder", tokens, model)
    return int(counter.largest_bytes // 4)


def alive_elements(transformer: Any, meter: Any, tokens: int, model: int = 16, heads: int = 4) -> int:
    """Most elements alive at once in a forward pass that keeps nothing for a backward."""
    block = made(transformer, "encoder", heads, model)
    with torch.no_grad(), meter.Meter() as counter:
        run(block, "encoder", tokens, model)
    return int(counter.peak_bytes // 4)


def saved(transformer: Any, meter: Any, tokens: int, model: int = 16, heads: int = 4, batch: int = 1) -> int:
    """Elements that autograd keeps of one block for the backward pass."""
    block = made(transformer, "encoder", heads, model)
    with meter.saved_for_backward(*block.parameters()) as kept:
        run(block, "encoder", tokens, model, batch, grad=True)
    return int(kept.elements)


def saved_law(transformer: Any, meter: Any, model: int, heads: int) -> tuple[int, int]:
    """(a, b): autograd keeps a N + b N² elements per block and sequence, solved from runs at N = 8, 16 and 32."""
    kept = {n: saved(transformer, meter, n, model, heads) for n in (8, 16, 32)}
    square = (kept[16] - 2 * kept[8]) // (16 * 16 - 2 * 8 * 8)
    linear = (kept[8] - square * 64) // 8
    if any(count != linear * n + square * n * n for n, count in kept.items()):
        raise ValueError(f"what autograd keeps is not a N + b N²: {kept}")
    return linear, square


def saved_at(transformer: Any, meter: Any, shape: Any, batch: int, tokens: int) -> int:
    """Elements kept for a whole model: the law's terms a = p d + q and b = r heads, solved from small blocks."""
    (a1, b1), (a2, b2) = saved_law(transformer, meter, 8, 2), saved_law(transformer, meter, 16, 4)
    per_width, per_head = (a2 - a1) // 8, (b2 - b1) // 2
    constant = a1 - 8 * per_width
    per_sequence = (per_width * shape.model + constant) * tokens + per_head * shape.heads * tokens * tokens
    return int(per_sequence * batch * shape.layers)


def parameter_elements(transformer: Any, heads: int = 4, model: int = 16) -> dict[str, int]:
    """Elements of one block's weight matrices: projections, output, feed-forward."""
    sizes = {name: weight.numel() for name, weight in made(transformer, "encoder", heads, model).named_parameters()}
    return {
        "projections": sum(sizes[f"attention.w_{x}"] for x in "qkv"),
        "output": sizes["attention.w_o"],
        "ffn": sizes["ffn.w_1"] + sizes["ffn.w_2"],
    }


def attention_flops(meter: Any, attend: Any, backward: bool = False, n: int = 64, dim: int = 8) -> int:
    """Matmul FLOPs of one attention over n tokens, counted while it runs, and of its backward where asked."""
    q, k, v = (torch.ones(1, 1, n, dim, requires_grad=backward) for _ in range(3))
    with meter.Meter() as counter:
        out = attend(q, k, v)
        if backward:
            out.sum().backward()
    return int(counter.flops)


def improving_steps(runs: list[dict[str, Any]]) -> tuple[int, int]:
    """(steps that lower the loss, steps): one size up at equal data, or twice the data at equal size."""
    sizes, amounts = (sorted({run[name] for run in runs}) for name in ("parameters", "tokens"))
    loss = {(run["parameters"], run["tokens"]): run["loss"] for run in runs}
    steps = [((a, d), (b, d)) for d in amounts for a, b in pairwise(sizes)]
    steps += [((n, a), (n, b)) for n in sizes for a, b in pairwise(amounts)]
    return sum(loss[more] < loss[less] for less, more in steps), len(steps)
