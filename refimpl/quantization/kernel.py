"""Quantized products in Triton: int8 x int8 with scales, and NF4 codes dequantized tile by tile.

int8: half the bytes of float16 and twice its tensor-core rate; the scales multiply the finished int32 sum once.
NF4: a weight is read as half a byte and becomes a number in registers; the dense matrix never exists in HBM. That pays
where reading weights is the bound (few tokens); with many, dequantize once and multiply by a library.
`w_ptr` points into HBM; x, w, acc are tiles in registers or SRAM, of the shape beside them.
"""

import math
from collections.abc import Iterator

import torch

from refimpl._triton import INTERPRET, CompileJob, Config, check_device, tl, triton
from refimpl.quantization.nf4 import NF4Tensor

__all__ = ["INT8_CONFIGS", "NF4_CONFIGS", "int8_kernel", "int8_scaled_matmul", "nf4_kernel", "nf4_matmul"]

# Architecture -> (block_m x block_n, warps, stages) and the columns of K per step; 0 is the interpreter
INT8_CONFIGS = {0: (Config(32, 32), 64), 80: (Config(128, 128, 8, 3), 64), 90: (Config(128, 128, 8, 3), 128)}
# tokens of a tile (16: decoding, 64: more) -> the same; a step is one block of 64 weights. Key 1: float32 products,
# which have no tensor cores
NF4_CONFIGS = {
    16: {0: Config(16, 32), 1: Config(16, 32, 4, 1), 80: Config(16, 64, 4, 3), 90: Config(16, 64, 4, 3)},
    64: {0: Config(64, 32), 1: Config(32, 32, 8, 1), 80: Config(64, 64, 8, 3), 90: Config(64, 64, 4, 3)},
}


