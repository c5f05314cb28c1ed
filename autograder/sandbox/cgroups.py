"""A control group per session where the grader may make one: memory of all its processes together, and their number.

Version 1 (a folder per controller) and version 2 (one tree) are both in use. Nothing here is needed for a tier: without
it the limits of `limits` hold, per process.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
LIMITS = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}  # version 1, version 2


def parents() -> dict[str, Path]:
    """Controller -> the folder in which this process may make groups of its own."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in LIMITS:
            for folder in candidates(name, controllers.split(","), path.lstrip("/")):
                if os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK):
                    found.setdefault(name, folder)
    return found


def candidates(controller: str, controllers: list[str], path: str) -> Iterator[Path]:
    """Version 1: below our own group. Version 2: there or beside it, wherever the controller is switched on."""
    if controller in controllers:
        yield MOUNT / controller / path
    if controllers == [""]:
        for own in (MOUNT / path, MOUNT / "unified" / path):
            yield from (folder for folder in (own, own.parent) if offers(folder, controller))


def offers(folder: Path, controller: str) -> bool:
    """Whether groups made in this folder of version 2 have `controller`."""
    try:
        return controller in (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


class Groups:
    """The groups of one zygote's sessions, by folders opened before the zygote loses sight of them."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.kinds = sorted(folders)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self.folders = {name: os.open(path, flags) for name, path in folders.items()}

    def make(self, name: str, memory_bytes: int, tasks: int) -> None:
        for kind, value in (("memory", memory_bytes), ("pids", tasks)):
            if kind in self.folders and value:
                with contextlib.suppress(FileExistsError):  # both controllers of version 2 are in one folder
                    os.mkdir(name, dir_fd=self.folders[kind])
                for file in LIMITS[kind]:
                    with contextlib.suppress(FileNotFoundError):  # the name of the other version
                        self.write(kind, f"{name}/{file}", str(value))

    def join(self, name: str) -> None:
        """The calling process, and all it starts from here on."""
        for kind in self.folders:
            self.write(kind, f"{name}/cgroup.procs", "0")

    def remove(self, name: str) -> None:
        """After the last process is gone."""
        for folder in self.folders.values():
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=folder)

    def sweep(self, prefix: str, is_gone: Callable[[str], bool]) -> None:
        """Remove groups that nobody is left to remove."""
        for folder in self.folders.values():
            for name in os.listdir(folder):  # noqa: PTH208 -- of a descriptor
                if name.startswith(prefix) and is_gone(name):
                    self.remove(name)

    def write(self, kind: str, path: str, text: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.folders[kind])
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
