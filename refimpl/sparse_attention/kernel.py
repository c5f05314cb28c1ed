"""Block-sparse attention in Triton: FlashAttention's forward, with the list of key tiles read from a layout.

One program per tile row and head. Its entries run in two loops: whole tiles, which need no mask and no bounds, then
partial tiles, whose mask is one of the layout's few. Empty tiles are never read: time goes by the number of entries.
The tile row with the most entries starts first. Any pattern is the same kernel; causality is a pattern, too.
`q_ptr` points into HBM; q, k, s, p are tiles in registers or SRAM, of the shape beside them.
Source: Dao 2023 for the loop; Zaheer et al. 2020 (BigBird, appendix D) for blocks; layout as FlexAttention's BlockMask.
"""

import itertools
from collections.abc import Iterator

import torch

from refimpl._triton import INTERPRET, CompileJob, Config, check_device, pick_config, tl, triton
from refimpl.attention import check_qkv
from refimpl.sparse_attention.eager import check_lengths, layout_plan, sparse_backward
from refimpl.sparse_attention.layout import BlockLayout

__all__ = ["BLOCKS", "HEAD_DIMS", "block_sparse_attention", "block_sparse_kernel", "tiles_of"]

HEAD_DIMS = (16, 32, 64, 128)
BLOCKS = (16, 32, 64, 128)  # queries and keys of a tile; the layout decides


# Head dimension -> tiles of the kernel; a layout's block is cut into them. NARROW is for blocks below 128.
WIDE = {
    0: {16: Config(32, 32), 32: Config(32, 32), 64: Config(32, 32, 8, 1), 128: Config(16, 16, 8, 1)},
    80: {16: Config(128, 64), 32: Config(128, 64), 64: Config(128, 64), 128: Config(64, 64, 8)},
    90: {16: Config(128, 64), 32: Config(128, 64), 64: Config(128, 128, 8), 128: Config(128, 128, 8)},
}
NARROW = {
    0: WIDE[0],
    80: {dim: Config(64, 64, 4, 3) for dim in HEAD_DIMS} | {128: Config(64, 64, 8)},
    90: {dim: Config(64, 64, 4, 3) for dim in HEAD_DIMS},
}