@triton.jit
def int8_kernel(
    x_ptr,  # in   (tokens, features) int8
    w_ptr,  # in   (out, features) int8: a linear layer's weights as they lie
    x_scale_ptr,  # in   (tokens,) float32
    w_scale_ptr,  # in   (out,) float32
    y_ptr,  # out  (tokens, out), contiguous
    tokens, out, features,
    x_stride, w_stride,  # from row to row, in elements
    EVEN: tl.constexpr,  # features is a multiple of BLOCK_K: loads without a mask along K can be asynchronous
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of Y = x_scale * w_scale * X W^T, summed in int32. BLOCK_K at least 32, which the int8 units ask for."""
    # The tile's corner in 64 bits (int32 wraps beyond 2**31 elements), places inside it in 32: half the registers.
    top, left = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.program_id(1).to(tl.int64) * BLOCK_N
    rows, cols, k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    inside_rows, inside_cols = rows < tokens - top, cols < out - left
    x_tile, w_tile = x_ptr + top * x_stride, w_ptr + left * w_stride
    x_at, w_at = rows[:, None] * x_stride + k[None, :], cols[:, None] * w_stride + k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, features, BLOCK_K):
        inside_x, inside_w = inside_rows[:, None], inside_cols[:, None]
        if not EVEN:
            inside_k = (k < features - start)[None, :]
            inside_x, inside_w = inside_x & inside_k, inside_w & inside_k
        x = tl.load(x_tile + start + x_at, mask=inside_x, other=0)  # [BLOCK_M, BLOCK_K]
        w = tl.load(w_tile + start + w_at, mask=inside_w, other=0)  # [BLOCK_N, BLOCK_K]
        acc = tl.dot(x, tl.trans(w), acc, out_dtype=tl.int32)
    x_scale = tl.load(x_scale_ptr + top + rows, mask=inside_rows, other=0.0)
    w_scale = tl.load(w_scale_ptr + left + cols, mask=inside_cols, other=0.0)
    y = acc.to(tl.float32) * x_scale[:, None] * w_scale[None, :]
    y_at = y_ptr + top * out + left + rows[:, None] * out + cols[None, :]
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=inside_rows[:, None] & inside_cols[None, :])


@triton.jit
def nf4_kernel(
    x_ptr,  # in   (tokens, features)
    packed_ptr,  # in   (out, features / 2) uint8, the first of two codes in the high half
    absmax_ptr,  # in   (out, features / BLOCK) float32
    codebook_ptr,  # in   (16,) float32
    y_ptr,  # out  (tokens, out), contiguous
    tokens, out, features,
    x_stride,  # from row to row, in elements
    BLOCK: tl.constexpr,  # weights that share a maximum, a multiple of BLOCK_K: one of them per row and step
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of Y^T = dequantize(W) X^T: W, made in registers, is the wide side, so 16 tokens fill a tensor core.

    Weights are rounded to x's type, products are added in float32.
    """
    top, left = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.program_id(1).to(tl.int64) * BLOCK_N
    rows, cols = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    k, pairs = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
    inside_rows, inside_cols = rows < tokens - top, cols < out - left
    x_tile = x_ptr + top * x_stride
    packed_tile, absmax_tile = packed_ptr + left * (features // 2), absmax_ptr + left * (features // BLOCK)
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(0, features, BLOCK_K):
        x_at, w_at = rows[:, None] * x_stride + k[None, :], cols[:, None] * (features // 2) + pairs[None, :]
        x = tl.load(x_tile + start + x_at, mask=inside_rows[:, None], other=0.0)  # [BLOCK_M, BLOCK_K]
        byte = tl.load(packed_tile + start // 2 + w_at, mask=inside_cols[:, None], other=0)  # [BLOCK_N, BLOCK_K / 2]
        max_at = cols * (features // BLOCK) + start // BLOCK
        absmax = tl.load(absmax_tile + max_at, mask=inside_cols, other=0.0)  # [BLOCK_N]
        high, low = tl.load(codebook_ptr + (byte >> 4)), tl.load(codebook_ptr + (byte & 15))  # from L1: 64 bytes
        w = tl.interleave(high, low) * absmax[:, None]  # [BLOCK_N, BLOCK_K]
        acc = tl.dot(w.to(x.dtype), tl.trans(x), acc, input_precision="ieee")
    y_at = y_ptr + top * out + left + rows[None, :] * out + cols[:, None]
    tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=inside_rows[None, :] & inside_cols[:, None])


def int8_scaled_matmul(
    x: torch.Tensor, w: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """x_scale[t] w_scale[o] sum_k x[t, k] w[o, k] in `dtype`; x (tokens, features), w (out, features) int8.

    2 tokens out features operations; tokens features + out features bytes read at least. Any sizes, rows at any stride.
    """
    check_device(x, w, x_scale, w_scale, where="int8_scaled_matmul")
    _check_int8(x, w, x_scale, w_scale)
    x, w = (t if t.stride(1) == 1 else t.contiguous() for t in (x, w))
    (tokens, features), out = x.shape, len(w)
    y = torch.empty(tokens, out, dtype=torch.float32 if INTERPRET else dtype, device=x.device)
    c, block_k = INT8_CONFIGS[_architecture(INT8_CONFIGS)]
    if y.numel():
        int8_kernel[triton.cdiv(tokens, c.block_q), triton.cdiv(out, c.block_k)](
            x, w, x_scale.float().flatten(), w_scale.float().flatten(), y,
            tokens, out, features, x.stride(0), w.stride(0), EVEN=features % block_k == 0,
            BLOCK_M=c.block_q, BLOCK_N=c.block_k, BLOCK_K=block_k, num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip
    return y.to(dtype)


def _check_int8(x, w, x_scale, w_scale):
    if x.dtype != torch.int8 or w.dtype != torch.int8 or x.shape[1:] != w.shape[1:]:
        raise ValueError(
            "int8_scaled_matmul: x (tokens, features) and w (out, features) must be int8, "
            f"given {x.dtype} {tuple(x.shape)} and {w.dtype} {tuple(w.shape)}"
        )
    if x_scale.numel() != len(x) or w_scale.numel() != len(w):
        raise ValueError(
            f"int8_scaled_matmul: a scale per row of x ({len(x)}) and of w ({len(w)}), "
            f"given {x_scale.numel()} and {w_scale.numel()}"
        )


def nf4_matmul(x: torch.Tensor, w: NF4Tensor) -> torch.Tensor:
    """x dequantize(w)^T in x's dtype; x (tokens, features), w (out, features) in blocks that do not cross rows.

    Reads half a byte per weight and 4 / block for its maximum (double-quantized ones are made float32 first).
    Raises ValueError where a row of w is not whole blocks.
    """
    out, features = _check_nf4(x, w)
    absmax = w.maxima()
    check_device(x, w.packed, absmax, where="nf4_matmul")
    dtype, tokens = x.dtype, len(x)
    if INTERPRET and dtype == torch.bfloat16:  # which the interpreter computes wrongly, without a word
        x = x.float()
    x = x if x.stride(1) == 1 else x.contiguous()
    y, codebook = torch.empty(tokens, out, dtype=x.dtype, device=x.device), torch.tensor(w.codebook, device=x.device)
    table = NF4_CONFIGS[16 if tokens <= 16 else 64]
    c = table[1 if x.dtype == torch.float32 and not INTERPRET else _architecture(table)]
    if y.numel():
        nf4_kernel[triton.cdiv(tokens, c.block_q), triton.cdiv(out, c.block_k)](
            x, w.packed, absmax, codebook, y, tokens, out, features, x.stride(0),
            BLOCK=w.block, BLOCK_M=c.block_q, BLOCK_N=c.block_k, BLOCK_K=math.gcd(w.block, 64),
            num_warps=c.num_warps, num_stages=c.num_stages,
        )  # fmt: skip
    return y.to(dtype)


def _check_nf4(x, w):
    if len(w.shape) != 2 or x.ndim != 2 or x.shape[1] != w.shape[1] or w.shape[1] % w.block or w.block % 16:
        raise ValueError(
            f"nf4_matmul: x (tokens, features) and w (out, features) with features a multiple of the block {w.block}, "
            f"that one of 16; given {tuple(x.shape)} and {tuple(w.shape)}; dequantize w for other shapes"
        )
    return w.shape


def _architecture(table: dict) -> int:
    """The table's row for this process: the interpreter's, or the next lower GPU."""
    if INTERPRET:
        return 0
    major, minor = torch.cuda.get_device_capability()
    return max(arch for arch in table if arch <= 10 * major + minor)


def compile_jobs(arch: int, everything: bool) -> Iterator[CompileJob]:
    """What `refimpl.aot` compiles: int8 to bfloat16, NF4 by bfloat16 for few and many tokens; float32 too."""
    c, block_k = INT8_CONFIGS[arch]
    codes = {"x_ptr": "*i8", "w_ptr": "*i8", "x_scale_ptr": "*fp32", "w_scale_ptr": "*fp32"}
    for dtype in ("bf16", "fp16", "fp32") if everything else ("bf16",):
        tile = {"EVEN": True, "BLOCK_M": c.block_q, "BLOCK_N": c.block_k, "BLOCK_K": block_k}
        yield CompileJob("int8", int8_kernel, tile, arch, c.num_warps, c.num_stages, dtype, "int8", codes)
    statistics = {"packed_ptr": "*u8", "absmax_ptr": "*fp32", "codebook_ptr": "*fp32"}
    for size in (16, 64):
        for dtype in ("bf16", "fp16", "fp32") if everything else ("bf16",):
            c = NF4_CONFIGS[size][1 if dtype == "fp32" else arch]
            tile = {"BLOCK": 64, "BLOCK_M": c.block_q, "BLOCK_N": c.block_k, "BLOCK_K": 64}
            wanted = "" if dtype == "fp32" else "half"
            yield CompileJob(
                f"nf4 M{size}", nf4_kernel, tile, arch, c.num_warps, c.num_stages, dtype, wanted, statistics
            )
