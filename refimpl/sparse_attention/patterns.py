"""Which query looks at which key: sliding, dilated, global and random patterns, and what they are made of.

A pattern is a function of two tensors of positions, i of the query and j of the key, and answers True where i looks at
j. Positions count keys: of q_len queries over k_len keys the first stands at position k_len - q_len, as in decoding.
Patterns are joined by `either` and `both`; `dense_mask` writes one out, and `layout.block_layout` keeps its tiles only.
FlexAttention's `mask_mod(b, h, i, j)` is the same idea with two more arguments.
Source: Beltagy et al. 2020 (Longformer, section 3.1); Zaheer et al. 2020 (BigBird, section 2 and appendix D).
"""

from collections.abc import Callable, Sequence

import torch

from refimpl.shapes import Bool, Tensor

__all__ = [
    "Pattern",
    "bigbird_blocks",
    "both",
    "by_blocks",
    "causal",
    "dense_mask",
    "either",
    "global_tokens",
    "longformer",
    "random_blocks",
    "reach_of_window",
    "sliding_window",
]

Pattern = Callable[[Tensor, Tensor], Tensor]


def causal(i: Tensor, j: Tensor) -> Tensor:
    """j <= i: no key of the future."""
    return j <= i


def either(*patterns: Pattern) -> Pattern:
    """True where at least one of them is."""

    def pattern(i, j):
        found = patterns[0](i, j)
        for other in patterns[1:]:
            found = found | other(i, j)
        return found

    return pattern


def both(*patterns: Pattern) -> Pattern:
    """True where all of them are."""

    def pattern(i, j):
        found = patterns[0](i, j)
        for other in patterns[1:]:
            found = found & other(i, j)
        return found

    return pattern


def reach_of_window(window: int, *, causal: bool = False) -> tuple[int, int]:
    """(steps back, steps ahead) from a query to the farthest keys it sees, in units of the dilation.

    causal: the query and the window - 1 keys before it. Otherwise window / 2 keys on each side, and the query itself.
    """
    if window < 1 or (not causal and window % 2):
        raise ValueError(
            f"sliding window: given window={window}; causal it is at least 1, in both directions an even number: "
            "half of it stands on each side of the query"
        )
    return (window - 1, 0) if causal else (window // 2, window // 2)


def sliding_window(window: int, *, dilation: int = 1, causal: bool = False) -> Pattern:
    """The nearest keys; with dilation D every D-th of them, over a span D times as wide, for the same cost.

    Longformer, section 3.1: "given a fixed window size w, each token attends to w/2 tokens on each side".
    """
    back, ahead = reach_of_window(window, causal=causal)
    if dilation < 1:
        raise ValueError(f"sliding_window: dilation must be at least 1, given {dilation}; 1 leaves no gaps")

    def pattern(i, j):
        steps = i - j
        near = (steps <= back * dilation) & (-steps <= ahead * dilation)
        return near if dilation == 1 else near & (steps % dilation == 0)

    return pattern


def global_tokens(positions: Sequence[int], *, rows: bool = True, columns: bool = True) -> Pattern:
    """These tokens look at all tokens (rows), and all tokens look at them (columns); symmetric where both."""
    chosen = torch.tensor(list(positions), dtype=torch.long)

    def pattern(i, j):
        row = (i[..., None] == chosen.to(i.device)).any(-1) & rows
        column = (j[..., None] == chosen.to(j.device)).any(-1) & columns
        return row | column

    return pattern


def longformer(window: int, positions: Sequence[int], *, dilation: int = 1) -> Pattern:
    """Global + sliding window, the global part symmetric: N (window + 1) + 2 N g pairs for g global tokens, about."""
    return either(sliding_window(window, dilation=dilation), global_tokens(positions))


def by_blocks(keep: Bool[Tensor, "rows cols"], block: int) -> Pattern:
    """Whole blocks of `block` queries and `block` keys, as the matrix `keep` says."""

    def pattern(i, j):
        return keep.to(i.device)[(i // block).clamp(min=0), (j // block).clamp(min=0)]

    return pattern


def random_blocks(
    blocks: int, count: int, *, seed: int = 0, free: Bool[Tensor, "{blocks} {blocks}"] | None = None
) -> Bool[Tensor, "{blocks} {blocks}"]:
    """A(i, ·) = 1 for `count` keys drawn at random for each query i, among those that `free` leaves (default: all).

    With blocks of one token this is the slide's random attention. A row with fewer free places takes them all.
    """
    draw = torch.rand(blocks, blocks, generator=torch.Generator().manual_seed(seed))
    if free is not None:
        draw = draw.masked_fill(~free, -1.0)
    best = draw.topk(min(count, blocks), dim=1)
    return torch.zeros(blocks, blocks, dtype=torch.bool).scatter(1, best.indices, best.values >= 0)


def bigbird_blocks(
    blocks: int, *, window: int = 3, random: int = 3, first: int = 2, seed: int = 0, causal: bool = False
) -> Bool[Tensor, "{blocks} {blocks}"]:
    """BigBird's three parts between blocks: `window` neighbours (odd), `first` global blocks, `random` others.

    Every row and column of the first `first` blocks is full (the "internal transformer construction"). The random
    blocks of a row are drawn among those that the other two parts leave. Causal: nothing above the diagonal, and the
    window is the block itself and the (window - 1) / 2 before it.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"bigbird_blocks: window must be odd, the block itself in the middle; given {window}")
    place = torch.arange(blocks)
    i, j = place[:, None], place[None, :]
    keep = ((i - j).abs() <= window // 2) | (i < first) | (j < first)
    allowed = j <= i if causal else torch.ones_like(keep)
    return (keep & allowed) | random_blocks(blocks, random, seed=seed, free=allowed & ~keep)


def dense_mask(pattern: Pattern, q_len: int, k_len: int | None = None) -> Bool[Tensor, "{q_len} k_len"]:
    """The pattern written out, q_len x k_len booleans: for pictures, for graphs, and as the mask of an oracle."""
    k_len = q_len if k_len is None else k_len
    i = torch.arange(k_len - q_len, k_len)[:, None]
    return pattern(i, torch.arange(k_len)[None, :]).expand(q_len, k_len)
