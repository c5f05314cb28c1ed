"""Wanda: a weight matters by its size times the size of the input it meets.

    S_ij = |W_ij| ||X_j||_2          compared within a row i, that is among the inputs of one output

Removing W_ij alone changes output i by W_ij X_j over the tokens, whose norm is exactly S_ij. No gradient and no
retraining: one pass over a few hundred tokens. The published method prunes block after block and lets later ones see
the inputs that pruning left; here all norms come from one pass through the whole model.

Source: Sun et al. 2023, "A simple and effective pruning approach for large language models", section 3.
"""

from collections.abc import Callable

import torch
from torch import nn

from refimpl.quantization.swap import linears
from refimpl.shapes import Float, Tensor

__all__ = ["input_norms", "wanda_scores"]


def wanda_scores(weight: Float[Tensor, "rows cols"], norms: Float[Tensor, "cols"]) -> Float[Tensor, "rows cols"]:
    """|W_ij| ||X_j||_2."""
    return weight.detach().abs() * norms


@torch.no_grad()
def input_norms(model: nn.Module, read: Callable[[], object]) -> dict[str, Tensor]:
    """Name of each linear layer -> ||X_j||_2 of its input features over all tokens that `read()` sends through."""
    squares: dict[str, Tensor] = {}

    def watch(name):
        def hook(layer, inputs):
            x = inputs[0].detach().flatten(0, -2).double()
            squares[name] = squares.get(name, 0) + x.square().sum(dim=0)

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in linears(model).items()]
    try:
        read()
    finally:
        for hook in hooks:
            hook.remove()
    if not squares:
        raise ValueError("input_norms: read() sent no token through a linear layer; call the model in it")
    return {name: x.sqrt().float() for name, x in squares.items()}
