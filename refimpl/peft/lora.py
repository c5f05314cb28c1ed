"""LoRA: the change of a weight matrix as a product of two thin ones.

    h = W_0 x + scale B A x          A (rank, in), B (out, rank), scale = alpha / rank, B = 0 at the start

rank * (in + out) numbers are trained in place of in * out. What is low in rank is the change of the weights, d x k
numbers that no sequence length enters; the N x N matrix of attention is another matter (`refimpl.linformer`).
Merged, W_0 + scale B A is one matrix: the model that serves the task costs what the model cost.
Source: S1, "LoRA Tuning"; Hu et al. 2022, section 4.1.
"""

from collections.abc import Sequence

import torch
from torch import nn

from refimpl.peft.attach import MergeableDelta, matching
from refimpl.shapes import Float, Tensor

__all__ = ["LoRA", "LoRALinear"]


class LoRALinear(nn.Module):
    """A layer that computes base(x) + scale (x A^T) B^T. FLOPs beside the base: 2 rank (in + out) per token.

    share: what each rank-one part counts, (rank,), or (batch, rank) where every text of a batch has its own.
    """

    def __init__(
        self, base: nn.Module, a: Float[Tensor, "rank in_features"], b: Float[Tensor, "out rank"],
        scale: float | int = 1, share: Float[Tensor, "*batch rank"] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.base, self.a, self.b, self.scale, self.share = base, a, b, scale, share
        self.is_merged = False

    @property
    def delta(self) -> Float[Tensor, "out in_features"]:
        """scale B A, with shares where there are any; texts with shares of their own have no common matrix."""
        if self.share is not None and self.share.ndim > 1:
            raise ValueError("LoRALinear: each text of the batch has its own shares, so there is no one matrix to add")
        a = self.a if self.share is None else self.a * self.share[:, None]
        return self.scale * self.b @ a

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out"]:
        y = self.base(x)
        if self.is_merged:
            return y
        low = x @ self.a.to(x.dtype).T
        if self.share is not None:
            low = low * (self.share if self.share.ndim == 1 else self.share[:, None]).to(x.dtype)
        return y + self.scale * low @ self.b.to(x.dtype).T

    @torch.no_grad()
    def merge(self) -> None:
        """W += scale B A, in place and in W's precision."""
        self._add(1)

    @torch.no_grad()
    def unmerge(self) -> None:
        """W -= scale B A. What the addition rounded away does not come back: keep W where you need its bits."""
        self._add(-1)

    def _add(self, sign: int) -> None:
        if self.is_merged == (sign > 0):
            raise ValueError(f"LoRALinear: the delta is {'already' if self.is_merged else 'not'} merged")
        if not isinstance(self.base, nn.Linear):
            raise TypeError(f"LoRALinear: {type(self.base).__name__} has no weights to add to; only nn.Linear has")
        self.base.weight += sign * self.delta.to(self.base.weight.dtype)
        self.is_merged = sign > 0


class LoRA(MergeableDelta):
    """A and B for every linear layer whose name ends in one of `targets`.

    Trained numbers: rank * (in + out), summed over the layers. A is random with standard deviation in^-1/2, B zero, so
    that the first output is the model's and the first gradient goes to B alone.
    """

    def __init__(
        self, model: nn.Module, *, rank: int = 8, alpha: float | int = 16,
        targets: Sequence[str] = ("q_proj", "v_proj"), seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        layers, draw = matching(model, targets), torch.Generator().manual_seed(seed)
        self.names, self.rank, self.scale = list(layers), rank, alpha / rank
        shapes = [layer.weight.shape for layer in layers.values()]
        self.a = nn.ParameterList(torch.randn(rank, inner, generator=draw) * inner**-0.5 for _, inner in shapes)
        self.b = nn.ParameterList(torch.zeros(out, rank) for out, _ in shapes)

    def wrap(self, i: int, layer: nn.Module) -> LoRALinear:
        return LoRALinear(layer, self.a[i], self.b[i], self.scale)

    def merged_weight(self, i: int, weight: Float[Tensor, "out in_features"]) -> Float[Tensor, "out in_features"]:
        return weight + (self.scale * self.b[i] @ self.a[i]).to(weight.dtype)
