"""Mutants: a correct program with one change, known by an id that stays while the changed line does."""

import ast
import difflib
import hashlib
import inspect
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.judge.verdict import REFERENCE
from autograder.redteam.edits import edits

SAMPLE = 150  # mutants per question; more are thinned out, always the same ones


@dataclass(frozen=True)
class Mutant:
    """One change to one function: `id` stays the same while the line does."""

    id: str
    before: str
    after: str
    function: types.FunctionType
    code: types.CodeType
    probe: types.CodeType | None = None  # fails where the change can matter at all


def reached(oracle: Callable[..., Any]) -> tuple[list[types.FunctionType], list[str]]:
    """The Python functions that an oracle may call in its own package or the reference, and names left out (Triton)."""
    packages = {oracle.__module__.partition(".")[0], REFERENCE}
    found: dict[str, types.FunctionType] = {}
    kernels: set[str] = set()
    todo: list[Any] = [oracle]
    while todo:
        value = todo.pop()
        if is_kernel(value):
            kernels.add(value.fn.__name__)
            continue
        if isinstance(value, type):
            todo += [getattr(member, "__func__", member) for member in vars(value).values()]
        value = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value
        if (
            not isinstance(value, types.FunctionType)
            or getattr(value, "__module__", "").partition(".")[0] not in packages
        ):
            continue
        name = f"{value.__module__}.{value.__qualname__}"
        if name in found or not Path(value.__code__.co_filename).is_file():
            continue
        found[name] = value
        todo += [value.__globals__[used] for used in names_in(value.__code__) if owned(value, used, packages)]
    return list(found.values()), sorted(kernels)


def owned(function: types.FunctionType, name: str, packages: set[str]) -> bool:
    """Whether a global name of the function stands for something of these packages (kernels included)."""
    value = function.__globals__.get(name)
    module = getattr(value, "__module__", None) or ""
    return is_kernel(value) or (callable(value) and module.partition(".")[0] in packages)


def is_kernel(value: Any) -> bool:
    """Whether this is a Triton kernel, compiled or interpreted."""
    return type(value).__module__.startswith("triton") and hasattr(value, "fn")


def names_in(code: types.CodeType) -> set[str]:
    nested = [names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*nested)


def mutants(function: types.FunctionType, lines: set[int] | None = None) -> Iterator[Mutant]:
    """Every mutant of a function; with `lines`, only of statements that touch one of these lines."""
    file = Path(function.__code__.co_filename)
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    root = definition(tree, function.__qualname__.split("."))
    original, source, seen = ast.unparse(root).splitlines(), text.splitlines(), Counter[str]()
    probes: dict[tuple[int, str], types.CodeType] = {}

    def compiled() -> types.CodeType:
        module = compile(ast.fix_missing_locations(tree), str(file), "exec", dont_inherit=True)
        return code_of(module, function.__qualname__)

    for edit in edits(root):
        name = identity(function.__qualname__, source[edit.line - 1], edit.operator, seen)
        if lines is not None and not lines.intersection(range(edit.statement[0], edit.statement[1] + 1)):
            continue
        before, after = changed(original, ast.unparse(root).splitlines())
        code = compiled()
        if edit.probe is not None and edit.site not in probes:
            with edit.probing():
                probes[edit.site] = compiled()
        yield Mutant(name, before, after, function, code, probes.get(edit.site))


def source_mutants(source: str) -> Iterator[tuple[str, str, str]]:
    """Mutants of a cell's source, as (id, changed line, new source)."""
    tree, lines, seen = ast.parse(source), source.splitlines(), Counter[str]()
    original = ast.unparse(tree).splitlines()
    for root in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        for edit in edits(root):
            mutated = ast.unparse(ast.fix_missing_locations(tree))
            name = identity(root.name, lines[edit.line - 1], edit.operator, seen)
            yield name, changed(original, mutated.splitlines())[1], mutated


def identity(function: str, line: str, operator: str, seen: Counter[str]) -> str:
    """`function:hash of the line's text:operator`, and a count where one line has several."""
    name = f"{function}:{hashlib.sha256(line.strip().encode()).hexdigest()[:6]}:{operator}"
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}#{seen[name]}"


def definition(tree: ast.AST, path: Sequence[str]) -> ast.FunctionDef:
    """The definition that a qualified name leads to."""
    named = (node for node in ast.iter_child_nodes(tree) if getattr(node, "name", "") == path[0])
    node = next(named)
    return definition(node, path[1:]) if len(path) > 1 else node  # type: ignore[return-value]


def code_of(code: types.CodeType, qualname: str) -> types.CodeType:
    """The code object of a function inside a module's or class's code."""
    todo = [code]
    while todo[-1].co_qualname != qualname:
        todo += [constant for constant in todo.pop().co_consts if isinstance(constant, types.CodeType)]
    return todo[-1]


def changed(before: list[str], after: list[str]) -> tuple[str, str]:
    """The lines that differ, old and new."""
    differing = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    old, new = ([line[2:].strip() for line in differing if line[0] == sign] for sign in "-+")
    return " ⏎ ".join(old), " ⏎ ".join(new)


def thinned(found: list[Mutant]) -> list[Mutant]:
    """At most SAMPLE of them: those with the smallest hashes, so the choice is the same everywhere."""
    kept = set(sorted((m.id for m in found), key=lambda name: hashlib.sha256(name.encode()).digest())[:SAMPLE])
    return [mutant for mutant in found if mutant.id in kept]
