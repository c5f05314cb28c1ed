"""Attention of a few new queries over a cache: what decoding does for every token it makes.

One query per sequence leaves no matrix product to tile: every key and value is read once for 4 FLOPs per element, so
the time is that of reading the cache. Grouped-query attention reads it once per key/value head, for all query heads of
the group. Splitting the keys over many workers and merging their softmax states keeps a whole GPU reading.

Source: Ainslie et al. 2023 (GQA; kv_heads = 1 is MQA, Shazeer 2019); Dao et al. 2023 (Flash-Decoding).
"""

import torch

from refimpl.attention import check_qkv
from refimpl.online_softmax.eager import State, block_state, empty_state, finish, merge
from refimpl.shapes import Bool, Float, Int, Tensor

__all__ = ["cached_attention", "split_attention", "split_states"]


def cached_attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads capacity dim"],
    v: Float[Tensor, "batch kv_heads capacity dim"],
    lengths: Int[Tensor, "batch"],
    *,
    scale: float | None = None,
    return_lse: bool = False,
):
    """Causal attention of the LAST q_len of lengths[b] tokens over a buffer of `capacity` of them.

    q_len = 1 is a decoding step, q_len = lengths a whole prefill, between them a piece of one. Query i of sequence b
    sees keys j <= lengths[b] - q_len + i; what lies behind lengths[b] is never looked at. A query that sees no key
    gives 0 and lse -inf. FLOPs 4 batch heads q_len capacity dim; reads 2 batch kv_heads capacity dim elements.
    """
    return split_attention(q, k, v, lengths, splits=1, scale=scale, return_lse=return_lse)


def split_attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads capacity dim"],
    v: Float[Tensor, "batch kv_heads capacity dim"],
    lengths: Int[Tensor, "batch"],
    *,
    splits: int,
    scale: float | None = None,
    return_lse: bool = False,
):
    """`cached_attention` with the keys cut into `splits` parts: one softmax state each, merged, then divided once.

    Any number of parts gives the same result up to rounding; parts beyond the keys are empty and change nothing.
    """
    q_len = q.shape[2]
    state = empty_state((*k.shape[:2], q.shape[1] // k.shape[1] * q_len), k.shape[3], dtype=q.dtype, device=q.device)
    for part in split_states(q, k, v, lengths, splits=splits, scale=scale):
        state = merge(state, part)
    out, lse = (x.unflatten(2, (-1, q_len)).flatten(1, 2) for x in finish(state))  # back to (batch, heads, q_len, …)
    return (out, lse) if return_lse else out


def split_states(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads capacity dim"],
    v: Float[Tensor, "batch kv_heads capacity dim"],
    lengths: Int[Tensor, "batch"],
    *,
    splits: int,
    scale: float | None = None,
) -> list[State]:
    """The partial results (m, l, o) of each part of the keys; rows are (batch, kv_heads, group * q_len).

    All query heads of a group stand side by side as rows, so that their key/value head is read once for all of them.
    """
    scale = check_qkv(q, k, v, scale, where="split_attention")
    if splits < 1:
        raise ValueError(f"split_attention: splits must be at least 1, given {splits}")
    if (behind := torch.arange(k.shape[2], device=k.device) >= lengths[:, None]).any():
        v = v.masked_fill(behind[:, None, :, None], 0.0)  # a weight of 0 times NaN is NaN
    rows = (q * scale).unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # (batch, kv_heads, group * q_len, dim)
    seen = _visible(lengths, q.shape[2], k.shape[2]).repeat(1, 1, q.shape[1] // k.shape[1], 1)
    parts = zip(*(x.tensor_split(splits, axis) for x, axis in ((k, 2), (v, 2), (seen, 3))), strict=True)
    return [
        block_state((rows @ k_part.transpose(-2, -1)).masked_fill(~allowed, -torch.inf), v_part)
        for k_part, v_part, allowed in parts
        if k_part.shape[2]
    ]


def _visible(lengths: Tensor, q_len: int, capacity: int) -> Bool[Tensor, "batch 1 q_len capacity"]:
    """True where query i of a sequence may look at key j: j <= length - q_len + i."""
    last = lengths[:, None] - q_len + torch.arange(q_len, device=lengths.device)
    return (torch.arange(capacity, device=lengths.device) <= last[..., None])[:, None]
