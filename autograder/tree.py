"""Walk nested values: tuples, lists and dicts with tensors and plain data at the leaves."""

from collections.abc import Callable, Iterator
from typing import Any

import torch


def map_tree(change: Callable[[Any], Any], value: Any) -> Any:
    """The same nesting with `change` applied to every leaf."""
    if isinstance(value, tuple | list):
        items = [map_tree(change, item) for item in value]
        return (
            type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        )  # a NamedTuple takes them singly
    if isinstance(value, dict):
        return {key: map_tree(change, item) for key, item in value.items()}
    return change(value)


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """The same nesting with `change` applied to every tensor; other leaves stay as they are."""
    return map_tree(lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in `value`, depth first."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)


def fresh(value: Any) -> Any:
    """A deep copy of the nesting: nobody who changes it changes ours. Strides are kept, views stay non-contiguous."""
    return map_tensors(copy_with_strides, value)


def copy_with_strides(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides, also where those leave gaps (a slice of a larger buffer)."""
    if 0 in tensor.stride():  # expanded: several elements share one place, which no copy can be written into
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    copy.copy_(tensor.detach())  # else the copy is no leaf, and its .grad stays empty
    return copy.requires_grad_(tensor.requires_grad)


def detached(value: Any) -> Any:
    """The same nesting with tensors cut off from their graphs."""
    return map_tensors(torch.Tensor.detach, value)


def to_double(value: Any) -> Any:
    """Floating tensors in fp64, for the oracle's own run; those that want a gradient still do."""
    return map_tensors(in_double, value)


def in_double(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().double().requires_grad_(tensor.requires_grad)
