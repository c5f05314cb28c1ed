"""Attention as the formula says it, and the one entry point to every faster form.

`naive_attention` builds the whole q_len x k_len score matrix. It is slow, short and right: the oracle for the rest.
Tensors are `(batch, heads, seq, dim)`; k and v may have fewer heads than q (grouped-query attention).
"""

from functools import cache
from typing import Literal

import torch

from refimpl.shapes import Bool, Float, Int, Tensor

__all__ = [
    "attention",
    "causal_mask",
    "check_qkv",
    "multi_head_attention",
    "naive_attention",
    "repeat_kv",
    "rope",
    "sinusoidal_positions",
]


def attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    *,
    causal: bool = False,
    mask: Bool[Tensor, "..."] | None = None,
    scale: float | None = None,
    impl: Literal["auto", "naive", "tiled", "triton"] = "auto",
    return_lse: bool = False,
):
    """softmax(scale Q K^T) V by the implementation you name; all of them agree up to rounding.

    naive   whole score matrix; any mask                          O(q_len k_len) extra memory
    tiled   `flash_attention.eager`, plain PyTorch, any device    O(q_len) extra memory
    triton  `flash_attention.kernel`; on a CPU through Triton's interpreter, slowly
    auto    naive where a mask is given, triton on CUDA where the kernel covers the case, else tiled

    Returns out `(batch, heads, q_len, dim)`, and with `return_lse` also lse `(batch, heads, q_len)`, natural logarithm.
    A query that may look at no key gets out = 0, lse = -inf and zero gradients.
    `causal` aligns the LAST query with the LAST key (query i sees key j iff j <= i + k_len - q_len), as decoding needs.
    PyTorch's `scaled_dot_product_attention(is_causal=True)` aligns the first ones: the two differ where lengths differ.
    """
    if impl == "auto":
        impl = _choose(q, mask)
    if impl == "naive":
        return naive_attention(q, k, v, causal=causal, mask=mask, scale=scale, return_lse=return_lse)
    if impl not in ("tiled", "triton"):
        raise ValueError(f"attention: impl={impl!r} is unknown; choose naive, tiled, triton or auto")
    if mask is not None:
        raise ValueError(f"attention: impl={impl!r} takes no mask; use impl='naive', or causal=True for that mask")
    # Imported here, so that this module needs neither Triton nor the modules that build on it.
    if impl == "tiled":
        from refimpl.flash_attention.eager import flash_attention
    else:
        from refimpl.flash_attention.kernel import flash_attention
    return flash_attention(q, k, v, causal=causal, scale=scale, return_lse=return_lse)


def _choose(q, mask) -> str:
    if mask is not None:
        return "naive"
    if q.is_cuda and q.dtype != torch.float64:
        from refimpl.flash_attention import kernel

        if kernel.HAS_TRITON and q.shape[-1] in kernel.HEAD_DIMS:
            return "triton"
    return "tiled"


def naive_attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch kv_heads k_len dim"],
    v: Float[Tensor, "batch kv_heads k_len dim"],
    *,
    causal: bool = False,
    mask: Bool[Tensor, "..."] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
):
    """softmax(scale Q K^T) V in three lines, with the score matrix in memory.

    mask: boolean, True = may look, broadcastable to (batch, heads, q_len, k_len).
    FLOPs 4 q_len k_len dim per head; extra memory about 2 q_len k_len elements per head (S and P).
    Source: Vaswani et al. 2017, equation 1.
    """
    heads = q.shape[1]
    scale = check_qkv(q, k, v, scale, where="naive_attention")
    allowed = _allowed(q.shape[2], k.shape[2], causal, mask, q.device)
    S = (q * scale) @ repeat_kv(k, heads).transpose(-2, -1)  # (batch, heads, q_len, k_len): what tiling never stores
    if allowed is not None:
        S = S.masked_fill(~allowed, -torch.inf)
    P = torch.softmax(S, dim=-1)
    if allowed is not None and not (seen := allowed.any(dim=-1, keepdim=True)).all():
        P = P.masked_fill(~seen, 0.0)  # a row of -inf alone is 0/0: it looks at nothing, so it is worth 0
    out = P @ repeat_kv(v, heads)
    return (out, torch.logsumexp(S, dim=-1)) if return_lse else out


def _allowed(q_len, k_len, causal, mask, device):
    """The causal mask and the caller's mask as one, or None where every query may look at every key."""
    if not causal:
        return mask
    allowed = causal_mask(q_len, k_len, device=device)
    return allowed if mask is None else allowed & mask


def causal_mask(q_len: int, k_len: int, *, device: torch.device | None = None) -> Bool[Tensor, "q_len k_len"]:
    """True where query i may look at key j: j <= i + (k_len - q_len), so the last query sees every key."""
    return torch.ones(q_len, k_len, dtype=torch.bool, device=device).tril(k_len - q_len)


