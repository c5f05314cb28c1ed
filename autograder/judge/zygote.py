"""The trusted end of a zygote: boot it, ask it for runners, have them killed.

The process itself is `autograder/sandbox/zygote.py`. Everything here may raise `SandboxError`, for which no student
is to blame and from which no points follow.
"""

import array
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

from autograder.judge.tiers import SANDBOX, environment, machine_tier

BOOT_SECONDS = 120.0
SPAWN_SECONDS = 30.0
CLOSE_SECONDS = 10.0
DISK_BYTES = 64 << 20  # of a session's own folder


class SandboxError(RuntimeError):
    """The sandbox itself failed; no student is to blame and no points follow from it."""


class Zygote:
    """A warm process with torch imported, from which runners are forked, each shut in by `tier`."""

    def __init__(self, imports: Sequence[str] = (), tier: str | None = None) -> None:
        self.tier = tier or machine_tier()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", str(SANDBOX / "zygote.py"), str(theirs.fileno()), self.tier, *imports]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
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

    def spawn(
        self, theirs: socket.socket, memory_bytes: int, *, disk_bytes: int = DISK_BYTES, processes: bool = False
    ) -> int:
        """A runner that serves `theirs`, shut in before it reads a byte of it; its process id as seen from here."""
        order = {"memory_bytes": memory_bytes, "disk_bytes": disk_bytes, "processes": processes}
        fds = array.array("i", [theirs.fileno()])
        request = json.dumps({"op": "spawn", **order}).encode()
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
        reply = json.loads(packet)
        if "error" in reply:
            raise SandboxError(f"tier {self.tier} cannot be had here: {reply['error']}; run `autograder doctor`")
        return reply
