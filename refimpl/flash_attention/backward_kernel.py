"""FlashAttention-2's backward in Triton: two kernels, so that no two programs write the same place.

dq_kernel   one program per query tile, streaming K and V                                -> dQ
dkv_kernel  one program per key tile, streaming Q and dO of all query heads of its group -> dK, dV

Hence no atomics, and the same input gives the same bits. Both recompute P = exp(S - lse) tile by tile. delta is
rowsum(dO * O), one number per query; conventions as in `forward_kernel`.
"""

from refimpl._triton import tl, triton
from refimpl.flash_attention.forward_kernel import key_range


@triton.jit
def _dq_tiles(
    dq, q, d_out, lse_log2, delta, k_ptr, v_ptr, k_stride, v_stride, rows, first, last, k_len, shift, scale_log2,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, DIM: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add dS K of the key tiles first … last to dq."""
    dims = tl.arange(0, DIM)
    for j in range(first, last, BLOCK_K):
        cols = j + tl.arange(0, BLOCK_K)
        inside = cols < k_len
        k = tl.load(k_ptr + cols[:, None] * k_stride + dims[None, :], mask=inside[:, None], other=0.0)  # [B_c, DIM]
        v = tl.load(v_ptr + cols[:, None] * v_stride + dims[None, :], mask=inside[:, None], other=0.0)  # [B_c, DIM]
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        p = tl.exp2(s - lse_log2[:, None])  # [B_r, B_c], the finished softmax
        if MASK:
            allowed = inside[None, :]
            if CAUSAL:
                allowed = allowed & (cols[None, :] <= rows[:, None] + shift)
            p = tl.where(allowed, p, 0.0)
        dp = tl.dot(d_out, tl.trans(v), input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit
def dq_kernel(
    q_ptr, k_ptr, v_ptr,  # in   as in forward_kernel
    d_out_ptr,  # in   (batch, heads, q_len, DIM), contiguous
    lse_ptr,  # in   (batch, heads, q_len), float32
    delta_ptr,  # in   (batch, heads, q_len), float32: rowsum(dO * O)
    dq_ptr,  # out  (batch, heads, q_len, DIM), contiguous
    q_batch, q_head, q_seq,
    k_batch, k_head, k_seq,
    v_batch, v_head, v_seq,
    heads, q_len, k_len, scale,
    CAUSAL: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dQ = scale dS K for one query tile of one head."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    batch, head = batch_head // heads, batch_head % heads
    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    dims = tl.arange(0, DIM)
    inside = rows[:, None] < q_len

    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head // GROUP * k_head
    v_ptr += batch * v_batch + head // GROUP * v_head
    out_rows = batch_head * q_len + rows
    q = tl.load(q_ptr + rows[:, None] * q_seq + dims[None, :], mask=inside, other=0.0)
    d_out = tl.load(d_out_ptr + out_rows[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
    lse = tl.load(lse_ptr + out_rows, mask=rows < q_len, other=0.0)
    delta = tl.load(delta_ptr + out_rows, mask=rows < q_len, other=0.0)
    lse_log2 = lse * 1.4426950408889634  # -inf where a query saw no key: its P is inf, and masked to 0
    dq = tl.zeros([BLOCK_Q, DIM], tl.float32)

    shift = k_len - q_len
    scale_log2 = scale * 1.4426950408889634
    whole, end = key_range(tile, q_len, k_len, CAUSAL, BLOCK_Q, BLOCK_K)
    dq = _dq_tiles(
        dq, q, d_out, lse_log2, delta, k_ptr, v_ptr, k_seq, v_seq, rows,
        0, whole, k_len, shift, scale_log2, False, CAUSAL, DIM, BLOCK_K,
    )  # fmt: skip
    dq = _dq_tiles(
        dq, q, d_out, lse_log2, delta, k_ptr, v_ptr, k_seq, v_seq, rows,
        whole, end, k_len, shift, scale_log2, True, CAUSAL, DIM, BLOCK_K,
    )  # fmt: skip
    tl.store(dq_ptr + out_rows[:, None] * DIM + dims[None, :], (dq * scale).to(dq_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _dkv_tiles(
    dk, dv, k, v, q_ptr, q_stride, d_out_ptr, lse_ptr, delta_ptr, cols, first, last, q_len, shift, scale_log2,
    MASK: tl.constexpr, DIM: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Add dS^T Q and P^T dO of the query tiles first … last. Everything is transposed: keys are rows here."""
    dims = tl.arange(0, DIM)
    for i in range(first, last, BLOCK_Q):
        rows = i + tl.arange(0, BLOCK_Q)
        inside = rows < q_len
        q = tl.load(q_ptr + rows[:, None] * q_stride + dims[None, :], mask=inside[:, None], other=0.0)  # [B_r, DIM]
        d_out = tl.load(d_out_ptr + rows[:, None] * DIM + dims[None, :], mask=inside[:, None], other=0.0)  # [B_r, DIM]
        lse = tl.load(lse_ptr + rows, mask=inside, other=0.0)
        delta = tl.load(delta_ptr + rows, mask=inside, other=0.0)
        lse_log2 = lse * 1.4426950408889634  # -inf where a query saw no key: its P is inf, and masked to 0
        s = tl.dot(k, tl.trans(q), input_precision="ieee") * scale_log2  # [B_c, B_r]
        p = tl.exp2(s - lse_log2[None, :])
        if MASK:
            p = tl.where(cols[:, None] <= rows[None, :] + shift, p, 0.0)
        dv = tl.dot(p.to(d_out.dtype), d_out, dv, input_precision="ieee")
        dp = tl.dot(v, tl.trans(d_out), input_precision="ieee")
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def dkv_kernel(
    q_ptr, k_ptr, v_ptr, d_out_ptr, lse_ptr, delta_ptr,  # in   as in dq_kernel
    dk_ptr, dv_ptr,  # out  (batch, heads / GROUP, k_len, DIM), contiguous
    q_batch, q_head, q_seq,
    k_batch, k_head, k_seq,
    v_batch, v_head, v_seq,
    heads, q_len, k_len, scale,
    CAUSAL: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dV = P^T dO and dK = scale dS^T Q for one key tile of one kv head, summed over the query heads that read it."""
    tile = tl.program_id(0)  # early keys are seen by most queries: already the longest first
    batch_head = tl.program_id(1).to(tl.int64)  # counts kv heads here
    kv_heads = heads // GROUP
    batch, kv_head = batch_head // kv_heads, batch_head % kv_heads
    cols = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    dims = tl.arange(0, DIM)
    inside = cols[:, None] < k_len

    k_ptr += batch * k_batch + kv_head * k_head
    v_ptr += batch * v_batch + kv_head * v_head
    k = tl.load(k_ptr + cols[:, None] * k_seq + dims[None, :], mask=inside, other=0.0)  # [B_c, DIM]
    v = tl.load(v_ptr + cols[:, None] * v_seq + dims[None, :], mask=inside, other=0.0)
    dk = tl.zeros([BLOCK_K, DIM], tl.float32)
    dv = tl.zeros([BLOCK_K, DIM], tl.float32)

    shift = k_len - q_len
    scale_log2 = scale * 1.4426950408889634
    first = 0  # the first query tile that sees any key of this tile
    whole = 0  # from here on every query sees every key of it
    if CAUSAL:
        first = tl.maximum(0, tile * BLOCK_K - shift) // BLOCK_Q * BLOCK_Q
        whole = tl.cdiv(tl.maximum(0, tile * BLOCK_K + BLOCK_K - 1 - shift), BLOCK_Q) * BLOCK_Q
    for g in range(GROUP):
        head = kv_head * GROUP + g
        q_head_ptr = q_ptr + batch * q_batch + head * q_head
        row = (batch * heads + head) * q_len
        if CAUSAL:
            dk, dv = _dkv_tiles(
                dk, dv, k, v, q_head_ptr, q_seq, d_out_ptr + row * DIM, lse_ptr + row, delta_ptr + row, cols,
                first, tl.minimum(whole, q_len), q_len, shift, scale_log2, True, DIM, BLOCK_Q,
            )  # fmt: skip
        dk, dv = _dkv_tiles(
            dk, dv, k, v, q_head_ptr, q_seq, d_out_ptr + row * DIM, lse_ptr + row, delta_ptr + row, cols,
            whole, q_len, q_len, shift, scale_log2, False, DIM, BLOCK_Q,
        )  # fmt: skip

    out_rows = batch_head * k_len + cols
    at = out_rows[:, None] * DIM + dims[None, :]
    tl.store(dk_ptr + at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + at, dv.to(dv_ptr.dtype.element_ty), mask=inside)
