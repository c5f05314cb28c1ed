"""The judge's end of a conversation: the student's answer and its objects, over the socket of one session.

A handle is a number that the runner gave; it is good for this conversation only, and whatever comes back for it is a
claim like any other reply.
"""

import time
from typing import Any

from autograder.converse import Handle
from autograder.judge.aid import Aid
from autograder.judge.session import Outcome, Problem, Session
from autograder.question import Question
from autograder.sandbox import wire
from autograder.sandbox.objects import MAX_OBJECTS


class RemoteFailed(Exception):
    """A request of the conversation gave no value; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.kind)
        self.problem = problem


class RemoteHandle(Handle):
    """An object that the runner keeps under a number."""

    def __init__(self, talk: "Conversation", number: int, kind: str) -> None:
        self._talk, self._number, self._kind = talk, number, kind

    def invoke(self, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        return self._talk.call({"object": self._number, "method": method}, args, kwargs)

    def get(self, name: str) -> Any:
        return self._talk.ask({"op": "get", "object": self._number, "name": name}, (), {})

    def load_state(self, state: dict[str, Any]) -> None:
        self._talk.ask({"op": "load", "object": self._number}, (state,), {})

    def drop(self) -> None:
        self._talk.ask({"op": "drop", "object": self._number}, (), {})

    def __repr__(self) -> str:
        return f"<handle of a {self._kind}>"


class Conversation(Aid):
    """One conversation, within one deadline; a student to `converse`, and the aid of each of its requests."""

    def __init__(self, session: Session, question: Question, case: str, seconds: float) -> None:
        super().__init__()
        self.session, self.question, self.case = session, question, case
        self.deadline = time.monotonic() + seconds
        self.objects = 0
        self.wall_ms = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call({"answer": self.question.answer}, args, kwargs)

    def call(self, target: dict, args: tuple, kwargs: dict[str, Any]) -> Any:
        head = {"op": "call", "case": self.case, "drive": None, "once": [], "forbid": list(self.question.forbidden)}
        return self.ask({**head, **target, "keep": True}, args, kwargs)

    def ask(self, request: dict, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The value of one request; what gives none ends the conversation."""
        self.functions.clear()
        left = max(0.0, self.deadline - time.monotonic())
        outcome: Outcome = self.session.ask(request, args, kwargs, seconds=left, aid=self, recover=False)
        self.wall_ms += outcome.wall_ms
        problem = outcome.problem
        if problem is None:
            return outcome.value
        if problem.kind == "error" and problem.type == "StopIteration":
            raise StopIteration
        raise RemoteFailed(problem)

    def outgoing(self, value: Any) -> dict:
        if isinstance(value, RemoteHandle):
            if value._talk is not self:
                raise TypeError("a handle is good for the conversation that it comes from")
            return {"H": value._number}
        return super().outgoing(value)

    def incoming(self, form: dict) -> RemoteHandle:
        number, kind = form.get("H"), form.get("kind")
        if type(number) is not int or not 0 <= number < 1 << 31 or type(kind) is not str:
            raise wire.WireError("not a handle")
        self.objects += 1
        if self.objects > MAX_OBJECTS * 64:
            raise wire.WireError("handles without end")
        return RemoteHandle(self, number, kind[: wire.MAX_NAME])

    def close(self) -> None:
        """Let go of every object; after trouble, of the process."""
        if self.objects and self.session.pid is not None and not self.session.broken:
            self.session.ask({"op": "drop", "object": None}, seconds=1.0)
        self.session.recover()


def converse(session: Session, question: Question, case: Any, seconds: float) -> Outcome:
    """Run the question's `converse` with the answer of `session`; the value is what it returns.

    What the author's code raises over strange results is the answer's fault here: it passes over the oracle.
    """
    talk = Conversation(session, question, case.name, seconds)
    try:
        value, problem = question.spec.converse(talk, case), None
    except RemoteFailed as failed:
        value, problem = None, failed.problem
    except Exception as error:
        value, problem = None, Problem("form", type(error).__name__)
    finally:
        talk.close()
    return Outcome(value, problem, talk.wall_ms)
