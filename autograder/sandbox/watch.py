"""Watch the torch operations of one call: refuse some by name, measure the largest tensor made.

Used beside the student's code, in the sandbox and in the notebook. What it says explains a failure; a student's
process could forge it, so no grade rests on it alone: absent.py takes operations away, memory is measured outside.
"""

from collections.abc import Iterable

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ForbiddenCall(RuntimeError):
    """An operation that the question rules out was called."""


class ForbidFunctions(TorchFunctionMode):
    """Refuse public torch functions and methods whose name contains one of `names`: softmax(x), x.softmax()."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        refuse(resolve_name(func) or getattr(func, "__name__", ""), self.names)
        return func(*args, **(kwargs or {}))


class WatchOperations(TorchDispatchMode):
    """Refuse dispatched operations by name (they are reached whatever the route), and note the largest result."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        super().__init__()
        self.names = tuple(names)
        self.largest_bytes = 0
        self.largest_shape: tuple[int, ...] = ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        refuse(str(func), self.names)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # A view or an expanded tensor owns no memory of its own: its storage is what counts.
            if isinstance(tensor, torch.Tensor) and (size := tensor.untyped_storage().nbytes()) > self.largest_bytes:
                self.largest_bytes, self.largest_shape = size, tuple(tensor.shape)
        return result


def refuse(operation: str, names: Iterable[str]) -> None:
    """Raise ForbiddenCall if `operation` contains one of `names`."""
    for name in names:
        if name in operation:
            raise ForbiddenCall(f"`{operation}` was called, but this question is to be solved without `{name}`")


def own_error(error: BaseException) -> BaseException:
    """What the answer itself raised, where Triton's interpreter raised its own error from it."""
    while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
        error = error.__cause__
    return error
