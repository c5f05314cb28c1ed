"""Mutants: every slip is made once, tried apart, and known by the same name tomorrow."""

import ast
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

from autograder import mutate, prove
from autograder.labs import LabError, load_file, load_lab
from autograder.mutate import Survey, survey, unexplained
from autograder.redteam.edits import edits
from autograder.redteam.mutants import SAMPLE, Mutant, mutants, reached, source_mutants, thinned
from autograder.redteam.trial import Fate, Trial, executed, try_all

EXAM = Path(__file__).parent / "data" / "exam"
LABS = Path(__file__).parents[2] / "labs"


def changed_lines(body):
    """(operator, new line) of every change to a function with this body."""
    source = "def f(x, n):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    tree = ast.parse(source)
    before = ast.unparse(tree)
    found = []
    for edit in edits(tree.body[0]):
        after = ast.unparse(tree)
        assert after != before, f"{edit.operator} changes nothing"
        compile(ast.fix_missing_locations(tree), "<mutant>", "exec")
        new = [line.strip() for line, old in zip(after.splitlines(), before.splitlines(), strict=False) if line != old]
        found.append((edit.operator, new[0]))
    assert ast.unparse(tree) == before, "the tree is restored"
    return found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return x * 0.5", ("dropped-right", "return x")),
        ("return 0.5 * x", ("dropped-left", "return x")),
        ("return x * 0.5", ("constant", "return x * 1.0")),
        ("return x * 0.0", ("constant", "return x * 1.0")),
        ("return x - n", ("swapped", "return n - x")),
        ("return x / n", ("swapped", "return n / x")),
        ("return x @ n", ("swapped", "return n @ x")),
        ("return x + n", ("operator", "return x - n")),
        ("return x * n", ("operator", "return x / n")),
        ("return x > n", ("comparison", "return x >= n")),
        ("return x > n", ("comparison", "return x < n")),
        ("return x is None", ("comparison", "return x is not None")),
        ("return x.sum(dim=-1)", ("plus-one", "return x.sum(dim=-2)")),
        ("return x.sum(dim=0)", ("minus-one", "return x.sum(dim=-1)")),
        ("return x.sum(keepdim=True)", ("flipped", "return x.sum(keepdim=False)")),
        ("return x.amax(-1)", ("other-function", "return x.amin(-1)")),
        ("return max(x, n)", ("other-function", "return min(x, n)")),
        ("return torch.exp(x)", ("dropped-call", "return x")),
        ("return x.exp()", ("dropped-call", "return x")),
        ("return -x", ("dropped-sign", "return x")),
        ("return torch.where(x, 1, n)", ("swapped", "return torch.where(x, n, 1)")),
        ("return [i for i in range(n)]", ("off-by-one", "return [i for i in range(n + 1)]")),
        ("return x[1:n]", ("off-by-one", "return x[1:n - 1]")),
        ("return x[1:n]", ("plus-one", "return x[2:n]")),
        ("return x if n else 0", ("always", "return x")),
        ("return x if n else 0", ("never", "return 0")),
        ("return x and n", ("logic", "return x or n")),
        ("if n:\n    x = n\nreturn x", ("always", "if True:")),
        ("if n:\n    x = n\nreturn x", ("never", "if False:")),
        ("x += n\nreturn x", ("dropped-statement", "pass")),
        ("x += n\nreturn x", ("operator", "x -= n")),
        ("x += n\nreturn x", ("not-accumulated", "x = n")),
        ("x = x + n\nreturn x", ("dropped-statement", "pass")),
        ("x[0] = n\nreturn x", ("dropped-statement", "pass")),
        ("x.zero_()\nreturn x", ("dropped-statement", "pass")),
        ("for i in n:\n    if i:\n        continue\n    x = i\nreturn x", ("dropped-statement", "pass")),
    ],
)
def test_a_slip_that_people_make_is_made(body, expected):
    """Scale, mask, axis, bounds, operands, constants, branches and statements."""
    assert expected in changed_lines(body)


@pytest.mark.parametrize(
    "body",
    [
        '"""A docstring with 1 number."""\nreturn x',
        'if n is None:\n    raise ValueError(f"n is {n + 1}")\nreturn x',
        'assert n > 0, "n must be positive"\nreturn x',
        "import math\nreturn x",
        "y = n\nreturn y",
        "return x.clone()",
        "return torch.zeros",
    ],
    ids=["docstring", "guard", "assertion", "import", "first assignment", "form only", "no call"],
)
def test_what_an_answer_need_not_share_is_left_alone(body):
    """Texts, errors on wrong input, and calls that change where a value lies but not what it is."""
    assert changed_lines(body) in ([], [("other-function", "return torch.ones")])


