"""How the judge calls an answer: which process it runs in, and in what words its failures may be told.

No word of a runner reaches the student: messages are judge-written text, the student's own source lines, and names from
a closed list.
"""

import builtins
from collections.abc import Iterable, Sequence
from typing import Any

from autograder.checks import Outcome
from autograder.hub import Hub
from autograder.judge.race import oracle_notebook, race
from autograder.judge.ranked import RankSessions
from autograder.judge.remote import converse
from autograder.judge.session import Cell, Notebook, Problem, Session
from autograder.judge.session import Outcome as RawOutcome
from autograder.judge.zygote import SandboxError, Zygote
from autograder.question import Case, Question, WithGradients
from autograder.served import Seen, opened

MAX_TEXT = 300
LITERAL = 120  # a student's own error message is shown when it stands in the notebook, up to this length
ERRORS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
OURS = {"AnswerMissing", "ForbiddenCall", "TooLarge", "ServedError", "RelayError", "TooManyObjects"}
SAYS = {
    "timeout": ("Timeout", "no result within {seconds:g} s"),
    "overtime": ("NotRun", "not run: the notebook had used up the time that a submission has in all"),
    "crash": ("Crash", "the process that ran your code ended: an exit, a segmentation fault, or too much memory"),
    "garbled": ("Crash", "what came back was no reply of ours: an answer returns its result and talks to nobody else"),
    "form": ("WrongForm", "what came back is not of the expected form ({type})"),
    "relay": ("RelayError", "{message}"),
}


class Shared:
    """The processes in which a submission's questions are called one after another, so that its cells run once.

    One for each set of operations that questions rule out: there PyTorch lacks them, so that nothing the student's code
    does to its process brings them back. `clean` says that a question's process has served no other yet: a failure
    there is the answer's own. After a failure elsewhere the judge looks again in a new process, so a question that
    spoils the process costs no other one.
    """

    def __init__(self, zygote: Zygote, notebook: Notebook, seconds: float) -> None:
        self.zygote, self.notebook, self.seconds = zygote, notebook, seconds
        self.notebooks: dict[tuple[str, ...], Notebook] = {}
        self.sessions: dict[tuple[str, ...], Session] = {}

    def __enter__(self) -> "Shared":
        return self

    def __exit__(self, *exception: object) -> None:
        self.renew()

    def notebook_for(self, question: Question) -> Notebook:
        """The cells, for processes that lack what the question rules out."""
        return self.notebooks.setdefault(question.absent, self.notebook.without(question.absent))

    def clean(self, question: Question) -> bool:
        return question.absent not in self.sessions or self.sessions[question.absent].calls == 0

    def get(self, question: Question) -> Session:
        if question.absent not in self.sessions:
            self.sessions[question.absent] = self.fresh(question)
        return self.sessions[question.absent]

    def fresh(self, question: Question) -> Session:
        return Session(self.zygote, self.notebook_for(question), seconds=self.seconds)

    def renew(self) -> None:
        """The next call meets a new process."""
        while self.sessions:
            self.sessions.popitem()[1].close()


