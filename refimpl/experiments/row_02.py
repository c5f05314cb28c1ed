"""Row 2, the quadratic wall (S0, S3): FLOPs, largest tensor, kept activations and messages against sequence length.

Counted on a running decoder-only model, so the same on every machine; `cost_model` must give the same integers.
"""

from itertools import pairwise

import torch

from refimpl.cost_model import ModelShape, forward, message_bytes, score_elements, total
from refimpl.experiments.harness import Claim
from refimpl.meter import Meter, saved_for_backward
from refimpl.transformer import DecoderOnly, TransformerConfig

TITLE = "what doubling the sequence length does to compute, memory and messages"
SHAPE = ModelShape(layers=2, model=64, heads=4, vocab=256)
BATCH, LENGTHS = 1, [128, 256, 512, 1024, 2048]


def measure(tokens: int) -> dict:
    """One forward pass: counted FLOPs, bytes of the largest tensor, bytes kept for the backward, one message."""
    model = DecoderOnly(TransformerConfig(SHAPE.vocab, SHAPE.model, SHAPE.heads, SHAPE.layers))
    ids = torch.zeros(BATCH, tokens, dtype=torch.long)
    with Meter() as meter, saved_for_backward(*model.parameters()) as saved:
        model(ids)
    return {
        "tokens": tokens,
        "flops": meter.flops,
        "attention_flops": sum(m.flops for m in meter.matmuls if m.batch == BATCH * SHAPE.heads),
        "largest_bytes": meter.largest_bytes,
        "saved_bytes": saved.bytes,
        "message_bytes": model.embedding(ids).nbytes,  # the residual stream, as one pipeline stage sends it
        "flops_formula": total(forward(SHAPE, batch=BATCH, tokens=tokens)).flops,
        "score_bytes_formula": 4 * score_elements(SHAPE, batch=BATCH, tokens=tokens),
        "message_bytes_formula": message_bytes(SHAPE, batch=BATCH, tokens=tokens, itemsize=4)["pipeline"],
    }


def run() -> dict:
    return {"lengths": [measure(n) for n in LENGTHS]}


def growth(result: dict, name: str) -> list[float]:
    """Factor of each doubling."""
    values = [row[name] for row in result["lengths"]]
    return [after / before for before, after in pairwise(values)]


def claims(result: dict) -> list[Claim]:
    rows = result["lengths"]
    pairs = {"flops": "flops_formula", "largest_bytes": "score_bytes_formula", "message_bytes": "message_bytes_formula"}
    exact = all(row[name] == row[formula] for row in rows for name, formula in pairs.items())
    attention, share = growth(result, "attention_flops"), rows[0]["attention_flops"] / rows[0]["flops"]
    return [
        Claim("quadratic memory: factor per doubling of the largest tensor", "S0; S3, Main Bottleneck", 4,
              _range(growth(result, "largest_bytes")), set(growth(result, "largest_bytes")) == {4.0},
              "The score matrix h B N², one layer at a time. Of all that is kept for the backward pass: "
              f"{_range(growth(result, 'saved_bytes'))}."),
        Claim("quadratic compute: factor per doubling of attention's FLOPs", "S0; S3, Main Bottleneck", 4,
              _range(attention), set(attention) == {4.0},
              f"Of the whole model's: {_range(growth(result, 'flops'))}. Projections and feed-forward grow linearly "
              f"and weigh more until N passes 6 d; at N = {rows[0]['tokens']} attention is {100 * share:.0f} %."),
        Claim("larger messages: factor per doubling", "S0, Systems challenges", "larger",
              _range(growth(result, "message_bytes")), set(growth(result, "message_bytes")) == {2.0},
              "Linear, for activations. Gradients of data parallelism do not grow at all."),
        Claim("formulas of the cost model equal the counts", "cost_model", "exact",
              "exact" if exact else "different", exact, "FLOPs, largest tensor and message, every length."),
    ]  # fmt: skip


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.2f} to {high:.2f}"
