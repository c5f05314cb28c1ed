"""Who may import whom. Each rule is a function of a tree, tried on planted violations and then on this repository."""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from course.tests.tree import PACKAGES, ROOT, files, imports, is_test, modules, plant

OURS = {*PACKAGES, "labs", "lectures"}
SANDBOX_MAY = {"numpy", "torch", "safetensors", "triton", "pyseccomp", "sandbox"}
GRADED_MAY = {"autograder", "torch", "numpy"}


def layer_problems(root: Path) -> Iterator[str]:
    """`refimpl`, `course` and `autograder` import nothing of each other; nobody imports lectures or labs."""
    for package in PACKAGES:
        for path in modules(root, package, tests=True).values():
            for found in imports(root, path):
                top = found.name.partition(".")[0]
                shared = is_test(path) and package == "refimpl" and found.name.startswith("autograder.tolerance")
                if top in OURS - {package} and not shared:
                    yield (
                        f"{path}:{found.line}: {package} imports {found.name}. The three packages stand alone: move the"
                        f" code to where both may look, load it by name or path at run time, or run it as a command."
                    )


def graded_problems(root: Path) -> Iterator[str]:
    """`checks.py` and `mistakes.py` import the grader, torch, numpy, the standard library, and what lab.toml names."""
    for path in files(root, ".py"):
        if path.parts[0] == "labs" and path.name in ("checks.py", "mistakes.py"):
            settings = root / path.with_name("lab.toml")
            also = tomllib.loads(settings.read_text(encoding="utf-8")).get("imports", []) if settings.exists() else []
            for found in imports(root, path):
                top = found.name.partition(".")[0]
                if top not in GRADED_MAY | set(also) | sys.stdlib_module_names:
                    yield (
                        f"{path}:{found.line}: imports {found.name}. Name an oracle as a string"
                        f' (oracle="refimpl.module:function"), or add the package to `imports` in lab.toml.'
                    )


def sandbox_problems(root: Path) -> Iterator[str]:
    """The sandbox is started as a package of its own, `sandbox`, in a place where `autograder` does not exist."""
    for path in files(root, ".py"):
        if path.parts[:2] == ("autograder", "sandbox") and not is_test(path):
            for found in imports(root, path):
                inside = found.name.startswith("autograder.sandbox") and found.level > 0
                if not inside and found.name.partition(".")[0] not in SANDBOX_MAY | sys.stdlib_module_names:
                    yield (
                        f"{path}:{found.line}: imports {found.name}, which the sandbox does not have. It may use"
                        f" {', '.join(sorted(SANDBOX_MAY))}, the standard library, its own files by relative import."
                    )


def cycle_problems(root: Path) -> Iterator[str]:
    """Modules of one package form no ring; a ring of two is a two-way import."""
    for package in PACKAGES:
        graph = module_graph(root, package)
        for ring in rings(graph):
            yield (
                f"import ring: {' -> '.join([*ring, ring[0]])}. Move what both need into a third module, or import"
                f" inside the function that needs it."
            )


def module_graph(root: Path, package: str) -> dict[str, set[str]]:
    """module -> modules of the same package that it imports when it is itself imported."""
    found = modules(root, package)
    graph: dict[str, set[str]] = {}
    for name, path in found.items():
        wanted = (each.name for each in imports(root, path) if each.at_module_level)
        targets = (each if each in found else each.rpartition(".")[0] for each in wanted)
        graph[name] = {target for target in targets if target in found and target != name}
    return graph


def rings(graph: dict[str, set[str]]) -> list[list[str]]:
    """One ring through each module that can reach itself by way of modules not yet in a ring."""
    found: list[list[str]] = []
    for start in sorted(graph):
        if any(start in ring for ring in found):
            continue
        paths = [[start]]
        seen = set()
        while paths:
            path = paths.pop(0)  # breadth first: the shortest ring is the clearest message
            if start in graph[path[-1]]:
                found.append(path)
                break
            fresh = graph[path[-1]] - seen
            seen |= fresh
            paths += [[*path, target] for target in sorted(fresh)]
    return found


