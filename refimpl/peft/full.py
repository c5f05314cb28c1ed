"""A change of whole matrices, on the side: what LoRA is measured against. Every number of D in W + D is trained."""

import torch
from torch import nn

from refimpl.peft.attach import LayerDelta, matching
from refimpl.shapes import Tensor

__all__ = ["FullChange", "FullLinear"]


class FullLinear(nn.Module):
    """base(x) + x D^T."""

    def __init__(self, base: nn.Module, full: Tensor):
        super().__init__()
        self.base, self.full = base, full

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.full.T


class FullChange(LayerDelta):
    """W + D, every number of D trained: what LoRA saves."""

    def __init__(self, model: nn.Module, targets: tuple[str, ...]):
        super().__init__()
        layers = matching(model, targets)
        self.names, self.full = list(layers), nn.ParameterList(torch.zeros_like(m.weight) for m in layers.values())

    def wrap(self, i: int, layer: nn.Module) -> FullLinear:
        return FullLinear(layer, self.full[i])
