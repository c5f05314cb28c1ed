"""The student's side, used as a notebook uses it."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import autograder
from autograder import CheckFailed, NotCheckedHere, open_lab
from autograder.student import AnswerInPlace, Shown, visible_seed

TINY = Path(__file__).parent / "data" / "labs"

RIGHT = "def spread(x):\n    return x.amax(-1) - x.amin(-1)\n"
WRONG = "def spread(x):\n    return x.std(-1, correction=0)\n"
STUB = 'def spread(x):\n    raise NotImplementedError("spread")\n'


class Notebook:
    """Runs cells in one namespace, as a kernel does."""

    def __init__(self):
        self.namespace = {"__name__": "__main__"}
        self.run('from autograder import open_lab\nimport torch\nlab = open_lab("00_tiny")')

    def run(self, source):
        exec(compile(source, "<cell>", "exec"), self.namespace)

    def show(self, source):
        return eval(source, self.namespace)


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_LABS", str(TINY))
    monkeypatch.setenv("COURSE_LEDGER", str(tmp_path / "ledger.json"))
    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "1"))
    return Notebook()


def test_a_right_answer_is_shown_and_raises_nothing(notebook, capsys):
    """The report comes from the cell's own namespace."""
    notebook.run(RIGHT)
    notebook.run('lab.check("spread")')
    out = capsys.readouterr().out
    assert out.startswith("spread: passed · 4 of 4 points\n  ✓ a matrix (largest error ")
    assert "✓ Forbids: no call of `aminmax`" in out


def test_a_wrong_answer_is_diagnosed_and_raises(notebook, capsys):
    """So a plain grader that runs the cell gives no points either; the expected values stand in the report."""
    notebook.run(WRONG)
    with pytest.raises(CheckFailed, match=r"spread: not right yet\. The report above says why."):
        notebook.run('lab.check("spread")')
    out = capsys.readouterr().out
    assert "What happened: You returned the standard deviation." in out
    assert "expected" in out


@pytest.mark.parametrize("cell", [STUB, "", "spraed = spread = None"], ids=["stub", "no cell", "None"])
def test_an_untouched_question_raises_too(notebook, capsys, cell):
    """A check that passes on nothing would give points for nothing."""
    notebook.run(cell)
    with pytest.raises(CheckFailed, match="not attempted yet"):
        notebook.run('lab.check("spread")')
    assert "spread: not attempted yet · 0 of 4 points" in capsys.readouterr().out


def test_a_written_question_is_left_to_a_person(notebook, capsys):
    """It neither passes nor fails."""
    notebook.run('lab.check("why")')
    assert capsys.readouterr().out == "why: a person reads this answer.\n"


def test_an_unknown_question_is_refused_with_the_known_ones(notebook):
    """A slip in a name gives no silent pass."""
    with pytest.raises(Exception, match="spread, stream_sum, why") as caught:
        notebook.run('lab.check("spraed")')
    assert 'Did you mean "spread"?' in str(caught.value)


def test_hints_are_shown_as_markdown(notebook):
    """Folded, as the author wrote them."""
    shown = notebook.show('lab.hint("spread")')
    assert shown._repr_mimebundle_()["text/markdown"].startswith("<details>")
    assert "Two elements of a row decide." in repr(shown)


def test_a_worked_solution_is_shown_only_after_a_pass(notebook):
    """A failed attempt does not open it."""
    for cell in ("", WRONG):
        notebook.run(cell)
        with pytest.raises(CheckFailed):
            notebook.run('lab.check("spread")')
        with pytest.raises(CheckFailed, match=r'first pass lab.check\("spread"\) in this session'):
            notebook.show('lab.solution("spread")')
    notebook.run(RIGHT)
    notebook.run('lab.check("spread")')
    assert "x.max(dim=-1).values" in notebook.show('lab.solution("spread")').text


def test_status_adds_up_what_was_checked(notebook):
    """Every question has a line, in text and in HTML."""
    notebook.run(RIGHT)
    notebook.run('lab.check("spread")')
    shown = notebook.show("lab.status()")
    assert shown.text.splitlines() == [
        "Tiny: 4 of 12 points on the visible cases, this session",
        "  spread                   passed               4 of 4",
        "  stream_sum               not checked yet      0 of 6",
        "  why                      read by a person     – of 2",
    ]
    html = shown._repr_mimebundle_()["text/html"]
    assert html.count("<tr>") == 4
    assert "<caption>Tiny: 4 of 12 points" in html


