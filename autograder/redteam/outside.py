"""What an attack leaves outside its sandbox: processes, files, kernel objects, words, connections."""

import contextlib
import ctypes
import hashlib
import json
import os
import queue
import socket
import stat
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autograder.sandbox import wire

PREFIX = "redteam-"  # every file that an attack plants in a shared place begins with this
PLACES = ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/mnt", "/srv", "/root", "/etc")
SETTLE_SECONDS = 2.0
DEEPEST = 200  # an attack may nest thousands of folders
IPC_KEY = 0x52454454
REPOSITORY = Path(__file__).resolve().parents[2]


# --- processes ------------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """A process that leaves its parents comes to us, so that nothing below us is ever out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def descendants(pid: int | None = None) -> dict[int, str]:
    """Every process below `pid` (default: this one) with its command line."""
    found: dict[int, str] = {}
    waiting = [pid or os.getpid()]
    while waiting:
        parent = waiting.pop()
        for child in children(parent):
            found[child] = command(child)
            waiting.append(child)
    return found


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text(encoding="ascii").split()]
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[-80:]
    except OSError:
        return ""


def strangers(known: set[int]) -> dict[int, str]:
    """Processes below us that were not there before, after a moment in which the last ones may end."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = {pid: says for pid, says in descendants().items() if pid not in known}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def end(pids: Any) -> None:
    """SIGKILL for processes below us, and for no others."""
    below = descendants()
    for pid in pids:
        if pid in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, 9)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


# --- files and kernel objects ---------------------------------------------------------------------------


def tree(*folders: Path) -> dict[str, str]:
    """Path -> kind, mode and digest of everything in the folders. Deeper than DEEPEST nothing of ours lies."""
    found, waiting = {}, list(folders)
    while waiting:
        path = waiting.pop()
        found[str(path)] = fingerprint(path)
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink() and len(path.parts) < DEEPEST:
                waiting += path.iterdir()
    return found


def fingerprint(path: Path) -> str:
    try:
        status = path.lstat()
        if path.is_symlink():
            return f"link to {path.readlink()}"
        if stat.S_ISREG(status.st_mode):
            return f"{status.st_mode:o} {status.st_nlink} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
        return f"{status.st_mode:o}"
    except OSError as problem:
        return type(problem).__name__


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One line per path that came, went or changed."""
    lines = [f"came: {path}" for path in after.keys() - before.keys()]
    lines += [f"went: {path}" for path in before.keys() - after.keys()]
    lines += [f"changed: {path}" for path in before.keys() & after.keys() if before[path] != after[path]]
    return sorted(lines)


def shared_places() -> list[Path]:
    """Folders that others use, too: there only names are compared."""
    import torch

    packages = [Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib")]
    sandbox = Path(__file__).resolve().parents[1] / "sandbox"
    caches = [folder / "__pycache__" for folder in (sandbox, Path(torch.__file__).parent, Path(json.__file__).parent)]
    places = [Path(place) for place in PLACES]
    return [*places, REPOSITORY, *packages, sandbox, *caches, Path("/tmp/torchinductor_root")]


def planted() -> list[Path]:
    """Files in shared places that only an attack can have left."""
    found = []
    for folder in shared_places():
        with contextlib.suppress(OSError):
            found += [path for path in folder.iterdir() if PREFIX in path.name]
    return found


def kernel_objects(mark: str) -> list[str]:
    """System V objects under our key and POSIX queues under our name, removed as they are found."""
    found = []
    for kind, flag in (("shm", "-M"), ("sem", "-S"), ("msg", "-Q")):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/sysvipc/{kind}").read_text(encoding="ascii").splitlines()[1:]
            if any(line.split()[0] == str(IPC_KEY) for line in lines):
                found.append(f"System V {kind}")
                subprocess.run(["ipcrm", flag, hex(IPC_KEY)], check=False, capture_output=True)
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL("librt.so.1").mq_unlink(f"/{mark}".encode()) == 0:
            found.append("POSIX message queue")
    return found


def remove(path: Path) -> None:
    """What an attack was given or left, whatever it is; `rm` copes with depths and modes that Python does not."""
    subprocess.run(["chmod", "-R", "u+rwx", "--", str(path)], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "--", str(path)], check=False, capture_output=True)


# --- words ----------------------------------------------------------------------------------------------


class Tap:
    """Listens to everything that runners send, without changing it."""

    def __init__(self) -> None:
        self.heads: list[dict] = []
        self.blobs: list[bytes] = []

    def __enter__(self) -> "Tap":
        self.original: Callable[..., tuple[dict, bytes]] = wire.receive
        wire.receive = self.receive
        return self

    def __exit__(self, *exception: object) -> None:
        wire.receive = self.original

    def receive(self, *args: Any, **kwargs: Any) -> tuple[dict, bytes]:
        head, blob = self.original(*args, **kwargs)
        self.heads.append(head)
        self.blobs.append(blob[:65536])
        return head, blob

    @property
    def printed(self) -> str:
        return "\n".join(str(head.get("stdout", "")) for head in self.heads)

    @property
    def everything(self) -> str:
        return "\n".join(json.dumps(head) for head in self.heads) + b"".join(self.blobs).decode("latin1")


# --- connections ----------------------------------------------------------------------------------------


class Listener:
    """Waits for stolen data on loopback, at a path and under an abstract name; `received` is what came."""

    def __init__(self, folder: Path, name: str) -> None:
        self.received: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.path, self.abstract = str(folder / "listener"), f"\0{name}"
        internet = socket.create_server(("127.0.0.1", 0))
        self.port = internet.getsockname()[1]
        self.sockets = [internet]
        for address in (self.path, self.abstract):
            unix = socket.socket(socket.AF_UNIX)
            unix.bind(address)
            unix.listen()
            self.sockets.append(unix)
        Path(self.path).chmod(0o777)
        for server in self.sockets:
            threading.Thread(target=self.wait, args=(server,), daemon=True).start()

    def wait(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(1)
                    with contextlib.suppress(OSError):
                        self.received.put(connection.recv(1 << 16) or b"a connection")

    def taken(self) -> list[bytes]:
        """What came since the last call."""
        return [self.received.get() for _ in range(self.received.qsize())]

    def close(self) -> None:
        for server in self.sockets:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()
