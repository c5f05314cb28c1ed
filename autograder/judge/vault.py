"""The judge's private folder, `course/.judge`: the signing key, the hidden seeds, the verdicts.

Everything here is readable by the grader's account alone (0700, files 0600) and written atomically, so a killed
run leaves either the old file or the new one.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

SEED_BITS = 62  # torch generators take 63


class Vault:
    """Keys, seeds and verdicts under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def key(self) -> bytes:
        """The signing key, made on first use."""
        return bytes.fromhex(self._once("key", secrets.token_hex(32)))

    def seed(self, lab: str, bank_version: str, *, new: bool = False) -> int:
        """The hidden seed of (lab, bank version): drawn once, reused by every later run, replaced only on request."""
        name = f"seeds/{lab}-{bank_version}"
        if new:
            write_atomically(self.folder / name, str(secrets.randbits(SEED_BITS)))
        return int(self._once(name, str(secrets.randbits(SEED_BITS))))

    def draw(self, seed: int) -> str:
        """A name for a seed that tells nothing about it without the key."""
        return self.sign(f"seed {seed}".encode())[:16]

    def sign(self, text: bytes) -> str:
        return hmac.new(self.key, text, hashlib.sha256).hexdigest()

    def verdict_path(self, lab: str, student: str) -> Path:
        return self.folder / "verdicts" / lab / f"{student}.json"

    def recorded_path(self, lab: str, student: str) -> Path:
        return self.folder / "recorded" / lab / f"{student}.json"

    def page_path(self, lab: str, student: str) -> Path:
        return self.folder / "pages" / lab / f"{student}.json"

    def _once(self, name: str, content: str) -> str:
        """The file's content; if there is none yet, `content`, written so that two writers agree on one."""
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = _draft(path, content)
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # fails where another process was first: its content counts
            draft.unlink()
        return path.read_text(encoding="utf-8").strip()


def write_atomically(path: Path, content: str, mode: int = 0o600) -> None:
    """Write a file in one step: readers see the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path, content)
    draft.chmod(mode)
    draft.replace(path)


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value that is signed and hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _draft(path: Path, content: str) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk: the draft must not take up what is left
        Path(name).unlink()
        raise
    return Path(name)
