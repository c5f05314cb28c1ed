"""Memory of a runner as the kernel accounts for it, read from outside; its own word plays no part.

What a call needed is the sum of what it added and of what it hid from that:

    the high-water mark of resident memory (VmHWM, reset before the call) above the smaller of before and after, so that
    room from before the call which it used and then gave back counts, and
    bytes that it wrote to files (wchar; sending on a socket is not counted there), which belong to no process;
    or, if that is more, the pages from before or during the call that it touched and still holds, Python's own apart.

Where a session may start processes, the peaks of its descendants are added: an upper bound of what all held at once.
"""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

ANONYMOUS = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ (\S+) (\d+) *(.*)$")
OWN_BYTES = 8 << 20  # what Python itself touches in any call
FILE_IN_MEMORY = ("/memfd:", "/dev/zero", "/dev/shm", "/SYSV")  # pages of shared memory, under any of its names


@dataclass(frozen=True)
class Before:
    """What a process held and had written when the measurement began, in bytes."""

    resident: int
    written: int


def start_peak(pid: int | None) -> Before | None:
    """Reset the kernel's high-water mark and its notes on pages touched; None where unsupported."""
    try:
        for what in ("1", "5"):
            Path(f"/proc/{pid}/clear_refs").write_text(what)
        return Before(_status_bytes(pid, "VmRSS") or 0, _written(pid))
    except OSError:
        return None


def read_peak(pid: int | None, before: Before | None) -> int | None:
    """Bytes that `pid` and its descendants needed at their peak since `start_peak`."""
    if before is None:
        return None
    try:
        peak, now = _status_bytes(pid, "VmHWM"), _status_bytes(pid, "VmRSS")
        if peak is None or now is None:
            return None
        added = peak - min(before.resident, now) + _written(pid) - before.written
        added = max(added, _touched(pid) - OWN_BYTES)
        return max(0, added + sum(_status_bytes(child, "VmHWM") or 0 for child in _descendants(pid)))
    except OSError:
        return None


def _touched(pid: int | None) -> int:
    """Private and shared memory in bytes, files apart, that was used since `start_peak` and is still held."""
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if header := ANONYMOUS.match(line):
            name = header[3]
            ours = header[2] == "0" or name.startswith(FILE_IN_MEMORY)
        elif ours and line.startswith("Referenced:"):
            total += int(line.split()[1]) * 1024
    return total


def _written(pid: int | None) -> int:
    """Bytes given to write() and its kind, to any file, on disk or in memory."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])
    return 0


def _descendants(pid: int | None) -> list[int]:
    """Processes that `pid` or a thread of it has started, and theirs."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _status_bytes(pid: int | None, name: str) -> int | None:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
