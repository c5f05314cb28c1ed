"""A grouped matrix product in Triton: consecutive groups of rows, each by the matrix of its expert, in one launch.

Experts get any number of tokens, so a grid over rows does not know whose matrix to read. The host makes a list of
tiles (expert, first row, end of its group), at most BLOCK_M rows of one expert each; a program looks its tile up. Empty
experts make no tile.
"""

from collections.abc import Iterator

import torch

from refimpl._triton import INTERPRET, CompileJob, check_device, tl, triton

__all__ = ["grouped_matmul", "grouped_matmul_kernel", "tiles_of"]

BLOCK_M, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def grouped_matmul_kernel(
    x_ptr,  # in   [rows, inner], sorted by expert, neighbouring features adjacent
    w_ptr,  # in   [experts, inner, cols], neighbouring columns adjacent
    y_ptr,  # out  [rows, cols]
    tiles_ptr,  # in   [tiles, 3] int32: expert, first row, end of the expert's rows
    x_stride,  # elements from one row to the next
    w_expert_stride,
    w_stride,
    y_stride,
    inner,
    cols,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program per tile of rows and block of columns: y = x @ w[expert], accumulated in float32."""
    tile = tl.program_id(0)
    expert = tl.load(tiles_ptr + 3 * tile).to(tl.int64)  # int32 wraps beyond 2**31 weights
    first = tl.load(tiles_ptr + 3 * tile + 1)
    end = tl.load(tiles_ptr + 3 * tile + 2)
    rows = first + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    p_x = x_ptr + rows.to(tl.int64)[:, None] * x_stride + ks[None, :]  # [BLOCK_M, BLOCK_K]
    p_w = (
        w_ptr + expert * w_expert_stride + ks.to(tl.int64)[:, None] * w_stride + columns[None, :]
    )  # [BLOCK_K, BLOCK_N]
    acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
    for start in range(0, inner, BLOCK_K):
        left = inner - start
        b_x = tl.load(p_x, mask=(rows[:, None] < end) & (ks[None, :] < left), other=0.0)
        b_w = tl.load(p_w, mask=(ks[:, None] < left) & (columns[None, :] < cols), other=0.0)
        acc = tl.dot(b_x, b_w, acc, input_precision="ieee")
        p_x += BLOCK_K
        p_w += BLOCK_K * w_stride
    p_y = y_ptr + rows.to(tl.int64)[:, None] * y_stride + columns[None, :]
    tl.store(p_y, acc.to(y_ptr.dtype.element_ty), mask=(rows[:, None] < end) & (columns[None, :] < cols))


def tiles_of(counts: torch.Tensor, block: int = BLOCK_M) -> torch.Tensor:
    """(tiles, 3): expert, first row, end of the expert's rows; an empty group has none."""
    ends = counts.cumsum(0).tolist()
    tiles = [
        (expert, row, end)
        for expert, (end, count) in enumerate(zip(ends, counts.tolist(), strict=True))
        for row in range(end - count, end, block)
    ]
    return torch.tensor(tiles, dtype=torch.int32, device=counts.device).view(-1, 3)


def grouped_matmul(rows: torch.Tensor, w: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """rows[group e] @ w[e] for consecutive groups of counts[e] rows; `eager.grouped_matmul` on a GPU, without gradient.

    rows (kept, inner), w (experts, inner, cols), counts (experts,) with sum kept; float16, bfloat16 or float32.
    2 kept inner cols FLOPs. In the interpreter bfloat16 is computed in float32 and rounded.
    Raises ValueError where shapes or dtypes do not fit.
    """
    check_device(rows, w, counts, where="grouped_matmul")
    if rows.ndim != 2 or w.ndim != 3 or rows.shape[1] != w.shape[1] or int(counts.sum()) != len(rows):
        given = f"rows {tuple(rows.shape)}, w {tuple(w.shape)}, {int(counts.sum())} rows in {len(counts)} groups"
        raise ValueError(
            f"grouped_matmul: rows (kept, inner), w (experts, inner, cols) and counts must fit, given {given}"
        )
    if rows.dtype != w.dtype or len(counts) != len(w):
        raise ValueError(
            f"grouped_matmul: one dtype and one count per expert, given {rows.dtype}, {w.dtype}, {len(counts)}"
        )
    if INTERPRET and rows.dtype == torch.bfloat16:
        return grouped_matmul(rows.float(), w.float(), counts).to(torch.bfloat16)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    w = w if w.stride(2) == 1 else w.contiguous()
    y, tiles = rows.new_empty(len(rows), w.shape[2]), tiles_of(counts)
    if len(tiles) and w.shape[2]:
        grid = (len(tiles), triton.cdiv(w.shape[2], BLOCK_N))
        strides = (rows.stride(0), w.stride(0), w.stride(1), y.stride(0))
        grouped_matmul_kernel[grid](
            rows, w, y, tiles, *strides, w.shape[1], w.shape[2],
            BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K, num_warps=4, num_stages=3,
        )  # fmt: skip
    return y


def compile_jobs(arch: int, everything: bool) -> Iterator[CompileJob]:
    """What `refimpl.aot` compiles: the one tile that is shipped, in bfloat16, or in float32 too."""
    constants = {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    for dtype in ("bf16", "fp32") if everything else ("bf16",):
        # float32 products are asked for in full precision, which tensor cores do not have.
        wanted = "half" if dtype == "bf16" else ""
        types = {"tiles_ptr": "*i32"}
        yield CompileJob("grouped matmul", grouped_matmul_kernel, constants, arch, 4, 3, dtype, wanted, types)
