"""FlashAttention-2 by Triton kernels, from PyTorch: which tiles, which launch, which gradient.

The kernels are in `forward_kernel` and `backward_kernel`; the loops are those of `eager`, one program per tile.
Source: Dao 2023, algorithms 1 and 2; split loops and exp2 as in Triton's tutorial 06.
"""

import itertools
from collections.abc import Iterator

import torch

from refimpl._triton import HAS_TRITON, INTERPRET, CompileJob, Config, check_device, pick_config, triton
from refimpl.attention import check_qkv
from refimpl.flash_attention.backward_kernel import dkv_kernel, dq_kernel
from refimpl.flash_attention.forward_kernel import forward_kernel

__all__ = [
    "CONFIGS",
    "HAS_TRITON",
    "HEAD_DIMS",
    "INTERPRET",
    "Config",
    "dkv_kernel",
    "dq_kernel",
    "flash_attention",
    "forward_kernel",
]

HEAD_DIMS = (16, 32, 64, 128)

# Architecture -> head dimension -> configuration; `make aot` compiles each of them with the oldest and the newest
# Triton that the course allows: their register allocators differ, and a tile may spill in one of them only.
CONFIGS = {
    "forward": {
        0: {16: Config(32, 32), 32: Config(32, 32), 64: Config(32, 32), 128: Config(32, 32, 8, 1)},
        80: {16: Config(128, 64), 32: Config(128, 64), 64: Config(128, 64), 128: Config(128, 64, 8)},
        90: {16: Config(128, 64), 32: Config(128, 64), 64: Config(128, 128, 8, 3), 128: Config(128, 128, 8)},
    },
    "dq": {
        0: {16: Config(32, 32), 32: Config(32, 32), 64: Config(32, 32, 4, 1), 128: Config(32, 16, 4, 1)},
        80: {16: Config(64, 32), 32: Config(64, 32), 64: Config(128, 64, 8), 128: Config(64, 64, 8)},
        90: {16: Config(64, 64), 32: Config(64, 64), 64: Config(128, 64, 8), 128: Config(128, 64, 8)},
    },
    "dkv": {
        0: {16: Config(32, 32), 32: Config(16, 32, 4, 1), 64: Config(32, 32, 8, 1), 128: Config(16, 32, 8, 1)},
        80: {16: Config(32, 64), 32: Config(32, 64, 8), 64: Config(32, 128, 8), 128: Config(32, 64, 8)},
        90: {16: Config(64, 64), 32: Config(64, 64, 8), 64: Config(32, 128, 8), 128: Config(32, 64, 8)},
    },
}


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    scale: float | None = None,
    config: Config | None = None,
    return_lse: bool = False,
):
    """softmax(scale Q K^T) V with gradients, by Triton kernels; conventions as in `refimpl.attention`.

    q (batch, heads, q_len, dim), k and v (batch, kv_heads, k_len, dim); dim 16, 32, 64 or 128; float16, bfloat16 or
    float32 (products in full float32 then, no TF32). Any lengths, any strides. `config` replaces the table's entry in
    all three kernels.
    On a CPU the kernels run in Triton's interpreter, about 8 ms per tile: for learning, not for speed. The interpreter
    computes bfloat16 wrongly, without a word, so there we compute in float32 and round the result.
    """
    scale = check_qkv(q, k, v, scale, where="flash_attention")
    check_device(q, k, v, where="flash_attention")
    if q.shape[-1] not in HEAD_DIMS or q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(
            f"flash_attention: the kernel has dim {HEAD_DIMS} in float16, bfloat16 or float32, "
            f"given dim {q.shape[-1]} in {q.dtype}; use impl='tiled'"
        )
    dtype = q.dtype
    if INTERPRET and dtype == torch.bfloat16:
        q, k, v = q.float(), k.float(), v.float()
    out, lse = _FlashAttention.apply(q, k, v, causal, scale, config)
    out = out.to(dtype)
    return (out, lse) if return_lse else out


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale, config):
        q, k, v = (_readable(x) for x in (q, k, v))
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        _launch(forward_kernel, "forward", q, k, v, (out, lse), causal, scale, config)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.options = causal, scale, config
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_lse):
        q, k, v, out, lse = ctx.saved_tensors
        d_out = d_out.contiguous()
        # rowsum(dO * O) = rowsum(dP * P); a gradient through lse (d lse / dS = P) joins the same bracket.
        delta = (d_out.float() * out).sum(dim=-1) - d_lse
        dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        _launch(dq_kernel, "dq", q, k, v, (d_out, lse, delta, dq), *ctx.options)
        _launch(dkv_kernel, "dkv", q, k, v, (d_out, lse, delta, dk, dv), *ctx.options)
        return dq, dk, dv, None, None, None


def _readable(x):
    """x, or a copy where its features are not adjacent or an offset within one head would not fit 32 bits."""
    return x if x.stride(-1) == 1 and x.shape[2] * x.stride(2) < 2**31 else x.contiguous()


def _launch(kernel, name, q, k, v, others, causal, scale, config):
    """One program per tile (of queries, or of keys for dkv) and head."""
    (batch, heads, q_len, dim), kv_heads, k_len = q.shape, k.shape[1], k.shape[2]
    config = config or pick_config(CONFIGS[name], dim, q.dtype)
    tiles = triton.cdiv(k_len, config.block_k) if name == "dkv" else triton.cdiv(q_len, config.block_q)
    grid = (tiles, batch * (kv_heads if name == "dkv" else heads))
    if 0 in grid:
        return  # no key or no query: nothing to compute, nothing to write
    kernel[grid](
        q, k, v, *others, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], heads, q_len, k_len, scale,
        CAUSAL=causal, GROUP=heads // kv_heads, DIM=dim, BLOCK_Q=config.block_q, BLOCK_K=config.block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def compile_jobs(arch: int, everything: bool) -> Iterator[CompileJob]:
    """What `refimpl.aot` compiles: head dimensions 64 and 128 in bfloat16, or every dimension, and float32 too."""
    kernels = {"forward": forward_kernel, "dq": dq_kernel, "dkv": dkv_kernel}
    statistics = {"lse_ptr": "*fp32", "delta_ptr": "*fp32"}
    dims, dtypes = (HEAD_DIMS, ("bf16", "fp32")) if everything else ((64, 128), ("bf16",))
    for name, dim, dtype in itertools.product(kernels, dims, dtypes):
        c = CONFIGS[name][0 if dtype == "fp32" else arch][dim]
        constants = {"CAUSAL": True, "GROUP": 4, "DIM": dim, "BLOCK_Q": c.block_q, "BLOCK_K": c.block_k}
        # float32 products are asked for in full precision, which tensor cores do not have.
        wanted = "half" if dtype == "bf16" else ""
        title = f"{name} D{dim}"
        yield CompileJob(title, kernels[name], constants, arch, c.num_warps, c.num_stages, dtype, wanted, statistics)
