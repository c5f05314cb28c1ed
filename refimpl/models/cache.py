"""Results that are slow to make, kept on this machine as safetensors: dequantized weights and sample tensors.

A file is written beside its place and moved there in one step, so no reader sees half of it; it carries a checksum, and
one that does not match is thrown away and made again. Where the disk refuses, the course runs on without a cache.
"""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

from refimpl.shapes import Tensor

__all__ = ["cache_folder", "keep_newest", "read", "write"]

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$COURSE_CACHE, or this platform's place for files that may be deleted at any time."""
    if chosen := os.environ.get("COURSE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "efficient-llm-course"


def read(name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """(tensors, metadata) of a cached file, or None where there is none, or a damaged one, which is removed."""
    path = cache_folder() / name
    if not path.is_file():
        return None
    try:
        from safetensors import SafetensorError, safe_open

        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except ImportError:
        return None
    except (SafetensorError, OSError) as problem:
        return _discard(path, str(problem))
    if metadata.pop("checksum", None) != checksum(tensors):
        return _discard(path, "its checksum does not match")
    return tensors, metadata


def write(name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Keep a result; a full disk, a read-only home or a missing safetensors costs the cache, never the run."""
    path = cache_folder() / name
    part = path.with_name(f".{name}.{os.getpid()}.part")  # same folder: a rename across disks is not one step
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        return
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata | {"checksum": checksum(tensors)})
        part.chmod(0o644)  # safetensors writes 0600; a class may share one cache
        part.replace(path)
    except (OSError, SafetensorError) as problem:
        _unlink(part)
        log.warning("could not keep %s (%s): starts stay slow. COURSE_CACHE names another folder.", path, problem)


def keep_newest(pattern: str, count: int) -> None:
    """Delete all but the `count` newest cached files of one kind: a key that changed is never asked for again."""
    files = sorted(cache_folder().glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in files[count:]:
        _unlink(path)


def _unlink(path: Path) -> None:
    with suppress(OSError):  # another process was faster, or the folder belongs to somebody else
        path.unlink()


def _discard(path: Path, reason: str) -> None:
    log.warning("the cached file %s is damaged (%s); it is made again", path, reason)
    _unlink(path)


def checksum(tensors: dict[str, Tensor]) -> str:
    """Sum of the bits of float32 tensors as integers: every single changed word shows, at the speed of memory."""
    sums = (int(tensors[key].view(torch.int32).sum(dtype=torch.int64)) for key in sorted(tensors))
    return f"{sum(place * total for place, total in enumerate(sums, start=1)) % 2**64:016x}"
