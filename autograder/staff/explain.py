"""`autograder explain LAB STUDENT`: per question what was run, in which tier, which cases, and what staff should know.

Read from what the judge wrote down; nothing is run. `autograder history LAB STUDENT` tells how the grade came about.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autograder import feedback
from autograder.cli import open_course
from autograder.judge.cells import runnable
from autograder.judge.course import Course
from autograder.judge.intake import Refused, load_release, take_in
from autograder.judge.judge import basis
from autograder.judge.receipt import load_receipt
from autograder.judge.tiers import at_least
from autograder.judge.verdict import BadVerdict, Verdict, load, rebuild
from autograder.labs import Lab, find_lab
from autograder.nbgrader import minimum_tier
from autograder.sanitize import show_hidden


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `explain`; returns the exit status."""
    arguments = parser("explain", __doc__).parse_args(argv)
    course, lab = open_course(arguments), find_lab(arguments.lab)
    print("\n".join(show_hidden(line) for line in explain(course, lab, arguments.student)))
    return 0


def parser(verb: str, says: str | None) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog=f"autograder {verb}", description=(says or "").partition("\n")[0])
    result.add_argument("lab", help='the lab\'s folder name, or its number: "03"')
    result.add_argument("student", help="the student's id")
    result.add_argument("--course", type=Path, default=None, help="course folder [default: ./course, or here]")
    return result


def explain(course: Course, lab: Lab, student: str) -> Iterator[str]:
    """The lines, for staff alone: they say what the student's page leaves out."""
    yield f"{lab.slug}, {student}"
    yield from intake_lines(course, lab, student)
    try:
        verdict = load(lab.slug, student, course.vault)
    except BadVerdict as problem:
        yield f"no valid verdict, so no points: {problem}"
        return
    yield from verdict_lines(course, lab, student, verdict)
    for name, public in sorted(verdict.questions.items(), key=lambda each: place_of(lab, each[0])):
        yield ""
        yield from question_lines(name, public)
    for info in lab.questions.values():
        if info.written:
            yield from ("", f"{info.name}: a written answer of {info.points:g} points, read by a person in formgrader")


def place_of(lab: Lab, question: str) -> int:
    """Questions in the lab's order; one that the lab no longer has, last."""
    names = list(lab.questions)
    return names.index(question) if question in names else len(names)


def intake_lines(course: Course, lab: Lab, student: str) -> Iterator[str]:
    receipt = load_receipt(course.vault.folder, lab.slug, student)
    if receipt is not None:
        yield f"handed in: {receipt.file}, {receipt.state}"
        yield from (f"  intake: {note}" for note in receipt.staff)
    path = course.root / "submitted" / student / lab.slug / "lab.ipynb"
    if not path.is_file():
        yield "nothing of this student lies in submitted/"
        return
    try:
        release = load_release(lab.folder)
        submission = take_in(path, release, student)
    except Refused as problem:
        yield f"  refused: {problem}"
        return
    cells = runnable(submission.notebook, release)
    yield f"runs {len(cells)} cells: " + ", ".join(f"{c.name} ({len(c.source.splitlines())} lines)" for c in cells)


def verdict_lines(course: Course, lab: Lab, student: str, verdict: Verdict) -> Iterator[str]:
    possible = sum(question["points"] for question in verdict.questions.values())
    points = f"{verdict.earned:g} of {possible:g} points on code questions"
    yield f"judged {verdict.created} in tier {verdict.tier}: {points}"
    yield f"  checks {verdict.bank_version}, judge {verdict.judge_version}, hidden draw {verdict.draw}"
    if not at_least(verdict.tier, minimum_tier(course.root)):
        yield f"  PROBLEM: course.toml asks for {minimum_tier(course.root)}, so this verdict gives no points"
    yield from (f"  PROBLEM: {problem}" for problem in stale(course, lab, student, verdict))
    yield from (f"  staff: {note}" for note in verdict.staff_notes)


def stale(course: Course, lab: Lab, student: str, verdict: Verdict) -> Iterator[str]:
    """Why judging again would not only repeat this verdict."""
    path = course.root / "submitted" / student / lab.slug / "lab.ipynb"
    release = load_release(lab.folder)
    try:
        now = basis(lab, take_in(path, release, student), release, verdict.draw)
    except Refused:
        return
    if now.submission_sha256 != verdict.submission_sha256:
        yield "the student has handed in something newer: run `autograder grade`"
    if now.bank_version != verdict.bank_version:
        yield "the checks have changed since: see `autograder regrade`"


def question_lines(name: str, public: dict[str, Any]) -> Iterator[str]:
    report = rebuild(public)
    yield f"{name}: {public['status']}, {public['earned']:g} of {public['points']:g} points"
    if public["note"]:
        yield f"  {public['note']}"
    for case, saved in zip(report.cases, public["cases"], strict=True):
        mark, why = feedback.MARK[case.passed], f": {case.message}" if case.message else ""
        yield f"  {mark} {case.name} (weight {case.weight:g}, {saved['milliseconds']:g} ms){why}"
    for mechanism in report.mechanisms:
        lost = "" if mechanism.passed else f", costs {mechanism.costs:.0%}"
        yield f"  {feedback.MARK[mechanism.passed]} {mechanism.name}{lost}: {mechanism.message}"
    if report.mistake:
        yield f"  diagnosis {report.mistake}: {report.diagnosis}"
