"""Which process a call runs in: one per submission, a new one after a failure, one per case where asked for."""

import pytest
import torch

from autograder import Case
from autograder.judge import judge as judge_module
from autograder.judge import session as session_module
from autograder.judge.calls import Shared
from autograder.judge.judge import judge_cells
from autograder.judge.session import Cell, Notebook
from autograder.question import Question
from autograder.tests.kinds import HEAD, declared, first_case, judged

COUNTS = "calls = []\n\n\ndef answer():\n    calls.append(1)\n    return len(calls)"


class Plain:
    def cases(self, rng):
        yield Case("one")


class Alone(Plain):
    fresh = True


@pytest.fixture
def one_process(monkeypatch):
    """Nothing is ruled out, so that all questions of a lab are called in one process."""
    monkeypatch.setattr(Question, "absent", ())


@pytest.mark.parametrize(("spec", "want"), [(Plain, [1, 2, 3]), (Alone, [1, 1, 1])])
def test_a_fresh_question_meets_a_new_process_in_every_case(zygote, spec, want):
    """What one case leaves behind is not there in the next."""
    asked = declared(spec)
    with judged(zygote, COUNTS) as runner:
        assert [runner.call(asked, first_case(asked)).value for _ in range(3)] == want


def test_fresh_ranks_are_new_processes_too(zygote):
    """All of them."""

    class AloneTogether(Alone):
        ranks = 2

    asked = declared(AloneTogether)
    with judged(zygote, COUNTS) as runner:
        assert [runner.call(asked, first_case(asked)).value for _ in range(2)] == [[1, 1]] * 2


@pytest.fixture
def spawned(monkeypatch):
    """Counts the processes that the judge asks for."""
    pids = []
    spawn = session_module.Session._spawn
    monkeypatch.setattr(session_module.Session, "_spawn", lambda self: (spawn(self), pids.append(self.pid)))
    return pids


def changed(cells, name, source):
    return [Cell(cell.name, source) if cell.name == name else cell for cell in cells]


def test_the_questions_of_a_good_submission_share_one_process(tiny, tiny_cells, zygote, spawned):
    """One for all calls that rule out the same operations, and one for each size at which memory is measured."""
    reports = judge_cells(tiny, tiny_cells, 1, zygote)
    assert all(report.passed for report in reports.values())
    assert len({question.absent for question in tiny.checks.values()}) == 2 and len(spawned) == 2 + 3


SPOILS = """
def spread(x):
    import sys
    sys.modules["torch"].Tensor.sum = lambda *a, **k: 0  # who is right here spoils the next question
    return x.max(dim=-1).values - x.min(dim=-1).values
"""


def test_a_question_that_spoils_the_process_costs_no_other(tiny, tiny_cells, zygote, one_process):
    """The second question fails beside the first one, and passes in a process of its own."""
    reports = judge_cells(tiny, changed(tiny_cells, "spread", SPOILS), 1, zygote)
    assert {name: report.earned for name, report in reports.items()} == {"spread": 4, "stream_sum": 6}


CRASHES = "import os\n\n\ndef spread(x):\n    os._exit(1)"


def test_a_crash_costs_the_question_it_is_in(tiny, tiny_cells, zygote):
    """The process is gone; the next question meets a new one."""
    reports = judge_cells(tiny, changed(tiny_cells, "spread", CRASHES), 1, zygote)
    assert {name: report.earned for name, report in reports.items()} == {"spread": 0, "stream_sum": 6}


def test_a_failure_in_a_clean_process_is_not_looked_at_twice(tiny, tiny_cells, zygote, one_process, monkeypatch):
    """The first question's failure is its own; the second one's is looked at again only after other calls."""
    looked = []
    examined = judge_module.examined
    monkeypatch.setattr(
        judge_module, "examined", lambda lab, q, *more: (looked.append(q.name), examined(lab, q, *more))[1]
    )
    wrong = changed(tiny_cells, "spread", "def spread(x):\n    return x.sum(-1)")
    judge_cells(tiny, wrong, 1, zygote)
    assert looked == ["spread", "stream_sum"]
    looked.clear()
    wrong = changed(tiny_cells, "stream_sum", "def stream_sum(blocks):\n    return 0")
    judge_cells(tiny, wrong, 1, zygote)
    assert looked == ["spread", "stream_sum", "stream_sum"]


def test_sharing_gains_nothing(tiny, tiny_cells, zygote, one_process):
    """Results of one question, kept for the next, are answers to other cases."""
    keeps = "kept = []\n\n\ndef spread(x):\n    kept.append(x.max(-1).values - x.min(-1).values)\n    return kept[0]"
    uses = "def stream_sum(blocks):\n    return kept[-1]"
    cells = changed(changed(tiny_cells, "spread", keeps), "stream_sum", uses)
    assert {name: report.earned for name, report in judge_cells(tiny, cells, 1, zygote).items()} == {
        "spread": 0, "stream_sum": 0,
    }  # fmt: skip


def test_a_shared_process_is_closed_at_the_end(zygote):
    """And says until its first call that nobody has used it."""
    with Shared(zygote, Notebook([Cell("c", HEAD + "def answer(x):\n    return x")]), 5.0) as shared:
        asked = declared(Plain)
        session = shared.get(asked)
        assert shared.clean(asked)
        session.call("answer", [torch.ones(1)])
        assert not shared.clean(asked)
    assert session.pid is None
