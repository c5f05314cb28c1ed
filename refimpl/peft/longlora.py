"""LongLoRA's shifted sparse attention: attention within groups, half of the heads with their groups moved by half.

    head h < heads // 2    keys of the query's group              [0, G)  [G, 2G)  …
    the others             groups that start half a group later   [0, G/2)  [G/2, 3G/2)  …

Work and score matrix are O(N G) in place of O(N²). The moved heads see across the borders of the others, so that every
layer carries a token half a group further. It is for training: what was trained so is read with full attention.
Source: S1, "LongLoRA"; Chen et al. 2024, section 3.2. The paper rolls the moved heads around the end and keeps the last
tokens out of the first half group by a mask; here the half groups at both ends are groups of their own, which is equal.
"""

from collections.abc import Iterator

import torch

from refimpl.attention import attention, repeat_kv
from refimpl.kv_cache.cache import Attend
from refimpl.shapes import Bool, Float, Tensor

__all__ = ["group_mask", "grouped_attention", "shifted_sparse_attention"]


def shifted_sparse_attention(
    q: Float[Tensor, "batch heads q_len dim"], k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"], *, group: int, causal: bool = True, shift: bool = True,
    attend: Attend = attention,
) -> Float[Tensor, "batch heads q_len dim"]:  # fmt: skip
    """Grouped attention of the first half of the heads, and of the second half with groups moved by group // 2.

    About 4 seq group dim FLOPs per head, seq / group times fewer than full attention; causal masks half of either.
    shift=False leaves all groups where they are: then nothing ever crosses a border.
    """
    heads, half = q.shape[1], q.shape[1] // 2
    if not shift:
        return grouped_attention(q, k, v, group=group, causal=causal, attend=attend)
    k, v = repeat_kv(k, heads), repeat_kv(v, heads)  # the border between the halves may lie inside a kv head's group
    parts = [
        grouped_attention(q[:, h], k[:, h], v[:, h], group=group, first=first, causal=causal, attend=attend)
        for h, first in ((slice(half), group), (slice(half, heads), group // 2))
        if heads > 1 or first < group  # of one head, the first half is empty
    ]
    return torch.cat(parts, dim=1)


def grouped_attention(
    q: Float[Tensor, "batch heads q_len dim"], k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"], *, group: int, first: int | None = None, causal: bool = True,
    attend: Attend = attention,
) -> Float[Tensor, "batch heads q_len dim"]:  # fmt: skip
    """Attention within groups of `group` tokens; the first group has `first`, the last what is left.

    The full groups are rows of one batch: one call for all of them, and one for each ragged end.
    """
    if group < 2 or not 1 <= (group if first is None else first) <= group:
        raise ValueError(f"grouped_attention: group >= 2 and first in 1 … group, given group={group}, first={first}")
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            f"grouped_attention: {q.shape[2]} queries and {k.shape[2]} keys; groups are cut from one text, so this is "
            "for training. Decode with full attention"
        )
    out = []
    for start, stop, count in _pieces(q.shape[2], group, group if first is None else first):
        rows = (x[:, :, start:stop].unflatten(2, (count, -1)).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        y = attend(*rows, causal=causal)  # (batch * count, heads, tokens of a group, dim)
        out.append(y.unflatten(0, (len(q), count)).transpose(1, 2).flatten(2, 3))
    return torch.cat(out, dim=2) if out else torch.zeros_like(q)


def _pieces(seq: int, group: int, first: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, equal groups between them): a short first group, all full ones, a short last one."""
    start = first % group if first < seq else seq
    full = (seq - start) // group
    cuts = [(0, start, 1), (start, start + full * group, full), (start + full * group, seq, 1)]
    yield from (cut for cut in cuts if cut[0] < cut[1])


def group_mask(seq: int, *, group: int, first: int, causal: bool = True) -> Bool[Tensor, "{seq} {seq}"]:
    """True where query i may look at key j: the same as a mask, for pictures and checks. O(seq²) on purpose."""
    number = (torch.arange(seq) - first + group) // group  # the group that each token is in
    same = number[:, None] == number[None, :]
    return same.tril() if causal else same
