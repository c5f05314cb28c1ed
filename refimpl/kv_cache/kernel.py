"""One decoding step in Triton (Flash-Decoding): each sequence's keys cut into splits, one program each, then a merge.

One query per sequence gives `flash_attention`'s grid batch * heads programs, 9 for SmolLM2: most of a GPU would idle
while few programs read the whole cache. Here every (sequence, key/value head, split) is a program. It takes all query
heads of the group as the rows of one tile, so that keys and values are read once, and writes a softmax state; a second
kernel merges the states as `online_softmax.merge` does.
`length_ptr` points into HBM; q, k, s, p are tiles in registers or SRAM, of the shape beside them.
Source: Dao et al. 2023 (Flash-Decoding); Kwon et al. 2023 (block tables).
"""

from collections.abc import Iterator

import torch

from refimpl._triton import INTERPRET, CompileJob, Config, check_device, pick_config, tl, triton
from refimpl.attention import check_qkv

__all__ = ["CONFIGS", "HEAD_DIMS", "combine_kernel", "decode_attention", "split_kernel"]

HEAD_DIMS = (16, 32, 64, 128)
ROWS = 16  # the smallest tile of a tensor core: smaller groups are filled up with rows that nobody reads

# block_q is not used: the rows of a tile are the query heads of a group.
CONFIGS = {
    0: {dim: Config(ROWS, 32, 4, 2) for dim in HEAD_DIMS},
    80: {dim: Config(ROWS, 64, 4, 3) for dim in HEAD_DIMS},
    90: {dim: Config(ROWS, 64, 4, 3) for dim in HEAD_DIMS},
}


@triton.jit
def split_kernel(
    q_ptr,  # in   (batch, kv_heads * GROUP, DIM), contiguous
    k_ptr,  # in   (batch or blocks, kv_heads, capacity or BLOCK, DIM)
    v_ptr,
    length_ptr,  # in   (batch,) int32: keys of each sequence
    table_ptr,  # in   (batch, table_stride) int32: its blocks, where PAGE > 0
    state_ptr,  # out  (batch, kv_heads, splits, GROUP, DIM) float32: o, not yet divided by l
    m_ptr,  # out  (batch, kv_heads, splits, GROUP) float32: the largest score, in log2 units
    l_ptr,  # out  the same: the sum of 2^(score - m)
    k_batch, k_head, k_seq,  # strides in elements, not bytes; the last axis has stride 1
    v_batch, v_head, v_seq,
    table_columns, kv_heads, scale,
    PAGE: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(m, l, o) of one part of one sequence's keys, for all query heads that read one key/value head."""
    split, splits = tl.program_id(0), tl.num_programs(0)
    batch_head = tl.program_id(1).to(tl.int64)  # int32 wraps beyond 2**31 elements
    batch, head = batch_head // kv_heads, batch_head % kv_heads
    length = tl.load(length_ptr + batch)
    part = tl.cdiv(tl.cdiv(length, splits), BLOCK_K) * BLOCK_K  # whole tiles, so that the last splits may be empty
    first = split * part
    last = tl.minimum(first + part, length)

    rows, dims = tl.arange(0, ROWS), tl.arange(0, DIM)
    inside_rows = rows < GROUP
    q_rows = (batch_head * GROUP + rows)[:, None] * DIM + dims[None, :]
    q = tl.load(q_ptr + q_rows, mask=inside_rows[:, None], other=0.0)  # [ROWS, DIM]
    m = tl.full([ROWS], -float("inf"), tl.float32)
    l = tl.zeros([ROWS], tl.float32)
    o = tl.zeros([ROWS, DIM], tl.float32)
    for j in range(first, last, BLOCK_K):
        cols = j + tl.arange(0, BLOCK_K)
        inside = cols < last
        if PAGE > 0:  # a token's block by the table, then its place inside
            block = tl.load(table_ptr + batch * table_columns + cols // PAGE, mask=inside, other=0).to(tl.int64)
            at, place = block, cols % PAGE
        else:
            at, place = tl.zeros([BLOCK_K], tl.int64) + batch, cols
        k_at = at * k_batch + head * k_head + place * k_seq
        v_at = at * v_batch + head * v_head + place * v_seq
        k = tl.load(k_ptr + k_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0)  # [BLOCK_K, DIM]
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * 1.4426950408889634)  # log2(e); [ROWS, BLOCK_K]
        s = tl.where(inside[None, :], s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))  # finite: every tile of the loop holds at least one key
        p = tl.exp2(s - m_new[:, None])
        convert = tl.exp2(m - m_new)
        l = l * convert + tl.sum(p, axis=1)
        v = tl.load(v_ptr + v_at[:, None] + dims[None, :], mask=inside[:, None], other=0.0)  # [BLOCK_K, DIM]
        o = tl.dot(p.to(v.dtype), v, o * convert[:, None], input_precision="ieee")
        m = m_new

    out_rows = (batch_head * splits + split) * GROUP + rows
    tl.store(m_ptr + out_rows, m, mask=inside_rows)
    tl.store(l_ptr + out_rows, l, mask=inside_rows)
    tl.store(state_ptr + out_rows[:, None] * DIM + dims[None, :], o, mask=inside_rows[:, None])