def repeat_kv(x: Float[Tensor, "batch kv_heads k_len dim"], heads: int) -> Float[Tensor, "batch {heads} k_len dim"]:
    """Give every query head its own copy of the key/value head it reads (GQA; kv_heads = 1 is MQA)."""
    kv_heads = x.shape[1]
    if heads % kv_heads:
        raise ValueError(f"repeat_kv: {heads} query heads cannot share {kv_heads} kv heads equally")
    return x if kv_heads == heads else x.repeat_interleave(heads // kv_heads, dim=1)


def check_qkv(q, k, v, scale: float | None, *, where: str) -> float:
    """Refuse shapes that do not fit, in words; return the scale, dim ** -0.5 where None was given."""
    given = f"given q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"{where}: q, k and v must be (batch, heads, seq, dim), {given}; add axes with [None]")
    if k.shape != v.shape or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        raise ValueError(f"{where}: q, k and v must share batch and dim, k and v every axis, {given}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{where}: query heads must be a multiple of kv heads, {given}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"{where}: one dtype for all, given q {q.dtype}, k {k.dtype}, v {v.dtype}; convert with .to()")
    return q.shape[-1] ** -0.5 if scale is None else scale


def multi_head_attention(
    x: Float[Tensor, "batch q_len model"],
    w_q: Float[Tensor, "model heads_dim"],
    w_k: Float[Tensor, "source kv_heads_dim"],
    w_v: Float[Tensor, "source kv_heads_dim"],
    w_o: Float[Tensor, "heads_dim out"],
    *,
    heads: int,
    kv_heads: int | None = None,
    context: Float[Tensor, "batch k_len source"] | None = None,
    causal: bool = False,
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "batch q_len out"]:
    """Concat(head_1 … head_h) W_O with head_i = attention(x W_Q^i, c W_K^i, c W_V^i).

    c is x itself (self-attention) or `context` (cross-attention: queries from the decoder, keys from the encoder).
    Matmuls per layer: 3 projections and 2 attention products per head, and one output projection.
    Source: Vaswani et al. 2017, section 3.2.2; kv_heads < heads: Ainslie et al. 2023 (GQA).
    """
    context = x if context is None else context
    q = _split_heads(x @ w_q, heads)
    k, v = (_split_heads(context @ w, kv_heads or heads) for w in (w_k, w_v))
    out = attention(q, k, v, causal=causal, mask=mask)
    return out.transpose(1, 2).flatten(2) @ w_o  # heads side by side again: (batch, q_len, heads * dim)


def _split_heads(x, heads):
    if x.shape[-1] % heads:
        raise ValueError(f"multi_head_attention: width {x.shape[-1]} cannot be cut into {heads} heads of equal size")
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (batch, heads, seq, dim)


def sinusoidal_positions(seq: int, dim: int) -> Float[Tensor, "{seq} {dim}"]:
    """PE(pos, 2i) = sin(pos / 10000^(2i/dim)), PE(pos, 2i+1) = cos of the same angle: one clock per pair of features.

    Added to the embeddings once, before the first layer. Source: Vaswani et al. 2017, section 3.5.
    """
    angles = _angles(torch.arange(seq), dim, 10_000.0, torch.float32)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :dim]


def rope(
    x: Float[Tensor, "*batch seq dim"], positions: Int[Tensor, "*#batch seq"], *, base: float = 10_000.0
) -> Float[Tensor, "*batch seq dim"]:
    """Rotate feature pair (i, i + dim/2) of the token at position p by the angle p / base^(2i/dim).

    Applied to q and k, never to v: then q·k depends on the distance of the two tokens alone. "Half-split" layout, as
    Llama checkpoints in Hugging Face form have it; the paper pairs neighbours (2i, 2i+1). Source: Su et al. 2021.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"rope: dim must be even to form pairs, given x {tuple(x.shape)}")
    # float32 angles even for float16 x: at position 8192 float16 cannot tell neighbouring positions apart
    angles = _angles(positions, x.shape[-1], base, torch.promote_types(x.dtype, torch.float32))
    cos, sin = angles.cos(), angles.sin()
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


def _angles(positions, dim, base, dtype):
    """(..., seq) positions -> (..., seq, ceil(dim / 2)) angles, slowest clock last."""
    return positions.to(dtype)[..., None] * _frequencies(dim, base, dtype, positions.device)


@cache  # every layer of every decoding step asks for the same ones: a rotation of one token takes 21 us in place of 33
def _frequencies(dim, base, dtype, device):
    """1 / base^(2i/dim), rounded once as when checkpoints were trained: then their logits are ours to the bit."""
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=dtype, device=device) / dim)
