"""The answer and the oracle in turn, each in a sandboxed process of the same kind; the oracle's never meets a student.

Its process gets the oracle's source, and that of the modules of its package that it imports, as cells.
"""

import ast
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autograder.judge.session import Cell, Notebook, Session

ORACLE = "the_oracle"
LOADER = '''
import importlib.abc, importlib.util, sys

class FromText(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules whose text came with this cell."""

    def find_spec(self, name, path=None, target=None):
        if name in TEXTS:
            return importlib.util.spec_from_loader(name, self, is_package=TEXTS[name][1])

    def exec_module(self, module):
        exec(compile(TEXTS[module.__name__][0], f"<{{module.__name__}}>", "exec", dont_inherit=True), module.__dict__)

TEXTS = {texts!r}
sys.meta_path.insert(0, FromText())
from {module} import {function} as {oracle}
'''


def oracle_cells(oracle: Callable[..., Any]) -> list[Cell]:
    """Cells that define the oracle where its package is not installed."""
    texts = {name: text(name) for name in needed(oracle.__module__)}
    source = LOADER.format(texts=texts, module=oracle.__module__, function=oracle.__name__, oracle=ORACLE)
    return [Cell(ORACLE, source)]


def text(name: str) -> tuple[str, bool]:
    """(source, whether it is a package) of a loaded module."""
    module = sys.modules[name]
    path = getattr(module, "__file__", None)  # none: a folder without __init__.py
    return Path(path).read_text(encoding="utf-8") if path else "", hasattr(module, "__path__")


def needed(name: str) -> set[str]:
    """The module and what it imports, directly or not, of the same top-level package."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        here = waiting.pop()
        if here in found or here not in sys.modules:
            continue
        found.add(here)
        waiting += [here.rpartition(".")[0], *imports(here, name.partition(".")[0])]
    return found


def imports(name: str, package: str) -> list[str]:
    """Modules of `package` that the module's text names in an import."""
    source, is_package = text(name)
    base = name if is_package else name.rpartition(".")[0]
    named: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = base.rsplit(".", node.level - 1)[0] if node.level else ""
            origin = ".".join(filter(None, [above, node.module]))
            named += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return [module for module in named if module.partition(".")[0] == package]


def race(answer: Session, oracle: Session, name: str, requests: Sequence[tuple[tuple, dict, dict]]) -> list[tuple]:
    """(the answer's raw outcome, the oracle's) for each request of (args, kwargs, how), the two in turn."""
    return [
        (answer.call(name, args, kwargs, **how), oracle.call(ORACLE, args, kwargs, **how))
        for args, kwargs, how in requests
    ]


def oracle_notebook(oracle: Callable[..., Any]) -> Notebook:
    return Notebook(oracle_cells(oracle))
