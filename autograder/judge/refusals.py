"""A feedback page for a student whose file could not be graded: they hear the reason where others read their grade."""

import html
from collections.abc import Iterable
from pathlib import Path

from autograder.judge.receipt import Receipt, all_refused
from autograder.judge.vault import write_atomically

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{lab}: not graded yet</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em }}</style></head>
<body><h1>{lab}: not graded yet</h1>
<p>Your file <code>{file}</code> came in, and could not be graded:</p>
<ul>{reasons}</ul>
<p>Nothing is lost: correct it and hand it in again. If you do not see what is meant, show this page to your
instructor.</p></body></html>
"""


def write_pages(feedback: Path, vault: Path, lab: str, graded: Iterable[str], wanted: set[str]) -> list[str]:
    """Pages for those who have no grade at all (the others read the reason on top of theirs); whose page is new."""
    told = []
    for student, receipt in all_refused(vault, lab).items():
        if student in set(graded) or (wanted and student not in wanted):
            continue
        path, text = feedback / student / lab / "lab.html", page(lab, receipt)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_atomically(path, text, mode=0o644)
            told.append(student)
    return told


def page(lab: str, receipt: Receipt) -> str:
    reasons = "".join(f"<li>{html.escape(line)}</li>" for line in receipt.student)
    return PAGE.format(lab=html.escape(lab), file=html.escape(receipt.file), reasons=reasons)
