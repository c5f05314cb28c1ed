"""Students who disagree: `autograder requests LAB` lists what is open, with what the judge told them.

Requests stand in `requests.csv` of the course folder (student, lab, question, why), filled by hand or by a form. A
request is closed by an answer, which goes to the signed log: --answer STUDENT QUESTION --why "…". Points change by
`autograder regrade` (a check was wrong) or in formgrader (a person's mark), never here.
"""

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autograder import feedback
from autograder.cli import open_course
from autograder.judge.course import Course
from autograder.judge.verdict import BadVerdict, CycleError, load, rebuild
from autograder.labs import Lab, find_lab
from autograder.sanitize import plain_text
from autograder.staff import log

COLUMNS = ("student", "lab", "question", "why")


@dataclass(frozen=True)
class Request:
    student: str
    lab: str
    question: str
    why: str


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parser().parse_args(argv)
    course, lab = open_course(arguments), find_lab(arguments.lab)
    pending = open_requests(course, lab, read(arguments.file or course.root / "requests.csv", lab))
    if arguments.answer:
        student, question = arguments.answer
        answer(course, lab, pending, student, question, arguments.why)
        return 0
    print(f"{lab.slug}: {len(pending)} open requests")
    for request in pending:
        print("\n".join(show(course, lab, request)))
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="autograder requests", description=__doc__.partition("\n")[0])
    result.add_argument("lab", help='the lab\'s folder name, or its number: "03"')
    result.add_argument("--from", dest="file", type=Path, help="CSV file [default: requests.csv of the course]")
    result.add_argument("--answer", nargs=2, metavar=("STUDENT", "QUESTION"), help="close this request")
    result.add_argument("--why", default="", help="with --answer: what you decided, for the log")
    result.add_argument("--course", type=Path, default=None, help="course folder [default: ./course, or here]")
    return result


def read(file: Path, lab: Lab) -> list[Request]:
    """The lab's requests; every problem at once, each with its line."""
    if not file.is_file():
        raise CycleError(f"{file} does not exist. It is a CSV file with the columns {', '.join(COLUMNS)}.")
    lines = csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig", errors="replace")))
    if not set(COLUMNS) <= set(lines.fieldnames or ()):
        raise CycleError(f"{file}: columns are {', '.join(lines.fieldnames or ())}; needed: {', '.join(COLUMNS)}.")
    found, problems = [], []
    for line in lines:
        request = Request(*((line[name] or "").strip() for name in COLUMNS))
        if request.lab not in (lab.slug, lab.slug.partition("_")[0]):
            continue
        if request.question not in lab.questions:
            problems.append(f"line {lines.line_num}: no question {request.question!r}; {', '.join(lab.questions)}")
        found.append(request)
    if problems:
        raise CycleError(f"{file}:\n  " + "\n  ".join(problems))
    return found


def open_requests(course: Course, lab: Lab, requests: list[Request]) -> list[Request]:
    """Without those that were answered; a second request on the same question is open again."""
    answered = [
        (e["student"], e["question"]) for e in log.read(course.vault) if (e["what"], e["lab"]) == (log.ANSWER, lab.slug)
    ]
    pending = []
    for request in requests:
        if (request.student, request.question) in answered:
            answered.remove((request.student, request.question))
        else:
            pending.append(request)
    return pending


def answer(course: Course, lab: Lab, pending: list[Request], student: str, question: str, why: str) -> None:
    if not why.strip():
        raise CycleError("--answer needs --why: what you decided, and the reason")
    if (student, question) not in [(request.student, request.question) for request in pending]:
        raise CycleError(f"{student} has no open request about {question}")
    points = earned(course, lab, student, question)
    about = {"what": log.ANSWER, "lab": lab.slug, "student": student, "question": question}
    log.write(course.vault, [{**about, "why": why, "old": points, "new": points}])
    print(f"{student}, {question}: answered and logged")


def earned(course: Course, lab: Lab, student: str, question: str) -> float:
    try:
        return float(load(lab.slug, student, course.vault).questions.get(question, {"earned": 0.0})["earned"])
    except BadVerdict:
        return 0.0


def show(course: Course, lab: Lab, request: Request) -> Iterator[str]:
    """The request, in the student's words made harmless for a terminal, and the verdict's public text."""
    yield from ("", f"{request.student}, {request.question}: {plain_text(request.why)}")
    try:
        public = load(lab.slug, request.student, course.vault).questions.get(request.question)
    except BadVerdict as problem:
        yield f"  {problem}"
        return
    if public is None:
        yield "  a written answer: look at it in formgrader"
        return
    yield from (f"  | {line}" for line in feedback.as_text(rebuild(public), reveal=False).splitlines())
