"""Leave nothing of a session: no process, no file."""

import contextlib
import itertools
import os
import signal
import stat
from pathlib import Path

MAX_ROUNDS = 100_000  # each ends at least one process, and their number is limited
ENTRY_BYTES = 4096  # what an empty file or folder costs, about


def end(runner: int, others: set[int]) -> int:
    """Kill and reap `runner` and all that came of it, sparing the `others` among our children; its exit status.

    In T2 the runner is process 1 of its namespace: the kernel ends all there with it, before we see its end. Elsewhere
    a process whose parent ended becomes the child of the zygote, which is a subreaper.
    """
    kill({runner} | descendants(runner))
    status = os.waitpid(runner, 0)[1]
    for _ in range(MAX_ROUNDS):
        orphans = children(os.getpid()) - others
        if not orphans:
            break
        kill({pid for orphan in orphans for pid in {orphan} | descendants(orphan)})
        for pid in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return status


def kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> set[int]:
    """Every process below `pid`, as far as /proc tells."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        new = children(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def children(pid: int) -> set[int]:
    """Processes that any thread of `pid` has started; none where /proc does not say."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found |= {int(child) for child in (thread / "children").read_text().split()}
    return found


# --- files ------------------------------------------------------------------------------------------------


def disk_use(folder: str, runner: int) -> int:
    """Bytes below `folder`, and in files that were unlinked and are still open."""
    total, waiting = 0, [folder]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                total += ENTRY_BYTES + entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    with contextlib.suppress(OSError), os.scandir(f"/proc/{runner}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat()
                total += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) and not status.st_nlink else 0
    return total


def remove_tree(folder: str) -> None:
    """Whatever a session left, following no link and however deep: a folder's folders move up before it goes."""
    numbers = itertools.count()
    with contextlib.suppress(OSError):
        while entries := list(os.scandir(folder)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)  # noqa: PTH108 -- paths of scandir, as they are
                    continue
                os.chmod(entry.path, 0o700)  # noqa: PTH101
                for inner in list(os.scandir(entry.path)):
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, 0o700)  # noqa: PTH101
                        os.rename(inner.path, f"{folder}/.{next(numbers)}.moved-up")  # noqa: PTH104
                    else:
                        os.unlink(inner.path)  # noqa: PTH108
                os.rmdir(entry.path)  # noqa: PTH106
        os.rmdir(folder)  # noqa: PTH106
