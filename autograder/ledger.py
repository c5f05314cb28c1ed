"""The student's ledger: one row per lab, what the same model costs after each idea, and the sentence to defend.

It is one plain file, `ledger.json`, above the labs in the student's own folder: people can read it, no grade rests on
it. It is written whole or not at all. A row that changes is kept under `earlier`; nothing is overwritten silently.
"""

import html
import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAME = "ledger.json"
FIELDS = ("lab", "what", "memory", "flops", "bytes", "time", "quality", "sentence")
OPEN = ("…", "...")  # what a lab's last cell holds until the student has written there

Amount = str | int | float


class LedgerError(Exception):
    """The ledger cannot be read or written; the message says what to do."""


@dataclass(frozen=True)
class Row:
    """One lab: what was measured, five amounts against the way before, and bought, paid, not for."""

    lab: str
    what: str
    memory: Amount
    flops: Amount
    bytes: Amount
    time: Amount
    quality: Amount
    sentence: str

    @property
    def unfinished(self) -> list[str]:
        """Fields that are empty, still hold dots, or are no number one can compare."""
        return [name for name, value in asdict(self).items() if _is_open(value)]


def _is_open(value: Amount) -> bool:
    if isinstance(value, str):
        return not value.strip() or any(dots in value for dots in OPEN)
    return not math.isfinite(value)


def path_for(slug: str, here: Path | None = None) -> Path:
    """Where the ledger lies: $COURSE_LEDGER, a ledger in a folder above, else above the lab's own folder."""
    if named := os.environ.get("COURSE_LEDGER"):
        return Path(named)
    here = Path.cwd() if here is None else here
    for folder in (here, *here.parents):
        if (folder / NAME).is_file():
            return folder / NAME
    folder = here.parent if here.name == slug else here
    return (folder.parent if folder.name == "labs" else folder) / NAME


def read(path: Path) -> dict[str, Any]:
    """The file as it is: `rows` and `earlier`; an empty ledger where there is no file."""
    if not path.is_file():
        return {"rows": [], "earlier": []}
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
        for row in [*book["rows"], *book["earlier"]]:
            Row(**row)
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"{path} is no ledger ({error}). It was left as it is: rename it, and record again."
        ) from None
    return dict(book)


def rows(path: Path) -> list[Row]:
    """The rows, in the order of the labs."""
    return sorted((Row(**row) for row in read(path)["rows"]), key=lambda row: row.lab)


def record(path: Path, row: Row) -> str:
    """Write the row of its lab; says what happened. A row with open fields is not written."""
    if row.unfinished:
        return f"Not recorded yet: {', '.join(row.unfinished)} of {row.lab} still to be filled in."
    book, new = read(path), asdict(row)
    old = [each for each in book["rows"] if each["lab"] == row.lab]
    if old == [new]:
        return f"{row.lab}: already in {path.name}."
    book["rows"] = [each for each in book["rows"] if each["lab"] != row.lab] + [new]
    book["earlier"] += old
    _write(path, json.dumps(book, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return f"{row.lab}: recorded in {path.name}{', your earlier row is kept under `earlier`' if old else ''}."


def _write(path: Path, text: str) -> None:
    """In one step: a reader sees the old ledger or the new one."""
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise LedgerError(
            f"{path.parent} cannot be written to ({error.strerror}). Copy the lab to a folder of yours."
        ) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


# --- showing it ------------------------------------------------------------------------------------------------------


def cells(row: Row) -> list[str]:
    """The fields of a row as text, in the order of FIELDS."""
    values: Mapping[str, Amount] = asdict(row)
    return [value if isinstance(value, str) else f"{value:,.4g}" for value in (values[name] for name in FIELDS)]


def as_text(path: Path) -> str:
    """One line per lab, fields apart by bars; nothing where there is no row."""
    return "\n".join(" | ".join(cells(row)) for row in rows(path))


def as_html(path: Path) -> str:
    """The same as a table; what a student typed is text, whatever it holds."""
    found = rows(path)
    if not found:
        return ""
    lines = [FIELDS, *(cells(row) for row in found)]
    tags = ["th", *["td"] * len(found)]
    body = "".join(
        f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in line)}</tr>"
        for tag, line in zip(tags, lines, strict=True)
    )
    return f"<table><caption>Your ledger</caption>{body}</table>"