@triton.jit
def _take_in(m, l, o, q, k, v, mask, scale_log2, MASK: tl.constexpr):
    """One step of online softmax: `attend_` of the eager form, in registers; scores in log2 units."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # [BLOCK_Q, BLOCK_K]
    if MASK:
        s = tl.where(mask != 0, s, -float("inf"))
    m_new = tl.maximum(m, tl.max(s, axis=1))
    pivot = tl.where(m_new == -float("inf"), 0.0, m_new)  # a row that has seen no key yet
    p = tl.exp2(s - pivot[:, None])
    convert = tl.exp2(m - pivot)
    l = l * convert + tl.sum(p, axis=1)
    o = tl.dot(p.to(v.dtype), v, o * convert[:, None], input_precision="ieee")
    return m_new, l, o


@triton.jit
def block_sparse_kernel(
    q_ptr,  # in   (batch, heads, q_len, DIM)
    k_ptr,  # in   (batch, heads / GROUP, k_len, DIM)
    v_ptr,  # in   (batch, heads / GROUP, k_len, DIM)
    order_ptr,  # in   (rows,) int32: which tile row is whose turn
    starts_ptr,  # in   (rows + 1,) int32: the row's entries
    ends_ptr,  # in   (rows,) int32: those before are whole
    columns_ptr,  # in   (entries,) int32: tile columns
    masks_ptr,  # in   (entries,) int32: which mask, for partial tiles
    tiles_ptr,  # in   (masks, BLOCK, BLOCK) int8
    out_ptr,  # out  (batch, heads, q_len, DIM), contiguous
    lse_ptr,  # out  (batch, heads, q_len), float32, contiguous
    q_batch, q_head, q_seq,  # strides in elements, not bytes; the last axis has stride 1
    k_batch, k_head, k_seq, v_batch, v_head, v_seq,
    heads, q_len, k_len, scale,
    GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,  # BLOCK: queries and keys of the layout's tiles
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,  # of the kernel's; both divide BLOCK
):  # fmt: skip
    """out = softmax over the layout's pairs, times V, and lse, for BLOCK_Q queries of one head."""
    ROWS: tl.constexpr = BLOCK // BLOCK_Q  # programs per row of tiles
    PARTS: tl.constexpr = BLOCK // BLOCK_K  # steps per entry
    turn = tl.program_id(0)
    row = tl.load(order_ptr + turn // ROWS)
    batch_head = tl.program_id(1).to(tl.int64)  # int32 wraps beyond 2**31 elements
    batch, head = batch_head // heads, batch_head % heads
    above = turn % ROWS * BLOCK_Q + tl.arange(0, BLOCK_Q)  # place in the layout's tile
    rows = row * BLOCK + above
    keys, dims = tl.arange(0, BLOCK_K), tl.arange(0, DIM)
    real = rows < q_len

    q_ptr += batch * q_batch + head * q_head
    k_ptr += batch * k_batch + head // GROUP * k_head
    v_ptr += batch * v_batch + head // GROUP * v_head
    q = tl.load(q_ptr + rows[:, None] * q_seq + dims[None, :], mask=real[:, None], other=0.0)  # [BLOCK_Q, DIM]
    m = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    l = tl.zeros([BLOCK_Q], tl.float32)
    o = tl.zeros([BLOCK_Q, DIM], tl.float32)
    scale_log2 = scale * 1.4426950408889634  # log2(e)

    first, whole, last = tl.load(starts_ptr + row), tl.load(ends_ptr + row), tl.load(starts_ptr + row + 1)
    for step in range(first * PARTS, whole * PARTS):
        cols = tl.load(columns_ptr + step // PARTS) * BLOCK + step % PARTS * BLOCK_K + keys
        k = tl.load(k_ptr + cols[:, None] * k_seq + dims[None, :])  # [BLOCK_K, DIM]
        v = tl.load(v_ptr + cols[:, None] * v_seq + dims[None, :])
        m, l, o = _take_in(m, l, o, q, k, v, 0, scale_log2, False)
    for step in range(whole * PARTS, last * PARTS):
        beside = step % PARTS * BLOCK_K + keys
        cols = tl.load(columns_ptr + step // PARTS) * BLOCK + beside
        bounded = (cols < k_len)[:, None]
        k = tl.load(k_ptr + cols[:, None] * k_seq + dims[None, :], mask=bounded, other=0.0)
        v = tl.load(v_ptr + cols[:, None] * v_seq + dims[None, :], mask=bounded, other=0.0)
        tile_ptr = tiles_ptr + tl.load(masks_ptr + step // PARTS).to(tl.int64) * BLOCK * BLOCK
        mask = tl.load(tile_ptr + above[:, None] * BLOCK + beside[None, :])  # [BLOCK_Q, BLOCK_K]
        m, l, o = _take_in(m, l, o, q, k, v, mask, scale_log2, True)

    safe = tl.where(l == 0.0, 1.0, l)  # no key seen: 0 / 1
    lse = (m + tl.log2(safe)) * 0.6931471805599453  # ln(2); no key seen: -inf
    out_rows, o = batch_head * q_len + rows, (o / safe[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_rows[:, None] * DIM + dims[None, :], o, mask=real[:, None])
    tl.store(lse_ptr + out_rows, lse, mask=real)


def tiles_of(dim: int, block: int, dtype: torch.dtype, arch: int | None = None) -> Config:
    """How the kernel cuts a layout's blocks, by the table."""
    c = pick_config(WIDE if block == max(BLOCKS) else NARROW, dim, dtype, arch)
    rows, stages = (block, c.num_stages) if block >= 64 else (16, 1)  # small tiles spill with more
    return c._replace(block_q=min(c.block_q, rows), block_k=min(c.block_k, block), num_stages=stages)


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: BlockLayout,
    *,
    scale: float | None = None,
    return_lse: bool = False,
):
    """`eager.block_sparse_attention` by one Triton kernel; the backward is the eager form's.

    dim 16, 32, 64 or 128, blocks of as many; float16, bfloat16 or float32 (full float32 products). Any lengths and
    strides; k and v may have fewer heads. HBM traffic: 2 block dim elements per entry and query head, at most.
    On a CPU the kernel runs in Triton's interpreter; there bfloat16 is computed in float32.
    """
    scale = _check(q, k, v, layout, scale)
    dtype = q.dtype
    if INTERPRET and dtype == torch.bfloat16:  # which the interpreter computes wrongly, without a word
        q, k, v = q.float(), k.float(), v.float()
    out, lse = _BlockSparse.apply(q, k, v, layout.to(q.device), scale)
    out = out.to(dtype)
    return (out, lse) if return_lse else out


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, layout, scale):
        q, k, v = (_readable(x) for x in (q, k, v))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        _launch(q, k, v, layout, out, lse, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_lse):
        saved = ctx.saved_tensors
        plan = layout_plan(ctx.layout, *saved[:2])
        return *sparse_backward(*saved, d_out, d_lse, plan, ctx.scale), None, None


def _readable(x):
    """x, or a copy where its features are not adjacent or an offset within one head would not fit 32 bits."""
    return x if x.stride(-1) == 1 and x.shape[2] * x.stride(2) < 2**31 else x.contiguous()


def _launch(q, k, v, layout, out, lse, scale):
    """One program per row of tiles and head."""
    (batch, heads, q_len, dim), kv_heads = q.shape, k.shape[1]
    if not out.numel():
        return
    c = tiles_of(dim, layout.block, q.dtype)
    programs = len(layout.order) * (layout.block // c.block_q)
    block_sparse_kernel[(programs, batch * heads)](
        q, k, v, layout.order, layout.starts, layout.whole_ends, layout.columns, layout.masks,
        layout.tiles.view(torch.int8), out, lse,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], heads, q_len, k.shape[2], scale,
        GROUP=heads // kv_heads, DIM=dim, BLOCK=layout.block, BLOCK_Q=c.block_q, BLOCK_K=c.block_k,
        num_warps=c.num_warps, num_stages=c.num_stages,
    )  # fmt: skip


def _check(q, k, v, layout, scale) -> float:
    where = "block_sparse_attention"
    scale = check_qkv(q, k, v, scale, where=where)
    check_device(q, k, v, where=where)
    if q.shape[-1] not in HEAD_DIMS or q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(
            f"{where}: the kernel has dim {HEAD_DIMS} in float16, bfloat16 or float32, given dim {q.shape[-1]} in "
            f"{q.dtype}; use the eager form"
        )
    if layout.block not in BLOCKS:
        raise ValueError(f"{where}: the kernel has blocks of {BLOCKS}, given {layout.block}; make another layout")
    check_lengths(layout, q, k)
    return scale


def compile_jobs(arch: int, everything: bool) -> Iterator[CompileJob]:
    """What `refimpl.aot` compiles: blocks of 64 and 128 at dimensions 64 and 128, or every pair and float32 too."""
    types = {f"{name}_ptr": "*i32" for name in ("order", "starts", "ends", "columns", "masks")}
    types |= {"tiles_ptr": "*i8", "lse_ptr": "*fp32"}
    dims, blocks, dtypes = (HEAD_DIMS, BLOCKS, ("bf16", "fp32")) if everything else ((64, 128), (64, 128), ("bf16",))
    for dim, block, dtype in itertools.product(dims, blocks, dtypes):
        c = tiles_of(dim, block, torch.float32 if dtype == "fp32" else torch.bfloat16, arch)
        constants = {"GROUP": 4, "DIM": dim, "BLOCK": block, "BLOCK_Q": c.block_q, "BLOCK_K": c.block_k}
        wanted = "half" if dtype == "bf16" and c.block_q >= 64 else ""  # Hopper's HGMMA takes 64 rows or more
        name = f"block-sparse D{dim} B{block}"
        yield CompileJob(name, block_sparse_kernel, constants, arch, c.num_warps, c.num_stages, dtype, wanted, types)