def test_the_ledger_is_filled_from_a_cell_and_shown_with_the_status(notebook, tmp_path):
    """One row per lab; before the first row the status has no ledger; a broken file does not hide the points."""
    assert "Ledger" not in notebook.show("lab.status()").text
    amounts = 'what="spread", memory=1, flops=2, bytes=3, time=0.5, quality="exact"'
    assert notebook.show(f'lab.record({amounts}, sentence="bought …")').text.startswith("Not recorded yet: sentence")
    shown = notebook.show(f'lab.record({amounts}, sentence="bought time")')
    assert shown.text.splitlines() == [
        "00_tiny: recorded in ledger.json.",
        "00_tiny | spread | 1 | 2 | 3 | 0.5 | exact | bought time",
    ]
    assert notebook.show("lab.status()").text.endswith("Ledger:\n" + shown.text.splitlines()[1])
    assert "<caption>Your ledger</caption>" in notebook.show("lab.status()")._repr_mimebundle_()["text/html"]
    (tmp_path / "ledger.json").write_text("{", encoding="utf-8")
    broken = notebook.show("lab.status()").text
    assert broken.startswith("Tiny: 0 of 12 points") and "is no ledger" in broken


def test_what_a_machine_lacks_is_said_and_is_no_pass(notebook, monkeypatch):
    """Triton has wheels for Linux only: the question is graded elsewhere."""
    lab = notebook.namespace["lab"]._lab
    monkeypatch.setitem(
        lab.questions, "spread", SimpleNamespace(**{**vars(lab.questions["spread"]), "needs": ("no_such_package",)})
    )
    with pytest.raises(NotCheckedHere, match=r"spread: not checked here: needs no_such_package, which \w+ on this"):
        notebook.run('lab.check("spread")')
    assert issubclass(NotCheckedHere, CheckFailed)


def test_a_failed_check_is_one_line_in_a_notebook():
    """No stack of ours above the student's work."""
    assert CheckFailed("merge: not right yet")._render_traceback_() == ["CheckFailed: merge: not right yet"]


def test_a_report_is_displayed_richly_where_ipython_runs(notebook, monkeypatch):
    """And printed everywhere else."""
    shown = []
    ipython = SimpleNamespace(get_ipython=lambda: object(), display=SimpleNamespace(display=shown.append))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    notebook.run(RIGHT)
    notebook.run('lab.check("spread")')
    bundle = shown[0]._repr_mimebundle_()
    assert bundle["text/plain"].startswith("spread: passed")
    assert 'role="status"' in bundle["text/html"]


def test_shown_is_plain_text_without_a_notebook():
    """Its repr is the text."""
    assert repr(Shown("plain", "<b>rich</b>")) == "plain"


def test_visible_seeds_are_public_and_differ_from_lab_to_lab():
    """The same everywhere, so students can compare."""
    assert visible_seed("03_online_softmax") == visible_seed("03_online_softmax")
    assert visible_seed("03_online_softmax") != visible_seed("04_flash_attention")


def test_a_stream_that_is_squared_is_seen_by_its_largest_tensor(notebook, capsys):
    """The stand-in for measured memory explains in the notebook what the grade will say."""
    notebook.run(
        "def stream_sum(blocks):\n    kept = torch.cat(list(blocks), -1)\n    n = kept.shape[-1]\n"
        "    return kept.sum(-1) + 0 * kept[:1].expand(n, n).clone().sum()\n"
    )
    with pytest.raises(CheckFailed):
        notebook.run('lab.check("stream_sum")')
    out = capsys.readouterr().out
    assert "✗ MemorySlope: " in out
    assert "What happened: The sum is right, but you kept a square" in out


def test_a_peak_is_not_measured_of_an_answer_that_breaks(notebook):
    """The error takes its place; the inputs are the least that any answer needs."""
    lab = notebook.namespace["lab"]._lab
    question = lab.checks["stream_sum"]
    case = question.grow(1, 512)
    runner = AnswerInPlace({"stream_sum": lambda blocks: next(blocks)[99]})
    outcome, peak = runner.peak(question, case, case)
    assert (outcome.error, peak) == ("IndexError", None)
    _, peak = AnswerInPlace({"stream_sum": lambda blocks: 0}).peak(question, case, case)
    assert peak >= case.args[0][0].numel() * 4


def test_a_folder_with_only_a_notebook_works(tmp_path, monkeypatch):
    """The labs come with the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COURSE_LABS", raising=False)
    assert open_lab("03")._lab.slug == "03_online_softmax"


def test_without_a_gpu_triton_is_interpreted(monkeypatch):
    """Set before its first import, and only there; a choice that was made is kept."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("COURSE_LABS", str(TINY))
    open_lab("00_tiny")
    assert os.environ["TRITON_INTERPRET"] == "1"
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    open_lab("00_tiny")
    assert os.environ["TRITON_INTERPRET"] == "0"


def test_the_public_names_are_what_the_package_offers():
    """Authors and students import nothing else."""
    assert set(autograder.__all__) == {
        "Case", "CheckFailed", "Counterfactual", "Forbids", "MemorySlope", "NotCheckedHere", "PoisonOutside",
        "ReadOnce", "Served", "ServedCalls", "Speed", "StateBytes", "Tolerance", "Traffic", "mistake", "open_lab",
        "question",
    }  # fmt: skip
    assert all(hasattr(autograder, name) for name in autograder.__all__)
