"""Become an ordinary user, as instructors are, where the campaign was started as root.

The Python that runs this may lie in root's own folder, which no other user can enter. Then, in a private mount
namespace, an empty folder takes the place of the closed one, and only what Python needs is bound into it: nothing on
the machine changes, and nothing else of root's becomes readable.
"""

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from autograder.redteam import outside

USER = "nobody"
TOOLS = ("unshare", "mount", "setpriv")


def why_not() -> str:
    """Why this process can not start another as an ordinary user, or ""."""
    if os.geteuid() != 0:
        return "not started as root: the run as this user is the one as an ordinary user"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)} (util-linux)" if missing else ""


def why_no_cage() -> str:
    """The same for a cage, which has a /tmp of its own: what lies in this machine's is not to be seen there."""
    inside = [str(path) for path in needed() if path.is_relative_to("/tmp")]
    return why_not() or (f"a cage hides this machine's /tmp, where {inside[0]} lies" if inside else "")


def account() -> tuple[int, int]:
    entry = pwd.getpwnam(USER)
    return entry.pw_uid, entry.pw_gid


def needed() -> list[Path]:
    """Folders that our Python reads: its prefixes, its packages, and the repository."""
    paths = [sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent), *sys.path]
    paths.append(str(Path(__file__).resolve().parents[2]))
    found = {Path(path).resolve() for path in paths if path and Path(path).exists()}
    return sorted(path for path in found if not any(path.is_relative_to(other) for other in found - {path}))


def closed(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """First folder on the way that others may not enter -> the paths behind it."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        for folder in reversed([path, *path.parents]):
            if folder.is_dir() and not folder.stat().st_mode & stat.S_IXOTH:
                found.setdefault(folder, []).append(path)
                break
    return found


def command(line: Sequence[str], scratch: Path, *, caged: bool = False) -> list[str]:
    """`line` as USER: an `unshare` command for subprocess. `scratch` is an empty folder of ours.

    `caged` is for attacks that nothing else confines: processes, network and kernel objects of their own, all of which
    end with the command, and a file system that is read-only but for the folder above `scratch`.
    """
    steps = ["set -e", *(step for folder, paths in closed(needed()).items() for step in opened(folder, paths, scratch))]
    flags = ["unshare", "--mount", "--propagation", "private"]
    if caged:
        own = quote(scratch.parent)
        flags += ["--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--ipc", "--uts"]
        steps += [f"mount --bind {own} /mnt", "mount -t tmpfs -o mode=1777,size=1g tmpfs /tmp", f"mkdir -p {own}"]
        steps += [f"mount --bind /mnt {own}", "mount -o remount,bind,ro /", "mount -t tmpfs -o size=1g tmpfs /dev/shm"]
        steps.append("ip link set lo up 2>/dev/null || true")
    uid, gid = account()
    steps.append(f"cd / && exec setpriv --reuid={uid} --regid={gid} --clear-groups -- {shlex.join(line)}")
    return [*flags, "sh", "-c", "\n".join(steps)]


def run(line: Sequence[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """Exit status and output of a command; past `seconds` it and all that it started are killed (TimeoutExpired)."""
    process = subprocess.Popen(
        line, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        # A change of account undoes --kill-child: what is inside a cage has to be killed by name.
        for pid in [*outside.descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, said.decode(errors="replace")


def opened(folder: Path, paths: Sequence[Path], scratch: Path) -> Iterator[str]:
    """Shell commands that put an empty folder over a closed one and bind `paths` into it."""
    holds = [scratch / f"{number}-{path.name}" for number, path in enumerate(paths)]
    for path, hold in zip(paths, holds, strict=True):
        yield f"mkdir -p {quote(hold)} && mount --bind {quote(path)} {quote(hold)}"
    yield f"mount -t tmpfs -o mode=755,size=1m tmpfs {quote(folder)}"
    for path, hold in zip(paths, holds, strict=True):
        yield f"mkdir -p {quote(path)} && mount --bind {quote(hold)} {quote(path)} && umount {quote(hold)}"


def quote(path: Path) -> str:
    return shlex.quote(str(path))


def give(folder: Path) -> None:
    """Make USER the owner of everything in `folder`."""
    uid, gid = account()
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, uid, gid, follow_symlinks=False)
