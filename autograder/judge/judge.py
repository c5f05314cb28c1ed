"""Judge one notebook: run its cells apart, examine each question with hidden cases, write down what may be said.

The comparison, the mechanisms, the diagnosis and the score are the student's own `check`; what differs is where the
answer runs and that no word of its process reaches the student. Messages here are made of judge-written text, of the
student's own source lines, and of names from a closed list.
"""

import builtins
import importlib.util
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autograder.checks import Outcome, examine
from autograder.judge.cells import Release, fingerprint, runnable
from autograder.judge.intake import Submission, load_release, take_in
from autograder.judge.session import Cell, Notebook, Problem, Session
from autograder.judge.session import Outcome as RawOutcome
from autograder.judge.tiers import machine_tier
from autograder.judge.verdict import Basis, Verdict, bank_version, judge_version
from autograder.judge.zygote import Zygote
from autograder.labs import Lab, LabError
from autograder.question import Case, Question
from autograder.score import CaseResult, Report

MAX_TEXT = 300
TOTAL_SECONDS = 300.0  # of one submission in all, whatever its cells and calls may take one by one
LITERAL = 120  # a student's own error message is shown when it stands in the notebook, up to this length
ERRORS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
DICT_KEYS = re.compile(r"a dict with keys \[.*\]", re.DOTALL)  # greedy: a key may hold a bracket, too
OURS = {"AnswerMissing", "ForbiddenCall", "TooLarge"}
SAYS = {
    "timeout": ("Timeout", "no result within {seconds:g} s"),
    "overtime": ("NotRun", "not run: the notebook had used up the time that a submission has in all"),
    "crash": ("Crash", "the process that ran your code ended: an exit, a segmentation fault, or too much memory"),
    "garbled": ("Crash", "what came back was no reply of ours: an answer returns its result and talks to nobody else"),
}


class SandboxRunner:
    """Calls an answer in a sandboxed process (a `Runner` of autograder.checks), one process per question."""

    def __init__(self, zygote: Zygote, notebook: Notebook, seconds: float) -> None:
        self.zygote, self.notebook, self.seconds = zygote, notebook, seconds
        self.session: Session | None = None

    def __enter__(self) -> "SandboxRunner":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.session is not None:
            self.session.close()

    def call(self, question: Question, case: Case) -> Outcome:
        if self.session is None:
            self.session = Session(self.zygote, self.notebook, seconds=self.seconds)
        return self.tell(question, self._ask(self.session, question, case))

    def peak(self, question: Question, case: Case, warmup: Case) -> tuple[Outcome, int | None]:
        """In a process of its own, warmed up once: what the kernel says the call needed at its peak."""
        with Session(self.zygote, self.notebook, seconds=self.seconds) as session:
            raw = self._ask(session, question, warmup)
            if raw.ok:
                raw = self._ask(session, question, case, measure=True)
        return self.tell(question, raw), raw.peak_bytes

    def _ask(self, session: Session, question: Question, case: Case, measure: bool = False) -> RawOutcome:
        return session.call(
            question.answer, case.args, case.kwargs, case=case.name, drive=question.drive_source,
            forbid=question.forbidden, once=question.read_once, seconds=self.seconds, measure=measure,
        )  # fmt: skip

    def tell(self, question: Question, raw: RawOutcome) -> Outcome:
        """The outcome in words that give nothing of the hidden case away."""
        if raw.problem is None:
            return Outcome(raw.value, milliseconds=raw.wall_ms)
        error, message, line = self._describe(question, raw.problem)
        return Outcome(error=error, message=message, line=line, milliseconds=raw.wall_ms)

    def _describe(self, question: Question, problem: Problem) -> tuple[str, str, str]:
        if problem.kind != "error":
            error, says = SAYS[problem.kind]
            return error, says.format(seconds=self.seconds), ""
        if problem.type == "AnswerMissing":
            return problem.type, self.why_missing(question), ""
        error = problem.type if problem.type in ERRORS | OURS else "Exception"
        line = source_line(self.notebook.cells, problem.cell, problem.line)
        if error == "ForbiddenCall":
            return error, f"calls {forbidden_name(question, problem.message)}, which this question rules out", line
        return error, own_words(self.notebook.cells, problem.message), line

    def why_missing(self, question: Question) -> str:
        """Why the notebook defines no such answer: no cell does, or the cell that should have stopped."""
        problem = self.notebook.problems.get(question.name)
        if problem is None:
            return f"no cell of the notebook defines `{question.answer}`; was it renamed?"
        error, says, line = self._describe(question, problem)
        return f"the cell `{question.name}` stopped with {error}{f' at `{line}`' if line else ''}: {says}"


def source_line(cells: Iterable[Cell], name: str | None, number: int | None) -> str:
    """Line `number` of the student's cell `name`; the runner claims the place, the text is ours."""
    for cell in cells:
        lines = cell.source.splitlines()
        if cell.name == name and number is not None and 1 <= number <= len(lines):
            return lines[number - 1].strip()[:MAX_TEXT]
    return ""


def own_words(cells: Iterable[Cell], message: str) -> str:
    """The student's own message if it stands in the notebook, so that it carries nothing of the hidden input."""
    if 0 < len(message) <= LITERAL and any(message in cell.source for cell in cells):
        return message
    return "raised on a hidden case; `lab.check` shows the whole message on the visible ones"


def forbidden_name(question: Question, message: str) -> str:
    """Which of the question's forbidden names the runner's message is about."""
    return next((f"`{name}`" for name in question.forbidden if name in message), "a function")


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
    release = release or load_release(lab.folder)
    submission = take_in(path, release, student)
    cells = runnable(submission.notebook, release)
    reports = judge_cells(lab, cells, seed, zygote)
    return Verdict(
        lab=lab.slug, student=student, tier=machine_tier(), created=datetime.now(UTC).isoformat(timespec="seconds"),
        questions={name: report.public() for name, report in reports.items()},
        notes=[note.student for note in submission.notes if note.student],
        staff_notes=[note.staff for note in submission.notes],
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
    return {name: judge_question(lab, question, notebook, seed, zygote) for name, question in lab.checks.items()}


def judge_question(lab: Lab, question: Question, notebook: Notebook, seed: int, zygote: Zygote) -> Report:
    """One question in a fresh process."""
    with SandboxRunner(zygote, notebook, lab.seconds) as runner:
        report = examine(
            question, runner, oracle=lab.oracle(question), seed=seed,
            mistakes=lab.mistakes(question.name), points=lab.questions[question.name].points,
        )  # fmt: skip
    return quiet(report)


def refuse_if_lacking(lab: Lab) -> None:
    """A machine that cannot run a question must not judge it: nobody loses points for the grader's set-up."""
    for info in lab.questions.values():
        lacking = [need for need in info.needs if importlib.util.find_spec(need) is None]
        if lacking:
            raise LabError(f"question {info.name!r} of {lab.slug} needs {', '.join(lacking)} on the grading machine")


def quiet(report: Report) -> Report:
    """The report without text that a student's process could have filled with hidden numbers."""
    cases = tuple(replace(case, message=_text(case), differences=()) for case in report.cases)
    mechanisms = tuple(replace(mechanism, message=_cut(mechanism.message)) for mechanism in report.mechanisms)
    return replace(report, cases=cases, mechanisms=mechanisms)


def _text(case: CaseResult) -> str:
    # A dict's keys are the student's to choose.
    return _cut(DICT_KEYS.sub("a dict with other keys", case.message))


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