RULES = [layer_problems, graded_problems, sandbox_problems, cycle_problems]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_repository_keeps_the_rule(rule):
    """No module of ours breaks it."""
    assert not list(rule(ROOT)), "\n".join(rule(ROOT))


PLANTED = {
    "refimpl imports the grader": (layer_problems, {"refimpl__a_dot_py": "from autograder import score"}),
    "course imports the reference, inside a function": (
        layer_problems,
        {"course__a_dot_py": "def f():\n    import refimpl.attention"},
    ),
    "the grader imports the course": (layer_problems, {"autograder__a_dot_py": "import course.notebooks as n"}),
    "somebody imports a lab": (layer_problems, {"course__tests__test_a_dot_py": "from labs import x"}),
    "a test of refimpl uses more of the grader than its tolerances": (
        layer_problems,
        {"refimpl__tests__test_a_dot_py": "from autograder.checks import compare"},
    ),
    "checks import the oracle": (graded_problems, {"labs__03_x__checks_dot_py": "from refimpl.x import y"}),
    "mistakes import an undeclared package": (
        graded_problems,
        {"labs__03_x__mistakes_dot_py": "import triton", "labs__03_x__lab_dot_toml": "imports = []"},
    ),
    "the sandbox imports the grader": (
        sandbox_problems,
        {"autograder__sandbox__runner_dot_py": "from autograder.tolerance import Tolerance"},
    ),
    "the sandbox imports its own file by the grader's name": (
        sandbox_problems,
        {
            "autograder__sandbox__runner_dot_py": "import autograder.sandbox.wire",
            "autograder__sandbox__wire_dot_py": "",
        },
    ),
    "the sandbox imports the grader relatively": (
        sandbox_problems,
        {"autograder__sandbox__runner_dot_py": "from ..tolerance import Tolerance"},
    ),
    "two modules import each other": (
        cycle_problems,
        {"refimpl__a_dot_py": "import refimpl.b", "refimpl__b_dot_py": "from refimpl.a import f"},
    ),
    "three modules form a ring": (
        cycle_problems,
        {
            "course__a_dot_py": "from course import b",
            "course__b_dot_py": "from . import c",
            "course__c_dot_py": "from course.a import f",
        },
    ),
}


@pytest.mark.parametrize(("rule", "sources"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_seen(rule, sources, tmp_path):
    """The rule names the file and says the way out."""
    (problem,) = rule(plant(tmp_path, **sources))
    assert problem.count(". ") >= 1 and ("_dot_py" not in problem)


ALLOWED = {
    "a test of refimpl uses the grader's tolerances": (
        layer_problems,
        {"refimpl__tests__test_a_dot_py": "from autograder.tolerance import Tolerance"},
    ),
    "mistakes import a package that lab.toml declares": (
        graded_problems,
        {
            "labs__03_x__mistakes_dot_py": "import triton, math, torch",
            "labs__03_x__lab_dot_toml": 'imports = ["triton"]',
        },
    ),
    "the sandbox imports its own files": (
        sandbox_problems,
        {
            "autograder__sandbox__runner_dot_py": "from . import wire\nfrom sandbox import wire",
            "autograder__sandbox__wire_dot_py": "import json, torch",
        },
    ),
    "a sample lab in a test's data plays its part": (
        layer_problems,
        {"course__tests__data__labs__00_tiny__checks_dot_py": "from autograder import question"},
    ),
    "one of two directions is inside a function": (
        cycle_problems,
        {"refimpl__a_dot_py": "def f():\n    import refimpl.b", "refimpl__b_dot_py": "from refimpl.a import f"},
    ),
    "one of two directions is for the type checker": (
        cycle_problems,
        {
            "course__a_dot_py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import course.b",
            "course__b_dot_py": "from course.a import f",
        },
    ),
}


@pytest.mark.parametrize(("rule", "sources"), ALLOWED.values(), ids=ALLOWED)
def test_what_the_rules_allow_is_not_reported(rule, sources, tmp_path):
    """A rule that cries wolf would be switched off."""
    assert not list(rule(plant(tmp_path, **sources)))
