"""Grades as files: `autograder export --format csv|canvas|moodle`. A file that is there is kept, never lost.

canvas: the columns of Canvas's own gradebook export, which its import reads back: Student, ID, SIS User ID, SIS Login
ID, Section, one column per assignment, and the row `Points Possible`. moodle: the columns of Moodle's grade export
(First name, Last name, ID number, Email address, one `(Real)` column per assignment); at import, map `Email address` or
`ID number`. csv: one row per student and lab. An empty cell in canvas and moodle leaves a grade there as it is.
"""

import csv
import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autograder.judge.course import Course
from autograder.judge.trouble import space_in
from autograder.judge.vault import write_atomically
from autograder.staff.grades import Person, Row, by_person, labs_of, rows, total, weights
from autograder.staff.roster import extras

TOTAL = "Course total (percent)"
RISKY = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would take such a text for a formula
Rows = Iterator[list[Any]]


def export(course: Course, to: Path, form: str = "csv") -> str:
    """Write all grades to `to`; says what was done with a file that was there."""
    make = FORMATS[form]
    with space_in(to.resolve().parent):
        return write_keeping(to, as_csv(make(course, rows(course))))


def as_csv(table: Iterable[list[Any]]) -> str:
    """RFC 4180 with plain newlines, every text safe to open in a spreadsheet."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([safe(value) for value in row] for row in table)
    return out.getvalue()


def safe(value: Any) -> Any:
    """Numbers as they are; a text that begins like a formula gets an apostrophe, which spreadsheets do not show."""
    if value is None:
        return ""
    if isinstance(value, str):
        value = " ".join(value.split())
        return f"'{value}" if value.startswith(RISKY) else value
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def write_keeping(to: Path, text: str) -> str:
    """Write `text`; a file with other content moves aside under the date on which it was written."""
    old = to.read_text(encoding="utf-8") if to.is_file() else None
    if old == text:
        return f"{to}: unchanged"
    kept = ""
    if old is not None:
        written = datetime.fromtimestamp(to.stat().st_mtime, UTC)
        aside = free_name(to, f"{written:%Y-%m-%d-%H%M%S}")
        shutil.copy2(to, aside)  # the old file stays until the new one is whole
        kept = f"; the one of before is {aside.name}"
    write_atomically(to, text, mode=0o644)
    return f"{to}: written{kept}"


def free_name(path: Path, date: str) -> Path:
    """`grades-2027-01-30-091500.csv`, numbered where that is taken."""
    for number in range(1, 10_000):
        tail = "" if number == 1 else f"-{number}"
        name = path.with_name(f"{path.stem}-{date}{tail}{path.suffix}")
        if not name.exists():
            return name
    raise FileExistsError(f"{path.parent} holds ten thousand copies of {path.name} of {date}: move some away")


# --- the forms ----------------------------------------------------------------------------------------


def long_csv(course: Course, table: list[Row]) -> Rows:
    """One row per student and lab, in the order of nbgrader's own export, then one total per student."""
    weighs = weights(course)
    yield ["assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email", "raw_score",
           "late_submission_penalty", "score", "max_score", "weight", "waits_for_a_reader"]  # fmt: skip
    for row in table:
        yield [row.lab, *map(moment, (row.due, row.time)), *person(row.person), row.raw, row.penalty, row.score,
               row.max_score, weighs.get(row.lab, 1.0), "yes" if row.waits else ""]  # fmt: skip
    for who, own in by_person(table).items():
        yield [TOTAL, "", "", *person(who), "", "", total(own, weighs), 100.0, "", ""]


def moment(time: datetime | None) -> str:
    return str(time) if time else ""


def person(who: Person) -> list[str]:
    return [who.id, who.last_name, who.first_name, who.email]


def canvas(course: Course, table: list[Row]) -> Rows:
    """As Canvas writes it. A column named `Title (number)` there is found again by its title alone."""
    weighs, more, labs = weights(course), extras(course), labs_of(table)
    yield ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *labs, TOTAL]
    yield ["Points Possible", "", "", "", "", *labs.values(), 100.0]
    for who, own in by_person(table).items():
        also = more.get(who.id, {})
        scores = [own[lab].score if own[lab].handed_in else "" for lab in labs]
        yield [
            who.name,
            who.lms_id,
            also.get("sis_id", ""),
            who.id,
            also.get("section", ""),
            *scores,
            total(own, weighs),
        ]


def moodle(course: Course, table: list[Row]) -> Rows:
    """As Moodle writes it; `(Real)` says that these are points and not percent or letters."""
    weighs, labs = weights(course), labs_of(table)
    yield ["First name", "Last name", "ID number", "Username", "Email address",
           *(f"Assignment: {lab} (Real)" for lab in labs), f"{TOTAL} (Real)"]  # fmt: skip
    for who, own in by_person(table).items():
        scores = [own[lab].score if own[lab].handed_in else "" for lab in labs]
        yield [who.first_name, who.last_name, who.lms_id, who.id, who.email, *scores, total(own, weighs)]


FORMATS: dict[str, Callable[[Course, list[Row]], Rows]] = {"csv": long_csv, "canvas": canvas, "moodle": moodle}
