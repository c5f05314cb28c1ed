"""The judge gives an answer what it is worth, and gives nothing away."""

import copy
import importlib.util
import json
from dataclasses import replace

import nbformat
import pytest

from autograder.judge.calls import SandboxRunner, own_words, source_line
from autograder.judge.cells import Cell, grade_id
from autograder.judge.intake import Refused
from autograder.judge.judge import judge_cells, judge_notebook, quiet
from autograder.judge.session import Notebook, Problem
from autograder.labs import LabError
from autograder.mechanism import MechanismResult
from autograder.score import CaseResult, Report
from autograder.synthetic import Classroom, evaluate, expected

SEED = 20_261_122


def with_answer(tiny_cells, name, source):
    return [Cell(cell.name, source) if cell.name == name else cell for cell in tiny_cells]


def judged(tiny, tiny_cells, zygote, name, source):
    """The report on one question whose cell holds `source`."""
    return judge_cells(tiny, with_answer(tiny_cells, name, source), SEED, zygote)[name]


def words(report):
    """Everything a student could read of a report."""
    return json.dumps(report.public())


# --- worth ----------------------------------------------------------------------------------------------


def test_the_worked_solutions_get_all_points(tiny, tiny_cells, zygote):
    """On hidden cases, through cells, wire and mechanisms."""
    reports = judge_cells(tiny, tiny_cells, SEED, zygote)
    assert {name: report.earned for name, report in reports.items()} == {"spread": 4, "stream_sum": 6}


def test_a_judge_without_a_zygote_brings_its_own(tiny, tiny_cells):
    """For one notebook."""
    assert judge_cells(tiny, tiny_cells, SEED)["spread"].passed


def test_every_known_mistake_gets_its_diagnosis_from_outside(tiny, tiny_cells, zygote):
    """Also the one that only memory, measured by the judge, can tell from a right answer."""
    text = (tiny.folder / "mistakes.py").read_text()
    for mistake in tiny.all_mistakes:
        report = judged(tiny, tiny_cells, zygote, mistake.question, f"{text}\n{mistake.question} = {mistake.name}")
        assert report.mistake == mistake.name and not report.passed


def test_partial_credit_is_by_weight(tiny, tiny_cells, zygote):
    """Only the case of weight 2 fails: 2 of 4 points."""
    source = "def spread(x):\n    return (x.amax(-1) - x.amin(-1)) * (1 if x.is_contiguous() else 2)"
    assert judged(tiny, tiny_cells, zygote, "spread", source).earned == 2


ACCIDENTS = "syntax-error infinite-loop hanging-cell crash crashing-cell renamed duplicated deleted edited-check"


@pytest.mark.parametrize("name", [*ACCIDENTS.split(), "cheat-reply", "cheat-oracle", "cheat-input", "cheat-outputs"])
def test_made_up_students_get_what_the_lab_says(tiny, tiny_release, zygote, tmp_path, name):
    """Each accident costs the question it is in, and nothing else."""
    quick = replace(tiny, seconds=1.0)
    quick.__dict__["checks"] = tiny.checks  # cached: parsed once
    student = next(s for s in Classroom(quick, tiny_release).students() if s.name == name)
    path = tmp_path / "lab.ipynb"
    path.write_bytes(student.bytes())
    verdict = judge_notebook(quick, path, SEED, student=name, zygote=zygote)
    got = {question: public["earned"] for question, public in verdict.questions.items()}
    assert got == expected(quick, student, SEED)


def test_the_direct_evaluation_agrees_with_the_lab(tiny):
    """What the rehearsal expects is not a constant."""
    question = tiny.checks["spread"]
    assert evaluate(tiny, question, lambda x: x.amax(-1) - x.amin(-1), SEED) == 4
    assert evaluate(tiny, question, lambda x: x, SEED) == 0


def test_what_is_no_notebook_gets_no_verdict(tiny, tmp_path, zygote):
    """Not even one of zero points: it is refused."""
    (tmp_path / "lab.ipynb").write_text("{}")
    with pytest.raises(Refused):
        judge_notebook(tiny, tmp_path / "lab.ipynb", SEED, zygote=zygote)


def test_a_machine_that_lacks_what_a_question_needs_does_not_judge(tiny, tiny_cells, monkeypatch):
    """Nobody loses points for the grader's set-up."""
    lacking = replace(tiny, questions={"spread": replace(tiny.questions["spread"], needs=("no_such_package",))})
    assert importlib.util.find_spec("no_such_package") is None
    with pytest.raises(LabError, match="no_such_package on the grading machine"):
        judge_cells(lacking, tiny_cells, SEED)


def test_memory_that_cannot_be_measured_fails_closed(tiny, tiny_cells, zygote, monkeypatch):
    """Where there is no /proc, a memory question is not given away."""
    monkeypatch.setattr("autograder.judge.session.read_peak", lambda pid, before: None)
    report = judge_cells(tiny, tiny_cells, SEED, zygote)["stream_sum"]
    assert report.earned == 0 and "can not be measured" in words(report)


def test_a_replayed_result_never_earns(tiny, tiny_cells, zygote):
    """Each case comes twice with other numbers."""
    source = """seen = {}


def spread(x):
    if x.shape not in seen:
        seen[x.shape] = x.amax(-1) - x.amin(-1)
    return seen[x.shape]
"""
    assert judged(tiny, tiny_cells, zygote, "spread", source).earned == 0


