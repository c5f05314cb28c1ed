"""Generic cheats: answers to any question that know nothing of its topic. `prove` demands 0 points for each.

A cheat is the source of a cell that comes after the worked solution. Most wrap it, so they return the right structure
for any question. The functions above `GADGETS` travel as text: they may use torch and Any, nothing else.
"""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from autograder.question import Case, Question
from autograder.tree import tensors


@dataclass(frozen=True)
class Cheat:
    """One dishonest answer as source text, and the errors by which the defence may stop it."""

    name: str
    source: str
    may_raise: tuple[str, ...] = ()


OBJECTS = False  # whether results are objects with methods, to be left whole


class Stream(list):
    """What an iterator gave, kept, and handed on as an iterator again."""


class Disguise:
    """An object whose methods are played like the answer itself."""

    def __init__(self, play: Any, target: Any) -> None:
        self.__dict__.update(_play=play, _target=target)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return (lambda *args, **kwargs: disguised(self._play, found, args, kwargs)) if callable(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return disguised(self._play, self._target, args, kwargs)

    def __repr__(self) -> str:
        return "an object"


def disguised(play: Any, honest: Any, args: Any, kwargs: Any) -> Any:
    """What the cheat makes of a call; in a conversation, with every object in it disguised."""

    def whole(leaf: Any) -> Any:
        plain = leaf is None or isinstance(leaf, (torch.Tensor, bool, int, float, str))
        return leaf if plain else Disguise(play, leaf)

    result = play(honest, args, kwargs)
    return walk(whole, result) if OBJECTS else result


def walk(change: Any, value: Any) -> Any:
    """`change` applied to every leaf of nested data; an iterator is read to its end."""
    if hasattr(value, "__next__"):
        return Stream([walk(change, item) for item in value])  # item by item: each may be overwritten after its turn
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[walk(change, item) for item in value])
    if isinstance(value, (tuple, list)):
        return type(value)([walk(change, item) for item in value])
    if isinstance(value, dict):
        return {key: walk(change, item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__") and not OBJECTS:
        return type(value)(*[walk(change, getattr(value, name)) for name in value.__dataclass_fields__])
    return change(value)


def leaves(value: Any) -> list[Any]:
    """All leaves of nested data in a list."""
    found: list[Any] = []
    walk(found.append, value)
    return found


def held(value: Any) -> Any:
    """A copy that nobody else can overwrite."""
    return walk(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value)


def call(answer: Any, args: Any, kwargs: Any) -> Any:
    """Call with what `walk` made of the arguments."""
    args = [iter(arg) if isinstance(arg, Stream) else arg for arg in args]
    return answer(*args, **{key: iter(arg) if isinstance(arg, Stream) else arg for key, arg in kwargs.items()})


def zero(leaf: Any) -> Any:
    """Nothing, of the same type and shape."""
    if isinstance(leaf, torch.Tensor):
        return torch.zeros_like(leaf)
    return type(leaf)() if isinstance(leaf, (bool, int, float, str)) else leaf


def zeroed_in_place(leaf: Any) -> Any:
    """The caller's own tensor overwritten with zeros, and a copy of it."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    with torch.no_grad():
        return leaf.zero_().clone()


def fitting(leaf: Any, inputs: list[Any]) -> Any:
    """The first input of the same type and shape; failing that of the same type; failing that nothing."""
    same_type = [given for given in inputs if type(given) is type(leaf)]
    if isinstance(leaf, torch.Tensor):
        same_shape = [given for given in same_type if given.shape == leaf.shape]
        # Without one of the shape, the numbers of an input in the wanted shape: only numbers can give it away.
        flat = same_type[0].flatten() if same_type and same_type[0].numel() else torch.zeros(1)
        repeated = flat.repeat(leaf.numel() // flat.numel() + 1)[: leaf.numel()].reshape(leaf.shape).to(leaf.dtype)
        return same_shape[0] if same_shape else repeated
    return same_type[0] if same_type else zero(leaf)


def signature(value: Any) -> str:
    """What two calls share that differ only in their tensors' numbers."""
    return repr(walk(lambda leaf: (leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf, value))


def imported(module: str, function: str) -> Any:
    """The reference itself, by import: from where Python looks, then from every folder above what is loaded."""
    import importlib
    import pathlib
    import sys

    known = [pathlib.Path.cwd(), *sys.path, *(getattr(m, "__file__", None) or "." for m in list(sys.modules.values()))]
    above = sorted({str(parent) for path in known for parent in pathlib.Path(path).resolve().parents})
    labs = [[str(folder)] for parent in above for folder in pathlib.Path(parent).glob("labs/*")]
    refused = ""
    for extra in ([], above, *labs):
        sys.path[:0] = extra
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:  # or a folder of that name, which imports as an empty package
            refused = str(error)
            sys.modules.pop(module, None)
        finally:
            del sys.path[: len(extra)]
    raise ImportError(refused)


GADGETS = (Stream, Disguise, disguised, walk, leaves, held, call, zero, zeroed_in_place, fitting, signature, imported)

ZEROS = """
    return walk(zero, honest(*args, **kwargs))
"""
INPUTS_RETURNED = """
    args, kwargs = held((args, kwargs))
    inputs = leaves((args, kwargs))
    return walk(lambda leaf: fitting(leaf, inputs), call(honest, args, kwargs))
"""
INPUTS_MUTATED = """
    args, kwargs = walk(zeroed_in_place, (args, kwargs))
    return call(honest, args, kwargs)
"""
CACHED_REPLAY = """
    args, kwargs = held((args, kwargs))
    key = getattr(honest, "__qualname__", "") + signature((args, kwargs))
    if key not in kept:
        kept[key] = call(honest, args, kwargs)
    return kept[key]
"""
ORACLE_IMPORTED = """
    return (imported({module!r}, {function!r}) if honest is original else honest)(*args, **kwargs)
"""


def cheats(question: Question, cases: Iterable[Case]) -> list[Cheat]:
    """Every generic cheat that makes sense for the question.

    To overwrite or replay inputs is a cheat only where an input is a tensor: numbers can not be overwritten, and the
    same numbers deserve the same result.
    """
    found = [
        Cheat("zeros", wrapped(question, ZEROS)),
        Cheat("inputs returned", wrapped(question, INPUTS_RETURNED)),
    ]
    if any(True for case in cases for _ in tensors((case.args, case.kwargs))):
        found.append(Cheat("inputs mutated", wrapped(question, INPUTS_MUTATED)))
        if not question.fresh:  # a new process has nothing to replay
            found.append(Cheat("cached replay", wrapped(question, CACHED_REPLAY)))
    if question.oracle is not None:
        module, _, function = question.oracle.partition(":")
        body = ORACLE_IMPORTED.format(module=module, function=function)
        found.append(Cheat("oracle imported", wrapped(question, body), ("ImportError", "ModuleNotFoundError")))
    if question.library is not None:
        found.append(
            Cheat("library call", f"import torch\n{question.answer} = {question.library}\n", ("ForbiddenCall",))
        )
    return found


def wrapped(question: Question, body: str) -> str:
    """A cell that puts the cheat around the worked solution, which the cells before it define."""
    gadgets = "\n\n".join(inspect.getsource(gadget) for gadget in GADGETS)
    return (
        f"from typing import Any\n\nimport torch\n\nOBJECTS = {question.converses}\n\n{gadgets}\n\n"
        f"original, kept = {question.answer}, {{}}\n\ndef played(honest, args, kwargs):{body}\n"
        f"def {question.answer}(*args, **kwargs):\n    return disguised(played, original, args, kwargs)\n"
    )
