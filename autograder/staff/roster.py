"""The class list: `autograder roster FILE` puts names, emails and LMS ids from a CSV file into the gradebook.

Column names are those of Canvas's gradebook export, of Moodle's participants file, or plain ones (id, first_name,
last_name, email, lms_id, sis_id, section). Running it again changes nothing; nobody is ever removed.
"""

import argparse
import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nbgrader.api import MissingEntry

from autograder.cli import open_course
from autograder.judge.course import Course
from autograder.judge.intake import STUDENT
from autograder.judge.vault import write_atomically
from autograder.judge.verdict import CycleError

COLUMNS = {
    "id": ("id", "student_id", "student id", "username", "login", "sis login id"),
    "name": ("student", "name", "full name"),
    "first_name": ("first_name", "first name", "given name"),
    "last_name": ("last_name", "last name", "surname", "family name"),
    "email": ("email", "email address", "e-mail"),
    "lms_id": ("lms_id", "lms_user_id", "id number", "canvas id"),
    "sis_id": ("sis_id", "sis user id"),
    "section": ("section", "group", "groups"),
}
UNIQUE = ("id", "email", "lms_id")
LIMIT = 120  # characters; nbgrader's columns hold 128


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="autograder roster", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="CSV file, one student a line, with a line of column names")
    parser.add_argument("--course", type=Path, default=None, help="course folder [default: ./course, or here]")
    arguments = parser.parse_args(argv)
    course = open_course(arguments)
    print(enter(course, read(arguments.file)))
    return 0


def read(file: Path) -> list[dict[str, str]]:
    """The people of the file; every problem in it at once, each with its line."""
    text = file.read_bytes().decode("utf-8-sig", errors="replace")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    names = next(lines, [])
    columns = recognise(names)
    if "id" not in columns.values():
        raise CycleError(f"{file}: no column for the student id. Columns here: {', '.join(names)}. Call one `id`.")
    people, problems = [], []
    for line in lines:
        fields = {columns[i]: " ".join(value.split()) for i, value in enumerate(line) if i in columns}
        if not any(fields.values()) or fields.get("name", "").lower() in ("points possible", "student, test"):
            continue
        problems += [f"line {lines.line_num}: {problem}" for problem in faults(fields)]
        people.append({**split_name(fields), "line": str(lines.line_num)})
    problems += doubles(people)
    if problems:
        raise CycleError(f"{file}: nothing was changed.\n  " + "\n  ".join(problems))
    return people


def recognise(names: list[str]) -> dict[int, str]:
    """Position -> field. Canvas calls its own number `ID` and the login `SIS Login ID`: there the login is the id."""
    plain = [name.strip().lower() for name in names]
    known = {alias: field for field, aliases in COLUMNS.items() for alias in aliases}
    found = {index: known[name] for index, name in enumerate(plain) if name in known}
    if "sis login id" in plain and "id" in plain:
        found[plain.index("id")] = "lms_id"
    return found


def faults(fields: dict[str, str]) -> Iterable[str]:
    if not STUDENT.fullmatch(fields.get("id", "")):
        yield f"{fields.get('id', '')!r} is no student id: letters, digits and _ . @ - only"
    for name, value in fields.items():
        if "<" in value or ">" in value or not value.isprintable():
            yield f"{name} holds a character that no name has: {value!r}"
        if len(value) > LIMIT:
            yield f"{name} is longer than {LIMIT} characters"


def split_name(fields: dict[str, str]) -> dict[str, str]:
    """`Last, First` or `First Last` where the file has one column for both."""
    whole = fields.pop("name", "")
    if whole and not (fields.get("first_name") or fields.get("last_name")):
        last, comma, first = whole.partition(",")
        if not comma:
            first, _, last = whole.rpartition(" ")
        fields |= {"first_name": first.strip(), "last_name": last.strip()}
    return fields


def doubles(people: list[dict[str, str]]) -> list[str]:
    """Two lines that claim one id, one email or one LMS id."""
    problems = []
    for field in UNIQUE:
        seen: dict[str, str] = {}
        for who in people:
            value = who.get(field, "").lower()
            if value and seen.setdefault(value, who["line"]) != who["line"]:
                problems.append(f"lines {seen[value]} and {who['line']}: the same {field} {value!r}. Keep one.")
    return problems


def enter(course: Course, people: list[dict[str, str]]) -> str:
    """Put everybody into the gradebook; returns what changed."""
    added: list[str] = []
    changed: list[str] = []
    same: list[str] = []
    with course.api.gradebook as gradebook:
        there = {student.id for student in gradebook.students}
        for who in people:
            fields = {name: who[name] for name in ("first_name", "last_name", "email") if who.get(name)}
            fields |= {"lms_user_id": who["lms_id"]} if who.get("lms_id") else {}
            try:
                student = gradebook.find_student(who["id"])
                fresh = any(getattr(student, name) != value for name, value in fields.items())
                (changed if fresh else same).append(who["id"])
            except MissingEntry:
                added.append(who["id"])
            gradebook.update_or_create_student(who["id"], **fields)
    save_extras(course, people)
    left = sorted(there - {who["id"] for who in people})
    lines = [f"{len(added)} added, {len(changed)} changed, {len(same)} unchanged"]
    lines += [f"  added: {', '.join(added)}"] if added and len(added) <= 20 else []
    lines += [f"  changed: {', '.join(changed)}"] if changed else []
    lines += [f"  in the gradebook and not in the file (nobody is removed): {', '.join(left)}"] if left else []
    return "\n".join(lines)


# --- what nbgrader has no column for ----------------------------------------------------------------------


def extras_path(course: Course) -> Path:
    return course.vault.folder / "roster.json"


def extras(course: Course) -> dict[str, dict[str, Any]]:
    """Student -> section and SIS id, which Canvas wants back."""
    path = extras_path(course)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def save_extras(course: Course, people: list[dict[str, str]]) -> None:
    known = extras(course)
    for who in people:
        more = {name: who[name] for name in ("sis_id", "section") if who.get(name)}
        if more:
            known[who["id"]] = {**known.get(who["id"], {}), **more}
    write_atomically(extras_path(course), json.dumps(known, indent=1, sort_keys=True) + "\n")
