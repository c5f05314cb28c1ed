"""A log of decisions about grades: who changed what, when and why. Signed line by line, each line signing the last.

A line that was edited, removed or added by anybody without the judge's key breaks the chain, and `read` says where.
"""

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autograder.judge.vault import Vault, canonical, write_atomically
from autograder.judge.verdict import CycleError

REGRADE, ANSWER = "regrade", "answer"


def path_of(vault: Vault) -> Path:
    return vault.folder / "log.jsonl"


def write(vault: Vault, entries: list[dict[str, Any]]) -> None:
    """Append `entries`, all or none."""
    lines = lines_of(vault)
    for entry in entries:
        last = json.loads(lines[-1])["signature"] if lines else ""
        body = {
            **entry,
            "who": getpass.getuser(),
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "after": last,
        }
        lines.append(json.dumps({**body, "signature": vault.sign(canonical(body))}, sort_keys=True))
    write_atomically(path_of(vault), "\n".join(lines) + "\n")


def read(vault: Vault) -> list[dict[str, Any]]:
    """All entries, oldest first; CycleError at the first that is not as it was written."""
    found, last = [], ""
    for number, line in enumerate(lines_of(vault), start=1):
        try:
            body = json.loads(line)
            signature = body.pop("signature")
            whole = signature == vault.sign(canonical(body)) and body["after"] == last
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise CycleError(f"{path_of(vault)}, line {number}: this is not what was written. Find out who changed it.")
        found.append(body)
        last = signature
    return found


def lines_of(vault: Vault) -> list[str]:
    path = path_of(vault)
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
