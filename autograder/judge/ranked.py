"""A multi-rank program in the judge: a sandboxed process per rank, and one hub here between them.

Ranks have no road to each other but the hub, so what it counts is all that was sent. One deadline holds for the whole
program; a rank that fails lets the others go at once.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from autograder.hub import FINISHED, Hub
from autograder.judge.aid import Aid
from autograder.judge.session import Notebook, Outcome, Session
from autograder.judge.zygote import Zygote

BY_THE_HUB = "RelayError"


class RankSessions:
    """One session per rank, each with the notebook's cells."""

    def __init__(self, zygote: Zygote, notebook: Notebook, world: int, seconds: float) -> None:
        self.sessions: list[Session] = []
        try:
            for _ in range(world):
                self.sessions.append(Session(zygote, notebook, seconds=seconds))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RankSessions":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        for session in self.sessions:
            session.close()

    def call(self, answer: str, args: Sequence[Any], kwargs: dict[str, Any], hub: Hub, **how: Any) -> Outcome:
        """The answer on every rank at once; the value is the list of theirs, the peak the largest."""

        late: list[str] = []  # where the ranks were when the first of them ran out of time

        def be(rank: int, session: Session) -> Outcome:
            more = {"rank": rank, "world": hub.world}
            outcome = session.call(answer, args, kwargs, aid=Aid(hub, rank), more=more, **how)
            if outcome.problem is not None and outcome.problem.kind == "timeout":
                late.append(hub.where())
            hub.end(rank, FINISHED if outcome.ok else "stopped with an error")
            return outcome

        with ThreadPoolExecutor(hub.world) as threads:
            outcomes = list(threads.map(be, range(hub.world), self.sessions))
        for session in self.sessions:  # here and not in the threads: a zygote serves one at a time
            session.recover()
        return together(outcomes, hub.failure, late)


def together(outcomes: Sequence[Outcome], failure: str, late: Sequence[str]) -> Outcome:
    """The outcome of the program. Of several problems, the one that is not another rank's consequence."""
    wall = max(outcome.wall_ms for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.problem is not None]
    if failed:
        first = min(failed, key=lambda outcome: consequence(outcome))
        assert first.problem is not None
        problem = first.problem
        if consequence(first) and failure:  # the hub's words, not the runner's
            problem = replace(problem, kind="relay", type=BY_THE_HUB, message=failure)
        elif problem.kind == "timeout":
            problem = replace(problem, message=late[0])
        return Outcome(problem=problem, wall_ms=wall)
    peaks = [outcome.peak_bytes for outcome in outcomes if outcome.peak_bytes is not None]
    peak = max(peaks) if len(peaks) == len(outcomes) else None
    return Outcome([outcome.value for outcome in outcomes], None, wall, peak)


def consequence(outcome: Outcome) -> bool:
    """Whether a rank failed in a collective and not by itself."""
    problem = outcome.problem
    return problem is not None and problem.kind == "error" and problem.type == BY_THE_HUB
