"""Few trained numbers beside a frozen model: put in its layers within a `with`, and gone afterwards.

A `Delta` is what one task adds. It owns its numbers and no part of the model, so that one model serves many of them.
The model's modules are replaced for the time of the `with` and stand where they stood after it, also on an error.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from refimpl.shapes import Float, Tensor

__all__ = ["Delta", "LayerDelta", "MergeableDelta", "matching", "swapped", "with_weight"]


class Delta(nn.Module):
    """What is trained for one task. As it is made, it changes no output; soft prompts and prefixes cannot help it."""

    @property
    def numbers(self) -> int:
        """Trained numbers, counted."""
        return sum(p.numel() for p in self.parameters())

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within the `with` the model computes with this delta; gradients reach it and nothing else."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it enters a model: give it `attached`")


class LayerDelta(Delta):
    """A delta that changes layers one by one: `wrap(i, layer)` is what stands in place of the layer `names[i]`."""

    names: list[str]

    def wrap(self, i: int, layer: nn.Module) -> nn.Module:
        raise NotImplementedError(f"{type(self).__name__} does not say what a layer becomes: give it `wrap`")

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        return swapped(model, {name: self.wrap(i, model.get_submodule(name)) for i, name in enumerate(self.names)})


class MergeableDelta(LayerDelta):
    """A delta that is a matrix: x -> x (W + delta)^T costs what x W^T costs, once they are added."""

    def merged_weight(self, i: int, weight: Float[Tensor, "out in_features"]) -> Float[Tensor, "out in_features"]:
        raise NotImplementedError(f"{type(self).__name__} does not say what a weight becomes: give it `merged_weight`")

    def merged(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within the `with` the layers are plain ones with merged weights, in their own precision; W is not touched."""
        layers = {}
        for i, name in enumerate(self.names):
            layers[name] = with_weight(name, model.get_submodule(name), lambda w, i=i: self.merged_weight(i, w))
        return swapped(model, layers)


def with_weight(name: str, layer: nn.Module, change) -> nn.Linear:
    """A linear layer like this one with change(weight) for weights; refuses layers that hold no float weights."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(
            f"merged: {name} is a {type(layer).__name__}, and only an nn.Linear has weights to add to; "
            "merge before you quantize, or keep the delta beside the layer with `attached`"
        )
    found = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=False)
    with torch.no_grad():
        found.weight = nn.Parameter(change(layer.weight).to(layer.weight.dtype), requires_grad=False)
    found.bias = layer.bias
    return found


def matching(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """Name -> linear layer, those whose names end in one of `targets`, in the model's order."""
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    found = {name: m for name, m in linears.items() if name.endswith(tuple(targets))}
    if not found:
        ends = ", ".join(sorted({name.rpartition(".")[2] for name in linears})) or "none"
        raise ValueError(f"no linear layer's name ends in {', '.join(targets) or 'nothing'}; the model has: {ends}")
    return found


@contextmanager
def swapped(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within the `with`, `modules[name]` stands at each name. Nests: a later one wraps an earlier one's."""
    before = {name: model.get_submodule(name) for name in modules}
    try:
        _put(model, modules.items())
        yield
    finally:
        _put(model, before.items())


def _put(model: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> None:
    for name, module in modules:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)
