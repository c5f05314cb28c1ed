"""Sparse attention in plain PyTorch: FlashAttention's loop over other tiles, so that what is masked is not computed.

A plan names, for each group of queries, the parts of the keys it looks at; a slice where they stand in a row (a view,
nothing is copied) or an index where they do not. Each part is one product, and online softmax joins the parts. Nothing
of size q_len x k_len exists, forward or backward: the backward recomputes a tile from lse, as FlashAttention does.
Source: Beltagy et al. 2020 (Longformer); Zaheer et al. 2020 (BigBird, appendix D); tiles: Dao 2023.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from refimpl.attention import check_qkv, naive_attention
from refimpl.flash_attention.eager import attend_
from refimpl.online_softmax.eager import nonzero, pivot
from refimpl.shapes import Bool, Float, Tensor
from refimpl.sparse_attention.layout import BlockLayout
from refimpl.sparse_attention.patterns import reach_of_window, sliding_window

__all__ = ["CHUNK", "block_sparse_attention", "sliding_window_attention", "sparse_backward", "sparse_forward"]

CHUNK = 128  # queries that share a run of keys: W + 127 keys for a window of W, so a quarter more than needed at 512

Mask_ = Callable[[Tensor], None]  # puts -inf, in place, into scores (..., queries, keys)


class Part(NamedTuple):
    """Keys that a group of queries looks at, and what to hide of them."""

    keys: slice | Tensor
    mask_: Mask_ | None = None


Plan = Sequence[tuple[slice, Sequence[Part]]]  # queries -> parts; together the queries cover 0 … q_len once


def sliding_window_attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    *,
    window: int,
    dilation: int = 1,
    causal: bool = False,
    tokens: Sequence[int] = (),
    scale: float | None = None,
    chunk: int = CHUNK,
    return_lse: bool = False,
):
    """Longformer's attention: each query looks at its window, and at the global `tokens`, which look at everything.

    causal: the query and the window - 1 keys before it; else window / 2 on each side. dilation D takes every D-th key
    of a span D times as wide. `tokens` are positions of keys; causal, nobody looks ahead, global or not.
    FLOPs 4 q_len dim (window + chunk) per head, and 8 g k_len dim for g global tokens. Extra memory O(q_len dim) for
    the output, chunk (window + chunk) scores per head, and g k_len scores.
    Left out: Longformer's second set of projections for global tokens; pass q, k, v of your choice for them.
    """
    scale = check_qkv(q, k, v, scale, where="sliding_window_attention")
    q_len, k_len = q.shape[2], k.shape[2]
    tokens = _positions(tokens, k_len)
    if chunk < 1:
        raise ValueError(f"sliding_window_attention: chunk must be at least 1, given {chunk}")
    plan = _window_plan(q_len, k_len, window, dilation, causal, tokens, chunk)
    out, lse = _SparseAttention.apply(q, k, v, plan, scale)
    asking = tokens[tokens >= k_len - q_len].to(q.device)  # global tokens that are queries here
    if len(asking):
        rows = asking - (k_len - q_len)
        allowed = torch.arange(k_len, device=q.device) <= asking[:, None] if causal else None
        whole, whole_lse = naive_attention(q[:, :, rows], k, v, mask=allowed, scale=scale, return_lse=True)
        out, lse = out.index_copy(2, rows, whole), lse.index_copy(2, rows, whole_lse.to(lse.dtype))
    return (out, lse) if return_lse else out


def block_sparse_attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    layout: BlockLayout,
    *,
    scale: float | None = None,
    return_lse: bool = False,
):
    """softmax(scale Q K^T) V over the pairs of any pattern, given as tiles; `layout.flops(dim)` FLOPs per head.

    Extra memory: the output, and one row of tiles at a time. Raises ValueError where the layout is of other lengths.
    """
    scale = check_qkv(q, k, v, scale, where="block_sparse_attention")
    out, lse = _SparseAttention.apply(q, k, v, layout_plan(layout, q, k), scale)
    return (out, lse) if return_lse else out


def _positions(tokens: Sequence[int], k_len: int) -> Tensor:
    """The global tokens, each once."""
    chosen = torch.tensor(sorted(set(tokens)), dtype=torch.long)
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < k_len:
        raise ValueError(f"sliding_window_attention: global tokens {list(tokens)} are no positions of {k_len} keys")
    return chosen


# --- plans -----------------------------------------------------------------------------------------------------------


def _window_plan(q_len, k_len, window, dilation, causal, tokens, chunk) -> Plan:
    """Chunks of queries that stand `dilation` apart: among themselves they see a plain window, so a slice of keys."""
    back, ahead = reach_of_window(window, causal=causal)
    near, shift = sliding_window(window, dilation=dilation, causal=causal), k_len - q_len
    plan = []
    for residue in range(min(dilation, q_len)):
        first = residue + shift  # the position of this class's first query; its keys stand at `start` + n dilation
        start = first % dilation
        for n in range(0, -(-(q_len - residue) // dilation), chunk):
            rows = slice(residue + n * dilation, min(q_len, residue + (n + chunk) * dilation), dilation)
            place = (first - start) // dilation + n  # of the chunk's first query among the keys of its class
            count = len(range(*rows.indices(q_len)))
            low, high = max(0, place - back), min(-(-(k_len - start) // dilation), place + count + ahead)
            keys = slice(start + low * dilation, start + max(low, high) * dilation, dilation)
            parts = [Part(keys, partial(_mask_band_, low=place - back - low, high=place + ahead - low))]
            if len(tokens):
                i = torch.arange(rows.start, rows.stop, dilation)[:, None] + shift
                hidden = near(i, tokens) | ((tokens > i) if causal else False)  # the window has those already
                parts.append(Part(tokens, partial(_hide_, hidden=hidden)))
            plan.append((rows, parts))
    return plan


def _mask_band_(S: Tensor, low: int, high: int) -> None:
    """Query r of the chunk sees keys r + low … r + high of the slice: only two triangles of the tile are masked."""
    rows, cols = S.shape[-2:]
    r = torch.arange(rows, device=S.device)[:, None]
    if (left := min(cols, rows - 1 + low)) > 0:  # columns that the last query no longer sees
        S[..., :left].masked_fill_(torch.arange(left, device=S.device) < r + low, -torch.inf)
    if (right := max(0, high + 1)) < cols:  # columns that the first query does not see yet
        S[..., right:].masked_fill_(torch.arange(right, cols, device=S.device) > r + high, -torch.inf)


def _hide_(S: Tensor, hidden: Bool[Tensor, "rows cols"]) -> None:
    S.masked_fill_(hidden.to(S.device), -torch.inf)


def layout_plan(layout: BlockLayout, q: Tensor, k: Tensor) -> Plan:
    """Each row of tiles: the keys of its whole tiles, and those of its partial ones with their masks."""
    check_lengths(layout, q, k)
    plan, inside = [], torch.arange(layout.block, device=layout.columns.device)
    for rows, whole, columns, masks in layout.rows():
        parts = []
        if len(whole):
            parts.append(Part((whole[:, None] * layout.block + inside).flatten()))
        if len(columns):
            keys = (columns[:, None] * layout.block + inside).flatten().clamp(max=layout.k_len - 1)
            hidden = ~masks[:, : rows.stop - rows.start].transpose(0, 1).flatten(1)
            parts.append(Part(keys, partial(_hide_, hidden=hidden)))
        plan.append((rows, parts))
    return plan


def check_lengths(layout: BlockLayout, q: Tensor, k: Tensor) -> None:
    """Refuse a layout that was made for other lengths."""
    if (layout.q_len, layout.k_len) != (q.shape[2], k.shape[2]):
        raise ValueError(
            f"block_sparse_attention: the layout is of {layout.q_len} queries and {layout.k_len} keys, given "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}; make one with block_layout(pattern, q_len, k_len)"
        )


# --- the loop --------------------------------------------------------------------------------------------------------


class _SparseAttention(torch.autograd.Function):
    """Saves q, k, v, out and lse: linear in length, whatever the window."""

    @staticmethod
    def forward(ctx, q, k, v, plan, scale):
        out, lse = sparse_forward(q, k, v, plan, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_lse):
        return *sparse_backward(*ctx.saved_tensors, d_out, d_lse, ctx.plan, ctx.scale), None, None


def sparse_forward(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    plan: Plan,
    scale: float,
) -> tuple[Float[Tensor, "batch heads q_len dim"], Float[Tensor, "batch heads q_len"]]:
    """Online softmax over the parts of each group of queries: out, and lse for the backward."""
    read = _Reader(q, k)
    out, lse = torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf, dtype=read.dtype)
    for rows, parts in plan:
        Q = read.rows(q, rows) * scale
        m = Q.new_full(Q.shape[:-1], -torch.inf)
        l, O = torch.zeros_like(m), torch.zeros_like(Q)
        for part in parts:
            S = read.mask(Q @ read.keys(k, part.keys).mT, part)
            m = attend_(m, l, O, S, read.keys(v, part.keys)) if S.shape[-1] else m
        read.group(out)[..., rows, :] = read.ungroup(O / nonzero(l)[..., None])
        read.group(lse[..., None])[..., rows, :] = read.ungroup((m + torch.log(l))[..., None])
    return out, lse


def sparse_backward(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    out: Float[Tensor, "batch heads q_len dim"],
    lse: Float[Tensor, "batch heads q_len"],
    d_out: Float[Tensor, "batch heads q_len dim"],
    d_lse: Float[Tensor, "batch heads q_len"],
    plan: Plan,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) by the formulas of `flash_backward`, over the plan's parts: five products per part.

    P = exp(S - lse);  dV = P^T dO;  dP = dO V^T;  dS = P * (dP - D);  dQ = scale dS K;  dK = scale dS^T Q
    """
    read = _Reader(q, k)
    D_all = (d_out.to(read.dtype) * out).sum(-1) - d_lse  # rowsum(dO * O); a gradient through lse joins it
    dQ_all, dK_all, dV_all = (torch.zeros_like(x, dtype=read.dtype) for x in (q, k, v))
    for rows, parts in plan:
        Q, dO = read.rows(q, rows) * scale, read.rows(d_out, rows)
        D, L = (read.rows(x[..., None], rows) for x in (D_all, pivot(lse)))
        dQ = torch.zeros_like(Q)
        for part in parts:
            K, V = read.keys(k, part.keys), read.keys(v, part.keys)
            P = read.mask(Q @ K.mT, part).sub_(L).exp_()
            dS = (dO @ V.mT).sub_(D).mul_(P)
            read.add_(dV_all, part.keys, P.mT @ dO)  # the group's heads are rows here, so they add up by themselves
            read.add_(dK_all, part.keys, dS.mT @ Q)
            dQ += dS @ K
        read.group(dQ_all)[..., rows, :] = read.ungroup(dQ * scale)
    return tuple(grad.to(q.dtype) for grad in (dQ_all, dK_all, dV_all))


