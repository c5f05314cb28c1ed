"""Row 1: matmuls of encoder and decoder blocks, counted while they run, against the numbers on the slides (S3)."""

import torch

from refimpl.experiments.harness import Claim
from refimpl.meter import Meter
from refimpl.transformer import DecoderBlock, EncoderBlock, TransformerConfig, head_by_head

TITLE = "matmuls of an encoder block and of a decoder block"
HEADS = [1, 2, 4, 8, 16]


def count(block: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Matmuls of one forward pass with every head on its own."""
    with torch.no_grad(), head_by_head(block), Meter() as meter:
        block(*inputs)
    return len(meter.matmuls)


def run() -> dict:
    x, z = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    counts = []
    for heads in HEADS:
        config = TransformerConfig(vocab=1, model=16, heads=heads, layers=1)
        encoder, decoder = count(EncoderBlock(config), x), count(DecoderBlock(config), x, z)
        counts.append({"heads": heads, "encoder": encoder, "decoder": decoder})
    return {"counts": counts}


def claims(result: dict) -> list[Claim]:
    return [
        _claim(result, "encoder", 5, 3, "3h + 2h + 1 + 2", "S3, Computationally", ""),
        _claim(
            result, "decoder", 10, 1, "10h + 1", "S3, Transformer Decoder Block",
            "The slide leaves out both output projections and one matmul of the feed-forward network, which its own "
            "encoder count has: 2 (3h + 2h + 1) + 2.",
        ),
    ]  # fmt: skip


def _claim(result, block, slope, constant, printed, source, note) -> Claim:
    """Printed slope * h + constant beside the line through the counts."""
    (h, n), *rest = [(row["heads"], row[block]) for row in result["counts"]]
    per_head = (rest[0][1] - n) // (rest[0][0] - h)
    fixed = n - per_head * h
    on_the_line = all(count == per_head * heads + fixed for heads, count in rest)
    measured = f"{per_head}h + {fixed}" if on_the_line else "no straight line in h"
    shows = on_the_line and (per_head, fixed) == (slope, constant)
    return Claim(f"matmuls of one {block} block with h heads", source, printed, measured, shows, note)