def test_defaults_and_annotations_are_left_alone():
    """The signature belongs to the question."""
    tree = ast.parse("def f(x: list[1], n=2) -> dict[3, 4]:\n    return x\n")
    assert list(edits(tree.body[0])) == []


def test_a_mutant_keeps_its_name_while_its_line_does(tmp_path):
    """`equivalent` refers to it: lines before it, and the function's other lines, may change."""
    first = {name: line for name, line, _ in source_mutants("def f(x):\n    y = x + 1\n    return -y\n")}
    later = {name: line for name, line, _ in source_mutants("# more\n\n\ndef f(x):\n    y = x + 2\n    return -y\n")}
    (kept,) = first.keys() & later.keys()
    assert kept.startswith("f:")
    assert kept.endswith(":dropped-sign")
    assert first[kept] == "return y"
    twice = [name for name, _, _ in source_mutants("def f(x):\n    return x + x + x\n")]
    assert len(twice) == len(set(twice))
    assert sum(name.endswith("#2") for name in twice) >= 2


ORACLE = '''
import torch
from torch import nn


def oracle(x):
    """Reaches a helper, a class and a nested function; never the stranger."""
    return helper(x) + Tool().double(x) + (lambda y: deep(y))(x)


def helper(x):
    if x.sum() > 1e9:
        return stranger(x) * 3
    return x * 2


class Tool:
    def double(self, x):
        return x + x


def deep(x):
    return x - 1


def stranger(x):
    return x + 100


def unreached(x):
    return x + 1
'''


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "mutated_module.py"
    path.write_text(ORACLE)
    yield load_file(path, "mutated_module")
    del sys.modules["mutated_module"]


def test_what_an_oracle_calls_is_mutated_with_it(module):
    """Functions, methods of classes and what lambdas call, in its own package; torch and what is unused are not."""
    functions, kernels = reached(module.oracle)
    assert {f.__qualname__ for f in functions} == {"oracle", "helper", "Tool.double", "deep", "stranger"}
    assert kernels == []


def test_triton_kernels_are_left_out_and_named(tmp_path):
    """Their source is no Python function's any more."""
    pytest.importorskip("triton")
    path = tmp_path / "kernel_module.py"
    path.write_text(
        "import triton\n\n\n@triton.jit\ndef add_kernel(x_ptr):\n    pass\n\n\n"
        "def oracle(x):\n    add_kernel[(1,)](x)\n    return x + 1\n"
    )
    functions, kernels = reached(load_file(path, "kernel_module").oracle)
    assert [f.__name__ for f in functions] == ["oracle"]
    assert kernels == ["add_kernel"]


def test_only_statements_that_ran_are_mutated(module):
    """A branch that no case takes says nothing about the cases."""
    with executed([module.helper]) as lines:
        module.helper(torch.ones(2))
    operators = {m.after for m in mutants(module.helper, lines[module.helper.__code__.co_filename])}
    assert "return x / 2" in operators
    assert not any("stranger" in after for after in operators)
    assert any("stranger" in m.after for m in mutants(module.helper))


def test_a_mutant_s_code_is_the_changed_function(module):
    """Put in place of the function's code, every caller runs it; and taken back, nobody does."""
    (mutant,) = [m for m in mutants(module.deep) if m.id.endswith(":operator")]
    original = module.deep.__code__
    module.deep.__code__ = mutant.code
    assert module.oracle(torch.tensor([3.0])).item() == 6 + 6 + 4
    module.deep.__code__ = original
    assert module.oracle(torch.tensor([3.0])).item() == 6 + 6 + 2
    assert (mutant.before, mutant.after) == ("return x - 1", "return x + 1")


def test_too_many_mutants_are_thinned_out_the_same_way_everywhere():
    """By the hash of their names, in their order."""
    many = [Mutant(f"f:{i}:x", "", "", None, None) for i in range(3 * SAMPLE)]
    some = thinned(many)
    assert len(some) == SAMPLE
    assert some == thinned(list(many))
    assert [m for m in many if m in some] == some
    assert thinned(many[:5]) == many[:5]


# --- a whole survey -------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path, monkeypatch):
    shutil.copytree(EXAM, tmp_path / "labs")
    monkeypatch.setenv("COURSE_LABS", str(tmp_path / "labs"))
    return tmp_path / "labs" / "01_rows"


def surveyed(folder, question):
    lab = load_lab(folder)
    return survey(lab, lab.checks[question], (1, 2)), lab.checks[question]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_every_mutant_of_a_sound_question_is_killed_or_explained(rows):
    """By a case, an error or a mechanism."""
    found, question = surveyed(rows, "window_sums")
    assert found.made == len(found.fates) > 10
    assert [fate.id for fate in found.survivors] == list(question.equivalent)
    assert unexplained(question, found) == []
    assert {fate.killed_by for fate in found.fates} >= {"a row", "a row: RuntimeError", ""}


