"""The two readers that `autograder fuzz` feeds, what they promise, and the good inputs it begins with."""

import contextlib
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import nbformat
import torch

from autograder.judge.cells import Release, fingerprint, grade_id, runnable
from autograder.judge.intake import Refused, load_release, parse, repair
from autograder.labs import Lab
from autograder.redteam.noise import frame, hostile_frame, hostile_notebook
from autograder.sandbox import wire
from autograder.student import visible_seed

RESEND_DEPTH = (wire.MAX_DEPTH - 6) // 3  # encode's own limit: what is nested deeper arrives as Opaque
LARGEST_SEED = 64_000  # bytes of a frame's tensors


@dataclass
class Finding:
    """An input that broke a promise; `data` in hex repeats it."""

    target: str
    problem: str
    data: str


@dataclass
class Target:
    """One reader: what to feed it, and the check that says "accepted" or "refused", or raises."""

    name: str
    seeds: list[bytes]
    hostile: Callable[[random.Random, bytes], bytes]
    check: Callable[[bytes], str]
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    most_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


# --- the wire -----------------------------------------------------------------------------------------


def check_frame(data: bytes) -> str:
    """What the judge does with the bytes of a runner that closes its socket behind them."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(data) + 4096)
            theirs.settimeout(1)
            with contextlib.suppress(TimeoutError):
                theirs.sendall(data)
        try:
            head, blob = wire.receive(ours, time.monotonic() + 5)
            value = wire.decode(head.get("value"), blob)
        except (wire.WireError, EOFError, TimeoutError):
            return "refused"
    if depth(value) < RESEND_DEPTH:
        arrives_again(value)
    return "accepted"


def arrives_again(value: Any) -> None:
    """AssertionError unless the value is the same after one more journey."""
    form, blob = wire.encode(value)
    text = json.dumps({"value": form}, allow_nan=False).encode()
    if len(text) <= wire.MAX_HEAD:
        assert same(wire.decode(wire.parse_head(text)["value"], blob), value), "changed on its way"


def same(a: Any, b: Any) -> bool:
    """Equal in type and, bit for bit, in content; NaN is NaN."""
    if isinstance(a, wire.Opaque) or type(a) is not type(b):
        return isinstance(a, wire.Opaque) and isinstance(b, wire.Opaque)
    if isinstance(a, torch.Tensor):
        alike = a.dtype is b.dtype and a.shape == b.shape
        return alike and (not a.numel() or torch.equal(bits(a), bits(b)))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    return a == b or (a != a and b != b)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def depth(value: Any) -> int:
    inside = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return 1 + max(map(depth, inside), default=0) if isinstance(value, list | tuple | dict) else 0


# --- the intake ---------------------------------------------------------------------------------------


def check_notebook(data: bytes, release: Release) -> str:
    """What collecting and judging do with a submitted file before anything of it runs."""
    try:
        notebook = parse(data)
    except Refused:
        return "refused"
    repaired, _ = repair(notebook, release)
    names = [grade_id(cell) for cell in repaired.cells if grade_id(cell)]
    assert sorted(names) == sorted(release.graded), "a graded cell is missing, or there twice"
    again, notes = repair(repaired, release)
    assert not notes, f"repaired twice: {notes[0].staff}"
    assert again == repaired, "the second repair changed something"
    fingerprint(runnable(repaired, release))
    return "accepted"


# --- what to begin with -------------------------------------------------------------------------------


def frames_of(lab: Lab) -> Iterator[bytes]:
    """Real frames: every question's inputs and results, as the judge and the runner send them."""
    for question in lab.checks.values():
        oracle = lab.oracle(question)
        for _, case in question.draw(visible_seed(lab.slug), draws=1):
            values = [(case.args, case.kwargs)]
            if oracle is not None:
                values.append(question.drive(oracle, case))
            for value in values:
                form, blob = wire.encode(value)
                reply = {"id": "0" * 16, "ok": True, "value": form, "stdout": ""}
                if len(blob) <= LARGEST_SEED:
                    yield frame(json.dumps(reply).encode(), blob)


def notebooks_of(release: Release) -> Iterator[bytes]:
    """The whole notebook, and pieces of it, which are read in a fraction of the time."""
    cells = release.notebook.cells
    yield nbformat.writes(release.notebook).encode()
    for start in range(0, len(cells), 6):
        part = nbformat.from_dict({**release.notebook, "cells": cells[start : start + 6]})
        yield nbformat.writes(part).encode()


def targets(labs: Sequence[Lab]) -> list[Target]:
    """Both readers; every notebook is repaired against the release it came from."""
    found = [Target("wire", [data for lab in labs for data in frames_of(lab)], hostile_frame, check_frame)]
    for lab in labs:
        release = load_release(lab.folder)
        small = Release(nbformat.from_dict({**release.notebook, "cells": release.notebook.cells[:12]}))
        for name, each in (("whole", release), ("small", small)):
            seeds = list(notebooks_of(each))

            def check(data: bytes, each: Release = each) -> str:
                return check_notebook(data, each)

            found.append(Target(f"intake {lab.slug} {name}", seeds, hostile_notebook, check))
    return found
