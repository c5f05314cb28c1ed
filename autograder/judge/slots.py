"""One submission at a time per GPU: a lock file per device, held while a submission that may use it is judged.

A GPU shares its memory and its clock among all processes on it, so two submissions there could fail or slow each
other. The locks belong to the machine and not to a run: two labs graded at once, or two array tasks on one node, take
turns as well. The kernel frees a lock when its holder dies.
"""

import contextlib
import getpass
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from autograder.judge.locks import try_lock
from autograder.labs import Lab

ASK_AGAIN = 0.05  # seconds


def visible_gpus() -> tuple[str, ...]:
    """The devices that this process may use, as CUDA_VISIBLE_DEVICES spells them; looking starts no CUDA context."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count] if named else map(str, range(count)))


def has_kernels(lab: Lab) -> bool:
    """Whether answers of `lab` may run on a GPU."""
    return "triton" in lab.imports or any("triton" in info.needs for info in lab.questions.values())


def gpus_of(lab: Lab) -> tuple[str, ...]:
    """The devices of which a submission of `lab` needs one: none for a lab without kernels, none without a GPU."""
    return visible_gpus() if has_kernels(lab) else ()


@contextlib.contextmanager
def gpu_slot(devices: Sequence[str], folder: Path | None = None) -> Iterator[str | None]:
    """Hold the first device that is free, waiting for one if need be; None where there is none to hold."""
    if not devices:
        yield None
        return
    folder = folder or lock_folder()
    while True:
        for device in devices:
            lock = try_lock(folder / f"gpu-{device.replace('/', '_')}.lock")
            if lock is not None:
                with lock:
                    yield device
                return
        time.sleep(ASK_AGAIN)


def lock_folder() -> Path:
    """One folder per machine and account; GPUs of several accounts on one machine are the batch system's to share."""
    folder = Path(tempfile.gettempdir()) / f"autograder-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else: remove it, or set TMPDIR to a folder of your own")
    return folder