class _Reader:
    """How tiles are read and written: the query heads that share a key head are rows of one matrix.

    (batch, heads, seq, dim) becomes (batch, kv_heads, group * rows, dim), so that one product serves the whole group
    and no key is repeated. Half precision is computed in float32.
    """

    def __init__(self, q, k):
        self.kv_heads, self.members = k.shape[1], q.shape[1] // k.shape[1]
        self.dtype = torch.promote_types(q.dtype, torch.float32)

    def group(self, x):
        """(batch, heads, seq, n) -> (batch, kv_heads, group, seq, n), a view."""
        return x.unflatten(1, (self.kv_heads, self.members))

    def ungroup(self, x):
        """(batch, kv_heads, group * rows, n) -> (batch, kv_heads, group, rows, n)."""
        return x.unflatten(2, (self.members, -1))

    def rows(self, x, rows):
        return self.group(x)[..., rows, :].flatten(2, 3).to(self.dtype)

    def keys(self, x, keys):
        return x[:, :, keys].to(self.dtype)

    def mask(self, S, part: Part):
        if part.mask_ is not None:
            part.mask_(self.ungroup(S))
        return S

    def add_(self, total, keys, grad):
        """total[:, :, keys] += grad; an index may name a key twice, a slice cannot."""
        if isinstance(keys, slice):
            total[:, :, keys] += grad
        else:
            total.index_add_(2, keys.to(total.device), grad)
