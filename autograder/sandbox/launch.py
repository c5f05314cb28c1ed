"""From a copy of the zygote to a runner: let go of everything inherited, be shut in, say so, serve."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable

from . import system
from .confine import Fence, Order, Place

KEPT = ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES")  # of the zygote's environment
HIGHEST_DESCRIPTOR = 1 << 16


def fork(fence: Fence, place: Place, order: Order, oracle: int, serve: Callable[[int], None]) -> tuple[int, str]:
    """(process id, "" once the runner is shut in, or what failed); `serve` is given its socket `oracle`."""
    hear, tell = os.pipe()
    zygote = own_pidfd()
    pid = os.fork()
    if pid == 0:
        run(fence, place, order, oracle, serve, tell, zygote)
    os.close(tell)
    if zygote is not None:
        os.close(zygote)
    with open(hear, "rb") as said:  # noqa: PTH123
        words = said.read()
    return pid, str(json.loads(words)["error"]) if words else "its process ended before it was shut in"


def run(
    fence: Fence, place: Place, order: Order, oracle: int, serve: Callable[[int], None], tell: int, zygote: int | None
) -> None:
    """The runner's whole life."""
    try:
        os.setsid()
        if zygote is not None:
            system.end_with(zygote)
        fence.move_in(place, order)
        quiet(place.folder)
        fence.step_down(place)
        if zygote is not None:
            system.end_with(zygote)  # the change of account had taken it back
        fence.shut_in(place, order)
        close_inherited({oracle, tell})
        fence.limit(order)
        os.write(tell, b'{"error": ""}')
    except BaseException as problem:
        with contextlib.suppress(OSError):
            os.write(tell, json.dumps({"error": f"{type(problem).__name__}: {problem}"}).encode())
        os._exit(1)
    os.close(tell)
    try:
        serve(lowest(oracle))
    finally:
        os._exit(0)


def quiet(folder: str) -> None:
    """A private folder as home, working directory and cache; no token of the judge's environment."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    os.environ.clear()
    os.environ.update(HOME=folder, TMPDIR=folder, TRITON_CACHE_DIR=f"{folder}/.triton", PATH="/usr/bin:/bin")
    os.environ.update(USER="student", LOGNAME="student", LANG="C.UTF-8", MPLBACKEND="Agg")
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", **kept)
    tempfile.tempdir = None  # forget the zygote's
    os.chdir(folder)


def close_inherited(keep: set[int]) -> None:
    """Leave only the descriptors in `keep`, and a null stdin, stdout and stderr."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, HIGHEST_DESCRIPTOR)


def lowest(fd: int) -> int:
    """The same open socket under the first free number, which tells nothing of the zygote."""
    moved = os.dup(fd)
    os.close(fd)
    return moved


def own_pidfd() -> int | None:
    """Names this process for its children, whatever namespace they are in; None where there is no such thing."""
    return os.pidfd_open(os.getpid()) if sys.platform == "linux" else None
