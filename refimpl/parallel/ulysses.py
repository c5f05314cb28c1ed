"""Ulysses: an all-to-all turns "all heads of my tokens" into "my heads of all tokens"; then attention is local.

Heads do not interact, so a rank that holds whole sequences of a few heads needs nothing more. Four tensors travel (q,
k, v there, out back), each rank keeping its own 1/N of them: 4 T (N - 1) / N bytes sent per rank, with T the bytes of
one local tensor. The ring sends 2 (N - 1) T: at N = 8 four times as much. But there cannot be more ranks than heads, so
the two combine: Ulysses within a group of ranks, a ring across the groups.

Source: Jacobs et al. 2023 (DeepSpeed-Ulysses); Fang and Zhao 2024 (USP, the two-dimensional form).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from refimpl.attention import check_qkv
from refimpl.flash_attention.eager import flash_attention
from refimpl.parallel.ring import positions, ring_attention, spans
from refimpl.shapes import Float, Int, Tensor

__all__ = ["gather_heads", "gather_tokens", "hybrid_attention", "hybrid_positions", "kv_heads_of", "sent_bytes",
           "ulysses_attention"]  # fmt: skip


def ulysses_attention(
    q: Float[Tensor, "batch heads local dim"],
    k: Float[Tensor, "batch kv_heads local dim"],
    v: Float[Tensor, "batch kv_heads local dim"],
    *,
    seq: int,
    causal: bool = False,
    scale: float | None = None,
    group: dist.ProcessGroup | None = None,
    attend: Callable[..., Tensor] | None = None,
) -> Float[Tensor, "batch heads local dim"]:
    """This rank's rows of softmax(scale Q K^T) V over all `seq` tokens of the group, with gradients.

    The sequence is cut contiguously (`ring.spans`), the query heads likewise; neither has to divide. A key/value head
    goes to every rank with a query head that reads it, and to no other: with fewer kv heads than ranks it is copied.
    `attend(q, k, v)` replaces the local attention; the default is the tiled one with `causal` and `scale`.
    Bytes sent: `sent_bytes`. Raises ValueError where there are fewer heads than ranks.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    check_qkv(q, k, v, scale, where="ulysses_attention")
    heads, kv_heads = q.shape[1], k.shape[1]
    check_shards("ulysses_attention", q, k, seq, ranks, rank, len(spans(seq, ranks)[rank]))
    held = spans(seq, ranks)
    q = gather_tokens(q, spans(heads, ranks), held, group)
    k, v = (gather_tokens(x, kv_heads_of(heads, kv_heads, ranks), held, group) for x in (k, v))
    k, v = (fit_kv_heads(x, heads, kv_heads, ranks, rank) for x in (k, v))
    out = attend(q, k, v) if attend else flash_attention(q, k, v, causal=causal, scale=scale)
    return gather_heads(out, spans(heads, ranks), held, group)


