"""Row 8, the blockwise parallel transformer (S0): peak memory of one block, forward and backward, three ways.

Bytes alive at once are counted by `refimpl.meter`, so they are the same on every machine. The three ways give the same
output: the plain block, the plain block with tiled attention, and queries in blocks through attention and FFN together.
"""

from itertools import pairwise

import torch

from refimpl.blockwise import blockwise_block
from refimpl.experiments.harness import Claim
from refimpl.flash_attention.eager import flash_attention
from refimpl.meter import Meter
from refimpl.transformer import EncoderBlock, TransformerConfig

TITLE = "blockwise parallel transformer: memory of one block against its length and the number of blocks"
MODEL, HEADS, BLOCK = 128, 4, 128
LENGTHS, COUNTS, TOKENS = [512, 1024, 2048, 4096], [1, 2, 4, 8, 16, 32], 2048


def encoder_block(attend=None) -> EncoderBlock:
    torch.manual_seed(0)
    options = {} if attend is None else {"attend": attend}
    return EncoderBlock(TransformerConfig(vocab=1, model=MODEL, heads=HEADS, layers=1, **options))


def tiled(q, k, v, *, causal, mask=None):
    return flash_attention(q, k, v, causal=causal, block_q=BLOCK, block_k=BLOCK)


def measure(call, tokens: int) -> dict:
    """Peak and largest tensor of forward and backward, in bytes, and the output for comparison."""
    x = torch.randn(1, tokens, MODEL, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with Meter() as meter:
        out = call(x)
        out.sum().backward()
    return {"peak_bytes": meter.peak_bytes, "largest_bytes": meter.largest_bytes, "flops": meter.flops, "out": out}


def run() -> dict:
    plain, with_tiles = encoder_block(), encoder_block(tiled)
    ways = {
        "plain": plain,
        "tiled attention": with_tiles,
        "blockwise": lambda x: blockwise_block(plain, x, block_q=BLOCK, block_k=BLOCK),
    }
    lengths, error = [], 0.0
    for tokens in LENGTHS:
        rows = {name: measure(call, tokens) for name, call in ways.items() if name != "plain" or tokens <= TOKENS}
        outputs = [row.pop("out") for row in rows.values()]
        error = max(error, *(float((out - outputs[-1]).detach().abs().max()) for out in outputs))
        lengths.append({"tokens": tokens, **rows})
    counts = []
    for count in COUNTS:
        size = TOKENS // count
        row = measure(lambda x, size=size: blockwise_block(plain, x, block_q=size, block_k=size), TOKENS)
        counts.append({"blocks": count, "peak_bytes": row["peak_bytes"]})
    return {"lengths": lengths, "counts": counts, "largest_difference": error}


def claims(result: dict) -> list[Claim]:
    at = {row["tokens"]: row for row in result["lengths"]}
    peak = {name: at[TOKENS][name]["peak_bytes"] for name in ("plain", "tiled attention", "blockwise")}
    falls = [row["peak_bytes"] for row in result["counts"]]
    growth = [at[b]["blockwise"]["peak_bytes"] / at[a]["blockwise"]["peak_bytes"] for a, b in pairwise(LENGTHS)]
    return [
        Claim("Algorithm 1 gives the output of the unblocked block", "S0, Algorithm 1", 0.0,
              result["largest_difference"], result["largest_difference"] < 1e-5,
              "Largest difference in float32 between the three ways, over all lengths."),
        Claim("it reduces memory cost: plain peak / blockwise peak", "S0, Algorithm 1", "> 1",
              round(peak["plain"] / peak["blockwise"], 1), peak["plain"] > peak["blockwise"],
              f"One block, model {MODEL}, {TOKENS:,} tokens, blocks of {BLOCK}, forward and backward."),
        Claim("also against memory-efficient attention alone", "Liu and Abbeel 2023: 4x the length", "> 1",
              round(peak["tiled attention"] / peak["blockwise"], 1), peak["tiled attention"] > peak["blockwise"],
              "What is left then is the hidden layer of the FFN. The paper's 4x is a length that fits a whole model."),
        Claim("peak memory falls with the number of blocks", "S0, Algorithm 1", "falls",
              ", ".join(f"{row['blocks']}: {row['peak_bytes'] / 2**20:.1f} MiB" for row in result["counts"]),
              falls == sorted(falls, reverse=True), f"{TOKENS:,} tokens in 1 to {COUNTS[-1]} blocks."),
        Claim("memory grows linearly with the sequence: factor per doubling", "Liu and Abbeel 2023, section 3", 2,
              f"{min(growth):.2f} to {max(growth):.2f}", all(g < 2.1 for g in growth),
              f"{LENGTHS[0]} to {LENGTHS[-1]:,} tokens at a fixed block of {BLOCK}."),
    ]  # fmt: skip
