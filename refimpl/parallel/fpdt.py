"""FPDT: long sequences wait on the host, and attention meets them chunk by chunk on the device.

The sequence is cut into u chunks. For each chunk of queries the keys and values come by, one chunk after the other, and
partial results merge as in online softmax. Two buffers for keys and values take turns: while the device computes with
one, the next chunk arrives in the other. So the device holds

    (q + 2 kv) / u        bytes of q, k and v, whatever the sequence, from u = 2 on ((q + kv) for u = 1)

and pays with transfers: causal, chunk j of kv is fetched by the u - j chunks of queries that see it, which makes
q + kv (u + 1) / 2 bytes. Compute grows with the square of a chunk, transfers linearly: `choose_chunk` finds the size
from which the bus is hidden. With several ranks, an all-to-all (Ulysses) turns each chunk into a few heads of all
ranks' tokens before it goes to the host.

Source: Yao et al. 2024, "Training Ultra Long Context Language Model with Fully Pipelined Distributed Transformer".
"""

import time
from collections.abc import Sequence
from contextlib import closing
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.distributed as dist

from refimpl.attention import check_qkv
from refimpl.flash_attention.eager import flash_backward, flash_forward
from refimpl.online_softmax.eager import empty_state, finish, merge
from refimpl.parallel.ring import as_state, spans, wide, widened
from refimpl.parallel.stage import Stage
from refimpl.parallel.ulysses import check_shards, fit_kv_heads, gather_heads, gather_tokens, kv_heads_of
from refimpl.shapes import Float, Int, Tensor

__all__ = ["Cost", "Timing", "balance_chunk", "choose_chunk", "fpdt_attention", "fpdt_positions", "measure_chunks",
           "predicted"]  # fmt: skip


def fpdt_attention(
    q: Float[Tensor, "batch heads local dim"],
    k: Float[Tensor, "batch kv_heads local dim"],
    v: Float[Tensor, "batch kv_heads local dim"],
    *,
    chunks: int,
    seq: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    stage: Stage | None = None,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "batch heads local dim"]:
    """softmax(scale Q K^T) V with gradients, for tensors on the host; the output is there, too.

    `stage` names the device, moves the chunks, and counts: see `Stage` and `predicted`. Within a process group the
    inputs are the rank's tokens of `seq`, cut by `fpdt_positions`, and each chunk goes through an all-to-all.
    Beyond what `stage` counts, the device holds results in the making: one chunk of output (backward: of dq, dk and
    dv) and one tile of scores. Raises ValueError where the shards or the number of chunks do not fit.
    """
    ranks, rank = (dist.get_world_size(group), dist.get_rank(group)) if dist.is_initialized() else (1, 0)
    stage, seq = stage or Stage(), q.shape[2] if seq is None else seq
    heads, kv_heads = q.shape[1], k.shape[1]
    scale = check_qkv(q, k, v, scale, where="fpdt_attention")
    if not 1 <= chunks <= seq:
        raise ValueError(f"fpdt_attention: {seq} tokens make 1 to {seq} chunks, given chunks={chunks}")
    held = [spans(len(chunk), ranks) for chunk in spans(seq, chunks)]  # [chunk][rank]
    local = [len(pieces[rank]) for pieces in held]
    check_shards("fpdt_attention", q, k, seq, ranks, rank, sum(local))
    q, k, v = (x.split(local, dim=2) for x in (q, k, v))
    if ranks > 1:
        dealt, needed = spans(heads, ranks), kv_heads_of(heads, kv_heads, ranks)
        q = _exchange(gather_tokens, q, dealt, held, stage, group)
        k, v = (_exchange(gather_tokens, x, needed, held, stage, group) for x in (k, v))
        k, v = ([fit_kv_heads(x, heads, kv_heads, ranks, rank) for x in part] for part in (k, v))
    out = _FPDT.apply(stage, causal, scale, *q, *k, *v)
    if ranks > 1:
        out = _exchange(gather_heads, out, dealt, held, stage, group)
    return torch.cat(out, dim=2)


