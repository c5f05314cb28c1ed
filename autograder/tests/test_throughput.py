"""What is timed is honest: the same answers on both sides, right or wrong in every case, and every grade compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autograder import throughput
from autograder.labs import load_lab
from autograder.throughput import own_compute
from autograder.throughput_figures import Result, Spent, table
from autograder.throughput_labs import ASSIGNMENTS, answers, plain_source, write_lab

COURSE = Path(__file__).resolve().parents[2]
FUNCTIONS = [(slug, f) for slug, functions in ASSIGNMENTS.items() for f in functions]


def test_the_assignment_is_the_size_that_it_says():
    """Five functions and seven hidden cases; two of them with twenty students make two hundred cell grades."""
    for functions in ASSIGNMENTS.values():
        assert (len(functions), sum(len(f.inputs) for f in functions)) == (5, 7)


@pytest.mark.parametrize(("slug", "f"), FUNCTIONS, ids=[f.name for _, f in FUNCTIONS])
def test_answers_are_right_or_wrong_on_every_case(slug, f):
    """Asserts give all or nothing, the judge gives part: an answer between the two would not be comparable."""
    for index, expression in enumerate((f.reference, *f.right, *f.wrong)):
        outcomes = [agrees(f, expression, inputs) for inputs in f.inputs]
        assert outcomes == [index <= len(f.right)] * len(f.inputs), expression


def agrees(f, expression, inputs):
    """Whether an expression gives what the reference gives on one case."""
    scope = {"torch": torch, "g": torch.Generator().manual_seed(11)}
    args = eval(f"({inputs})", scope)
    exec(f.define(f.reference), scope)
    expected = scope[f.name](*args)
    exec(f.define(expression), scope)
    try:
        got = scope[f.name](*args)
    except Exception:
        return False
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_class_is_the_same_each_time_and_has_every_kind_of_answer():
    """Right, wrong and not attempted, from a seed."""
    functions = ASSIGNMENTS["90_forward"]
    made = answers(functions, 40)
    assert made == answers(functions, 40) != answers(functions, 40, seed=2)
    sources = [source for student in made.values() for source in student.values()]
    assert len(sources) == 200 and 0.6 < sum(map(bool, sources)) / 200 < 1 and "" in sources
    assert any(f.define(wrong) in sources for f in functions for wrong in f.wrong)


def test_the_lab_is_a_lab_and_its_own_compute_is_measured(tmp_path):
    """The same calls in this process; an answer that raises counts with the time it took."""
    write_lab(tmp_path / "90_forward", ASSIGNMENTS["90_forward"])
    lab = load_lab(tmp_path / "90_forward")
    assert sum(1 for question in lab.checks.values() for _ in question.draw(1, draws=1)) == 7
    assert 0 < own_compute(lab, answers(ASSIGNMENTS["90_forward"], 3)) < 1000


def test_plain_nbgrader_gets_asserts_and_hidden_ones():
    """Between the marks that nbgrader strips."""
    notebook = plain_source(ASSIGNMENTS["91_losses"])
    checks = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert len(checks) == 5 and all("BEGIN HIDDEN TESTS" in cell.source for cell in checks)


def test_the_table_counts_what_is_equal_and_names_what_is_not():
    """Times per submission, on either side."""
    result = Result("T2", 2, 100, 20, judge_ms={1: 50.0, 2: 30.0}, beyond_ms={1: 48.0, 2: 29.0})
    result.judge_command, result.record_command = Spent(6, 8), Spent(4, 2)
    result.plain_command, result.cells, result.unequal = Spent(40, 60), 200, ["a b c"]
    assert (result.ours, result.plain) == (Spent(0.1, 0.1), Spent(2, 3))
    assert result.times_faster == pytest.approx({"wall": 20, "cpu": 30})
    text = table(result)
    assert "199 of 200" in text and "UNEQUAL a b c" in text and "20.0" in text


@pytest.mark.slow
@pytest.mark.e2e
def test_grades_equal_those_of_plain_nbgrader(tmp_path):
    """Two hundred honest cell grades, each twice: once judged apart, once by asserts in nbgrader's own kernel."""
    line = [sys.executable, "-m", "autograder", "throughput", "--submissions", "20", "--json", str(tmp_path / "r.json")]
    made = subprocess.run(line, capture_output=True, text=True, env={**os.environ}, cwd=COURSE, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["cells"] == 200 and found["unequal"] == [] and found["times_faster"]["wall"] > 1


def test_a_command_that_fails_is_said_with_its_last_words():
    """And not taken for a fast one."""
    with pytest.raises(throughput.CycleError, match="out of order"):
        throughput.timed([sys.executable, "-c", "raise SystemExit('out of order')"])
