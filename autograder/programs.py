"""The program text behind an answer: a student's, a worked solution's, an oracle's. Read only; nothing here runs it."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autograder.fingerprint import parse
from autograder.judge.session import Cell
from autograder.redteam.mutants import is_kernel, reached

WIDEST_NESTING = (ast.If, ast.Try, ast.With, ast.For, ast.While)  # statements that may define names at top level


def answer_in(cells: Sequence[Cell], answer: str, cell_name: str, others: Iterable[str] = ()) -> str:
    """The definition of `answer` and of everything it uses from the notebook's cells, but for the `others`.

    What is copied is found wherever it was put: a helper in a cell of the student's own belongs to the answer. Where
    no cell defines the answer, the text of the question's cell.
    """
    defined = definitions(cells)
    if answer not in defined:
        return "\n".join(cell.source for cell in cells if cell.name == cell_name)
    todo, passed, found = [answer], set(others) - {answer}, {}
    while todo:
        name = todo.pop()
        if name in passed or name not in defined:
            continue
        passed.add(name)
        place, text, used = defined[name]
        found[place] = text
        todo += used
    return "\n\n".join(text for _, text in sorted(found.items()))


def definitions(cells: Sequence[Cell]) -> dict[str, tuple[tuple[int, int], str, list[str]]]:
    """name -> (place, text, names it uses) of its last definition at the top level of a cell."""
    found = {}
    for number, cell in enumerate(cells):
        tree = parse(cell.source)
        lines = cell.source.splitlines()
        for statement in tree.body if tree else ():
            first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
            text = "\n".join(lines[first - 1 : statement.end_lineno])
            used = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
            for name in names_given(statement):
                found[name] = (number, first), text, used
    return found


def names_given(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    given = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    if isinstance(statement, WIDEST_NESTING):
        given |= {n.name for n in ast.walk(statement) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return given


def program_of(function: Callable[..., Any]) -> list[str]:
    """The source of a trusted function and of what it calls in its own package, Triton kernels included."""
    functions, kernels = reached(function)
    used = [v for f in functions for v in f.__globals__.values() if is_kernel(v) and v.fn.__name__ in kernels]
    sources = {}
    for each in [*functions, *(kernel.fn for kernel in used)]:
        try:
            sources[f"{each.__module__}.{each.__qualname__}"] = textwrap.dedent(inspect.getsource(each))
        except OSError:
            continue  # made at run time: there is no text to copy
    return list(sources.values())
