"""Objects that an answer made and a conversation goes on with: kept where the answer runs, known by a number."""

from typing import Any

import torch

from . import wire

MAX_OBJECTS = 256


class TooManyObjects(RuntimeError):
    """More objects are kept than a conversation can need."""


class Objects:
    """The objects of one conversation by number. The same object keeps its number."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}
        self.made = 0

    def keep(self, value: Any) -> dict:
        """The form that stands for `value` on the wire (an `other` of wire.encode)."""
        number = next((n for n, known in self.kept.items() if known is value), None)
        if number is None:
            if len(self.kept) >= MAX_OBJECTS:
                raise TooManyObjects(f"more than {MAX_OBJECTS} objects are kept at once")
            number, self.made = self.made, self.made + 1
            self.kept[number] = value
        return {"H": number, "kind": type(value).__name__[: wire.MAX_NAME]}

    def drop(self, number: int | None) -> None:
        """Forget one object, or all of them."""
        if number is None:
            self.kept.clear()
        else:
            self.kept.pop(number, None)


def load_state(target: Any, state: dict[str, Any]) -> None:
    """Give an object its tensors: by `load_state_dict` where it has one, else as attributes of these names."""
    if hasattr(target, "load_state_dict"):
        target.load_state_dict(state)
        return
    for name, value in state.items():
        if not hasattr(target, name):
            raise AttributeError(f"{type(target).__name__} has no attribute {name!r} to load")
        setattr(target, name, value)


def is_plain(value: Any) -> bool:
    """Whether `value` travels as it is; tuples, lists and dicts are looked into one by one."""
    return value is None or type(value) in (bool, int, float, str, torch.Tensor, torch.nn.Parameter)