@triton.jit
def combine_kernel(
    state_ptr, m_ptr, l_ptr,  # in   as `split_kernel` left them
    out_ptr,  # out  (batch, kv_heads * GROUP, DIM), contiguous
    lse_ptr,  # out  (batch, kv_heads * GROUP) float32
    splits,
    GROUP: tl.constexpr, DIM: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """The state over all splits of one query head, and its one division. BLOCK_SPLITS: power of two >= splits."""
    row = tl.program_id(0).to(tl.int64)  # (batch, kv_head, query head of the group)
    batch_head, member = row // GROUP, row % GROUP
    parts, dims = tl.arange(0, BLOCK_SPLITS), tl.arange(0, DIM)
    inside = parts < splits
    rows = (batch_head * splits + parts) * GROUP + member
    m = tl.load(m_ptr + rows, mask=inside, other=-float("inf"))
    l = tl.load(l_ptr + rows, mask=inside, other=0.0)
    o = tl.load(state_ptr + rows[:, None] * DIM + dims[None, :], mask=inside[:, None], other=0.0)
    top = tl.max(m, axis=0)
    convert = tl.exp2(m - tl.where(top == -float("inf"), 0.0, top))  # an empty split counts 2^-inf = 0
    l_all = tl.sum(l * convert, axis=0)
    safe = tl.where(l_all == 0.0, 1.0, l_all)  # no key at all: 0 / 1
    out = tl.sum(o * convert[:, None], axis=0) / safe
    tl.store(out_ptr + row * DIM + dims, out.to(out_ptr.dtype.element_ty))
    tl.store(lse_ptr + row, (top + tl.log2(safe)) * 0.6931471805599453)  # ln(2)


def decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: torch.Tensor,
    *,
    table: torch.Tensor | None = None,
    splits: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
):
    """`cached_attention` for one query per sequence: q (batch, heads, 1, dim) over the first lengths[b] keys.

    k, v (batch, kv_heads, capacity, dim), or with a block table (batch, longest) the pool (blocks, kv_heads,
    block_size, dim). dim 16, 32, 64 or 128; float16, bfloat16 or float32; any strides but the last.
    HBM traffic: 2 batch kv_heads length dim elements, and 8 + 4 dim bytes twice per split and query head.
    Lengths beyond the cache are not noticed on a GPU. No gradient: decoding does not train.
    """
    scale = _check(q, k, v, lengths, table, splits, scale)
    dtype, page = q.dtype, 0 if table is None else k.shape[2]
    if INTERPRET and dtype == torch.bfloat16:  # which the interpreter computes wrongly, without a word
        q, k, v = q.float(), k.float(), v.float()
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    lengths = lengths.to(torch.int32).contiguous()
    table = lengths[:, None] if table is None else table.to(torch.int32).contiguous()  # not read where page is 0
    out, lse = _launch(q.contiguous(), k, v, lengths, table, page, splits, scale)
    out = out.to(dtype)
    return (out, lse) if return_lse else out


