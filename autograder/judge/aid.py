"""What the judge does for a runner while it works on a request: serve functions, and be the hub between ranks.

Every question is a claim of the runner: its form is checked, served functions count it, and the request's deadline
goes on.
"""

from typing import Any

from autograder.hub import Hub, HubError
from autograder.sandbox import wire
from autograder.sandbox.channel import ServedError
from autograder.served import Open

MAX_QUESTION = 64 << 20  # bytes of tensors in one question


class Aid:
    """Answers the questions of one runner. With a hub, the runner is rank `rank`."""

    def __init__(self, hub: Hub | None = None, rank: int = 0) -> None:
        self.hub, self.rank = hub, rank
        self.functions: list[Open] = []

    def outgoing(self, value: Any) -> dict:
        """The form of an argument that is no plain data: a served function, by number."""
        if isinstance(value, Open):
            self.functions.append(value)
            return {"S": len(self.functions) - 1}
        return wire.opaque(value)

    def incoming(self, form: dict) -> Any:
        """What the runner says it keeps; only a conversation has a use for it."""
        raise wire.WireError("an object where none was asked for")

    def answer(self, frame: dict, blob: bytes, deadline: float) -> tuple[dict, bytes] | None:
        """Head and blob of the answer; None where none is expected. WireError: not a question of ours."""
        if len(blob) > MAX_QUESTION:
            raise wire.WireError(f"a question of more than {MAX_QUESTION} bytes")
        kind, value = frame["ask"], wire.decode(frame.get("value"), blob)
        if kind == "post" and self.hub is not None:
            self.hub.post(self.rank, frame.get("number"), frame.get("operation"), value)
            return None
        try:
            if kind == "call":
                form, out = wire.encode(self.function(frame.get("function"))(*as_arguments(value)))
            elif kind == "wait" and self.hub is not None:
                form, out = wire.encode(self.hub.wait(self.rank, frame.get("number"), deadline))
            else:
                raise wire.WireError("not a question of ours")
        except (ServedError, HubError) as problem:
            return {"ok": False, "message": str(problem)}, b""
        return {"ok": True, "value": form}, out

    def function(self, number: object) -> Open:
        if type(number) is not int or not 0 <= number < len(self.functions):
            raise wire.WireError("no such served function")
        return self.functions[number]


def as_arguments(value: Any) -> tuple:
    if not isinstance(value, tuple):
        raise wire.WireError("arguments are no tuple")
    return value
