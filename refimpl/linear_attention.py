"""Attention without softmax: a kernel phi(q)·phi(k) in place of exp(q·k), and the order of the products changes.

(phi(Q) phi(K)^T) V costs N² d; phi(Q) (phi(K)^T V) costs N d². Causal, the sum over the past is a state of d x d
numbers, so that decoding needs no cache of keys. The three forms compute the same: `parallel` (the score matrix),
`recurrent` (one token at a time), `chunked` (a block at a time: matrix products inside, the state between).
Source: Katharopoulos et al. 2020, "Transformers are RNNs"; chunks: Hua et al. 2022, Yang et al. 2024.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses

from refimpl.attention import check_qkv
from refimpl.online_softmax.eager import nonzero
from refimpl.shapes import Float, Tensor

__all__ = ["FORMS", "elu_plus_one", "linear_attention", "linear_attention_flops"]

FORMS = ("parallel", "recurrent", "chunked")
Queries = Float[Tensor, "batch heads seq dim"]
Values = Float[Tensor, "batch heads seq dim_v"]


def elu_plus_one(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """elu(x) + 1: positive, so that the weights of a row can be normalised, and smooth."""
    return F.elu(x) + 1


def linear_attention(
    q: Queries,
    k: Queries,
    v: Values,
    *,
    causal: bool = True,
    form: str = "chunked",
    chunk: int = 64,
    feature_map: Callable[[Tensor], Tensor] = elu_plus_one,
) -> Values:
    """out_i = sum_j phi(q_i)·phi(k_j) v_j / sum_j phi(q_i)·phi(k_j), over j <= i where causal.

    The denominator rides along as one more value feature, a column of ones. FLOPs: `linear_attention_flops`.
    Raises ValueError for a form that is not among `FORMS`.
    """
    check_qkv(q, k, v, None, where="linear_attention")
    if form not in FORMS or chunk < 1:
        raise ValueError(
            f"linear_attention: form is one of {FORMS} and chunk at least 1, given {form!r}, chunk={chunk}"
        )
    q, k, v = feature_map(q), feature_map(k), F.pad(v, (0, 1), value=1.0)
    if not causal:
        sums = _parallel(q, k, v, causal=False) if form == "parallel" else q @ (k.mT @ v)
    else:
        sums = {"parallel": _parallel, "recurrent": _recurrent, "chunked": _chunked}[form](q, k, v, chunk=chunk)
    return sums[..., :-1] / nonzero(sums[..., -1:])


def _parallel(q, k, v, *, causal=True, chunk=0):
    """The score matrix, N x N: for training on short texts, and to check the others."""
    scores = q @ k.mT
    return (scores.tril() if causal else scores) @ v


def _recurrent(q, k, v, *, chunk=0):
    """S_i = S_{i-1} + phi(k_i) v_i^T, out_i = phi(q_i) S_i: constant work and memory per token."""
    state = q.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for q_i, k_i, v_i in zip(q.unbind(2), k.unbind(2), v.unbind(2), strict=True):
        state = state + k_i[..., :, None] @ v_i[..., None, :]
        out.append((q_i[..., None, :] @ state)[..., 0, :])
    return torch.stack(out, dim=2)


def _chunked(q, k, v, *, chunk):
    """Inside a chunk the score matrix, chunk x chunk; from all chunks before it their state alone."""
    state = q.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    out = []
    for Q, K, V in zip(q.split(chunk, dim=2), k.split(chunk, dim=2), v.split(chunk, dim=2), strict=True):
        out.append((Q @ K.mT).tril() @ V + Q @ state)
        state = state + K.mT @ V
    return torch.cat(out, dim=2)


def linear_attention_flops(seq: int, dim: int, *, form: str, chunk: int = 64) -> int:
    """Matmul FLOPs of one causal head whose values have `dim` features and the column of ones; seq a multiple of chunk.

    parallel 2 N² (2 d + 1); recurrent 4 N d (d + 1), half of it in outer products; chunked
    2 N (C (2 d + 1) + 2 d (d + 1)).
    """
    v = dim + 1
    return {
        "parallel": 2 * seq * seq * (dim + v),
        "recurrent": 4 * seq * dim * v,
        "chunked": 2 * seq * (chunk * (dim + v) + 2 * dim * v),
    }[form]