class SandboxRunner:
    """Calls an answer in sandboxed processes (a `Runner` of autograder.checks)."""

    measures = True

    def __init__(self, zygote: Zygote, notebook: Notebook, seconds: float, shared: Shared | None = None) -> None:
        self.zygote, self.notebook, self.seconds = zygote, notebook, seconds
        self.shared, self.owner = shared or Shared(zygote, notebook, seconds), shared is None
        self.ranks: RankSessions | None = None
        self.timeouts = 0

    def __enter__(self) -> "SandboxRunner":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.owner:
            self.shared.renew()
        if self.ranks is not None:
            self.ranks.close()

    def call(self, question: Question, case: Case) -> Outcome:
        if question.ranks:
            if self.ranks is None or question.fresh:
                self.renew_ranks(question)
            assert self.ranks is not None
            return self.tell(question, *self.on_ranks(self.ranks, question, case))
        if question.fresh:
            with self.shared.fresh(question) as session:
                return self.tell(question, *self.in_session(session, question, case))
        return self.tell(question, *self.in_session(self.shared.get(question), question, case))

    def peak(self, question: Question, case: Case, warmup: Case) -> tuple[Outcome, int | None]:
        """In a process of its own, warmed up once: what the kernel says the call needed at its peak."""
        if question.ranks:
            with RankSessions(self.zygote, self.shared.notebook_for(question), question.ranks, self.seconds) as ranks:
                raw, seen = self.on_ranks(ranks, question, warmup)
                if raw.ok:
                    raw, seen = self.on_ranks(ranks, question, case, measure=True)
            return self.tell(question, raw, seen), raw.peak_bytes
        with self.shared.fresh(question) as session:
            raw, seen = self.in_session(session, question, warmup)
            peak = None
            if raw.ok:
                before = session.start_peak()
                raw, seen = self.in_session(session, question, case)
                peak = session.peak_since(before) if raw.ok else None
        return self.tell(question, raw, seen), peak

    def race(self, question: Question, oracle: Any, cases: Sequence[Case]) -> list[tuple[Outcome, float]] | None:
        """Both in new processes of one kind; only ordinary questions are raced."""
        if question.converses or question.ranks or question.gradients:
            return None
        theirs = oracle_notebook(oracle)
        with (
            self.shared.fresh(question) as answer,
            Session(self.zygote, theirs, seconds=self.seconds) as reference,
        ):
            if theirs.problems:
                raise SandboxError(f"the oracle of {question.name!r} does not load in a sandbox: {theirs.problems}")
            requests = [(case.args, case.kwargs, self.how(question, case) | {"forbid": ()}) for case in cases]
            raced = race(answer, reference, question.answer, requests)
        return [(self.tell(question, mine), other.wall_ms) for mine, other in raced]

    def renew_ranks(self, question: Question) -> None:
        if self.ranks is not None:
            self.ranks.close()
        self.ranks = RankSessions(self.zygote, self.shared.notebook_for(question), question.ranks, self.seconds)

    def in_session(self, session: Session, question: Question, case: Case) -> tuple[RawOutcome, Seen]:
        seen = Seen()
        case = opened(case, seen)
        if question.converses:
            return converse(session, question, case, self.seconds), seen
        more = {"gradients": list(question.gradients), "seed": case.seed} if question.gradients else {}
        raw = session.call(question.answer, case.args, case.kwargs, more=more, **self.how(question, case))
        return with_gradients(raw) if question.gradients else raw, seen

    def on_ranks(
        self, ranks: RankSessions, question: Question, case: Case, measure: bool = False
    ) -> tuple[RawOutcome, Seen]:
        hub, seen = Hub(question.ranks), Seen()
        case, seen.ranks = opened(case, seen), hub.tallies
        how = self.how(question, case)
        return ranks.call(question.answer, case.args, case.kwargs, hub, measure=measure, **how), seen

    def how(self, question: Question, case: Case) -> dict[str, Any]:
        return {
            "case": case.name, "drive": question.drive_source, "forbid": question.forbidden,
            "once": question.read_once, "seconds": self.seconds,
        }  # fmt: skip

    def tell(self, question: Question, raw: RawOutcome, seen: Seen | None = None) -> Outcome:
        """The outcome in words that give nothing of the hidden case away."""
        if raw.problem is None:
            return Outcome(raw.value, milliseconds=raw.wall_ms, seen=seen or Seen())
        self.timeouts += raw.problem.kind == "timeout"
        error, message, line = self._describe(question, raw.problem)
        return Outcome(error=error, message=message, line=line, milliseconds=raw.wall_ms, seen=seen or Seen())

    def _describe(self, question: Question, problem: Problem) -> tuple[str, str, str]:
        if problem.kind != "error":
            error, says = SAYS[problem.kind]
            says = says.format(seconds=self.seconds, type=problem.type, message=problem.message)
            where = f": {problem.message}" if problem.kind == "timeout" and problem.message else ""
            return error, says + where, ""
        if problem.type == "AnswerMissing":
            return problem.type, self.why_missing(question), ""
        error = problem.type if problem.type in ERRORS | OURS else "Exception"
        line = source_line(self.notebook.cells, problem.cell, problem.line)
        if error == "ForbiddenCall":
            return error, f"calls {forbidden_name(question, problem.message)}, which this question rules out", line
        return error, own_words(self.notebook.cells, problem.message), line

    def why_missing(self, question: Question) -> str:
        """Why the notebook defines no such answer: no cell does, or the cell that should have stopped."""
        notebook = self.shared.notebook_for(question)
        problem = notebook.problems.get(question.name) or notebook.guilty.get(question.name)
        if problem is None:
            return f"no cell of the notebook defines `{question.answer}`; was it renamed?"
        error, says, line = self._describe(question, problem)
        return f"the cell `{question.name}` stopped with {error}{f' at `{line}`' if line else ''}: {says}"


def with_gradients(raw: RawOutcome) -> RawOutcome:
    """The outcome with value and gradients told apart; a runner that sends another form has no result."""
    if not raw.ok:
        return raw
    if not isinstance(raw.value, tuple) or len(raw.value) != 2 or not isinstance(raw.value[1], tuple):
        return RawOutcome(problem=Problem("garbled"), wall_ms=raw.wall_ms)
    return RawOutcome(WithGradients(*raw.value), None, raw.wall_ms, raw.peak_bytes)


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
