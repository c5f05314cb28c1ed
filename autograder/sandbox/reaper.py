"""One session's keeper: forks the runner, and at the end leaves no process, no file and no control group of it.

zygote -> reaper -> runner. The reaper is a subreaper: a process whose parent ended becomes the reaper's child, so
nothing gets away from it. SIGTERM is the order to end; the kernel sends it too when the zygote dies. Until then the
runner's process id stays taken, even after it ended, so the judge never measures or kills a stranger.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import system
from .confine import Fence, Order, Place
from .namespaces import BOX

WATCH_SECONDS = 0.1
KEPT = ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES")  # of the zygote's environment
HIGHEST_DESCRIPTOR = 1 << 16
MAX_ROUNDS = 100_000  # each ends at least one process, and their number is limited
BLOCKED = {signal.SIGTERM, signal.SIGCHLD}


def start(
    fence: Fence, order: Order, oracle: int, serve: Callable[[int], None], close: Callable[[], None]
) -> tuple[int, dict]:
    """Fork a reaper and its runner; returns the reaper's process id and the runner's {"pid"}, or an {"error"}.

    `oracle` is the runner's socket, which `serve` is given; `close` lets go of what is the zygote's alone.
    """
    hear, tell = os.pipe()
    parent = own_pidfd()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(hear)
            close()
            keep(fence, order, oracle, serve, tell, parent)
        finally:
            os._exit(1)
    os.close(tell)
    if parent is not None:
        os.close(parent)
    with open(hear, "rb") as said:  # noqa: PTH123
        return pid, understand(said.read())


def understand(said: bytes) -> dict:
    """Two lines in either order: the runner's process id from its reaper, and the runner's word that it is shut in."""
    words: dict = {}
    for line in reversed(said.splitlines()):  # the first error is the cause of the others
        words.update(json.loads(line))
    if "error" not in words and words.keys() >= {"pid", "shut_in"}:
        return {"pid": words["pid"]}
    return {"error": words.get("error", "a session's process ended before it was shut in")}


def say(tell: int, **words: object) -> None:
    os.write(tell, json.dumps(words).encode() + b"\n")


# --- the reaper -------------------------------------------------------------------------------------------


def keep(fence: Fence, order: Order, oracle: int, serve: Callable[[int], None], tell: int, zygote: int | None) -> None:
    """The reaper's whole life."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    os.setsid()
    depend_on(zygote, signal.SIGTERM)
    if sys.platform == "linux":
        system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    place = Place(BOX if fence.private_disk else "", *fence.account(), f"session-{os.getpid()}")
    runner = 0
    try:
        place = furnish(fence, order, place)
        fence.divide()
        me = own_pidfd()
        runner = os.fork()
        if runner == 0:
            run(fence, order, place, oracle, serve, tell, me)
        os.close(oracle)
        say(tell, pid=runner)
        os.close(tell)
        wait_for_the_end(fence, order, place, runner)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            say(tell, error=f"{type(problem).__name__}: {problem}")
    finally:
        clean_up(fence, place, runner)
    os._exit(0)


def furnish(fence: Fence, order: Order, place: Place) -> Place:
    """Make its folder, where it needs one on the machine's disk, and its control group."""
    fence.groups.make(place.group, order.memory_bytes and order.memory_bytes + order.disk_bytes, fence.tasks)
    if fence.private_disk:
        return place
    folder = tempfile.mkdtemp(prefix="session-")
    if place.uid != os.getuid():
        os.chown(folder, place.uid, place.gid)
    return replace(place, folder=folder)


def wait_for_the_end(fence: Fence, order: Order, place: Place, runner: int) -> None:
    """Until told to end, or until the folder is full."""
    while True:
        if not fence.watched_disk:
            if signal.sigwait(BLOCKED) == signal.SIGTERM:
                return
            continue
        news = signal.sigtimedwait(BLOCKED, WATCH_SECONDS)
        if news is not None and news.si_signo == signal.SIGTERM:
            return
        if news is None and disk_use(place.folder, runner) > order.disk_bytes:
            kill_all(runner)
            return


def clean_up(fence: Fence, place: Place, runner: int) -> None:
    """Kill and reap everything, then remove what it left."""
    if runner:
        kill_all(runner)
    if place.folder and not fence.private_disk:
        remove_tree(place.folder)
    fence.groups.remove(place.group)


def kill_all(runner: int) -> None:
    """The runner (in T2 process 1 of its namespace, so all there end with it) and whoever came back to us."""
    for _ in range(MAX_ROUNDS):
        for pid in {runner} | descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)  # all that are our children now were killed, so one ends
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def descendants(pid: int) -> set[int]:
    """Every process below `pid`, as far as /proc tells."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children(waiting.pop()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def children(pid: int) -> set[int]:
    """Direct children of a process with one thread; none where /proc does not say."""
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def disk_use(folder: str, runner: int) -> int:
    """Bytes below `folder`, and in files that were unlinked and are still open."""
    total = 0
    waiting = [folder]
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{runner}/fd"):
            with contextlib.suppress(OSError):
                status = entry.stat()
                total += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) and not status.st_nlink else 0
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                total += 4096 + entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total


def remove_tree(folder: str) -> None:
    """Whatever a session left, without following links and however deep."""
    shutil.rmtree(folder, ignore_errors=True)


# --- the runner -------------------------------------------------------------------------------------------


def run(
    fence: Fence, order: Order, place: Place, oracle: int, serve: Callable[[int], None], tell: int, reaper: int | None
) -> None:
    """Shut this process in, say so, and serve until the judge hangs up."""
    try:
        depend_on(reaper, signal.SIGKILL)
        fence.move_in(place, order)
        quiet(place.folder)
        fence.step_down(place)
        depend_on(reaper, signal.SIGKILL)  # the change of account had taken it back
        fence.shut_in(place, order)
        close_inherited({oracle, tell})
        fence.limit(order)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        say(tell, shut_in=True)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            say(tell, error=f"{type(problem).__name__}: {problem}")
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


# --- ties between the three processes ------------------------------------------------------------------------


def own_pidfd() -> int | None:
    """Names this process for its children, whatever namespace they are in; None where there is no such thing."""
    return os.pidfd_open(os.getpid()) if sys.platform == "linux" else None


def depend_on(parent: int | None, order: signal.Signals) -> None:
    """Receive `order` when the parent dies; if it is dead already, end here."""
    if parent is None:
        return
    system.prctl(system.PR_SET_PDEATHSIG, order)
    if select.select([parent], [], [], 0)[0]:
        os._exit(1)