def _exchange(way, chunks, heads_of, held, stage, group):
    """Each chunk through an all-to-all, on the device because NCCL knows no other place, and back to the host."""
    return [way(x.to(stage.device), heads_of, pieces, group).cpu() for x, pieces in zip(chunks, held, strict=True)]


def fpdt_positions(seq: int, chunks: int, ranks: int, rank: int) -> Int[Tensor, "local"]:
    """The rank's tokens: its piece of every chunk, so that the ranks together have a chunk after each all-to-all."""
    pieces = [(chunk.start, spans(len(chunk), ranks)[rank]) for chunk in spans(seq, chunks)]
    return torch.cat([torch.arange(start + piece.start, start + piece.stop) for start, piece in pieces])


class _FPDT(torch.autograd.Function):
    """Attention over chunks on the host: u chunks each of q, k and v in, u chunks of output out."""

    @staticmethod
    def forward(ctx, stage, causal, scale, *tensors):
        ctx.stage, ctx.causal, ctx.scale = stage, causal, scale
        tensors = [stage.on_host(x) for x in tensors]
        out, lse = forward_chunks(stage, causal, scale, *_thirds(tensors))
        ctx.save_for_backward(*tensors, *out, *lse)
        return tuple(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *d_out):
        q, k, v, out, lse = _groups(ctx.saved_tensors, len(d_out))
        d_out = [ctx.stage.on_host(x) for x in d_out]
        dq, dk, dv = backward_chunks(ctx.stage, ctx.causal, ctx.scale, q, k, v, out, lse, d_out)
        return None, None, None, *dq, *dk, *dv


