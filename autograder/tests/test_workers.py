"""Many submissions at once: nobody waits for a neighbour that hangs, and a worker that dies costs nobody a grade."""

import time

from autograder.judge import judge
from autograder.judge.judge import judge_cells
from autograder.judge.session import Cell, Notebook, Session


def test_a_submission_has_a_deadline_in_all(tiny, tiny_cells, zygote, monkeypatch):
    """Cells that each keep within their own deadline do not add up to an hour; what is left is said to be not run."""
    monkeypatch.setattr(judge, "TOTAL_SECONDS", 1.0)
    slow = [Cell(f"slow {i}", "import time\ntime.sleep(0.3)") for i in range(40)]
    start = time.monotonic()
    reports = judge_cells(tiny, [*slow, *tiny_cells], seed=1, zygote=zygote)
    assert time.monotonic() - start < 6  # 12 s of cells for each of several sessions, were there no limit
    assert [report.earned for report in reports.values()] == [0, 0]
    assert "had used up the time" in reports["spread"].cases[0].message


def test_the_deadline_in_all_cuts_a_call_short(zygote):
    """A call that would still have a minute of its own ends with the submission's."""
    notebook = Notebook([Cell("f", "import time\ndef f():\n    time.sleep(60)")], deadline=time.monotonic() + 1.0)
    with Session(zygote, notebook) as session:
        start = time.monotonic()
        assert session.call("f", (), seconds=60).problem.kind == "overtime"
        assert session.call("f", (), seconds=60).problem.kind == "overtime"
        assert time.monotonic() - start < 5
