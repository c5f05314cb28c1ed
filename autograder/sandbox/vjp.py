"""Gradients of a result with respect to arguments, contracted with drawn cotangents: vᵀJ.

The cotangents v come from a generator that is seeded per case, so the answer and the oracle meet the same ones,
and no sum() or mean() that a student happens to test with can stand for them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every floating tensor in nested data; dicts by key, so that the order in which they were filled is nothing."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors(value[key])


def leaves(value: Any) -> Any:
    """The same nesting, with floating tensors as leaves of a new graph."""
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_() if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        items = [leaves(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: leaves(item) for key, item in value.items()}
    return value


def with_gradients(
    run: Callable[[tuple], Any], args: Sequence[Any], wanted: Sequence[int], seed: int
) -> tuple[Any, tuple[torch.Tensor | None, ...]]:
    """`run(args)` and, for each tensor in the arguments at `wanted`, its gradient; None where no graph leads back.

    An argument the result does not depend on has gradient 0. float64 cotangents are drawn and rounded, so that runs
    in different precision meet the same ones.
    """
    args = tuple(leaves(arg) if index in wanted else arg for index, arg in enumerate(args))
    inputs = [tensor for index in wanted for tensor in tensors(args[index])]
    with torch.enable_grad():
        value = run(args)
    generator = torch.Generator().manual_seed(seed)
    outputs, cotangents = [], []
    for output in tensors(value):
        drawn = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        if output.requires_grad:
            outputs.append(output)
            cotangents.append(drawn.to(output))
    if not outputs:
        return value, (None,) * len(inputs)
    gradients = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
    return value, tuple(
        torch.zeros_like(given) if gradient is None else gradient
        for given, gradient in zip(inputs, gradients, strict=True)
    )
