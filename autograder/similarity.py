"""Which answers look copied: each with the reference, the worked solution, and each other. `autograder similarity`.

The course is open, so its answers can be copied. This compares programs, not text: names, constants, order and prose
do not count (autograder.fingerprint), and what everybody was given is left out. A finding is a reason to talk to a
student, never a verdict: the report goes to staff and no grade depends on it.

The similarity of two answers A and B is |A ∩ B| / max(min(|A|, |B|), n) over their fingerprints, with n the size of the
shortest right answer known: a fragment is no copy. What counts as similar is derived for each question. People who
never met resemble each other as much as the reference resembles the worked solution and the known mistakes; a copy
with one change resembles its original as much as a mutant of the worked solution does. The threshold lies halfway.
Where the first is no smaller than the second, everybody must write the same, and the question is too short to tell.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from autograder.fingerprint import Fingerprint, fingerprint
from autograder.judge.cells import Release, runnable
from autograder.judge.intake import Refused, load_release, take_in
from autograder.judge.session import Cell
from autograder.judge.vault import write_atomically
from autograder.judge.verdict import CycleError
from autograder.labs import Lab, find_lab
from autograder.programs import answer_in, program_of
from autograder.question import Question
from autograder.redteam.mutants import SAMPLE, source_mutants
from autograder.similarity_page import page

DESCRIPTION = """Compare every submission's answers with the reference, the worked solution and each other.
Exit status: 0 nothing to look at, 1 some pairs to look at, 2 nothing could be compared."""
WORKED = "the worked solution"
SHOWN = 40  # lines of the table; the report and the JSON hold all


@dataclass(frozen=True)
class Scale:
    """What similarity means for one question, measured on answers whose origin is known."""

    question: str
    independent: float = 0.0  # the most similar two answers that nobody copied
    copied: float = 1.0  # the median copy with one change
    smallest: int = 1  # fingerprints of the shortest right answer
    pairs: int = 0  # how many independent pairs there were to measure

    @property
    def tells(self) -> bool:
        return self.pairs > 0 and self.independent < self.copied

    @property
    def threshold(self) -> float:
        return (self.independent + self.copied) / 2

    def similarity(self, a: Fingerprint, b: Fingerprint) -> float:
        least = max(min(len(a.lines), len(b.lines)), self.smallest)
        return len(a.marks & b.marks) / least


@dataclass(frozen=True)
class Found:
    """Two answers to one question that are too similar."""

    question: str
    score: float
    left: str  # a student
    right: str  # a student, or where the answer is published


@dataclass
class Comparison:
    """All that was found in one lab."""

    lab: str
    scales: list[Scale]
    students: int = 0
    found: list[Found] = field(default_factory=list)
    explained: int = 0  # pairs of students who both resemble the same published answer
    unread: dict[str, str] = field(default_factory=dict)  # student -> why nothing or not all was compared
    programs: dict[tuple[str, str], Fingerprint] = field(default_factory=dict)  # (question, owner) -> program

    def pairs(self) -> list[tuple[str, str, list[Found]]]:
        """(left, right, what was found in each question): those who agree in most questions first."""
        together: dict[tuple[str, str], list[Found]] = {}
        for each in self.found:
            together.setdefault((each.left, each.right), []).append(each)
        ranked = sorted(together.items(), key=lambda item: (-sum(f.score for f in item[1]), item[0]))
        return [(left, right, found) for (left, right), found in ranked]


# --- what is known ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """The published answers to one question, and its scale."""

    question: Question
    given: frozenset[int]
    published: dict[str, Fingerprint]
    scale: Scale


def known(lab: Lab, release: Release) -> list[Known]:
    """What is known of each code question of the lab."""
    cells = [cell.source for cell in release.notebook.cells if cell.cell_type == "code"]
    given = frozenset().union(*(fingerprint(source).marks for source in cells))
    return [known_of(lab, question, given) for question in lab.checks.values()]


def known_of(lab: Lab, question: Question, given: frozenset[int]) -> Known:
    worked = worked_solution(lab, question)
    published = {WORKED: fingerprint(worked).without(given)}
    oracle = lab.oracle(question)
    if oracle is not None and question.oracle is not None:
        published[question.oracle] = fingerprint("\n\n".join(program_of(oracle))).without(given)
    mistakes = [fingerprint("\n\n".join(program_of(m.answer))).without(given) for m in lab.mistakes(question.name)]
    return Known(question, given, published, measure(question.name, worked, published, mistakes, given))


def worked_solution(lab: Lab, question: Question) -> str:
    cells = [Cell(str(c.metadata.get("question") or i), c.source) for i, c in enumerate(lab.cells) if "check" not in
             c.metadata and c.cell_type == "code"]  # fmt: skip
    return answer_in(cells, question.answer, question.name, answers_of(lab))


def answers_of(lab: Lab) -> set[str]:
    return {question.answer for question in lab.checks.values()}


def measure(
    name: str, worked: str, published: dict[str, Fingerprint], mistakes: Iterable[Fingerprint], given: frozenset[int]
) -> Scale:
    """The scale of one question. Without an oracle the mistakes stand against the worked solution, which is strict."""
    solution = published[WORKED]
    right = [each for each in published.values() if each.lines]
    smallest = min((len(each.lines) for each in right), default=1)
    bare = Scale(name, smallest=max(smallest, 1))
    other = next((each for owner, each in published.items() if owner != WORKED), solution)
    strangers = [each for each in (*mistakes, solution) if each.lines and each is not other]
    independent = [bare.similarity(other, each) for each in strangers] if other.lines else []
    changed = (source for _, _, source in itertools.islice(source_mutants(worked), SAMPLE))
    copies = [bare.similarity(solution, fingerprint(source).without(given)) for source in changed]
    return Scale(
        name,
        independent=max(independent, default=0.0),
        copied=statistics.median(copies) if copies else 1.0,
        smallest=bare.smallest,
        pairs=len(independent),
    )


# --- the class ----------------------------------------------------------------------------------------


def compare(lab: Lab, notebooks: dict[str, Path]) -> Comparison:
    """Every submission with everything published and with every other."""
    release = load_release(lab.folder)
    facts = known(lab, release)
    result = Comparison(lab.slug, [fact.scale for fact in facts])
    cells = {}
    for student, path in notebooks.items():
        try:
            cells[student] = runnable(take_in(path, release).notebook, release)
        except Refused as problem:
            result.unread[student] = str(problem)
    result.students = len(cells)
    for fact in facts:
        compare_question(fact, cells, answers_of(lab), result)
    return result


def compare_question(fact: Known, cells: dict[str, list[Cell]], answers: set[str], result: Comparison) -> None:
    name, scale = fact.question.name, fact.scale
    theirs: dict[str, Fingerprint] = {}
    for student, own in cells.items():
        source = answer_in(own, fact.question.answer, name, answers)
        print_ = fingerprint(source)
        if not print_.readable:
            result.unread.setdefault(
                student, f"{name}: the answer is no Python, or too large or too deep to take apart"
            )
        theirs[student] = print_.without(fact.given)
    if not scale.tells:
        return
    copied_from: dict[str, set[str]] = {student: set() for student in theirs}
    for student, source_name, score in against_published(fact, theirs):
        copied_from[student].add(source_name)
        result.found.append(Found(name, round(score, 3), student, source_name))
    for left, right, score in among(theirs, scale):
        if copied_from[left] & copied_from[right]:
            result.explained += 1
        else:
            result.found.append(Found(name, round(score, 3), left, right))
    keep = {owner for found in result.found if found.question == name for owner in (found.left, found.right)}
    result.programs |= {(name, owner): each for owner, each in {**theirs, **fact.published}.items() if owner in keep}


def against_published(fact: Known, theirs: dict[str, Fingerprint]) -> Iterator[tuple[str, str, float]]:
    """(student, where it is published, score); of two sources the more similar one."""
    for student, own in theirs.items():
        scores = {name: fact.scale.similarity(own, each) for name, each in fact.published.items() if each.lines}
        best = max(scores, key=lambda name: scores[name], default=None)
        if best is not None and scores[best] >= fact.scale.threshold:
            yield student, best, scores[best]


def among(theirs: dict[str, Fingerprint], scale: Scale) -> Iterator[tuple[str, str, float]]:
    """Pairs of students above the threshold."""
    marks = [(student, each.marks) for student, each in theirs.items() if each.lines]
    for (left, a), (right, b) in itertools.combinations(marks, 2):
        score = len(a & b) / max(min(len(a), len(b)), scale.smallest)
        if score >= scale.threshold:
            yield left, right, score


# --- the command --------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    from autograder.cli import interpret_without_gpu

    arguments = parser().parse_args(argv)
    if arguments.labs is not None:
        os.environ["COURSE_LABS"] = str(arguments.labs.resolve())
    interpret_without_gpu()
    lab = find_lab(arguments.lab)
    notebooks, report = where(arguments, lab)
    if not notebooks:
        raise CycleError(f"no submissions of {lab.slug}: collect them first, or name a folder with --from")
    result = compare(lab, notebooks)
    write_atomically(report, page(result))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(as_data(result), indent=1, ensure_ascii=False) + "\n")
    print(table(result))
    print(f"{report}: both texts of each pair, for staff")
    return 1 if result.found else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="autograder similarity", description=DESCRIPTION)
    result.add_argument("lab", help='the lab\'s folder name, or its number: "03"')
    result.add_argument(
        "--from", dest="folder", type=Path, metavar="DIR", help="<student>.ipynb or <student>/lab.ipynb"
    )
    result.add_argument("--course", type=Path, default=None, help="course folder [default: ./course, or here]")
    result.add_argument("--labs", type=Path, default=None, help="folder of labs [default: found beside the course]")
    result.add_argument("--html", type=Path, default=None, help="the report [default: in the judge's private folder]")
    result.add_argument("--json", type=Path, default=None, help="also write everything as JSON")
    return result


def where(arguments: argparse.Namespace, lab: Lab) -> tuple[dict[str, Path], Path]:
    """The notebooks, and where the report goes: it names students, so it lies in the judge's folder, out of git."""
    from autograder.cli import open_course
    from autograder.judge.cycle import found_in

    if arguments.folder is not None:
        return dict(sorted(found_in(arguments.folder, lab.slug).items())), arguments.html or Path("similarity.html")
    course = open_course(arguments)
    return course.submitted(lab), arguments.html or course.vault.folder / "reports" / f"{lab.slug}-similarity.html"


