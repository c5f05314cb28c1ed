"""What `import autograder` gives a student's notebook while it is judged: the same names, no effect.

`lab.check(...)` in a cell that was edited or copied must neither fail nor earn anything here, so every
method of a lab does nothing and every decorator returns what it decorates.
"""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# The last three are files of a lab's folder, which a notebook could put on sys.path.
COURSE_PACKAGES = ("refimpl", "course", "labs", "lectures", "autograder")
FORBIDDEN_PACKAGES = (*COURSE_PACKAGES, "reference", "checks", "mistakes")


class Lab:
    """A lab that answers every call with None."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


class Anything:
    """Accepts any arguments; stands for Case, Forbids and the other names checks.py imports."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class CheckFailed(AssertionError):
    """Never raised here; a cell may still name it in an except clause."""


class Refuse(MetaPathFinder):
    """Refuses the course's own packages: the answer must be in the notebook."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in FORBIDDEN_PACKAGES:
            raise ImportError(f"{name} is not available while a notebook is graded; graded cells stand on their own")
        return None


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _decorator(*args: Any, **kwargs: Any) -> Callable[[Any], Any]:
    return lambda decorated: decorated


def stub_module() -> ModuleType:
    """A module `autograder` with no path, so no submodule of it can be imported."""
    module = ModuleType("autograder", "Stand-in for the student's API while a notebook is graded.")
    module.open_lab = lambda *args, **kwargs: Lab()  # type: ignore[attr-defined]
    module.question = module.mistake = _decorator  # type: ignore[attr-defined]
    module.CheckFailed = module.NotCheckedHere = CheckFailed  # type: ignore[attr-defined]
    module.__getattr__ = _other_name  # type: ignore[method-assign]
    return module


def _other_name(name: str) -> type[Anything]:
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything


def install() -> None:
    """Put the stub in place of `autograder`, forget our packages, and refuse them from here on."""
    for name in list(sys.modules):
        if name.partition(".")[0] in FORBIDDEN_PACKAGES:
            del sys.modules[name]
    sys.modules["autograder"] = stub_module()
    sys.meta_path.insert(0, Refuse())
