"""Attention over a part of the pairs: windows, global tokens, random blocks, and the tiles that make skipping pay.

| | |
| --- | --- |
| which query looks at which key | `patterns` |
| a pattern as tiles | `layout` |
| how far and how fast information travels | `graph` |
| the computation, in plain PyTorch | `eager` |
| block-sparse attention in Triton | `kernel` |
"""

from refimpl.sparse_attention.eager import block_sparse_attention, sliding_window_attention
from refimpl.sparse_attention.graph import UNREACHABLE, mixing_time, reached, shortest_paths, spectral_gap
from refimpl.sparse_attention.layout import BlockLayout, block_layout
from refimpl.sparse_attention.patterns import (
    Pattern,
    bigbird_blocks,
    both,
    by_blocks,
    causal,
    dense_mask,
    either,
    global_tokens,
    longformer,
    random_blocks,
    reach_of_window,
    sliding_window,
)

__all__ = [
    "UNREACHABLE",
    "BlockLayout",
    "Pattern",
    "bigbird_blocks",
    "block_layout",
    "block_sparse_attention",
    "both",
    "by_blocks",
    "causal",
    "dense_mask",
    "either",
    "global_tokens",
    "longformer",
    "mixing_time",
    "random_blocks",
    "reach_of_window",
    "reached",
    "shortest_paths",
    "sliding_window",
    "sliding_window_attention",
    "spectral_gap",
]
