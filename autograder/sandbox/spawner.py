"""The zygote's loop: start and end sessions as the judge asks, and leave nothing of them behind.

Each request on the control socket is one JSON packet:
{"op": "spawn", "memory_bytes", "disk_bytes", "processes"} with the runner's end of a socket pair attached (SCM_RIGHTS)
-> {"session", "pid"} once the runner is shut in, or {"error"}; {"op": "kill", "session"} -> {"status"}. A zygote in T2
numbers processes otherwise than the judge: there "pid" is null, and the kernel translates the number on its way
(SCM_CREDENTIALS). A runner's number stays taken until its session is killed, so the judge never measures a stranger.
When the judge hangs up, every session ends.
"""

import array
import json
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from . import launch, reaper
from .confine import Fence, Order, Place

PACKET = 1 << 16
WATCH_SECONDS = 0.02  # memory takes in 3 GB a second: 60 MB more than allowed before the next look
SCM_CREDENTIALS = 2


@dataclass
class Session:
    """What the zygote knows of a runner."""

    runner: int
    place: Place
    order: Order


class Spawner:
    """Sessions behind one fence; `serve_runner(socket)` is what a runner does once it is shut in."""

    def __init__(self, control: socket.socket, fence: Fence, serve_runner: Callable[[int], None]) -> None:
        self.control, self.fence, self.serve_runner = control, fence, serve_runner
        self.sessions: dict[int, Session] = {}  # by slot

    def serve(self) -> None:
        """Answer until the judge hangs up; between two requests, look after the disk where nothing else does."""
        while True:
            watch = WATCH_SECONDS if self.fence.watched_disk and self.sessions else None
            if not select.select([self.control], [], [], watch)[0]:
                self.end_the_greedy()
                continue
            packet, ancillary, _, _ = self.control.recvmsg(PACKET, socket.CMSG_SPACE(array.array("i").itemsize))
            if not packet:
                break
            self.reply(json.loads(packet), ancillary)
        self.close()

    def close(self) -> None:
        for slot in list(self.sessions):
            self.kill(slot)
        self.fence.leave()

    def reply(self, request: dict, ancillary: list) -> None:
        if request.pop("op") == "kill":
            self.control.send(json.dumps({"status": self.kill(request["session"])}).encode())
            return
        answer = self.spawn(Order(**request), received_fd(ancillary))
        extra: list[tuple[int, int, bytes]] = []
        if "session" in answer and self.fence.numbers_processes_apart:
            credentials = struct.pack("iII", answer["pid"], os.getuid(), os.getgid())
            answer["pid"], extra = None, [(socket.SOL_SOCKET, SCM_CREDENTIALS, credentials)]
        self.control.sendmsg([json.dumps(answer).encode()], extra)

    def spawn(self, order: Order, oracle: int) -> dict:
        """A new session, or {"error"}; a session that did not get shut in has ended when this returns."""
        slot = next(number for number in range(len(self.sessions) + 1) if number not in self.sessions)
        runner, problem, place = 0, "", None
        try:
            place = self.fence.make_place(slot, order)
            self.fence.divide()
            runner, problem = launch.fork(self.fence, place, order, oracle, self.serve_runner)
        except OSError as failed:
            problem = str(failed)
        finally:
            os.close(oracle)
        if runner:
            assert place is not None
            self.sessions[slot] = Session(runner, place, order)
        if problem:
            self.kill(slot)
            self.fence.remove_place(place)
            return {"error": problem}
        return {"session": slot, "pid": runner}

    def kill(self, slot: int) -> int | None:
        """End a session; its exit status, or None if there is none of that number."""
        session = self.sessions.pop(slot, None)
        if session is None:
            return None
        status = reaper.end(session.runner, {other.runner for other in self.sessions.values()})
        self.fence.remove_place(session.place)
        return status

    def end_the_greedy(self) -> None:
        """Kill the runners whose folder has outgrown its size; their sessions stay until the judge ends them."""
        for session in self.sessions.values():
            if reaper.disk_use(session.place.folder, session.runner) > session.order.disk_bytes:
                reaper.kill({session.runner} | reaper.descendants(session.runner))


def received_fd(ancillary: list) -> int:
    fds = array.array("i")
    fds.frombytes(ancillary[0][2][: fds.itemsize])
    return fds[0]
