"""The student's side: open a lab in a notebook, check answers, read hints, see where one stands."""

import contextlib
import html
import importlib.util
import os
import platform
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from autograder import feedback, ledger
from autograder.checks import Outcome, call_in_place, examine
from autograder.labs import Lab, LabError, close_names, find_lab
from autograder.question import Case, Question
from autograder.sandbox.watch import ForbidFunctions, WatchOperations
from autograder.score import Report
from autograder.tree import tensors


class CheckFailed(AssertionError):
    """A check did not pass. Raised on purpose: a plain grader that runs the cell gives no points then either."""

    def _render_traceback_(self) -> list[str]:
        """In a notebook, one line in place of our stack."""
        return [f"{type(self).__name__}: {self}"]


class NotCheckedHere(CheckFailed):
    """This machine lacks what the question needs; the grader's machine has it."""


class Shown:
    """Something to display: rich (HTML or Markdown) in a notebook, plain text everywhere else."""

    def __init__(self, text: str, rich: str, mime: str = "text/html") -> None:
        self.text, self.rich, self.mime = text, rich, mime

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text, self.mime: self.rich}

    def __repr__(self) -> str:
        return self.text


class AnswerInPlace:
    """Calls an answer in the notebook's own process (a `Runner` of autograder.checks)."""

    measures = False

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.namespace = namespace

    def call(self, question: Question, case: Case) -> Outcome:
        answer = self.namespace.get(question.answer)
        if answer is None:
            return Outcome(error="AnswerMissing", message=missing(question.answer, self.namespace))
        return call_in_place(question, answer, case)

    def peak(self, question: Question, case: Case, warmup: Case) -> tuple[Outcome, int | None]:
        """Here: the bytes of the largest tensor made, a stand-in that explains. The judge measures the process."""
        watches: list[WatchOperations] = []
        given = max((t.untyped_storage().nbytes() for t in tensors((case.args, case.kwargs))), default=0)

        @contextlib.contextmanager
        def watching() -> Iterator[None]:
            with ForbidFunctions(question.forbidden), WatchOperations(question.forbidden) as watch:
                watches.append(watch)
                yield

        outcome = call_in_place(question, self.namespace[question.answer], case, watching)
        return outcome, None if outcome.error else max(given, *(watch.largest_bytes for watch in watches), 0)

    def race(self, question: Question, oracle: Any, cases: Sequence[Case]) -> list[tuple[Outcome, float]] | None:
        """In this process, one after the other."""
        answer = self.namespace[question.answer]
        return [
            (call_in_place(question, answer, case), call_in_place(question, oracle, case).milliseconds)
            for case in cases
        ]


