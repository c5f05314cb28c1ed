"""Resource limits of a runner: they hold where no cgroup can be had, and give Python a MemoryError where one can."""

import contextlib
import os
import resource
from pathlib import Path

MAX_OPEN_FILES = 256
MAX_TASKS = 256  # threads, and processes where they are allowed, of an account of its own
MAX_TASKS_SHARED = 1024  # the same, above what the grader's account runs already
ADDRESS_SLACK = 2 << 30  # stacks and arenas that are reserved and never touched


def tasks_of(uid: int) -> int:
    """Threads that run under `uid` now."""
    count = 0
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and folder.stat().st_uid == uid:
                count += sum(1 for _ in (folder / "task").iterdir())
    return count


def reserved_bytes() -> int:
    """Address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def apply(memory_bytes: int, disk_bytes: int, *, tasks: int | None = None, address_space: bool = False) -> None:
    """Core dumps none; one file at most the whole disk; private memory, and with `address_space` shared memory too."""
    both = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: disk_bytes}
    if os.uname().sysname == "Linux" and memory_bytes:
        both[resource.RLIMIT_DATA] = memory_bytes
    if tasks is not None:
        both |= {resource.RLIMIT_NPROC: tasks, resource.RLIMIT_NOFILE: MAX_OPEN_FILES, resource.RLIMIT_MSGQUEUE: 0}
        both |= {resource.RLIMIT_MEMLOCK: 0}
    if address_space and memory_bytes:
        both[resource.RLIMIT_AS] = reserved_bytes() + memory_bytes + ADDRESS_SLACK
    for what, value in both.items():
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))
