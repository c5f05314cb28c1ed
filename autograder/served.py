"""Functions that an answer may call and the judge serves: a target model, a layer, a source of random numbers.

The answer gets a callable and nothing behind it. In the judge every call crosses the socket, so that what is counted
there can not be forged; in a notebook the same counting happens in place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from autograder.hub import Tally
from autograder.sandbox.channel import ServedError
from autograder.tree import fresh, map_tree, tensors

if TYPE_CHECKING:
    from autograder.question import Case

MAX_ELEMENTS = 8192  # of the arguments of one call: what a served function does with them, the judge's process pays


@dataclass
class Count:
    """How often a served function was called, and on how many positions (elements of tensors and lists) in all."""

    calls: int = 0
    positions: int = 0


@dataclass
class Seen:
    """What was seen from outside while an answer ran: served functions by name, and what each rank sent."""

    served: dict[str, Count] = field(default_factory=dict)
    ranks: list[Tally] = field(default_factory=list)


class Served:
    """An argument of a case: `Served("target", fn)`. `fn` takes and returns plain data, and trusts no argument.

    `new` in place of `fn` makes a function per run, for one that keeps state between calls. `limit` bounds the
    elements of one call's arguments: they are the student's, while time and memory are the judge's.
    """

    def __init__(
        self, name: str, fn: Callable[..., Any] | None = None, *, new: Callable[[], Callable[..., Any]] | None = None,
        limit: int = MAX_ELEMENTS,
    ) -> None:  # fmt: skip
        if (fn is None) == (new is None):
            raise TypeError(f"Served({name!r}) needs either a function or `new=` that makes one per run")
        self.name, self.fn, self.new, self.limit = name, fn, new, limit

    def open(self, seen: Seen) -> "Open":
        fn = self.new() if self.new is not None else self.fn
        assert fn is not None
        return Open(self, fn, seen.served.setdefault(self.name, Count()))


class Open:
    """A served function during one run of an answer: counts, copies in and out, and refuses in plain words."""

    def __init__(self, served: Served, fn: Callable[..., Any], count: Count) -> None:
        self.served, self.fn, self.count = served, fn, count

    def __call__(self, *args: Any) -> Any:
        positions = elements(args)
        self.count.calls += 1
        self.count.positions += positions
        if positions > self.served.limit:
            raise ServedError(f"{self.served.name} takes at most {self.served.limit:,} elements in a call")
        try:
            with torch.no_grad():
                return fresh(self.fn(*fresh(args)))
        except Exception as error:  # the arguments are the student's, and so is the mistake
            raise ServedError(
                f"{self.served.name} does not take these arguments ({type(error).__name__}: {str(error)[:200]})"
            ) from None

    def __repr__(self) -> str:
        return f"<served function {self.served.name}>"


def elements(value: Any) -> int:
    """Elements of all tensors in `value`, and numbers beside them."""
    total = sum(tensor.numel() for tensor in tensors(value))

    def number(leaf: Any) -> None:
        nonlocal total
        total += isinstance(leaf, int | float)

    map_tree(number, value)
    return total


def opened(case: "Case", seen: Seen) -> "Case":
    """The case with its served functions ready to be called, and counted into `seen`."""
    return case.map(lambda value: map_tree(lambda leaf: leaf.open(seen) if isinstance(leaf, Served) else leaf, value))
