"""Run a student's cells, then answer calls: the process that holds the answer and nothing else.

Everything this process says is only a claim. It never sees an expected value, a seed or another student's
work; it receives inputs, sends outputs back, and echoes the random id of each request.

Requests   {"op": "without", "id", "names": []}: before the first cell, operations that PyTorch is to lack from then on
           {"op": "exec", "id", "name", "source"}
           {"op": "call", "id", "answer", "drive": source | None, "case", "args", "kwargs", "forbid": [], "once": []}
             and, where a question asks for it, "gradients": [positions] with "seed"; "rank" with "world";
             "keep": objects in the result stay here and go out as numbers;
             "object" with "method" in place of "answer": a kept object's method, or itself where the name is empty
           {"op": "get", "id", "object", "name"}, {"op": "load", "id", "object", "args"}, {"op": "drop", "id", "object"}
Replies    {"id", "stdout", "ok": True, "value"} or
           {"id", "stdout", "ok": False, "error": {"type", "message", "cell", "line"}}
Between the two, served functions and ranks ask the judge: see channel.py.
"""

import ast
import asyncio
import contextlib
import inspect
import io
import linecache
import math
import socket
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from . import absent, wire
from .channel import Channel, ServedFunction
from .objects import Objects, load_state
from .relay import SocketLine, joined
from .vjp import with_gradients
from .watch import ForbiddenCall, ForbidFunctions, WatchOperations, own_error

STDOUT_TAIL = 4096
MESSAGE = 2000


class AnswerMissing(NameError):
    """The notebook defines nothing of the answer's name."""


class Tail(io.TextIOBase):
    """A text stream that keeps its last characters and never grows."""

    def __init__(self, limit: int = STDOUT_TAIL) -> None:
        self.limit, self.text = limit, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        # Cut the new text first: one enormous print must not be doubled.
        self.text = (self.text + text[-self.limit :])[-self.limit :]
        return len(text)


class Shell:
    """Stands for IPython: line magics and `!commands` do nothing, %%time and its kind run their body."""

    BODY_RUNS = ("time", "timeit", "capture", "prun")

    def __init__(self, namespace: dict) -> None:
        self.namespace = namespace

    def run_cell_magic(self, name: str, line: str, body: str) -> None:
        if name in self.BODY_RUNS:
            run_cell(f"%%{name} {len(linecache.cache)}", body, self.namespace)  # a name of its own

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Case:
    """What `drive(answer, case)` may read of a case."""

    def __init__(self, name: str, args: tuple, kwargs: dict) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs


def fresh_namespace() -> dict:
    """The notebook's global names, kept as the module __main__ so that dataclasses and Triton find them."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    namespace = module.__dict__
    shell = Shell(namespace)
    namespace.update(get_ipython=lambda: shell, display=lambda *args, **kwargs: None)
    return namespace


def run_cell(name: str, source: str, namespace: dict) -> None:
    """Execute one cell; its source is registered so that inspect, tracebacks and @triton.jit can read it.

    A cell that tries an operation which this process lacks is not lost: its other statements run, so that what it
    defines is there, and then its error is raised.
    """
    file = f"<cell {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    body = ast.parse(source, file).body
    if not absent.removed:
        execute(body, file, namespace)
        return
    refused: Exception | None = None
    futures = [part for part in body if isinstance(part, ast.ImportFrom) and part.module == "__future__"]
    for statement in body:
        try:
            execute([*futures, statement], file, namespace)
        except Exception as problem:
            if refused is None and not isinstance(problem, ForbiddenCall):
                raise
            refused = refused or problem
    if refused is not None:
        raise refused


def execute(body: list[ast.stmt], file: str, namespace: dict) -> None:
    """These statements, which may await at their top level."""
    code = compile(ast.Module(body, []), file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(code, namespace)
    if inspect.iscoroutine(result):
        asyncio.run(result)


def load_drive(source: str | None) -> Callable[[Any, Case], Any]:
    """The question's `drive` from its source text, or the default that passes the arguments on."""
    if source is None:
        return lambda answer, case: answer(*case.args, **case.kwargs)
    scope: dict[str, Any] = {"torch": torch, "math": math, "np": np}
    linecache.cache["<drive>"] = (len(source), None, source.splitlines(keepends=True), "<drive>")
    exec(compile(source, "<drive>", "exec", dont_inherit=True), scope)
    drive = scope["drive"]
    return drive if len(inspect.signature(drive).parameters) == 2 else lambda answer, case: drive(None, answer, case)


