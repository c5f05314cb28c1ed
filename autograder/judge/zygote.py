"""The trusted end of a zygote: boot it, ask it for runners, have them killed.

The process itself is `autograder/sandbox/zygote.py`. Everything here may raise `SandboxError`, for which no student
is to blame and from which no points follow.
"""

import array
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from autograder.sandbox import wire

SANDBOX = Path(wire.__file__).resolve().parent
BOOT_SECONDS = 120.0
SPAWN_SECONDS = 30.0
CLOSE_SECONDS = 10.0


class SandboxError(RuntimeError):
    """The sandbox itself failed; no student is to blame and no points follow from it."""


class Zygote:
    """A warm process with torch imported, from which runners are forked."""

    def __init__(self, imports: Sequence[str] = ()) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", str(SANDBOX / "zygote.py"), str(theirs.fileno()), *imports]
        environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        environment.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", LANG="C.UTF-8")
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        theirs.close()
        self.control = ours
        try:
            self._reply(BOOT_SECONDS)
        except SandboxError:
            self.close()
            raise

    def __enter__(self) -> "Zygote":
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the zygote kills its runners and ends."""
        self.control.close()
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def spawn(self, theirs: socket.socket, folder: str, memory_bytes: int) -> int:
        request = json.dumps({"op": "spawn", "folder": folder, "memory_bytes": memory_bytes}).encode()
        fds = array.array("i", [theirs.fileno()])
        self.control.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        return self._reply(SPAWN_SECONDS)["pid"]

    def kill(self, pid: int) -> None:
        self.control.send(json.dumps({"op": "kill", "pid": pid}).encode())
        self._reply(SPAWN_SECONDS)

    def _reply(self, seconds: float) -> dict:
        self.control.settimeout(seconds)
        try:
            packet = self.control.recv(1 << 16)
        except TimeoutError:
            raise SandboxError(f"the zygote did not answer within {seconds:.0f} s") from None
        if not packet:
            raise SandboxError(f"the zygote ended (exit status {self.process.wait(5)}); run `autograder doctor`")
        return json.loads(packet)
