"""Talk to runners from the trusted side: run a notebook's cells, call its answers.

A `Notebook` is the cells of one submission and what went wrong in them; a `Session` is one fresh runner that
has executed those cells. Whatever the runner does, a call comes back as an `Outcome` before its deadline.
"""

import math
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from autograder.judge.aid import Aid
from autograder.judge.memory import Before, read_peak, start_peak
from autograder.judge.zygote import SandboxError, Zygote
from autograder.sandbox import wire

CELL_SECONDS = 20.0
MEMORY_BYTES = 4 << 30
MAX_RESTARTS = 3
MAX_ASKS = 200_000  # questions of a runner within one request


@dataclass(frozen=True)
class Cell:
    """One code cell to run: a name for messages (its grade_id or `cell 7`) and plain Python source."""

    name: str
    source: str


@dataclass(frozen=True)
class Problem:
    """Something the student's code did instead of returning.

    kind is "error" (an exception: type, message, and where), "timeout", "crash" (the process ended), "garbled"
    (a reply that is not ours) or "overtime" (the submission's time in all is up). `message` is the runner's own
    words: for staff, never for feedback.
    """

    kind: str
    type: str = ""
    message: str = ""
    cell: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of one call, as seen from outside."""

    value: Any = None
    problem: Problem | None = None
    wall_ms: float = 0.0
    peak_bytes: int | None = None  # above what the process held before the call; None: could not be measured

    @property
    def ok(self) -> bool:
        return self.problem is None


@dataclass
class Notebook:
    """The cells of one submission. Problems are kept across sessions, so a cell that hangs costs its deadline once.

    `deadline` (monotonic seconds) is the submission's in all: many slow cells may not hold up a class either.
    `absent`: parts of names of the operations that PyTorch lacks in the processes of this notebook.
    """

    cells: Sequence[Cell]
    problems: dict[str, Problem] = field(default_factory=dict)
    guilty: dict[str, Problem] = field(default_factory=dict)  # cells that hung or crashed, left out from then on
    deadline: float = math.inf
    absent: tuple[str, ...] = ()

    def without(self, names: tuple[str, ...]) -> "Notebook":
        """The same cells for processes without these operations; a cell that hangs or crashes does so in both."""
        return replace(self, absent=names, problems={}) if names else self

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


class Session:
    """One fresh runner in which the notebook's cells have run; `seconds` is the deadline of each cell.

    Use as a context manager; closing ends its processes and removes its folder.
    """

    def __init__(
        self, zygote: Zygote, notebook: Notebook, *, seconds: float = CELL_SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.zygote, self.notebook, self.seconds, self.memory_bytes = zygote, notebook, seconds, memory_bytes
        self.pid: int | None = None
        self.calls = 0  # requests since the process started
        self.broken = False
        self._start()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def call(
        self,
        answer: str,
        args: Sequence[Any],
        kwargs: dict[str, Any] | None = None,
        *,
        case: str = "",
        drive: str | None = None,
        forbid: Sequence[str] = (),
        once: Sequence[int] = (),
        seconds: float = CELL_SECONDS,
        measure: bool = False,
        aid: Aid | None = None,
        more: dict[str, Any] | None = None,
    ) -> Outcome:
        """Call `answer` through `drive`; time it, and with `measure` read its peak memory, both from outside.

        `more` goes into the request as it is: gradients and seed, rank and world (see sandbox/runner.py). After a
        crash or a time-out the session starts again; `more` with a rank leaves that to `recover`.
        """
        head = {"op": "call", "answer": answer, "case": case, "drive": drive, **(more or {})}
        request = {**head, "forbid": list(forbid), "once": list(once)}
        return self.ask(
            request, args, kwargs or {}, seconds=seconds, measure=measure, aid=aid, recover="rank" not in head
        )

    def ask(
        self, request: dict, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None, *, seconds: float,
        measure: bool = False, aid: Aid | None = None, recover: bool = True,
    ) -> Outcome:  # fmt: skip
        """Any request with arguments; what the runner asks meanwhile, `aid` answers."""
        if self.notebook.seconds_left <= 0:
            return Outcome(problem=Problem("overtime"))
        if self.pid is None:
            return Outcome(problem=Problem("crash", message="too many cells of this notebook hang or crash"))
        aid = aid or Aid()
        form, blob = wire.encode((tuple(args), dict(kwargs or {})), aid.outgoing)
        args_form, kwargs_form = form["t"]
        self.calls += 1
        outcome = self._ask({**request, "args": args_form, "kwargs": kwargs_form}, blob, seconds, measure, aid)
        self.broken = outcome.problem is not None and outcome.problem.kind != "error"
        if recover:
            self.recover()
        return outcome

    def recover(self) -> None:
        """After a crash, a time-out or nonsense: a new process, in which the cells have run again."""
        if self.broken:
            self.broken = False
            self.close()
            self._start()

    def start_peak(self) -> Before | None:
        """Begin to measure memory over several requests; see `peak_since`."""
        return start_peak(self.pid)

    def peak_since(self, before: Before | None) -> int | None:
        return read_peak(self.pid, before)

    def close(self) -> None:
        if self.pid is None:
            return
        pid, self.pid = self.pid, None
        try:
            self.zygote.kill(pid)
        finally:
            self.sock.close()

    def _start(self) -> None:
        """Spawn and run the cells; a cell that hangs or crashes is left out and everything starts again."""
        for _ in range(MAX_RESTARTS + 1):
            if self.notebook.seconds_left <= 0:
                return
            self._spawn()
            if self._run_cells():
                return
            self.close()

    def _spawn(self) -> None:
        self.calls = 0
        self.sock, theirs = socket.socketpair()
        with theirs:
            try:
                self.pid = self.zygote.spawn(theirs, self.memory_bytes)
            except BaseException:  # the zygote is gone: leave no socket behind
                self.sock.close()
                raise

    def _run_cells(self) -> bool:
        if self.notebook.absent:
            made = self._ask({"op": "without", "names": list(self.notebook.absent)}, b"", self.seconds, False)
            if made.problem is not None:  # before any of the student's code: a failure is ours
                raise SandboxError(f"PyTorch's operations could not be taken away: {made.problem}")
        for cell in self.notebook.cells:
            if cell.name in self.notebook.guilty:
                continue
            outcome = self._ask({"op": "exec", "name": cell.name, "source": cell.source}, b"", self.seconds, False)
            if outcome.problem is not None:
                self.notebook.problems[cell.name] = outcome.problem
                if outcome.problem.kind != "error":
                    self.notebook.guilty[cell.name] = outcome.problem
                    return False
        return True

    def _ask(self, request: dict, blob: bytes, seconds: float, measure: bool, aid: Aid | None = None) -> Outcome:
        request_id = secrets.token_hex(8)
        seconds = min(seconds, max(0.0, self.notebook.seconds_left))
        before = start_peak(self.pid) if measure else None
        start = time.monotonic()
        try:
            wire.send(self.sock, {**request, "id": request_id}, blob, start + seconds)
            reply, out = self._reply(request_id, start + seconds, aid or Aid())
            wall_ms = (time.monotonic() - start) * 1000
            peak = read_peak(self.pid, before)
            return _outcome(reply, out, wall_ms, peak, aid or Aid())
        except TimeoutError:
            kind = "timeout" if self.notebook.seconds_left > 0 else "overtime"
            return Outcome(problem=Problem(kind), wall_ms=seconds * 1000)
        except (EOFError, OSError):
            return Outcome(problem=Problem("crash"))
        except wire.WireError as problem:
            return Outcome(problem=Problem("garbled", message=str(problem)))

    def _reply(self, request_id: str, deadline: float, aid: Aid) -> tuple[dict, bytes]:
        """The reply to a request; until it comes, the runner's questions are answered, within the same deadline."""
        for _ in range(MAX_ASKS):
            frame, blob = wire.receive(self.sock, deadline)
            if frame.get("id") != request_id:
                raise wire.WireError("a reply to another request")
            if "ask" not in frame:
                return frame, blob
            answer = aid.answer(frame, blob, deadline)
            if answer is not None:
                wire.send(self.sock, {"id": request_id, **answer[0]}, answer[1], deadline)
        raise wire.WireError(f"more than {MAX_ASKS:,} questions in one request")


def _outcome(reply: dict, out: bytes, wall_ms: float, peak: int | None, aid: Aid) -> Outcome:
    if reply.get("ok") is True:
        return Outcome(wire.decode(reply.get("value"), out, other=aid.incoming), None, wall_ms, peak)
    error = reply.get("error")
    if not isinstance(error, dict):
        raise wire.WireError("neither a value nor an error")
    cell, line = error.get("cell"), error.get("line")
    problem = Problem(
        "error",
        type=str(error.get("type"))[: wire.MAX_NAME],
        message=str(error.get("message"))[:2000],
        cell=cell if isinstance(cell, str) else None,
        line=line if type(line) is int else None,
    )
    return Outcome(None, problem, wall_ms, peak)
