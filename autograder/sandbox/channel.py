"""The runner's line to the judge while it works on a request: ask, and wait for the answer.

A served function and the collectives of a multi-rank program live with the judge. A question is a frame
{"id": of the request, "ask": kind, …, "value"}; its answer {"ok": True, "value"} or {"ok": False, "message"}. Questions
of kind "post" get no answer.
"""

import socket
import threading
from typing import Any

import torch

from . import wire


class ServedError(RuntimeError):
    """The judge could not or would not do what was asked: a served function that does not take these arguments."""


class Channel:
    """The socket to the judge, for the time of one request. Threads of an answer take turns."""

    def __init__(self, sock: socket.socket, request_id: str) -> None:
        self.sock, self.request_id, self.lock = sock, request_id, threading.Lock()

    def tell(self, kind: str, value: Any, **head: Any) -> None:
        """A frame that gets no answer."""
        form, blob = wire.encode(value)
        with self.lock:
            wire.send(self.sock, {"id": self.request_id, "ask": kind, "value": form, **head}, blob)

    def ask(self, kind: str, value: Any, **head: Any) -> Any:
        """A frame, and the judge's answer to it."""
        form, blob = wire.encode(value)
        with self.lock:
            wire.send(self.sock, {"id": self.request_id, "ask": kind, "value": form, **head}, blob)
            reply, out = wire.receive(self.sock)
        if not reply["ok"]:
            raise ServedError(reply["message"])
        return wire.decode(reply["value"], out, trusted=True)


class ServedFunction:
    """A function that lives with the judge, who counts its calls; takes and returns plain data."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.channel, self.number = channel, number

    def __call__(self, *args: Any) -> Any:
        with torch.no_grad():
            return self.channel.ask("call", args, function=self.number)

    def __repr__(self) -> str:
        return f"<served function {self.number}>"
