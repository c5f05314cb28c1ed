"""Ring Attention: each rank keeps its queries, and blocks of keys and values travel around the ring.

With N ranks a rank holds 1/N of the sequence. In step t it computes attention of its queries over the block that rank
r - t brought along, while that block is already on its way to rank r + 1 and the next one arrives. Partial results
merge as in online softmax, so the output is exact and nobody ever holds the whole sequence.

A causal mask leaves half of the work, and the layout decides who has it (N = 4, share of the largest over the mean):

    contiguous   rank r holds the r-th piece; the last rank sees everything         (2N - 1) / N = 1.75
    striped      rank r holds tokens r, r + N, r + 2N, …                            1 up to the diagonal
    zigzag       of 2N pieces rank r holds number r and number 2N - 1 - r           1

Source: Liu, Zaharia and Abbeel 2023 (ring); Brandon et al. 2023 (striped); Zhu 2024, ring-flash-attention (zigzag).
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist

from refimpl.attention import check_qkv
from refimpl.flash_attention.eager import flash_backward, flash_forward
from refimpl.online_softmax.eager import State, empty_state, finish, merge
from refimpl.shapes import Float, Int, Tensor

__all__ = ["LAYOUTS", "Tile", "positions", "ring_attention", "sent_bytes", "shard", "spans", "tile", "unshard", "work"]

LAYOUTS = ("contiguous", "striped", "zigzag")


# --- who holds which token -------------------------------------------------------------------------------------------


def spans(total: int, parts: int) -> list[range]:
    """0 … total - 1 cut into neighbouring pieces whose lengths differ by at most one, the longer ones first."""
    size, longer = divmod(total, parts)
    edges = [i * size + min(i, longer) for i in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]


def _ranges(seq: int, ranks: int, rank: int, layout: str) -> list[range]:
    """The tokens of a rank, as at most two ranges in rising order."""
    if layout == "contiguous":
        return [spans(seq, ranks)[rank]]
    if layout == "striped":
        return [range(min(rank, seq), seq, ranks)]
    if layout == "zigzag":
        pieces = spans(seq, 2 * ranks)
        return [pieces[rank], pieces[2 * ranks - 1 - rank]]
    raise ValueError(f"ring: layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")


def tokens(seq: int, ranks: int, rank: int, layout: str) -> int:
    """How many tokens a rank holds; over all ranks they add up to `seq`, whether or not it divides."""
    return sum(map(len, _ranges(seq, ranks, rank, layout)))


def positions(seq: int, ranks: int, rank: int, layout: str = "contiguous") -> Int[Tensor, "local"]:
    """Where in the whole sequence the rank's tokens stand, rising: for `rope`, and to cut data with."""
    return torch.cat([torch.arange(r.start, r.stop, r.step) for r in _ranges(seq, ranks, rank, layout)])


def shard(x: Tensor, ranks: int, rank: int, layout: str = "contiguous", *, dim: int = 2) -> Tensor:
    """The rank's tokens of a whole tensor, whose axis `dim` is the sequence."""
    return x.index_select(dim, positions(x.shape[dim], ranks, rank, layout).to(x.device))


def unshard(parts: list[Tensor], layout: str = "contiguous", *, dim: int = 2) -> Tensor:
    """The whole tensor from the parts of all ranks in order: the inverse of `shard`."""
    seq = sum(part.shape[dim] for part in parts)
    order = torch.cat([positions(seq, len(parts), rank, layout) for rank in range(len(parts))])
    return torch.cat(parts, dim=dim).index_select(dim, order.argsort().to(parts[0].device))


# --- what a rank computes when a block arrives -----------------------------------------------------------------------


class Tile(NamedTuple):
    """Local queries `rows` look at keys `cols` of the block; where `causal`, they are as many and row i sees 0 … i."""

    rows: slice
    cols: slice
    causal: bool

    @property
    def scores(self) -> int:
        """How many scores it has: the work, in units of one query-key pair."""
        n, m = self.rows.stop - self.rows.start, self.cols.stop - self.cols.start
        return n * (n + 1) // 2 if self.causal else n * m