def table(result: Comparison) -> str:
    """The questions and their thresholds, then the pairs."""
    lines = [f"{'question':24} {'independent':>11} {'one change':>10} {'threshold':>9}  answers above it"]
    for scale in result.scales:
        above = sum(found.question == scale.question for found in result.found)
        verdict = f"{scale.threshold:9.2f}  {above}" if scale.tells else f"{'':9}  too short to tell"
        lines.append(f"{scale.question:24} {scale.independent:11.2f} {scale.copied:10.2f} {verdict}")
    pairs = result.pairs()
    lines += ["", f"{len(pairs)} pairs to look at, of {result.students} submissions"] if pairs else []
    for left, right, found in pairs[:SHOWN]:
        scores = ", ".join(f"{each.question} {each.score:.2f}" for each in found)
        lines.append(f"  {left} ~ {right}: {scores}")
    lines += [f"  … and {len(pairs) - SHOWN} more in the report"] if len(pairs) > SHOWN else []
    lines += [f"{result.explained} pairs of students resemble each other through a published answer, and are not listed"
              ] if result.explained else []  # fmt: skip
    lines += [f"not compared: {student}: {why}" for student, why in sorted(result.unread.items())]
    return "\n".join(lines if pairs else [*lines, f"nothing to look at among {result.students} submissions"])


def as_data(result: Comparison) -> dict[str, object]:
    scales = [{**asdict(each), "tells": each.tells, "threshold": each.threshold} for each in result.scales]
    pairs = [{"left": a, "right": b, "found": [asdict(f) for f in found]} for a, b, found in result.pairs()]
    return {"lab": result.lab, "students": result.students, "scales": scales, "pairs": pairs,
            "explained": result.explained, "unread": result.unread}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
