"""Watch torch operations while an answer runs and stop the ones a question forbids."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class ForbiddenCall(RuntimeError):
    """The answer called an operation that this question asks you to write yourself."""


class _Functions(TorchFunctionMode):
    """Sees torch.* calls as written, before they are decomposed."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _refuse(self.names, getattr(func, "__name__", ""), getattr(func, "__module__", None) or "torch")
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Sees aten operations, so an alias or a module that ends in the same kernel is seen too."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        _refuse(self.names, func.overloadpacket.__name__, "aten")
        return func(*args, **(kwargs or {}))


@contextmanager
def forbidding(names: Sequence[str]) -> Iterator[None]:
    """Raise ForbiddenCall when an operation whose name contains one of `names` runs inside the block."""
    names = [name.rpartition(".")[2].lower() for name in names]
    if not names:
        yield
        return
    with _Operations(names), _Functions(names):
        yield


def _refuse(names: Sequence[str], called: str, where: str) -> None:
    for name in names:
        if name in called.lower():
            raise ForbiddenCall(f"{where}.{called} is not allowed here: write it yourself")
