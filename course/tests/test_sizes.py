"""A reader keeps one module in mind: sizes have a budget."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from course.tests.tree import PACKAGES, ROOT, modules, plant

MODULE_LINES = 300  # of refimpl: a student reads it from top to bottom
FUNCTION_LINES = 60
MEDIAN_LINES = 12


def functions(root: Path, path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, line, length) of each function; the docstring is free, because it teaches."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield node.name, node.lineno, length


def module_problems(root: Path) -> Iterator[str]:
    """Reference modules fit one reading."""
    for path in modules(root, "refimpl").values():
        lines = len((root / path).read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            yield f"{path}: {lines} lines, at most {MODULE_LINES}. One module, one idea: split off the second one."


def function_problems(root: Path) -> Iterator[str]:
    """No function of ours is longer than a screen."""
    for package in PACKAGES:
        for path in modules(root, package).values():
            for name, line, length in functions(root, path):
                if length > FUNCTION_LINES:
                    yield f"{path}:{line}: {name} has {length} lines, at most {FUNCTION_LINES}. Name its steps."


def median_problems(root: Path) -> Iterator[str]:
    """Most functions of the reference are short."""
    lengths = [length for path in modules(root, "refimpl").values() for _, _, length in functions(root, path)]
    if lengths and statistics.median(lengths) > MEDIAN_LINES:
        median = statistics.median(lengths)
        yield f"refimpl: the median function has {median} lines, at most {MEDIAN_LINES}. Split the longest ones."


RULES = [module_problems, function_problems, median_problems]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_repository_keeps_the_budget(rule):
    """No module of ours breaks it."""
    assert not list(rule(ROOT)), "\n".join(rule(ROOT))


def long_function(lines: int) -> str:
    return "def f():\n" + "    x = 1\n" * (lines - 1)


PLANTED = {
    "a long module": (module_problems, {"refimpl__a_dot_py": "x = 1\n" * 301}),
    "a long function of the reference": (function_problems, {"refimpl__a_dot_py": long_function(61)}),
    "a long function of the grader": (function_problems, {"autograder__a_dot_py": long_function(61)}),
    "a long method": (
        function_problems,
        {"course__a_dot_py": "class C:\n    " + long_function(61).replace("\n", "\n    ")},
    ),
    "middling functions everywhere": (median_problems, {"refimpl__a_dot_py": long_function(13) * 3}),
}


@pytest.mark.parametrize(("rule", "sources"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_seen(rule, sources, tmp_path):
    """The rule names the place and says the way out."""
    (problem,) = rule(plant(tmp_path, **sources))
    assert "at most" in problem


ALLOWED = {
    "a module at the limit": (module_problems, {"refimpl__a_dot_py": "x = 1\n" * 300}),
    "a long test module": (module_problems, {"refimpl__tests__test_a_dot_py": "x = 1\n" * 500}),
    "a function at the limit": (function_problems, {"refimpl__a_dot_py": long_function(60)}),
    "a long docstring": (
        function_problems,
        {"refimpl__a_dot_py": 'def f():\n    """' + "text\n" * 80 + '"""\n    return 1\n'},
    ),
    "short functions and one long one": (
        median_problems,
        {"refimpl__a_dot_py": long_function(3) * 2 + long_function(60)},
    ),
}


@pytest.mark.parametrize(("rule", "sources"), ALLOWED.values(), ids=ALLOWED)
def test_what_the_budget_allows_is_not_reported(rule, sources, tmp_path):
    """A rule that cries wolf would be switched off."""
    assert not list(rule(plant(tmp_path, **sources)))