def test_a_missing_case_shows_as_a_survivor_with_its_line(rows):
    """With matrices alone, the last axis may as well be the second."""
    edit(rows / "checks.py", 'yield Case("three axes", torch.rand(2, 4, 3, generator=rng) + 0.1)', "")
    found, question = surveyed(rows, "row_shares")
    assert unexplained(question, found) == [
        "survivor row_shares:84ccc8:dropped-sign\n"
        "    - return shares(x, x.sum(-1, keepdim=True))\n"
        "    + return shares(x, x.sum(1, keepdim=True))\n"
        '    add a case that tells them apart, or `equivalent = {"row_shares:84ccc8:dropped-sign": "reason"}`'
    ]


def test_mechanisms_kill_what_numbers_can_not(rows):
    """A mutant that is right but reads beyond its window."""
    edit(
        rows / "reference.py",
        "    total = x.cumsum(-1)\n",
        "    if width < 0:\n        x = x + 0 * x.sum(-1, keepdim=True)\n    total = x.cumsum(-1)\n",
    )
    edit(
        rows / "reference.py",
        "    return total - before\n",
        "    total[..., -1] = x[..., -width:].sum(-1) + before[..., -1].nan_to_num() * 0\n"
        "    before[..., -1] = 0\n    return total - before\n",
    )
    found, _ = surveyed(rows, "window_sums")
    assert {"PoisonOutside"} <= {fate.killed_by for fate in found.fates}


def test_reasons_must_match_survivors(rows):
    """A pattern may stand for several; one without a survivor, or without words, is not accepted."""
    found = Survey(
        "01_rows", "q", (Fate("f:1:a", "x", "y", ""), Fate("f:1:b", "x", "z", ""), Fate("f:2:a", "", "", "k")), 3
    )

    class Asked:
        equivalent = {}  # noqa: RUF012

    def told(**reasons):
        Asked.equivalent = {key.replace("_", ":"): value for key, value in reasons.items()}
        return [text.splitlines()[0] for text in unexplained(Asked, found)]

    assert told() == ["survivor f:1:a", "survivor f:1:b"]
    assert told(**{"f_1_*": "the same number"}) == []
    assert told(**{"f_1_*": "  "}) == ["survivor f:1:a", "survivor f:1:b"]
    assert told(**{"f_*": "all", "f_2_a": "killed"}) == [
        "equivalent 'f:2:a' matches no survivor: strike it from `equivalent`"
    ]
    sampled = Survey("01_rows", "q", found.fates, 500)
    Asked.equivalent = {"f:*": "all", "f:9:a": "not in the sample"}
    assert unexplained(Asked, sampled) == []


def test_a_mutant_that_hangs_or_ends_its_process_is_killed(rows, monkeypatch):
    """The rest is tried in a new process."""
    (rows / "reference.py").write_text(
        "import os\n\n\ndef tile_count(n, block):\n    count = 0\n"
        "    while n > 0:\n        n -= block\n        count += 1\n"
        "    if count > n + block * 100:\n        os._exit(3)\n    return count\n"
    )
    monkeypatch.setattr(mutate, "SECONDS", 1.0)
    start = time.monotonic()
    found, _ = surveyed(rows, "tile_count")
    ends = {fate.killed_by for fate in found.fates}
    assert "no result within 1 s" in ends
    assert "the process ended" in ends
    assert len(found.fates) > 8
    assert time.monotonic() - start < 60


def test_a_question_judged_by_property_has_no_oracle_to_mutate(rows):
    """It says so."""
    found, question = surveyed(rows, "root_of")
    assert found.note == "no oracle to mutate: results are judged by property"
    assert unexplained(question, found) == []


def test_what_is_left_out_is_said(rows, monkeypatch):
    """Kernels by name, and how many mutants were sampled."""
    monkeypatch.setattr("autograder.redteam.mutants.SAMPLE", 3)
    found, _ = surveyed(rows, "row_shares")
    assert (len(found.fates), found.note) == (3, f"3 of {found.made} mutants, sampled by hash")


def test_an_oracle_without_anything_to_change_has_no_mutants(rows):
    """Nothing was tried, and nothing is claimed."""
    (rows / "reference.py").write_text("def root_of(x):\n    return x\n")
    edit(rows / "checks.py", '@question("root_of", oracle=None)', '@question("root_of", oracle="reference:root_of")')
    found, _ = surveyed(rows, "root_of")
    assert (found.fates, found.made) == ((), 0)


