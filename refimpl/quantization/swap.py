"""A model's linear layers replaced by quantized ones, and back again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from refimpl.shapes import Tensor

__all__ = ["linears", "replaced_linears", "rounded"]


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> layer, every nn.Linear of the model; tied output heads are none."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@contextmanager
def replaced_linears(model: nn.Module, make: Callable[[str, nn.Linear], nn.Module]) -> Iterator[None]:
    """Within the `with`, each linear layer is `make(name, layer)`; afterwards the layers stand where they stood."""
    before = linears(model)
    try:
        for name, layer in before.items():
            _put(model, name, make(name, layer))
        yield
    finally:
        for name, layer in before.items():
            _put(model, name, layer)


def rounded(approximate: Callable[[Tensor], Tensor]) -> Callable[[str, nn.Linear], nn.Linear]:
    """For `replaced_linears`: layers with approximate(weight) in place of their weights, in their own precision."""

    def make(name: str, layer: nn.Linear) -> nn.Linear:
        found = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=False)
        found.weight = nn.Parameter(approximate(layer.weight.detach()), requires_grad=False)
        found.bias = layer.bias
        return found

    return make


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)
