"""The zygote's loop: start and end sessions as the judge asks, and leave no child behind.

Each request on the control socket is one JSON packet:
{"op": "spawn", "memory_bytes", "disk_bytes", "processes"} with the runner's end of a socket pair attached (SCM_RIGHTS)
-> {"pid"} once the runner is shut in, or {"error"}; {"op": "kill", "pid"} -> {"status"}. When the judge hangs up, every
session ends.
"""

import array
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable

from . import reaper
from .confine import Fence, Order

PACKET = 1 << 16


class Spawner:
    """Sessions behind one fence; `serve_runner(socket)` is what a runner does once it is shut in."""

    def __init__(self, control: socket.socket, fence: Fence, serve: Callable[[int], None]) -> None:
        self.control, self.fence, self.serve_runner = control, fence, serve
        self.reapers: dict[int, int] = {}  # the runner's process id -> its reaper's

    def serve(self) -> None:
        while True:
            packet, ancillary, _, _ = self.control.recvmsg(PACKET, socket.CMSG_SPACE(array.array("i").itemsize))
            if not packet:
                break
            request = json.loads(packet)
            spawning = request.pop("op") == "spawn"
            reply = self.spawn(request, received_fd(ancillary)) if spawning else self.kill(request["pid"])
            self.control.send(json.dumps(reply).encode())
        for pid in list(self.reapers):
            self.kill(pid)

    def spawn(self, request: dict, oracle: int) -> dict:
        order = Order(**request)
        pid, reply = reaper.start(self.fence, order, oracle, self.serve_runner, self.control.close)
        os.close(oracle)
        if "error" in reply:
            self.end(pid)
        else:
            self.reapers[reply["pid"]] = pid
        return reply

    def kill(self, pid: int) -> dict:
        """End the session of the runner `pid`."""
        if pid not in self.reapers:
            return {"status": None}
        return {"status": self.end(self.reapers.pop(pid))}

    def end(self, keeper: int) -> int:
        """The reaper kills and removes what is its session's; what a dead reaper left comes to us, its subreaper."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGTERM)
        status = os.waitpid(keeper, 0)[1]
        for orphan in reaper.children(os.getpid()) - set(self.reapers.values()):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(orphan, signal.SIGKILL)
                os.waitpid(orphan, 0)
        return status


def received_fd(ancillary: list) -> int:
    fds = array.array("i")
    fds.frombytes(ancillary[0][2][: fds.itemsize])
    return fds[0]