def tile(seq: int, ranks: int, mine: int, theirs: int, layout: str, causal: bool) -> Tile | None:
    """The part of rank `mine`'s queries by rank `theirs`'s keys that the mask leaves; None where it leaves nothing.

    Every layout has been chosen so that this is one rectangle or one triangle: no mask is ever stored or sent.
    """
    q_len, k_len = (tokens(seq, ranks, rank, layout) for rank in (mine, theirs))
    first_row, stop_col, triangle = 0, k_len, causal and mine == theirs
    if causal and mine != theirs:
        earlier = theirs < mine
        if layout == "contiguous" and not earlier:
            return None
        if layout == "striped":  # token i stands at mine + i N, token j at theirs + j N: j <= i, or j < i behind us
            first_row, stop_col, triangle = (0, q_len, True) if earlier else (1, q_len - 1, True)
        if layout == "zigzag":  # their first piece is before both of ours, or both of theirs are before our second
            pieces = spans(seq, 2 * ranks)
            first_row, stop_col = (0, len(pieces[theirs])) if earlier else (len(pieces[mine]), k_len)
    made = Tile(slice(first_row, q_len), slice(0, stop_col), triangle)
    return made if first_row < q_len and stop_col > 0 else None


def work(seq: int, ranks: int, layout: str, causal: bool = True) -> list[list[int]]:
    """Scores that rank r computes in step t, [r][t]. The rows' sums say who works, columns who waits for whom."""
    tiles = [[tile(seq, ranks, r, (r - t) % ranks, layout, causal) for t in range(ranks)] for r in range(ranks)]
    return [[made.scores if made else 0 for made in row] for row in tiles]


def sent_bytes(
    seq: int,
    ranks: int,
    rank: int,
    *,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    batch: int = 1,
    layout: str = "contiguous",
) -> tuple[int, int]:
    """(forward, backward) bytes that a rank sends. With T the bytes of one local key tensor: 2 (N - 1) T, and
    2 (N - 1) T + 2 N T, because gradients travel with their block and one hop further, home. In half precision they
    travel in float32. Where N does not divide the sequence, blocks differ, and this adds up those that pass."""
    passed = [tokens(seq, ranks, (rank - step) % ranks, layout) for step in range(ranks)]
    per_token = 2 * batch * kv_heads * dim
    there = sum(passed[:-1]) * per_token * dtype.itemsize
    home = sum(passed) * per_token * wide(dtype).itemsize if ranks > 1 else 0
    return there, there + home


# --- the ring --------------------------------------------------------------------------------------------------------


