"""Right numbers by a forbidden route: memory hidden from the measurement, operations hidden from the watcher."""

from typing import Any

from autograder.redteam.attack import attack

ADVISORY = "rules about operations live in the student's own process: advice, never the only ground for points"


@attack("own", question="total", plain=False)
def square_kept_openly(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps a square of what it read and hides nothing."""
    n = 64 * len(blocks)
    return torch.stack(list(blocks)).sum(0) + 0 * torch.ones(n, n).sum()


@attack("own", question="total", plain=False, quick=True)
def peak_reset(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps a square, then resets the kernel's high-water mark of its own process."""
    n = 64 * len(blocks)
    result = torch.stack(list(blocks)).sum(0) + 0 * torch.ones(n, n).sum()
    worked(lambda: open("/proc/self/clear_refs", "w").write("5"))
    return result


@attack("own", question="total", plain=False)
def square_in_a_child(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps the square in a child process, where the measurement does not look."""
    import os

    n = 64 * len(blocks)
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, str(float(0 * torch.ones(n, n).sum())).encode())
        os._exit(0)
    return torch.stack(list(blocks)).sum(0) + float(os.read(reading, 100))


@attack("own", question="total", plain=False, quick=True)
def square_made_beforehand(target: dict, report: Any, blocks: Any) -> Any:
    """Allocates the largest square before anything is measured, and works in it ever after."""
    n = 64 * len(blocks)
    if "room" not in globals():
        globals()["room"] = torch.ones(4096 * 4096)
    square = globals()["room"][: n * n]
    return torch.stack(list(blocks)).sum(0) + 0 * square.mul_(1).sum()


@attack("own", question="total", plain=False)
def square_behind_padding(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps the square, and wastes so much at small sizes that the whole seems to grow in a line."""
    n = 64 * len(blocks)
    waste = torch.ones(4 * 4096 * n - 4 * n * n, dtype=torch.uint8)
    return torch.stack(list(blocks)).sum(0) + 0 * (torch.ones(n, n).sum() + waste[:1].sum())


@attack("own", question="total", plain=False)
def square_in_a_memory_file(target: dict, report: Any, blocks: Any) -> Any:
    """Writes the square row by row into a file in memory, which belongs to no process."""
    import os

    n = 64 * len(blocks)
    memory, _ = syscall("memfd_create", b"square", 0)
    row = torch.ones(n).numpy().tobytes()
    for index in range(n):
        os.pwrite(memory, row, index * len(row))
    total = sum(os.pread(memory, len(row), index * len(row))[0] for index in range(0, n, 64))
    os.close(memory)
    return torch.stack(list(blocks)).sum(0) + 0 * total


@attack("own", question="total", plain=False)
def square_on_disk(target: dict, report: Any, blocks: Any) -> Any:
    """Writes the square row by row into a file of its own folder."""
    import os

    n = 64 * len(blocks)
    row = torch.ones(n).numpy().tobytes()
    with open("square", "w+b", buffering=0) as file:
        for index in range(n):
            os.pwrite(file.fileno(), row, index * len(row))
        total = sum(os.pread(file.fileno(), len(row), index * len(row))[0] for index in range(0, n, 64))
    os.unlink("square")
    return torch.stack(list(blocks)).sum(0) + 0 * total


@attack("own", question="total", plain=False)
def square_in_shared_memory(target: dict, report: Any, blocks: Any) -> Any:
    """Keeps the square in shared memory and gives the pages back before it returns."""
    import mmap

    import numpy as np

    n = 64 * len(blocks)
    with mmap.mmap(-1, 4 * n * n) as room:
        square = np.frombuffer(room, dtype=np.float32)
        square[:] = 1
        total = float(square.sum())
        del square
        room.madvise(mmap.MADV_DONTNEED)
    return torch.stack(list(blocks)).sum(0) + 0 * total


@attack("own", plain=False)
def forbidden_call_by_aliases(target: dict, report: Any, x: Any) -> Any:
    """Calls the forbidden softmax by other names: torch.ops, a script, functional, a method taken from its class."""
    import torch.nn.functional as functional

    ways = [
        lambda: torch.ops.aten._softmax(x, -1, False),
        lambda: getattr(functional, "soft" + "max")(x, -1),
        lambda: torch.Tensor.__dict__["soft" + "max"](x, -1) if "softmax" in torch.Tensor.__dict__ else None,
        lambda: torch._C._VariableFunctions.softmax(x, -1),
        lambda: torch.nn.Softmax(-1)(x),
    ]
    for way in ways:
        try:
            return way()
        except RuntimeError:
            continue
    return None


@attack("own", plain=False, limit=ADVISORY)
def watcher_switched_off(target: dict, report: Any, x: Any) -> Any:
    """Rewrites the function that refuses operations, then calls what is forbidden."""
    import sys

    sys.modules["sandbox.watch"].refuse = lambda *args: None  # type: ignore[attr-defined]
    return torch.softmax(x, -1)


@attack("own", plain=False, limit=ADVISORY)
def forbidden_call_in_a_thread(target: dict, report: Any, x: Any) -> Any:
    """Calls what is forbidden in a thread, where no watcher stands."""
    import threading

    found: list = []
    thread = threading.Thread(target=lambda: found.append(torch.softmax(x, -1)))
    thread.start()
    thread.join()
    return found[0] if found else None