def kv_heads_of(heads: int, kv_heads: int, ranks: int) -> list[range]:
    """Per rank, the key/value heads that its query heads read. Neighbours may share one; then it travels twice."""
    group = heads // kv_heads
    return [range(own.start // group, (own.stop - 1) // group + 1) for own in spans(heads, ranks)]


def fit_kv_heads(x, heads, kv_heads, ranks, rank):
    """Key/value heads as the local attention wants them: query head h reads h // (local heads / local kv heads).

    Where the cut goes through groups unevenly no such rule holds, and every query head gets its own copy, locally.
    """
    own, group = spans(heads, ranks)[rank], heads // kv_heads
    reads = [head // group - own.start // group for head in own]
    local = len(own) // x.shape[1]
    return x if reads == [h // max(local, 1) for h in range(len(own))] else x[:, reads]


# --- the exchange ----------------------------------------------------------------------------------------------------


def gather_tokens(
    x: Float[Tensor, "batch heads local dim"],
    heads_of: Sequence[range],
    tokens_of: Sequence[range],
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch own seq dim"]:
    """All heads of my tokens -> the heads `heads_of[rank]` of all tokens, in the ranks' order. Ranges may overlap."""
    return _Exchange.apply(x, heads_of, [len(t) for t in tokens_of], group)


def gather_heads(
    x: Float[Tensor, "batch own seq dim"],
    heads_of: Sequence[range],
    tokens_of: Sequence[range],
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch heads local dim"]:
    """My heads of all tokens -> all heads of my tokens: the same exchange with the two axes' roles swapped."""
    ends = [sum(len(t) for t in tokens_of[: i + 1]) for i in range(len(tokens_of))]
    cuts = [range(end - len(t), end) for end, t in zip(ends, tokens_of, strict=True)]
    swapped = _Exchange.apply(x.transpose(1, 2), cuts, [len(h) for h in heads_of], group)
    return swapped.transpose(1, 2)


class _Exchange(torch.autograd.Function):
    """Rank j gets x[:, cut[j]] of every rank i and lines the pieces up along axis 2, where i has `sizes[i]` of them.

    It only moves numbers, so the gradient moves them back; where a piece went to several ranks, their gradients add.
    """

    @staticmethod
    def forward(ctx, x, cuts, sizes, group):
        rank = dist.get_rank(group)
        if x.shape[2] != sizes[rank]:
            raise ValueError(f"ulysses: rank {rank} has {sizes[rank]} of {sum(sizes)} tokens, given {tuple(x.shape)}")
        ctx.shape, ctx.cuts, ctx.sizes, ctx.group = x.shape, cuts, sizes, group
        pieces = [x[:, cut.start : cut.stop] for cut in cuts]
        shapes = [(x.shape[0], len(cuts[rank]), size, x.shape[3]) for size in sizes]
        return torch.cat(_all_to_all(pieces, shapes, group), dim=2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        batch, _, local, dim = ctx.shape
        shapes = [(batch, len(cut), local, dim) for cut in ctx.cuts]
        dx = d_out.new_zeros(ctx.shape)
        arrived = _all_to_all(d_out.split(ctx.sizes, dim=2), shapes, ctx.group)
        for cut, piece in zip(ctx.cuts, arrived, strict=True):
            dx[:, cut.start : cut.stop] += piece
        return dx, None, None, None


def _all_to_all(pieces, shapes, group):
    """pieces[j] goes to rank j; what comes from rank i has shapes[i]. One collective, whatever the sizes."""
    leaving = torch.cat([piece.flatten() for piece in pieces])
    counts = [torch.Size(shape).numel() for shape in shapes]
    arriving = leaving.new_empty(sum(counts))
    dist.all_to_all_single(arriving, leaving, counts, [piece.numel() for piece in pieces], group=group)
    return [part.view(shape) for part, shape in zip(arriving.split(counts), shapes, strict=True)]


def sent_bytes(
    seq: int, ranks: int, rank: int, *, heads: int, kv_heads: int, dim: int, itemsize: int, batch: int = 1
) -> tuple[int, int]:
    """(forward, backward) bytes that a rank sends; 4 T (N - 1) / N each where all divides and kv_heads = heads."""
    mine = len(spans(seq, ranks)[rank])
    q_heads, kv = ([len(h) for h in dealt] for dealt in (spans(heads, ranks), kv_heads_of(heads, kv_heads, ranks)))
    others = [r for r in range(ranks) if r != rank]
    to_others = mine * sum(q_heads[r] for r in others)  # q in the forward, the gradient of out in the backward
    from_us = (seq - mine) * q_heads[rank]  # out in the forward, the gradient of q in the backward
    forward = to_others + from_us + 2 * mine * sum(kv[r] for r in others)
    backward = to_others + from_us + 2 * (seq - mine) * kv[rank]
    return forward * batch * dim * itemsize, backward * batch * dim * itemsize


def check_shards(where: str, q: Tensor, k: Tensor, seq: int, ranks: int, rank: int, local: int) -> None:
    """Refuse too few heads, and shards that are not the `local` tokens that this rank ought to hold."""
    if q.shape[1] < ranks:
        raise ValueError(
            f"{where}: {q.shape[1]} heads cannot be dealt to {ranks} ranks; use a ring, or hybrid_attention with a "
            f"Ulysses group of at most {q.shape[1]} ranks"
        )
    if not q.shape[2] == k.shape[2] == local:
        raise ValueError(
            f"{where}: of {seq} tokens on {ranks} ranks, rank {rank} holds {local}, given q {tuple(q.shape)}, "
            f"k {tuple(k.shape)}; cut q, k and v to the rank's tokens, and pass the length of the whole as seq"
        )


# --- a mesh of both --------------------------------------------------------------------------------------------------


def hybrid_attention(
    q: Float[Tensor, "batch heads local dim"],
    k: Float[Tensor, "batch kv_heads local dim"],
    v: Float[Tensor, "batch kv_heads local dim"],
    *,
    seq: int,
    ring_group: dist.ProcessGroup,
    ulysses_group: dist.ProcessGroup,
    causal: bool = False,
    layout: str = "zigzag",
    scale: float | None = None,
) -> Float[Tensor, "batch heads local dim"]:
    """Ulysses inside `ulysses_group`, a ring across: for as many ranks as heads times ring length.

    With `mesh = init_device_mesh(kind, (R, U), mesh_dim_names=("ring", "ulysses"))` the groups are
    `mesh.get_group("ring")` and `mesh.get_group("ulysses")`. Shards are cut by `hybrid_positions`.
    """
    ring_ranks, ring_rank = dist.get_world_size(ring_group), dist.get_rank(ring_group)
    together = positions(seq, ring_ranks, ring_rank, layout).numel()  # what the Ulysses group holds between them
    around = partial(ring_attention, seq=seq, causal=causal, layout=layout, scale=scale, group=ring_group)
    return ulysses_attention(q, k, v, seq=together, group=ulysses_group, attend=around)


def hybrid_positions(
    seq: int, ring_ranks: int, ring_rank: int, ulysses_ranks: int, ulysses_rank: int, layout: str = "zigzag"
) -> Int[Tensor, "local"]:
    """Tokens of one rank of the mesh: the ring's layout first, and what a ring rank holds is cut contiguously."""
    held = positions(seq, ring_ranks, ring_rank, layout)
    piece = spans(held.numel(), ulysses_ranks)[ulysses_rank]
    return held[piece.start : piece.stop]