class Desk:
    """What one request is worked on with: the notebook's names, the kept objects, and the line to the judge."""

    def __init__(self, namespace: dict, objects: Objects, channel: Channel | None = None) -> None:
        self.namespace, self.objects, self.channel = namespace, objects, channel

    def decode(self, form: Any, blob: bytes) -> Any:
        return wire.decode(form, blob, trusted=True, other=self.resolve)

    def resolve(self, form: dict) -> Any:
        """A kept object or a served function by its number."""
        if "H" in form:
            return self.object(form["H"])
        if self.channel is None:
            raise wire.WireError("there is no line to the judge")
        return ServedFunction(self.channel, form["S"])

    def object(self, number: int) -> Any:
        if number not in self.objects.kept:
            raise LookupError(f"no object {number} is kept here")
        return self.objects.kept[number]

    def target(self, request: dict) -> Any:
        """What a call calls."""
        if "object" in request:
            found = self.object(request["object"])
            return getattr(found, request["method"]) if request["method"] else found
        if request["answer"] not in self.namespace:
            raise AnswerMissing(request["answer"])
        return self.namespace[request["answer"]]

    def call(self, request: dict, blob: bytes) -> tuple[Any, bytes]:
        """Drive the answer over one case and encode what it returns."""
        target = self.target(request)
        args, kwargs = self.decode({"t": [request["args"], request["kwargs"]]}, blob)
        args = tuple(iter(arg) if index in request["once"] else arg for index, arg in enumerate(args))
        drive = load_drive(request["drive"])
        run = lambda args: drive(target, Case(request["case"], args, kwargs))  # noqa: E731
        with watching(request["forbid"]), self.rank(request):
            if request.get("gradients"):
                result = with_gradients(run, args, request["gradients"], request["seed"])
            else:
                result = run(args)
        return wire.encode(result, self.objects.keep if request.get("keep") else wire.opaque)

    def rank(self, request: dict) -> contextlib.AbstractContextManager[None]:
        """Be one rank of several where the request says so."""
        if "rank" not in request or self.channel is None:
            return contextlib.nullcontext()
        return joined(SocketLine(self.channel), request["rank"], request["world"])

    def work(self, request: dict, blob: bytes) -> tuple[Any, bytes]:
        """The value of one request, and its tensors."""
        op = request["op"]
        if op == "exec":
            run_cell(request["name"], request["source"], self.namespace)
        elif op == "without":
            absent.remove_operations(request["names"])
        elif op == "call":
            return self.call(request, blob)
        elif op == "get":
            value = getattr(self.object(request["object"]), request["name"])
            return wire.encode(value, self.objects.keep)
        elif op == "load":
            load_state(self.object(request["object"]), *self.decode(request["args"], blob))
        else:
            self.objects.drop(request["object"])
        return None, b""


@contextlib.contextmanager
def watching(forbidden: Sequence[str]) -> Iterator[None]:
    """Refuse the question's forbidden operations; without any, leave the call alone."""
    if not forbidden:
        yield
        return
    with ForbidFunctions(forbidden), WatchOperations(forbidden):
        yield


def warm_up() -> None:
    """Pay once, before any fork, for what torch imports when an operation is first watched (0.8 s)."""
    with watching(["no such operation"]):
        torch.ones(2).exp()


def answer(request: dict, blob: bytes, desk: Desk) -> tuple[dict, bytes]:
    """The reply to one request; an exception becomes data, except the ones that end the process."""
    tail, form, out = Tail(), None, b""
    reply: dict[str, Any] = {"id": request["id"], "ok": True}
    with contextlib.redirect_stdout(tail), contextlib.redirect_stderr(tail):
        try:
            form, out = desk.work(request, blob)
        except (Exception, SystemExit, KeyboardInterrupt) as problem:
            reply.update(ok=False, error=describe(own_error(problem)))
        else:
            reply["value"] = form
    reply["stdout"] = tail.text
    return reply, out


def describe(problem: BaseException) -> dict:
    """Type, message and the last line of the student's own code on the way to `problem`."""
    cell, line = None, None
    for frame, number in traceback.walk_tb(problem.__traceback__):  # inspect.getinnerframes would read torch's source
        file = frame.f_code.co_filename
        if file.startswith("<cell "):
            cell, line = file[len("<cell ") : -1], number
    if isinstance(problem, SyntaxError) and (problem.filename or "").startswith("<cell "):
        cell, line = str(problem.filename)[len("<cell ") : -1], problem.lineno
    try:
        message = str(problem)[:MESSAGE]
    except Exception:
        message = "(its message could not be read)"
    return {"type": type(problem).__name__, "message": message, "cell": cell, "line": line}


def serve(sock: socket.socket, namespace: dict) -> None:
    """Answer requests until the judge hangs up."""
    objects = Objects()
    while True:
        try:
            request, blob = wire.receive(sock)
        except (EOFError, OSError):
            return
        reply, out = answer(request, blob, Desk(namespace, objects, Channel(sock, request["id"])))
        try:
            wire.send(sock, reply, out)
        except wire.WireError as problem:  # a result too large for the wire
            error = {"type": "TooLarge", "message": str(problem), "cell": None, "line": None}
            wire.send(sock, {"id": request["id"], "ok": False, "error": error, "stdout": ""})
