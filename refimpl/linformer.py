"""Linformer: attention over k summaries of the keys and values in place of all N of them.

E and F (k, N) mix tokens, not features: the score matrix is N x k. It rests on softmax maps having low rank; `spectrum`
measures whether they do. The projections belong to positions, so the length is fixed, and every summary sees every
token: there is no causal form.
Source: Wang et al. 2020, "Linformer: self-attention with linear complexity", equation 7 and section 3.
"""

import torch

from refimpl.attention import check_qkv, naive_attention
from refimpl.shapes import Float, Tensor

__all__ = ["best_projection", "linformer_attention", "linformer_flops", "spectrum"]


def linformer_attention(
    q: Float[Tensor, "batch heads q_len dim"],
    k: Float[Tensor, "batch heads k_len dim"],
    v: Float[Tensor, "batch heads k_len dim"],
    e: Float[Tensor, "*shared summaries length"],
    f: Float[Tensor, "*shared summaries length"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch heads q_len dim"]:
    """softmax(scale Q (E K)^T) (F V). e and f may be shared by all heads or stand one per head.

    FLOPs per head 4 summaries dim (q_len + k_len), largest tensor q_len * summaries: both linear in the length.
    """
    scale = check_qkv(q, k, v, scale, where="linformer_attention")
    if e.shape[-1] != k.shape[2] or f.shape != e.shape:
        raise ValueError(
            f"linformer_attention: E and F project {k.shape[2]} keys, given {tuple(e.shape)} and {tuple(f.shape)}; "
            "a projection belongs to one length"
        )
    return naive_attention(q, e @ k, f @ v, scale=scale)


def linformer_flops(q_len: int, k_len: int, summaries: int, dim: int) -> int:
    """Multiplications and additions of one head: two projections, then two products of q_len by summaries."""
    return 4 * summaries * dim * (q_len + k_len)


def spectrum(maps: Float[Tensor, "*batch q_len k_len"]) -> Float[Tensor, "*batch rank"]:
    """Cumulative share of the singular values of each attention map, as the paper plots it (values, not squares)."""
    values = torch.linalg.svdvals(maps)
    return values.cumsum(-1) / values.sum(-1, keepdim=True)


def best_projection(p: Float[Tensor, "*heads q_len k_len"], summaries: int) -> Float[Tensor, "*heads summaries k_len"]:
    """The first right singular vectors of an attention map: what any F of this size could keep of it at best.

    ||P - P F^T F|| is then the smallest error of rank `summaries` (Eckart and Young). A trained F serves all inputs.
    """
    return torch.linalg.svd(p, full_matrices=False).Vh[..., :summaries, :]
