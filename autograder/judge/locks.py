"""Advisory locks on files: taken at once or not at all, and given back by the kernel when their holder dies."""

import fcntl
import os
from pathlib import Path


class Lock:
    """An exclusive lock, held until closed or until this process ends."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.handle)


def try_lock(path: Path) -> Lock | None:
    """The lock on `path`, or None if another process (or another part of this one) holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return Lock(handle)
