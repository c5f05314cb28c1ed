"""The trusted end of a zygote: boot it, ask it for runners, have them killed.

The process itself is `autograder/sandbox/zygote.py`. Everything here may raise `SandboxError`, for which no student
is to blame and from which no points follow.
"""

import array
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

from autograder.judge.tiers import SANDBOX, environment, machine_tier

BOOT_SECONDS = 120.0
SPAWN_SECONDS = 30.0
CLOSE_SECONDS = 10.0
CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
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
        self._slots: dict[int, int] = {}  # a runner's process id -> the zygote's number of the session
        if sys.platform == "linux":
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
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
        reply = self._reply(SPAWN_SECONDS)
        self._slots[reply["pid"]] = reply["session"]
        return reply["pid"]

    def kill(self, pid: int) -> None:
        self.control.send(json.dumps({"op": "kill", "session": self._slots.pop(pid)}).encode())
        self._reply(SPAWN_SECONDS)

    def _reply(self, seconds: float) -> dict:
        self.control.settimeout(seconds)
        try:
            packet, ancillary, _, _ = self.control.recvmsg(1 << 16, socket.CMSG_SPACE(CREDENTIALS.size))
        except TimeoutError:
            raise SandboxError(f"the zygote did not answer within {seconds:.0f} s") from None
        if not packet:
            raise SandboxError(f"the zygote ended (exit status {self.process.wait(5)}); run `autograder doctor`")
        reply = json.loads(packet)
        if "error" in reply:
            raise SandboxError(f"no session in tier {self.tier}: {reply['error']}; run `autograder doctor`")
        if reply.get("pid", 0) is None:  # numbered otherwise there; the kernel has translated it
            reply["pid"] = CREDENTIALS.unpack(ancillary[0][2])[0]
        return reply
