"""Adapters: a small network after a layer, through which its output passes.

    h <- h + W_up gelu(W_down h + c) + e          W_down (width, model), W_up (model, width), width << model

There is a nonlinearity between the two matrices, so an adapter cannot be merged: it costs time for ever, 4 width model
FLOPs per token each, where merged LoRA costs none.
Source: S1, "Adapter Tuning"; Houlsby et al. 2019, section 2.1 (after both sublayers, before the residual addition).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses
from torch import nn

from refimpl.peft.attach import LayerDelta, matching
from refimpl.shapes import Float, Tensor

__all__ = ["Adapters", "Bottleneck"]


class Bottleneck(nn.Module):
    """h + W_up gelu(W_down h + c) + e, in h's precision. W_up and e start at zero: at first nothing changes.

    2 model width + width + model numbers.
    """

    def __init__(self, model: int, width: int, draw: torch.Generator):
        super().__init__()
        self.down = nn.Parameter(torch.randn(width, model, generator=draw) * model**-0.5)
        self.up = nn.Parameter(torch.zeros(model, width))
        self.down_bias, self.up_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(model))

    def forward(self, h: Float[Tensor, "*batch model"]) -> Float[Tensor, "*batch model"]:
        down, up, c, e = (p.to(h.dtype) for p in (self.down, self.up, self.down_bias, self.up_bias))
        return h + F.linear(F.gelu(F.linear(h, down, c)), up, e)


class Adapters(LayerDelta):
    """One bottleneck after each linear layer whose name ends in one of `targets`: the last of both sublayers."""

    def __init__(
        self, model: nn.Module, *, width: int = 8, targets: Sequence[str] = ("o_proj", "down_proj"), seed: int = 0
    ):
        super().__init__()
        layers, draw = matching(model, targets), torch.Generator().manual_seed(seed)
        self.names = list(layers)
        self.bottlenecks = nn.ModuleList(Bottleneck(m.out_features, width, draw) for m in layers.values())

    def wrap(self, i: int, layer: nn.Module) -> nn.Sequential:
        return nn.Sequential(layer, self.bottlenecks[i])
