"""Import the heavy libraries once, then fork one runner per session.

    python -I …/sandbox/zygote.py FD [module …]

FD is a SOCK_SEQPACKET socket to the judge. Each request is one JSON packet:
{"op": "spawn", "folder", "memory_bytes"} with the runner's end of a socket pair attached (SCM_RIGHTS) -> {"pid"};
{"op": "kill", "pid"} -> {"status"}. The zygote executes no student code and holds no secret; when the judge
goes away it kills what it started and ends.
"""

import array
import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
M_MMAP_THRESHOLD = -3
PACKET = 1 << 16
DISK_BYTES = 64 << 20


def load_sandbox() -> None:
    """Make this folder importable as the package `sandbox`, without putting any folder on sys.path."""
    spec = importlib.util.spec_from_file_location(
        "sandbox", HERE / "__init__.py", submodule_search_locations=[str(HERE)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["sandbox"] = package
    spec.loader.exec_module(package)


def preload(modules: list[str]) -> None:
    """Import what graded cells use, single-threaded: an OpenMP pool would not survive the fork."""
    sys.path[:] = [entry for entry in sys.path if not (Path(entry) / "refimpl").is_dir()]
    import torch

    torch.set_num_threads(1)
    torch.ones(2, 2) @ torch.ones(2, 2)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported for the first time
    for name in modules:
        with contextlib.suppress(ImportError):  # a cell that needs it will say so itself
            importlib.import_module(name)


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the judge's own clean-up has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def become_runner(sock: socket.socket, folder: str, memory_bytes: int) -> None:
    """In the forked child: new process group, no inherited descriptor or environment, limits, then serve."""
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    close_inherited(sock.fileno())
    quiet(folder)
    limit(memory_bytes)
    if sys.platform == "linux":
        # Give large blocks back to the system on free, so that a peak seen from outside is the answer's own.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    from sandbox import runner, stub  # type: ignore[import-not-found]

    stub.install()
    runner.serve(sock, runner.fresh_namespace())


def close_inherited(keep: int) -> None:
    """Leave only the oracle socket and a null stdin, stdout and stderr."""
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    highest = min(highest, 4096) if highest > 0 else 4096
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.closerange(3, keep)
    os.closerange(keep + 1, highest)


def quiet(folder: str) -> None:
    """A private folder as home, working directory and cache; no token of the judge's environment."""
    triton = os.environ.get("TRITON_INTERPRET")
    os.environ.clear()
    os.environ.update(
        HOME=folder, TMPDIR=folder, TRITON_CACHE_DIR=f"{folder}/.triton", PATH="/usr/bin:/bin", LANG="C.UTF-8"
    )
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MPLBACKEND="Agg")
    if triton:
        os.environ["TRITON_INTERPRET"] = triton
    os.chdir(folder)


def limit(memory_bytes: int) -> None:
    """Stop the accidents: core dumps, a filled disk, all of the machine's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))
    if memory_bytes and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


class Zygote:
    """The parent's loop: spawn and kill, and no child left behind."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.runners: set[int] = set()

    def serve(self) -> None:
        while True:
            packet, ancillary, _, _ = self.control.recvmsg(PACKET, socket.CMSG_SPACE(array.array("i").itemsize))
            if not packet:
                break
            request = json.loads(packet)
            spawning = request["op"] == "spawn"
            reply = self.spawn(request, received_fd(ancillary)) if spawning else self.kill(request["pid"])
            self.control.send(json.dumps(reply).encode())
        for pid in list(self.runners):
            self.kill(pid)

    def spawn(self, request: dict, fd: int) -> dict:
        pid = os.fork()
        if pid == 0:
            try:
                become_runner(socket.socket(fileno=fd), request["folder"], request["memory_bytes"])
            finally:
                os._exit(0)
        os.close(fd)
        self.runners.add(pid)
        return {"pid": pid}

    def kill(self, pid: int) -> dict:
        """Kill the runner's whole group, then whatever left the group and came back to us as an orphan."""
        if pid not in self.runners:
            return {"status": None}
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.runners.discard(pid)
        self.reap_orphans()
        return {"status": status}

    def reap_orphans(self) -> None:
        """As subreaper we inherit daemons; a bounded number of rounds ends even a breeding one."""
        for _ in range(1000):
            orphans = children() - self.runners
            if not orphans:
                return
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def children() -> set[int]:
    """Process ids of our direct children, where /proc tells."""
    try:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    except OSError:
        return set()


def received_fd(ancillary: list) -> int:
    fds = array.array("i")
    fds.frombytes(ancillary[0][2][: fds.itemsize])
    return fds[0]


def main(argv: list[str]) -> None:
    load_sandbox()
    preload(argv[1:])
    importlib.import_module("sandbox.runner").warm_up()
    importlib.import_module("sandbox.stub")
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    with socket.socket(fileno=int(argv[0])) as control:
        control.send(b'{"ready": true}')
        Zygote(control).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
