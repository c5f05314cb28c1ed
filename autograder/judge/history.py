"""What each student handed in over time, one line a try: for insights, never for a grade.

A verdict file holds the last word; this keeps the words before it. One file per student, appended to, so that workers
do not meet and a killed run loses at most its last line. Judging the same submission on the same checks is no new try.
"""

import json
import os
from typing import TYPE_CHECKING, Any

from autograder.judge.vault import Vault

if TYPE_CHECKING:
    from autograder.judge.verdict import Verdict


def remember(verdict: "Verdict", vault: Vault) -> None:
    """Append this try, unless it is the one that stands there last."""
    line = {
        "submission": verdict.submission_sha256,
        "bank": verdict.bank_version,
        "judged": verdict.created,
        "earned": {name: question["earned"] for name, question in verdict.questions.items()},
    }
    before = tries(verdict.lab, verdict.student, vault)
    if before and [before[-1].get(key) for key in ("submission", "bank")] == [line["submission"], line["bank"]]:
        return
    path = vault.folder / "history" / verdict.lab / f"{verdict.student}.jsonl"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A line that a killed run left unfinished ends here; the new one begins on a line of its own.
    broken = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "a", encoding="utf-8") as file:
        file.write("\n" * broken + json.dumps(line, sort_keys=True) + "\n")


def tries(lab: str, student: str, vault: Vault) -> list[dict[str, Any]]:
    """Every try of one student, the first one first; lines that are no record are passed over."""
    path = vault.folder / "history" / lab / f"{student}.jsonl"
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("earned"), dict):
            found.append(record)
    return found