class StudentLab:
    """A lab opened in a notebook: `check`, `hint`, `solution`, `record`, `status`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._reports: dict[str, Report] = {}

    def check(self, name: str) -> None:
        """Check the answer `name` on the visible cases; shows a report, and raises CheckFailed unless it passed."""
        info = self._info(name)
        if info.written:
            text = f"{name}: a person reads this answer."
            show(Shown(text, f"<i>{text}</i>"))
            return
        if lacking := [need for need in info.needs if importlib.util.find_spec(need) is None]:
            raise NotCheckedHere(not_here(name, lacking))
        question = self._lab.checks[name]
        # The caller's namespace: the notebook's cells, whatever runs them.
        runner = AnswerInPlace(sys._getframe(1).f_globals)
        report = examine(
            question,
            runner,
            oracle=self._lab.oracle(question),
            seed=visible_seed(self._lab.slug),
            mistakes=self._lab.mistakes(name),
            points=info.points,
        )
        self._reports[name] = report
        show(Shown(feedback.as_text(report), feedback.as_html(report)))
        if not report.passed:
            raise CheckFailed(f"{name}: {report.status}. The report above says why.")

    def hint(self, name: str) -> Shown:
        """The hint ladder of a question, folded."""
        self._info(name)
        text = self._lab.hints(name)
        return Shown(text, text, "text/markdown")

    def solution(self, name: str) -> Shown:
        """A worked solution, to read once your own has passed."""
        self._info(name)
        report = self._reports.get(name)
        if report is None or not report.passed:
            raise CheckFailed(f'first pass lab.check("{name}") in this session; then compare your way with ours')
        source = self._lab.solution(name)
        return Shown(source, f"```python\n{source}\n```", "text/markdown")

    def record(
        self, *, what: str, memory: ledger.Amount, flops: ledger.Amount, bytes: ledger.Amount, time: ledger.Amount,
        quality: ledger.Amount, sentence: str,
    ) -> Shown:  # fmt: skip
        """Put this lab's row into the student's ledger; shows the whole of it."""
        path = ledger.path_for(self._lab.slug)
        row = ledger.Row(self._lab.slug, what, memory, flops, bytes, time, quality, sentence)
        said = ledger.record(path, row)
        return Shown(
            "\n".join(filter(None, [said, ledger.as_text(path)])), f"{html.escape(said)}{ledger.as_html(path)}"
        )

    def status(self) -> Shown:
        """Points so far, by the visible cases of this session, and the ledger."""
        rows = [self._row(name) for name in self._lab.questions]
        total = sum(report.earned for report in self._reports.values())
        possible = sum(info.points for info in self._lab.questions.values())
        head = f"{self._lab.title}: {total:g} of {possible:g} points on the visible cases, this session"
        text = "\n".join([head, *(f"  {name:24} {state:20} {points}" for name, state, points in rows)])
        cells = "".join(
            f"<tr><td><code>{html.escape(name)}</code></td><td>{state}</td><td>{points}</td></tr>"
            for name, state, points in rows
        )
        table = f"<table><caption>{html.escape(head)}</caption><tr><th>question</th><th>state</th><th>points</th></tr>"
        book = self._ledger()
        return Shown(f"{text}\nLedger:\n{book.text}" if book.text else text, f"{table}{cells}</table>{book.rich}")

    def _ledger(self) -> Shown:
        """All rows; a file that is broken is said and does not hide the points."""
        path = ledger.path_for(self._lab.slug)
        try:
            return Shown(ledger.as_text(path), ledger.as_html(path))
        except ledger.LedgerError as error:
            return Shown(str(error), f"<p>{html.escape(str(error))}</p>")

    def _row(self, name: str) -> tuple[str, str, str]:
        info = self._lab.questions[name]
        if info.written:
            return name, "read by a person", f"– of {info.points:g}"
        report = self._reports.get(name)
        if report is None:
            return name, "not checked yet", f"0 of {info.points:g}"
        return name, report.status, f"{report.earned:g} of {info.points:g}"

    def _info(self, name: str) -> Any:
        if name not in self._lab.questions:
            known = ", ".join(self._lab.questions)
            raise LabError(
                f"{self._lab.slug} has no question {name!r}; it has {known}.{close_names(name, self._lab.questions)}"
            )
        return self._lab.questions[name]


def open_lab(slug: str) -> StudentLab:
    """Open a lab; the first call of every lab notebook.

    Without a GPU it also switches Triton to its interpreter, which works only before `triton` is first imported.
    """
    import torch

    if not torch.cuda.is_available() and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    return StudentLab(find_lab(slug))


def visible_seed(slug: str) -> int:
    """The seed of the cases that students see: public, fixed, different from lab to lab."""
    return zlib.crc32(slug.encode())


def show(shown: Shown) -> None:
    """Display in IPython, print elsewhere."""
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from IPython.display import display

        display(shown)
    else:
        print(shown.text)


def missing(answer: str, namespace: dict[str, Any]) -> str:
    near = close_names(answer, [name for name, value in namespace.items() if callable(value)])
    return f"there is no `{answer}` in this notebook: run the cell that defines it.{near}"


def not_here(name: str, lacking: list[str]) -> str:
    return (
        f"{name}: not checked here: needs {', '.join(lacking)}, which {platform.system()} on this machine lacks. "
        "It is graded where that is installed (Triton's wheels exist for Linux); your answer counts there."
    )