def test_state_of_one_question_does_not_reach_the_next(tiny, tiny_cells, zygote):
    """A fresh process per question: what an answer breaks, it breaks for itself."""
    source = "import torch\n\n\ndef spread(x):\n    torch.Tensor.sum = None\n    return x.amax(-1) - x.amin(-1)"
    reports = judge_cells(tiny, with_answer(tiny_cells, "spread", source), SEED, zygote)
    assert reports["spread"].passed and reports["stream_sum"].passed


# --- nothing given away ---------------------------------------------------------------------------------

LEAKS = {
    "an exception's message": "raise ValueError(str(x.tolist()))",
    "an exception's type": "raise type('E' + str(x.flatten()[0].item()), (Exception,), {})",
    "the keys of a dict": "return {str(v): 1 for v in x.flatten().tolist()}",
    "a key that looks like the end": "return {'], expected ' + str(v): 1 for v in x.flatten().tolist()}",
    "the name of a class": "return type('E' + str(x.flatten()[0].item()), (), {})()",
    "a printed line": "print(x)\n    return x",
    "a string": "return str(x.tolist())",
    "a warning": "import warnings\n    warnings.warn(str(x.tolist()))\n    return x",
}


@pytest.mark.parametrize("leak", LEAKS)
def test_no_word_of_the_students_process_carries_hidden_numbers(tiny, tiny_cells, zygote, leak):
    """However an answer tries to tell what it was given, the report does not say it."""
    report = judged(tiny, tiny_cells, zygote, "spread", f"def spread(x):\n    {LEAKS[leak]}\n")
    hidden = {f"{abs(v):.4g}" for _, case in tiny.checks["spread"].draw(SEED) for v in case.args[0].flatten().tolist()}
    told = words(report)
    assert report.earned == 0
    assert not [number for number in hidden if number in told and len(number) >= 6]


def test_a_students_own_line_and_literal_message_are_shown(tiny, tiny_cells, zygote):
    """They stand in the notebook anyway, and they help."""
    rest = "        raise ValueError('no single column')\n    return x.amax(-1) - x.amin(-1)"
    source = f"def spread(x):\n    if x.shape[-1] == 1:\n{rest}"
    report = judged(tiny, tiny_cells, zygote, "spread", source)
    failed = next(case for case in report.cases if not case.passed)
    assert failed.message == "ValueError: no single column, at `raise ValueError('no single column')`"


def test_a_claimed_place_outside_the_notebook_is_ignored():
    """The runner says where; only a line that exists is shown."""
    cells = [Cell("f", "a\nb")]
    assert source_line(cells, "f", 2) == "b"
    assert [source_line(cells, *place) for place in (("f", 3), ("f", 0), ("g", 1), (None, None))] == [""] * 4


def test_a_message_is_shown_only_if_the_student_wrote_it():
    """And only if it is short: a long literal could be an alphabet."""
    cells = [Cell("f", "raise ValueError('mine')" + "x" * 500)]
    assert own_words(cells, "mine") == "mine"
    for message in ("", "0.123456", "x" * 200):
        assert own_words(cells, message).startswith("raised on a hidden case")


def test_a_forbidden_call_is_named_by_the_question(tiny, tiny_cells, zygote):
    """Not by the runner's words."""
    report = judged(
        tiny,
        tiny_cells,
        zygote,
        "spread",
        "import torch\n\n\ndef spread(x):\n    a, b = torch.aminmax(x, dim=-1)\n    return b - a",
    )
    assert report.earned == 0 and "calls `aminmax`" in words(report)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def other(x):\n    return x", "no cell of the notebook defines `spread`"),
        ("def spread(x:\n    return x", "SyntaxError at `def spread(x:`"),
        ("while True:\n    pass", "Timeout: no result within 1 s"),
        ("import os\nos._exit(1)", "Crash: the process that ran your code ended"),
    ],
)
def test_a_missing_answer_is_explained(tiny, tiny_cells, zygote, source, says):
    """By what became of its cell."""
    quick = replace(tiny, seconds=1.0)
    report = judged(quick, tiny_cells, zygote, "spread", source)
    assert not report.attempted and says in report.note


def test_long_messages_are_cut():
    """Whoever wrote them."""
    report = Report(
        "q",
        1,
        cases=(CaseResult("c", False, message="x" * 1000),),
        mechanisms=(MechanismResult("m", False, "y" * 1000),),
    )
    assert max(len(part.message) for part in (*quiet(report).cases, *quiet(report).mechanisms)) == 300


def test_a_verdict_holds_no_seed_and_no_hidden_number(tiny, tiny_release, zygote, tmp_path):
    """It may be published."""
    notebook = copy.deepcopy(tiny_release.notebook)
    for cell in notebook.cells:
        if grade_id(cell) == "spread":
            cell.source = "def spread(x):\n    return x.std(-1, correction=0)"
    path = tmp_path / "lab.ipynb"
    path.write_text(nbformat.writes(notebook))
    verdict = judge_notebook(tiny, path, SEED, student="ann", zygote=zygote)
    text = json.dumps(verdict.questions) + json.dumps(verdict.notes)
    assert str(SEED) not in text and verdict.questions["spread"]["mistake"] == "deviation"
    assert verdict.tier == zygote.tier and verdict.student == "ann" and len(verdict.submission_sha256) == 64
    assert verdict.earned == 0


def test_names_of_problems_come_from_a_closed_list():
    """Whatever type the runner claims."""
    notebook = Notebook([Cell("f", "x")])
    runner = SandboxRunner(None, notebook, 1.0)
    for claimed, shown in (("ValueError", "ValueError"), ("TooLarge", "TooLarge"), ("Secret0.123", "Exception")):
        assert runner._describe(None, Problem("error", type=claimed, message="m"))[0] == shown