def test_an_oracle_that_fails_on_its_own_cases_is_the_author_s_to_mend(rows, capfd):
    """One line with the command that shows where, not a stack of a process."""
    edit(rows / "reference.py", "    return -(-n // block)", "    return 1 // (block - 7)")
    with pytest.raises(
        LabError, match="the oracle of 'tile_count' does not get through its own cases; `python -m auto"
    ):
        surveyed(rows, "tile_count")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_trial_tells_what_notices_each_mutant(rows):
    """A case by name, an error by type, a property by its words, a mechanism by its name; and nothing twice."""
    lab = load_lab(rows)
    trial = Trial(lab, lab.checks["window_sums"], (1, 2))
    todo, made = trial.mutants()
    assert made == len(todo)
    original = trial.oracle.__code__
    fates = {m.after: trial.first_sign(m.function, m.code) for m in todo}
    assert trial.oracle.__code__ is original
    assert fates["before[..., :width + 1] = 0"] == ""
    assert fates["return total + before"] == "a row"
    assert "a row: RuntimeError" in fates.values()
    _, peak = trial.peak(trial.question, trial.question.grow(1, 256), None)
    assert peak == 256 * 4


def test_changes_to_what_no_case_evaluates_are_not_tried(rows):
    """The right side of an `and` that is never reached, the branch that is always taken."""
    (rows / "reference.py").write_text(
        "def tile_count(n, block):\n    tiles = -(-n // block) if n or block > 5 else 7\n    return tiles\n"
    )
    lab = load_lab(rows)
    todo, _ = Trial(lab, lab.checks["tile_count"], (1,)).mutants()
    after = {m.after for m in todo}
    assert "tiles = -(n // block) if n or block > 5 else 7" in after
    assert not [
        line for line in after if line.endswith(("else 8", "else 6")) or "block > 6" in line or "block <" in line
    ]
    assert "tiles = -(-n // block)" not in after  # "always": it is


def test_the_child_process_tells_the_same(rows):
    """What runs behind the pipe, run here: first the list, then each fate from the number asked for."""

    class Wire:
        def __init__(self):
            self.said = []

        def send(self, said):
            self.said.append(said)

    lab, wire = load_lab(rows), Wire()
    try_all(lab, lab.checks["tile_count"], (1,), 1, wire)
    (known, made, kernels), *fates = wire.said
    assert (len(known), kernels) == (made, [])
    assert len(fates) == made - 1
    assert all(fates)


def test_an_oracle_that_breaks_a_mechanism_is_not_judged_by_it(rows):
    """Otherwise every mutant would count as killed."""
    lab = load_lab(rows)
    question = lab.checks["window_sums"]
    trial = Trial(lab, question, (1,))
    assert [type(m).__name__ for m in trial.mechanisms] == ["MemorySlope"]  # a running total reads what lies before


def test_the_command_lists_survivors_and_fails(rows, capsys, tmp_path):
    """`prove --mutate`: a table, the survivors, exit status 1; 0 once they are explained."""
    options = ["01", "--mutate", "--jobs", "1", "--seed", "2", "--json", str(tmp_path / "out.json")]
    assert prove.main(options) == 0
    out = capsys.readouterr().out
    assert "no oracle to mutate" in out
    assert "0 holes; hidden seed 2" in out
    edit(rows / "checks.py", "    equivalent =", "    unused =")
    assert prove.main(options) == 1
    assert "HOLE     01_rows window_sums: survivor window_sums:23a5f6:off-by-one" in capsys.readouterr().out
    assert "23a5f6" in (tmp_path / "out.json").read_text()


# --- mutants of a student's own cell --------------------------------------------------------------------


def undetected(slug_folder, question, seeds):
    """Mutants of the worked solution that earn all points, as changed lines."""
    lab = load_lab(slug_folder)
    kept, tried = [], 0
    for _, line, source in source_mutants(lab.solution(question)):
        answer = prove.Answer(question, "mistake", "mutant", prove.notebook(lab, source))
        tried += 1
        verdicts = prove.judge(lab, answer, prove.Quick(lab), seeds)
        if all(verdict.earned >= verdict.points for verdict in verdicts):
            kept.append(line)
    assert tried
    return kept


@pytest.mark.parametrize(
    ("folder", "question", "equivalent"),
    [
        (EXAM / "01_rows", "row_shares", []),
        (EXAM / "01_rows", "tile_count", []),
        (LABS / "03_online_softmax", "merge", ["unit = torch.where(m == -torch.inf, 1.0, m)"]),
    ],
    ids=["row_shares", "tile_count", "merge"],
)
def test_a_slip_in_a_student_s_cell_loses_points(folder, question, equivalent, monkeypatch):
    """Every mutant of the worked solution, none of them in a list; what remains computes the same."""
    monkeypatch.setenv("COURSE_LABS", str(folder.parent))
    assert undetected(folder, question, {"public": 1}) == equivalent
