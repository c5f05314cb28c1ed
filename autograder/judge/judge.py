"""Judge one notebook: run its cells apart, examine each question with hidden cases, write down what may be said.

The comparison, the mechanisms, the diagnosis and the score are the student's own `check`; what differs is where the
answer runs (judge/calls.py) and that no word of its process reaches the student.
"""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autograder.checks import TIMEOUTS_ALLOWED, examine
from autograder.judge.calls import MAX_TEXT, SandboxRunner, Shared
from autograder.judge.cells import Release, fingerprint, runnable
from autograder.judge.discreet import discreet
from autograder.judge.intake import Submission, load_release, take_in
from autograder.judge.session import Cell, Notebook
from autograder.judge.tiers import machine_tier
from autograder.judge.verdict import Basis, Verdict, bank_version, judge_version
from autograder.judge.zygote import Zygote
from autograder.labs import Lab, LabError
from autograder.question import Question
from autograder.score import Report

TOTAL_SECONDS = 300.0  # of one submission in all, whatever its cells and calls may take one by one


# --- one notebook ---------------------------------------------------------------------------------------


def judge_notebook(
    lab: Lab,
    path: Path,
    seed: int,
    *,
    student: str = "",
    draw: str = "",
    zygote: Zygote | None = None,
    release: Release | None = None,
) -> Verdict:
    """Take `path` in, run it, examine every code question. Refused, LabError, SandboxError: no verdict."""
    start = time.monotonic()
    release = release or load_release(lab.folder)
    submission = take_in(path, release, student)
    cells = runnable(submission.notebook, release)
    reports = judge_cells(lab, cells, seed, zygote)
    return Verdict(
        lab=lab.slug, student=student, tier=zygote.tier if zygote else machine_tier(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        questions={name: report.public() for name, report in reports.items()},
        notes=[note.student for note in submission.notes if note.student],
        staff_notes=[note.staff for note in submission.notes], seconds=round(time.monotonic() - start, 3),
        **vars(basis(lab, submission, release, draw)),
    )  # fmt: skip


def basis(lab: Lab, submission: Submission, release: Release, draw: str) -> Basis:
    """What a verdict on this submission would rest on."""
    cells = runnable(submission.notebook, release)
    return Basis(fingerprint(cells), bank_version(lab), judge_version(), draw)


def judge_cells(lab: Lab, cells: Sequence[Cell], seed: int, zygote: Zygote | None = None) -> dict[str, Report]:
    """A report for every code question of `lab`, over the answers that `cells` define."""
    refuse_if_lacking(lab)
    if zygote is None:
        with Zygote(lab.imports) as own:
            return judge_cells(lab, cells, seed, own)
    notebook = Notebook(cells, deadline=time.monotonic() + TOTAL_SECONDS)
    with Shared(zygote, notebook, lab.seconds) as shared:
        return {name: judge_question(lab, question, seed, shared) for name, question in lab.checks.items()}


def judge_question(lab: Lab, question: Question, seed: int, shared: Shared) -> Report:
    """One question in the submission's process; what fails there after other questions is looked at in a new one.

    That one then serves the questions that follow: they, too, are looked at again should they fail in it.
    """
    alone = shared.clean(question) or question.fresh or question.ranks
    report, timeouts = examined(lab, question, seed, shared)
    # After the second time-out the call was in a new process already.
    if report.attempted and not report.passed and not alone and timeouts < TIMEOUTS_ALLOWED:
        shared.renew()
        report, _ = examined(lab, question, seed, shared)
    return quiet(report)


def examined(lab: Lab, question: Question, seed: int, shared: Shared) -> tuple[Report, int]:
    """The report on one question, and how many of its calls ran out of time."""
    with SandboxRunner(shared.zygote, shared.notebook, lab.seconds, shared) as runner:
        report = examine(
            question, runner, oracle=lab.oracle(question), seed=seed,
            mistakes=lab.mistakes(question.name), points=lab.questions[question.name].points,
        )  # fmt: skip
        return report, runner.timeouts


def refuse_if_lacking(lab: Lab) -> None:
    """A machine that cannot run a question must not judge it: nobody loses points for the grader's set-up."""
    for info in lab.questions.values():
        lacking = [need for need in info.needs if importlib.util.find_spec(need) is None]
        if lacking:
            raise LabError(f"question {info.name!r} of {lab.slug} needs {', '.join(lacking)} on the grading machine")


def quiet(report: Report) -> Report:
    """The report without text that a student's process could have filled with hidden numbers."""
    cases = tuple(replace(case, message=_cut(discreet(case.message)), differences=()) for case in report.cases)
    mechanisms = tuple(replace(m, message=_cut(discreet(m.message, counts=False))) for m in report.mechanisms)
    return replace(report, cases=cases, mechanisms=mechanisms)


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
