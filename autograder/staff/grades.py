"""What the gradebook holds, as plain rows: one per student and lab, after the late policy, with course weights."""

from dataclasses import dataclass
from datetime import datetime

from nbgrader.api import MissingEntry

from autograder.judge.course import Course
from autograder.nbgrader import settings


@dataclass(frozen=True)
class Person:
    """A student, as the roster knows them."""

    id: str
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    lms_id: str = ""

    @property
    def name(self) -> str:
        """`Last, First`, as learning management systems sort; the id where there is no name."""
        return ", ".join(part for part in (self.last_name, self.first_name) if part) or self.id


@dataclass(frozen=True)
class Row:
    """One student's grade in one lab. `score` is what counts: raw points less the late penalty."""

    person: Person
    lab: str
    max_score: float
    raw: float = 0.0
    penalty: float = 0.0
    handed_in: bool = False
    waits: bool = False  # a written answer that nobody has read
    due: datetime | None = None
    time: datetime | None = None

    @property
    def score(self) -> float:
        return round(max(0.0, self.raw - self.penalty), 2)


def rows(course: Course) -> list[Row]:
    """Every student of the gradebook in every lab of it; labs in order, then students."""
    found = []
    with course.api.gradebook as gradebook:
        people = [
            Person(s.id, s.first_name or "", s.last_name or "", s.email or "", s.lms_user_id or "")
            for s in gradebook.students
        ]
        for assignment in sorted(gradebook.assignments, key=lambda each: each.name):
            for person in sorted(people, key=lambda each: each.id):
                plain = Row(person, assignment.name, float(assignment.max_score), due=assignment.duedate)
                try:
                    submission = gradebook.find_submission(assignment.name, person.id)
                except MissingEntry:
                    found.append(plain)
                    continue
                fields = {
                    "raw": float(submission.score),
                    "penalty": float(submission.late_submission_penalty or 0),
                    "waits": bool(submission.needs_manual_grade),
                    "time": submission.timestamp,
                }
                found.append(Row(**{**vars(plain), **fields, "handed_in": True}))
    return found


def labs_of(table: list[Row]) -> dict[str, float]:
    """Lab -> most points, in order."""
    return {row.lab: row.max_score for row in table}


def by_person(table: list[Row]) -> dict[Person, dict[str, Row]]:
    """Person -> lab -> row."""
    people: dict[Person, dict[str, Row]] = {}
    for row in table:
        people.setdefault(row.person, {})[row.lab] = row
    return people


def weights(course: Course) -> dict[str, float]:
    """[weights] of course.toml; a lab that is not named weighs 1."""
    return {lab: float(weight) for lab, weight in settings(course.root).get("weights", {}).items()}


def total(own: dict[str, Row], weighs: dict[str, float]) -> float:
    """Percent of the course so far: labs by weight, each as its share of its points; not handed in is nothing."""
    counted = [(weighs.get(lab, 1.0), row) for lab, row in own.items() if row.max_score > 0]
    whole = sum(weight for weight, _ in counted)
    return round(100 * sum(w * row.score / row.max_score for w, row in counted) / whole, 2) if whole else 0.0
