"""FlashAttention-2's forward in Triton: one program per query tile, streaming K and V past it.

The key tiles run in two loops: those that every query of the tile sees whole, then those on the causal diagonal or at
the ragged end, the only ones that need a mask. What lies beyond is never read.
Exponents are powers of two (exp2 is one instruction), so scores carry a factor log2(e); lse leaves as
natural logarithm. `q_ptr` points into HBM; q, k, s, p are tiles in registers or SRAM, of the shape beside them.
"""

from refimpl._triton import tl, triton


@triton.jit
def key_range(tile, q_len, k_len, CAUSAL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """(whole, end): keys 0 … whole need no mask for this query tile, whole … end do, those after end are never read."""
    end = k_len
    whole = k_len
    if CAUSAL:
        first_row = tile * BLOCK_Q + k_len - q_len  # the last key that the first query of the tile sees
        end = tl.maximum(0, tl.minimum(k_len, first_row + BLOCK_Q))
        whole = tl.maximum(0, tl.minimum(k_len, first_row + 1))
    return whole // BLOCK_K * BLOCK_K, end


@triton.jit
def _attend(
    m, l, o, q, k_ptr, v_ptr, k_stride, v_stride, rows, first, last, k_len, shift, scale_log2,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, DIM: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Online softmax over the key tiles first … last: `attend_` of the eager form, in registers."""
    dims = tl.arange(0, DIM)
    for j in range(first, last, BLOCK_K):
        cols = j + tl.arange(0, BLOCK_K)
        inside = cols < k_len
        k = tl.load(k_ptr + cols[:, None] * k_stride + dims[None, :], mask=inside[:, None], other=0.0)  # [B_c, DIM]
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # [B_r, B_c]
        if MASK:
            allowed = inside[None, :]
            if CAUSAL:
                allowed = allowed & (cols[None, :] <= rows[:, None] + shift)
            s = tl.where(allowed, s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        pivot = tl.where(m_new == -float("inf"), 0.0, m_new)  # a row that has seen no key yet
        p = tl.exp2(s - pivot[:, None])
        convert = tl.exp2(m - pivot)  # from units of exp(m) to units of exp(m_new)
        l = l * convert + tl.sum(p, axis=1)
        v = tl.load(v_ptr + cols[:, None] * v_stride + dims[None, :], mask=inside[:, None], other=0.0)  # [B_c, DIM]
        o = tl.dot(p.to(v.dtype), v, o * convert[:, None], input_precision="ieee")
        m = m_new
    return m, l, o


@triton.jit
def forward_kernel(
    q_ptr,  # in   (batch, heads, q_len, DIM)
    k_ptr,  # in   (batch, heads / GROUP, k_len, DIM)
    v_ptr,  # in   (batch, heads / GROUP, k_len, DIM)
    out_ptr,  # out  (batch, heads, q_len, DIM), contiguous
    lse_ptr,  # out  (batch, heads, q_len), float32, contiguous
    q_batch, q_head, q_seq,  # strides in elements, not bytes; the last axis has stride 1
    k_batch, k_head, k_seq,
    v_batch, v_head, v_seq,
    heads, q_len, k_len, scale,
    CAUSAL: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out = softmax(scale Q K^T) V and lse, for one query tile of one head."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest causal rows first, so that no late one is waited for
    batch_head = tl.program_id(1).to(tl.int64)  # int32 wraps beyond 2**31 elements
    batch, head = batch_head // heads, batch_head % heads
    rows = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    dims = tl.arange(0, DIM)
    inside = rows[:, None] < q_len

    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head // GROUP * k_head
    v_ptr += batch * v_batch + head // GROUP * v_head
    q = tl.load(q_ptr + rows[:, None] * q_seq + dims[None, :], mask=inside, other=0.0)  # [B_r, DIM]
    m = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    l = tl.zeros([BLOCK_Q], tl.float32)
    o = tl.zeros([BLOCK_Q, DIM], tl.float32)

    shift = k_len - q_len  # query i sees keys j <= i + shift
    scale_log2 = scale * 1.4426950408889634  # log2(e)
    whole, end = key_range(tile, q_len, k_len, CAUSAL, BLOCK_Q, BLOCK_K)
    m, l, o = _attend(
        m, l, o, q, k_ptr, v_ptr, k_seq, v_seq, rows, 0, whole, k_len, shift, scale_log2, False, CAUSAL, DIM, BLOCK_K
    )
    m, l, o = _attend(
        m, l, o, q, k_ptr, v_ptr, k_seq, v_seq, rows, whole, end, k_len, shift, scale_log2, True, CAUSAL, DIM, BLOCK_K
    )

    o = o / tl.where(l == 0.0, 1.0, l)[:, None]  # no key seen: 0 / 1
    lse = (m + tl.log2(tl.where(l == 0.0, 1.0, l))) * 0.6931471805599453  # ln(2); no key seen: -inf
    out_rows = batch_head * q_len + rows
    tl.store(out_ptr + out_rows[:, None] * DIM + dims[None, :], o.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + out_rows, lse, mask=rows < q_len)