def forward_chunks(
    stage: Stage, causal: bool, scale: float | None, q: list[Tensor], k: list[Tensor], v: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Chunks of out and lse, on the host as all chunks are. Outer loop over queries, inner over the keys they see."""
    seen = [range(i + 1 if causal else len(k)) for i in range(len(q))]
    keys = stage.stream([(k[j], v[j]) for js in seen for j in js], buffers=stage.buffers)
    out, lse = [], []
    with closing(keys):
        for i, (Q,) in enumerate(stage.stream([(x,) for x in q], buffers=1)):
            state = empty_state(Q.shape[:-1], Q.shape[-1], dtype=wide(Q.dtype), device=Q.device)
            for j in seen[i]:
                K, V = next(keys)
                part, part_lse = flash_forward(*widened(Q, K, V), causal=causal and i == j, scale=scale)
                state = merge(state, as_state(part, part_lse))
            done, done_lse = finish(state)
            out.append(stage.store(done.to(Q.dtype)))
            lse.append(stage.store(done_lse))
    stage.finish()
    return out, lse


def backward_chunks(stage, causal, scale, q, k, v, out, lse, d_out):
    """Outer loop over keys, inner over the queries that see them: dk and dv stay, dq adds up on the host."""
    seen_by = [range(j if causal else 0, len(q)) for j in range(len(k))]
    queries = stage.stream([(q[i], out[i], d_out[i], lse[i]) for s in seen_by for i in s], buffers=stage.buffers)
    dq, dk, dv = [stage.on_host(torch.zeros_like(x, dtype=wide(x.dtype))) for x in q], [], []
    with closing(queries):
        for j, (K, V) in enumerate(stage.stream(list(zip(k, v, strict=True)), buffers=1)):
            dK, dV = (torch.zeros_like(x, dtype=wide(x.dtype)) for x in (K, V))
            for i in seen_by[j]:
                Q, O, dO, L = next(queries)
                tensors = widened(Q, K, V, O, L, dO)
                part, part_k, part_v = flash_backward(*tensors, causal=causal and i == j, scale=scale)
                stage.add(dq[i], part)
                dK += part_k
                dV += part_v
            dk.append(stage.store(dK.to(K.dtype)))
            dv.append(stage.store(dV.to(V.dtype)))
    stage.finish()
    return [x.to(q[0].dtype) for x in dq], dk, dv


# --- what it costs, before it runs ------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """What a `Stage` counts in one pass."""

    bytes_in: int
    bytes_out: int
    peak_bytes: int


def predicted(
    seq: int,
    chunks: int,
    *,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    batch: int = 1,
    causal: bool = True,
    buffers: int = 2,
) -> tuple[Cost, Cost]:
    """(forward, backward) of one rank, which holds `heads` and `kv_heads` of all `seq` tokens; exact, u | seq or not.

    forward    peak (q + 2 kv) / u; in q + kv (u + 1) / 2 causal, q + kv u full; out the output and lse
    backward   peak (kv + 2 (q + out + d_out + lse)) / u; in kv + (3 q + lse) (u + 1) / 2 causal; out dk, dv, and a part
               of dq (float32 for half precision) for each pair of chunks
    """
    sizes = [len(chunk) for chunk in spans(seq, chunks)]
    q, kv = batch * heads * dim * dtype.itemsize, 2 * batch * kv_heads * dim * dtype.itemsize  # per token
    lse, dq = batch * heads * wide(dtype).itemsize, batch * heads * dim * wide(dtype).itemsize
    keys_fetched = sum(accumulate(sizes)) if causal else chunks * seq
    queries_fetched = sum(accumulate(reversed(sizes))) if causal else chunks * seq
    rooms, longest = min(buffers, chunks * (chunks + 1) // 2), sizes[0]
    forward = Cost(seq * q + keys_fetched * kv, seq * (q + lse), longest * (q + rooms * kv))
    bundle = 3 * q + lse
    return forward, Cost(
        seq * kv + queries_fetched * bundle, seq * kv + queries_fetched * dq, longest * (kv + rooms * bundle)
    )


class Timing(NamedTuple):
    """One full tile of `chunk` queries by `chunk` keys, against the transfer of its keys and values."""

    chunk: int
    compute_s: float
    transfer_s: float


def measure_chunks(
    sizes: Sequence[int],
    *,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
    stage: Stage | None = None,
    repeats: int = 3,
) -> list[Timing]:
    """The fastest of `repeats` runs for each size, compute and transfer apart, so that neither slows the other."""
    stage = stage or Stage()
    return [Timing(size, *_measure(size, heads, kv_heads, dim, dtype, stage, repeats)) for size in sizes]


def _measure(size, heads, kv_heads, dim, dtype, stage, repeats):
    draw = torch.Generator().manual_seed(size)
    q, k, v = (torch.randn(1, h, size, dim, generator=draw).to(dtype) for h in (heads, kv_heads, kv_heads))
    on_device, on_host = [x.to(stage.device) for x in (q, k, v)], [[stage.on_host(x) for x in (k, v)]]
    calls = lambda: flash_forward(*on_device), lambda: list(stage.stream(on_host, buffers=1))
    return [min(_seconds(call, stage.device) for _ in range(repeats)) for call in calls]


def _seconds(call, device):
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def choose_chunk(timings: Sequence[Timing]) -> int:
    """The smallest chunk whose compute covers the transfer of the next one: smaller stalls, larger only costs memory.

    Raises ValueError where none does.
    """
    covered = [timing.chunk for timing in timings if timing.compute_s >= timing.transfer_s]
    if not covered:
        last = max(timings)
        raise ValueError(
            f"choose_chunk: no chunk hides its transfer; {last.chunk} tokens compute {last.compute_s:.3g} s and travel "
            f"{last.transfer_s:.3g} s; measure longer chunks"
        )
    return min(covered)


def balance_chunk(flops_per_s: float, bytes_per_s: float, *, heads: int, kv_heads: int, itemsize: int) -> float:
    """The c at which 4 c² dim heads / flops_per_s = 2 c dim kv_heads itemsize / bytes_per_s; dim cancels.

    c = itemsize kv_heads flops_per_s / (2 heads bytes_per_s): the device's FLOPs per byte of the bus, and grouped heads
    need less.
    """
    return itemsize * kv_heads * flops_per_s / (2 * heads * bytes_per_s)


def _groups(tensors, size):
    return [list(tensors[i : i + size]) for i in range(0, len(tensors), size)]


def _thirds(tensors):
    return _groups(tensors, len(tensors) // 3)
