"""What became of the file that a student handed in last: one small record per lab and student, kept by the judge."""

import html
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from autograder.judge.intake import Note, Refused
from autograder.judge.vault import write_atomically

TAKEN, REFUSED = "taken", "refused"


@dataclass(frozen=True)
class Receipt:
    """`student` and `staff` hold one line for each thing that was mended, or the one reason why it was refused."""

    state: str
    file: str
    student: tuple[str, ...] = ()
    staff: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """Markdown for the top of a feedback page."""
        told = [html.escape(line) for line in self.student if line]
        if self.state == REFUSED:
            head = "**The file you handed in last could not be graded.** What stands below is about an earlier one."
            return [head, *(f"- {line}" for line in told)]
        return [f"- {line}" for line in told]


def taken(file: str, notes: tuple[Note, ...]) -> Receipt:
    return Receipt(TAKEN, file, tuple(n.student for n in notes if n.student), tuple(n.staff for n in notes))


def refused(file: str, why: Refused) -> Receipt:
    return Receipt(REFUSED, file, (why.student,), (str(why),))


def receipt_path(vault: Path, lab: str, student: str) -> Path:
    return vault / "receipts" / lab / f"{student}.json"


def save_receipt(vault: Path, lab: str, student: str, receipt: Receipt) -> bool:
    """Write it down; False where it says nothing new."""
    if load_receipt(vault, lab, student) == receipt:
        return False
    write_atomically(receipt_path(vault, lab, student), json.dumps(asdict(receipt), indent=1) + "\n")
    return True


def load_receipt(vault: Path, lab: str, student: str) -> Receipt | None:
    """The receipt, or None where there is none or it is not readable."""
    try:
        saved = json.loads(receipt_path(vault, lab, student).read_text(encoding="utf-8"))
        return Receipt(saved["state"], saved["file"], tuple(saved["student"]), tuple(saved["staff"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def all_refused(vault: Path, lab: str) -> dict[str, Receipt]:
    """Student -> receipt, of those whose last file was refused."""
    found = sorted((vault / "receipts" / lab).glob("[!.]*.json"))
    receipts = {path.stem: load_receipt(vault, lab, path.stem) for path in found}
    return {student: receipt for student, receipt in receipts.items() if receipt and receipt.state == REFUSED}
