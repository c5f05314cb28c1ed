"""Softmax of the rows of a matrix in one Triton kernel: each element is read from HBM once and written once.

Eager PyTorch's three passes move 5 elements per score (read for max, read for sum, read and write for the division,
plus temporaries); this moves 2, and the bound is memory bandwidth.
"""

from collections.abc import Iterator

import torch

from refimpl._triton import HAS_TRITON, INTERPRET, CompileJob, check_device, tl, triton

__all__ = ["HAS_TRITON", "INTERPRET", "fused_softmax", "softmax_kernel"]

MAX_COLS = 2**20  # Triton's largest tile


@triton.jit
def softmax_kernel(
    x_ptr,  # in   [n_rows, n_cols], any float type, neighbouring columns adjacent
    y_ptr,  # out  [n_rows, n_cols], the same type
    x_row_stride,  # in elements, not bytes
    y_row_stride,
    n_cols,
    BLOCK_COLS: tl.constexpr,  # power of two >= n_cols: one program holds one whole row
):
    """One program per row. Lanes beyond the row read -inf, which adds exp(-inf) = 0 to the sum."""
    row = tl.program_id(0).to(tl.int64)  # int32 wraps beyond 2**31 elements
    cols = tl.arange(0, BLOCK_COLS)
    x = tl.load(x_ptr + row * x_row_stride + cols, mask=cols < n_cols, other=-float("inf")).to(tl.float32)
    m = tl.max(x, axis=0)
    e = tl.exp(x - tl.where(m == -float("inf"), 0.0, m))  # -inf - (-inf) would be NaN
    l = tl.sum(e, axis=0)
    y = e / tl.where(l == 0.0, 1.0, l)
    tl.store(y_ptr + row * y_row_stride + cols, y.to(y_ptr.dtype.element_ty), mask=cols < n_cols)


def fused_softmax(x: torch.Tensor) -> torch.Tensor:
    """softmax(x) along the last axis of x (n_rows, n_cols), computed in float32, in x's dtype.

    2 n_rows n_cols elements of HBM traffic. A row of -inf alone gives zeros. No gradient: it is the first kernel of the
    course, not a layer.
    """
    check_device(x, where="fused_softmax")
    if x.ndim != 2 or not x.is_floating_point() or x.dtype == torch.float64:
        raise ValueError(f"fused_softmax: x must be a half or float32 matrix, given {x.dtype} {tuple(x.shape)}")
    n_rows, n_cols = x.shape
    if n_cols > MAX_COLS:
        raise ValueError(f"fused_softmax: {n_cols} columns, one program holds {MAX_COLS}; use softmax_two_pass")
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        block = triton.next_power_of_2(n_cols)
        warps = min(max(block // 1024, 1), 16)  # about 32 elements per thread; a row of 2**15 and more shares 16 warps
        softmax_kernel[(n_rows,)](x, y, x.stride(0), y.stride(0), n_cols, BLOCK_COLS=block, num_warps=warps)
    return y


def compile_jobs(arch: int, everything: bool) -> Iterator[CompileJob]:
    """What `refimpl.aot` compiles: one row of 4,096 columns."""
    yield CompileJob("softmax", softmax_kernel, {"BLOCK_COLS": 4096}, arch, num_warps=4, num_stages=3)