def ring_attention(
    q: Float[Tensor, "batch heads local dim"],
    k: Float[Tensor, "batch kv_heads local dim"],
    v: Float[Tensor, "batch kv_heads local dim"],
    *,
    seq: int,
    causal: bool = False,
    layout: str = "contiguous",
    scale: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch heads local dim"]:
    """This rank's rows of softmax(scale Q K^T) V over all `seq` tokens of the group, with gradients.

    q, k, v are the rank's shards as `shard` cuts them; any `seq`, also below the number of ranks. Every rank calls it
    with the same options. Memory: the rank's own tensors, two blocks of keys and values, one tile of scores.
    Bytes sent: `sent_bytes`. Raises ValueError where a shard is not the one that `layout` gives this rank.
    """
    return _RingAttention.apply(q, k, v, _Ring(seq, layout, causal, scale, group))


class _RingAttention(torch.autograd.Function):
    """Saves q, k, v, out and lse of this rank; the blocks of others come around again in the backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, ring):
        out, lse = ring.forward(q, k, v)
        ctx.ring = ring
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):
        return *ctx.ring.backward(*ctx.saved_tensors, d_out), None


class _Ring:
    """One call's place in the ring: who we are, what comes when, and the two loops."""

    def __init__(self, seq, layout, causal, scale, group):
        self.seq, self.layout, self.causal, self.scale, self.group = seq, layout, causal, scale, group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)

    def forward(self, q, k, v):
        self._check(q, k, v)
        state = empty_state(q.shape[:-1], q.shape[-1], dtype=wide(q.dtype), device=q.device)
        kv = torch.stack((k, v))
        for step in range(self.ranks):
            hop = self._pass_on(kv, step) if step < self.ranks - 1 else None
            if part := self._tile(step):
                rows, (k, v) = part.rows, kv[..., part.cols, :]
                done, lse = flash_forward(*widened(q[:, :, rows], k, v), causal=part.causal, scale=self.scale)
                _take_in(state, rows, done, lse)
            kv = hop.wait() if hop else kv
        out, lse = finish(state)
        return out.to(q.dtype), lse

    def backward(self, q, k, v, out, lse, d_out):
        dq = torch.zeros_like(q, dtype=wide(q.dtype))
        kv, d_kv, way_home = torch.stack((k, v)), None, None
        for step in range(self.ranks):
            hop = self._pass_on(kv, step) if step < self.ranks - 1 else None
            part, gradients = self._tile(step), None
            if part:
                rows, (k, v) = part.rows, kv[..., part.cols, :]
                mine = (x[:, :, rows] for x in (out, lse, d_out))
                gradients = flash_backward(*widened(q[:, :, rows], k, v, *mine), causal=part.causal, scale=self.scale)
            # What the ranks before us found for this block arrived while we computed our share.
            d_kv = way_home.wait() if way_home else torch.zeros_like(kv, dtype=dq.dtype)
            if part:
                dq[:, :, rows] += gradients[0]
                d_kv[..., part.cols, :] += torch.stack(gradients[1:])
            way_home = self._pass_on(d_kv, step) if self.ranks > 1 else None
            kv = hop.wait() if hop else kv
        dk, dv = way_home.wait() if way_home else d_kv
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype)

    def _tile(self, step):
        return tile(self.seq, self.ranks, self.rank, (self.rank - step) % self.ranks, self.layout, self.causal)

    def _pass_on(self, block, step):
        """Send the block of this step to the next rank, and start to receive the one that the rank before us has."""
        arriving = tokens(self.seq, self.ranks, (self.rank - step - 1) % self.ranks, self.layout)
        return _Hop(block, arriving, self.rank, self.ranks, self.group)

    def _check(self, q, k, v):
        check_qkv(q, k, v, self.scale, where="ring_attention")
        if not q.shape[2] == k.shape[2] == tokens(self.seq, self.ranks, self.rank, self.layout):
            raise ValueError(
                f"ring_attention: of {self.seq} tokens on {self.ranks} ranks, rank {self.rank} holds "
                f"{tokens(self.seq, self.ranks, self.rank, self.layout)} ({self.layout}), given q {tuple(q.shape)}, "
                f"k {tuple(k.shape)}; cut them with refimpl.parallel.ring.shard, and let seq be the length of the whole"
            )


class _Hop:
    """A block on its way to the next rank, and room for the one on its way to us. Both travel while we compute."""

    def __init__(self, block, arriving, rank, ranks, group):
        self.leaving = block.contiguous()  # held here until it is gone
        self.arriving = block.new_empty(*block.shape[:-2], arriving, block.shape[-1])
        self.requests = dist.batch_isend_irecv([
            dist.P2POp(dist.isend, self.leaving, group=group, group_peer=(rank + 1) % ranks),
            dist.P2POp(dist.irecv, self.arriving, group=group, group_peer=(rank - 1) % ranks),
        ])  # fmt: skip

    def wait(self):
        for request in self.requests:
            request.wait()
        return self.arriving


def _take_in(state, rows, out, lse):
    """Merge a finished result into the running state of some rows, in place."""
    merged = merge(tuple(x[:, :, rows] for x in state), as_state(out, lse))
    for whole, part in zip(state, merged, strict=True):
        whole[:, :, rows] = part


def as_state(out: Tensor, lse: Tensor) -> State:
    """A finished result as a state that merges: it has been divided by l, so m = lse, l = 1, o = out."""
    return lse, torch.ones_like(lse), out


def wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of sums over blocks: float32 for half precision, else the inputs' own."""
    return torch.promote_types(dtype, torch.float32)


def widened(*tensors: Tensor) -> list[Tensor]:
    """Each tensor in the precision of sums; no copy where it has it."""
    return [x.to(wide(x.dtype)) for x in tensors]
