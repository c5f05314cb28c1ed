"""A conversation with an answer: make an object, call its methods, change things in between, look again.

`converse(self, student, case)` of a question runs where the trusted code runs. `student(...)` calls the answer; what
comes back is plain data, or a `Handle` for each object in it. The classes here do so in place; the judge has the same
two over a socket (judge/remote.py). Nothing but plain copies crosses either way.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from autograder.sandbox.objects import is_plain, load_state
from autograder.served import Open
from autograder.tree import detached, fresh, map_tree

Rules = Callable[[], contextlib.AbstractContextManager[Any]]


class AnswerFailed(Exception):
    """The answer raised; `cause` is what."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.cause = cause


class Handle:
    """An object that an answer made. `handle.method(...)` calls, `get` reads, `load_state` sets tensors, `drop` ends.

    `handle(...)` calls the object itself; `next(handle)` asks a generator for more.
    """

    def invoke(self, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call a method; the empty name is the object itself."""
        raise NotImplementedError

    def get(self, name: str) -> Any:
        """The attribute `name`: plain data, or a handle."""
        raise NotImplementedError

    def load_state(self, state: dict[str, Any]) -> None:
        """Give the object its tensors, by `load_state_dict` where it has one, else by attribute."""
        raise NotImplementedError

    def drop(self) -> None:
        """Let go of the object."""
        raise NotImplementedError

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args, **kwargs: self.invoke(method, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.invoke("", args, kwargs)

    def __iter__(self) -> "Handle":
        return self

    def __next__(self) -> Any:
        return self.invoke("__next__", (), {})


class LocalHandle(Handle):
    """An object of this process."""

    def __init__(self, target: Any, rules: Rules) -> None:
        self._target, self._rules = target, rules

    def invoke(self, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        return called(lambda: getattr(self._target, method) if method else self._target, args, kwargs, self._rules)

    def get(self, name: str) -> Any:
        return called(lambda: lambda: getattr(self._target, name), (), {}, self._rules)

    def load_state(self, state: dict[str, Any]) -> None:
        called(lambda: load_state, (self._target, state), {}, self._rules)

    def drop(self) -> None:
        self._target = None

    def __repr__(self) -> str:
        return f"<handle of a {type(self._target).__name__}>"


class LocalStudent:
    """Calls an answer of this process."""

    def __init__(self, answer: Callable[..., Any], rules: Rules) -> None:
        self._answer, self._rules = answer, rules

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return called(lambda: self._answer, args, kwargs, self._rules)


def called(target: Callable[[], Callable[..., Any]], args: tuple, kwargs: dict[str, Any], rules: Rules) -> Any:
    """Call under the question's rules, on copies; handles go in as their objects, and objects come out as handles."""
    private = map_tree(lambda leaf: leaf._target if isinstance(leaf, LocalHandle) else leaf, fresh((args, kwargs)))
    try:
        with rules():
            result = target()(*private[0], **private[1])
    except StopIteration:
        raise
    except Exception as error:
        raise AnswerFailed(error) from error
    return map_tree(lambda leaf: leaf if is_plain(leaf) or isinstance(leaf, Open) else LocalHandle(leaf, rules),
                    fresh(detached(result)))  # fmt: skip
