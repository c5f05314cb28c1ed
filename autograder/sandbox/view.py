"""What a runner may see of the machine: the system's libraries, Python without the course's packages, a few devices.

A list of paths, from which tier T2 builds a root of its own and T1 and T2 their Landlock rules. The repository of an
editable install is not on it; installed in site-packages, our packages are cut out, entry by entry.
"""

import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .landlock import EXECUTE, IOCTL_DEV, READ_DIR, READ_FILE, WRITE_FILE
from .stub import COURSE_PACKAGES

HERE = Path(__file__).resolve().parent
LIBRARIES = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
MACHINE = ("/sys/devices/system/cpu", "/sys/devices/system/node")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
GPU_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*")
OF_PROC = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/self")


def roots() -> list[Path]:
    """The real trees that a runner reads from, none inside another."""
    found = {Path(name).resolve() for name in named() if Path(name).exists()}
    return sorted(path for path in found if not found & set(path.parents))


def links() -> dict[Path, Path]:
    """What is named by a path through a symbolic link, such as /lib -> /usr/lib."""
    return {Path(name): Path(name).resolve() for name in named() if Path(name).exists() and not is_real(Path(name))}


def named() -> tuple[str, ...]:
    return (*LIBRARIES, sys.base_prefix, sys.prefix, str(HERE))


def is_real(path: Path) -> bool:
    return path.resolve() == path


def hidden() -> set[Path]:
    """Our packages, wherever they are installed; the sandbox's own folder inside them is bound or allowed again."""
    homes = {Path(entry) for entry in sys.path} | {HERE.parent.parent}
    for prefix in {sys.prefix, sys.base_prefix, "/usr", "/usr/local"}:
        homes |= {folder for kind in ("site", "dist") for folder in Path(prefix).glob(f"lib*/python3*/{kind}-packages")}
    return {home / name for home in homes for name in COURSE_PACKAGES if (home / name).is_dir()}


def cover(tree: Path, without: set[Path]) -> Iterator[Path]:
    """The largest subtrees and files of `tree` that together are all of it but `without`."""
    if tree in without:
        return
    if not any(tree in path.parents for path in without):
        yield tree
        return
    for entry in sorted(tree.iterdir()):
        if not entry.is_symlink():
            yield from cover(entry, without)


def gpu_devices() -> list[str]:
    """Device nodes of the driver."""
    found = (path for pattern in GPU_DEVICES for path in Path("/").glob(pattern[1:]))
    return sorted(str(path) for path in found if stat.S_ISCHR(path.stat().st_mode))


def rules(*, processes: bool, devices: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """(path, Landlock rights) of everything that sessions may reach, without our packages."""
    without = hidden()
    for name, rights in outline(processes=processes, devices=devices):
        if not any(Path(name) in path.parents for path in without):
            yield name, rights
            continue
        yield name, READ_DIR  # import lists folders; the names of our files are no secret
        yield from ((str(part), rights) for part in cover(Path(name), without))
    yield str(HERE), READ_FILE | READ_DIR


def outline(*, processes: bool, devices: Iterable[str] = ()) -> Iterator[tuple[str, int]]:
    """The same in a few rules, with our packages."""
    yield from ((str(root), READ_FILE | READ_DIR | (EXECUTE if processes else 0)) for root in roots())
    yield from ((name, READ_FILE | READ_DIR) for name in MACHINE if Path(name).exists())
    yield from ((name, READ_FILE | WRITE_FILE) for name in DEVICES if Path(name).exists())
    for name in devices:
        yield name, READ_FILE | WRITE_FILE | IOCTL_DEV
    if devices:
        yield from ((name, READ_FILE | READ_DIR) for name in ("/sys", "/proc/driver") if Path(name).exists())
