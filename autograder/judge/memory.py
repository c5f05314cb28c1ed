"""Memory of a runner as the kernel accounts for it, read from outside; its own word plays no part.

The high-water mark of resident memory (VmHWM) is reset before a call and read after it. Where a session may start
processes, those of its descendants are added: an upper bound of what all of them held at once.
"""

from pathlib import Path


def start_peak(pid: int | None) -> int | None:
    """Reset the kernel's high-water mark of `pid` and return what it holds now, in bytes; None where unsupported."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        return _status_bytes(pid, "VmRSS")
    except OSError:
        return None


def read_peak(pid: int | None, before: int | None) -> int | None:
    """Peak resident bytes of `pid` and its descendants since `start_peak`, above `before`."""
    if before is None:
        return None
    try:
        peak = _status_bytes(pid, "VmHWM")
        if peak is None:
            return None
        peak += sum(_status_bytes(child, "VmHWM") or 0 for child in _descendants(pid))
    except OSError:
        return None
    return max(0, peak - before)


def _descendants(pid: int | None) -> list[int]:
    """Processes that `pid` or a thread of it has started, and theirs."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _status_bytes(pid: int | None, name: str) -> int | None:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