def _launch(q, k, v, lengths, table, page, splits, scale):
    """One program per split and key/value head, then one per query head."""
    (batch, heads, _, dim), kv_heads = q.shape, k.shape[1]
    config = pick_config(CONFIGS, dim, q.dtype)
    splits = splits or _enough_splits(batch * kv_heads, page * table.shape[1] or k.shape[2], config.block_k, q.device)
    group = heads // kv_heads
    state = q.new_empty((batch, kv_heads, splits, group, dim), dtype=torch.float32)
    m, l = (torch.empty_like(state[..., 0]) for _ in range(2))
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
    if not out.numel():
        return out, lse
    split_kernel[(splits, batch * kv_heads)](
        q, k, v, lengths, table, state, m, l, *k.stride()[:3], *v.stride()[:3], table.shape[1], kv_heads, scale,
        PAGE=page, GROUP=group, ROWS=max(ROWS, triton.next_power_of_2(group)), DIM=dim, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    combine_kernel[(batch * heads,)](
        state, m, l, out, lse, splits, GROUP=group, DIM=dim, BLOCK_SPLITS=triton.next_power_of_2(splits), num_warps=4
    )
    return out, lse


def _check(q, k, v, lengths, table, splits, scale) -> float:
    where = "decode_attention"
    if table is not None:  # the pool has no batch axis of its own: one block stands for each sequence
        k, v = (x[:1].expand(q.shape[0], *x.shape[1:]) for x in (k, v))
    scale = check_qkv(q, k, v, scale, where=where)
    check_device(q, k, v, lengths, where=where)
    if q.shape[2] != 1:
        raise ValueError(f"{where}: one query per sequence, given q {tuple(q.shape)}; use cached_attention for more")
    if q.shape[-1] not in HEAD_DIMS or q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(
            f"{where}: the kernel has dim {HEAD_DIMS} in float16, bfloat16 or float32, given dim {q.shape[-1]} in "
            f"{q.dtype}; use cached_attention"
        )
    if splits is not None and splits < 1:
        raise ValueError(f"{where}: splits must be at least 1, given {splits}")
    if lengths.shape != q.shape[:1]:
        raise ValueError(f"{where}: one length per sequence, given {tuple(lengths.shape)} for batch {q.shape[0]}")
    return scale


def _enough_splits(programs: int, capacity: int, block_k: int, device: torch.device) -> int:
    """As many as give every multiprocessor two programs, but no split shorter than a tile."""
    workers = 8 if device.type == "cpu" else 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(triton.cdiv(workers, max(programs, 1)), triton.cdiv(capacity, block_k)))


def compile_jobs(arch: int, everything: bool) -> Iterator[CompileJob]:
    """What `refimpl.aot` compiles: both kernels, static and paged, head dimensions 64 and 128 or every one."""
    types = {"length_ptr": "*i32", "table_ptr": "*i32", "state_ptr": "*fp32", "m_ptr": "*fp32", "l_ptr": "*fp32"}
    dims, dtypes = (HEAD_DIMS, ("bf16", "fp32")) if everything else ((64, 128), ("bf16",))
    for dim in dims:
        for dtype in dtypes:
            c = CONFIGS[0 if dtype == "fp32" else arch][dim]
            for page in (0, 16):
                constants = {"PAGE": page, "GROUP": 3, "ROWS": ROWS, "DIM": dim, "BLOCK_K": c.block_k}
                name = f"decode D{dim}{' paged' if page else ''}"
                # 16 rows per tile: on Hopper too they go to HMMA, and the time is that of reading the cache
                yield CompileJob(name, split_kernel, constants, arch, c.num_warps, c.num_stages, dtype, "", types)
            constants = {"GROUP": 3, "DIM": dim, "BLOCK_SPLITS": 128}
            statistics = types | {"lse_ptr": "*fp32"}
            yield CompileJob(f"combine D{dim}", combine_kernel, constants, arch, 4, 1, dtype, "", statistics)
