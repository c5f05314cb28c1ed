"""How much of a weight matrix is there: components, truncation that knows its inputs, layers as sums of parts.

A matrix of rank r stores r (rows + cols) numbers in place of rows * cols. Whether a trained matrix survives that is
asked two ways: by the energy of its singular values, and by what it does to real inputs. The two disagree, and
`truncate` with `input_scale` is the repair. Attention and the feed-forward network are sums of independent parts,
heads and neurons, which is why some of them are redundant.

Source: Wang et al. 2022, "Exploring extreme parameter compression for pre-trained language models" (components, single
and paired; decomposability); Yuan et al. 2023, ASVD (input scale).
"""

from collections.abc import Callable, Iterator

import torch

from refimpl.attention import naive_attention
from refimpl.shapes import Float, Tensor

__all__ = [
    "attention_heads",
    "components_for",
    "energy",
    "factor_elements",
    "feed_forward_neurons",
    "input_rms",
    "paired",
    "truncate",
]


def energy(matrix: Float[Tensor, "rows cols"], *, center: bool = True) -> Float[Tensor, "components"]:
    """Share of the variance in the first 1, 2, … principal components: cumsum(s_i²) / sum(s_i²).

    center: subtract the mean row first (PCA); without it, the shares of the singular values of the matrix itself, which
    are those of its best approximations.
    """
    matrix = matrix.detach()
    matrix = matrix.double() if matrix.dtype != torch.float64 else matrix
    matrix = matrix - matrix.mean(dim=0) if center else matrix
    variances = torch.linalg.svdvals(matrix).square()
    return variances.cumsum(0) / variances.sum()


def components_for(share: float | int, matrix: Float[Tensor, "rows cols"], *, center: bool = True) -> int:
    """The fewest components that hold `share` of the variance."""
    if not 0 < share <= 1:
        raise ValueError(f"components_for: the share of variance lies above 0 and up to 1, given {share}")
    # The last share is 1 up to rounding, so that asking for all of it always ends.
    return int((energy(matrix, center=center) < share - 1e-12).sum()) + 1


def paired(
    a: Float[Tensor, "rows cols"], b: Float[Tensor, "rows cols"], *, along: str = "columns"
) -> Float[Tensor, "..."]:
    """Two matrices as one, side by side ("columns") or one above the other ("rows").

    If they hold the same directions, the pair needs hardly more components than one of them.
    """
    if along not in ("columns", "rows"):
        raise ValueError(f"paired: along is 'columns' or 'rows', given {along!r}")
    return torch.cat((a, b), dim=1 if along == "columns" else 0)


def truncate(
    weight: Float[Tensor, "rows cols"], rank: int, *, input_scale: Float[Tensor, "cols"] | None = None
) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank cols"]]:
    """(B, A) with B A the best approximation of `weight` of this rank.

    Without input_scale the one that is nearest in the squared norm of W itself (Eckart and Young). With it, nearest in
    W diag(s): an error counts as much as the input that meets it, s_j = rms of feature j (`input_rms`).
        W diag(s) = U S V^T;   B = U_r S_r,   A = V_r^T diag(1/s)
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"truncate: a {tuple(weight.shape)} matrix has ranks 1 to {min(weight.shape)}, given {rank}")
    wide = weight.double()
    # A feature that was never seen would be divided by 0; its column is free, so any small scale will do.
    scale = torch.ones(weight.shape[1]) if input_scale is None else input_scale.clamp(min=1e-6)
    scale = scale.double()
    u, s, vt = torch.linalg.svd(wide * scale, full_matrices=False)
    return (u[:, :rank] * s[:rank]).to(weight.dtype), (vt[:rank] / scale).to(weight.dtype)


def input_rms(inputs: Float[Tensor, "*batch cols"]) -> Float[Tensor, "cols"]:
    """Root mean square of every input feature over all tokens."""
    return inputs.flatten(0, -2).double().square().mean(dim=0).sqrt().to(inputs.dtype)


def factor_elements(rows: int, cols: int, rank: int) -> int:
    """Numbers in B and A. Fewer than rows * cols only for rank < rows cols / (rows + cols)."""
    return rank * (rows + cols)


# --- layers as sums of parts ---------------------------------------------------------------------------


def attention_heads(
    x: Float[Tensor, "batch seq model"],
    w_q: Float[Tensor, "model model"],
    w_k: Float[Tensor, "model model"],
    w_v: Float[Tensor, "model model"],
    w_o: Float[Tensor, "model model"],
    *,
    heads: int,
    causal: bool = False,
) -> Iterator[Float[Tensor, "batch seq model"]]:
    """Att_h(X) = softmax(X W_Q W_K^T X^T / sqrt(d)) X W_V W_O, one head at a time: their sum is multi-head attention.

    Each head needs nothing of the others, so one can be left out, or kept alone.
    """
    parts = (w.chunk(heads, dim=1) for w in (w_q, w_k, w_v))
    for q, k, v, o in zip(*parts, w_o.chunk(heads, dim=0), strict=True):
        yield naive_attention(*((x @ w)[:, None] for w in (q, k, v)), causal=causal)[:, 0] @ o


def feed_forward_neurons(
    x: Float[Tensor, "*batch model"],
    w_in: Float[Tensor, "model hidden"],
    b_in: Float[Tensor, "hidden"],
    w_out: Float[Tensor, "hidden model"],
    activation: Callable[[Tensor], Tensor] = torch.nn.functional.gelu,
) -> Iterator[Float[Tensor, "*batch model"]]:
    """g(X w_in[:, h] + b_in[h]) w_out[h, :], one hidden neuron at a time: a head of one neuron, 4 D of them.

    Their sum plus b_out is the feed-forward network.
    """
    for column, bias, row in zip(w_in.T, b_in, w_out, strict=True):
        yield activation(x @ column + bias)[..., None] * row
