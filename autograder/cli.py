"""`autograder`: release labs, grade classes, examine the graders. One function per verb; the work is elsewhere."""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DESCRIPTION = """Release labs, grade classes, and examine the graders themselves."""
EPILOG = """a class, end to end:
  autograder release 03                        make the student version through nbgrader, compare it byte for byte
  autograder grade 03 --from submissions/      collect, judge, record, write feedback, export grades.csv
  autograder grade 03                          the same, from nbgrader's exchange

Rerunning is safe: what has not changed is not judged or recorded again. Exit status: 0 all well, 1 a problem with
some submission (named on stderr; it has no points), 2 nothing could be done.
More: autograder VERB --help"""

# Verbs that live in a module of their own: name -> (module, help). Loaded only when called.
ELSEWHERE = {
    "new-lab": ("autograder.new_lab", "make the folder of a new lab"),
    "prove": ("autograder.prove", "the graders' own exam: reference, stubs, mistakes, cheats"),
    "rehearse": ("autograder.rehearse", "grade a synthetic class with known scores"),
    "doctor": ("autograder.doctor", "which grading tier this machine gives, and what it lacks"),
    "redteam": ("autograder.redteam.campaign", "attack the grader, and plain nbgrader beside it"),
    "similarity": ("autograder.similarity", "compare submissions with the reference, the solutions and each other"),
    "fuzz": ("autograder.fuzz", "throw hostile frames and notebooks at what reads them"),
    "insights": ("autograder.insights", "which mistakes a class made, and which questions were hard"),
    "roster": ("autograder.staff.roster", "put names, emails and LMS ids from a CSV file into the gradebook"),
    "explain": ("autograder.staff.explain", "what was run for one student, which cases, and what staff should know"),
    "history": ("autograder.staff.history", "how one student's grade came about"),
    "requests": ("autograder.staff.requests", "students who disagree: what is open, with the judge's words"),
    "regrade": (
        "autograder.staff.regrade",
        "after a corrected check: show old and new grades, then write and log them",
    ),
    "throughput": ("autograder.throughput", "submissions per second, beside plain nbgrader's"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in ELSEWHERE:
        return guarded(argv[0], lambda: importlib.import_module(ELSEWHERE[argv[0]][0]).main(argv[1:]))
    arguments = parser().parse_args(argv)
    prepare(arguments)
    return guarded(arguments.verb, lambda: arguments.run(arguments))


def guarded(verb: str, run: Callable[[], Any]) -> int:
    """Run a verb; what an instructor can mend is a message and not a traceback."""
    from autograder.judge.verdict import CycleError
    from autograder.judge.zygote import SandboxError
    from autograder.labs import LabError

    try:
        return int(run() or 0)
    except (CycleError, LabError, SandboxError, FileNotFoundError) as problem:
        print(f"autograder {verb}: {problem}", file=sys.stderr)
        return 2


def prepare(arguments: argparse.Namespace) -> None:
    """Settings that must stand before torch, Triton and nbgrader are imported."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.labs is not None:
        os.environ["COURSE_LABS"] = str(arguments.labs.resolve())
    interpret_without_gpu()


def interpret_without_gpu() -> None:
    """Triton's interpreter where no GPU is; it counts only before Triton is first imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="autograder", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    add_release(verbs)
    add_grade(verbs)
    judge = add(verbs, "judge", "write a signed verdict for each collected submission", run_judge, lab=True)
    add_judging(judge)
    add_students(judge)
    add_students(add(verbs, "record", "put the verdicts into nbgrader's gradebook", run_record, lab=True))
    add_students(add(verbs, "feedback", "write one HTML page per student", run_feedback, lab=True))
    export = add(verbs, "export", "write all grades as CSV; a file that is there is kept under its date", run_export)
    export.add_argument("--to", type=Path, default=None, help="[default: grades.csv, grades-canvas.csv, …]")
    export.add_argument("--format", choices=("csv", "canvas", "moodle"), default="csv", help="[default: csv]")
    for name, (_, says) in ELSEWHERE.items():
        verbs.add_parser(name, help=says, add_help=False)
    return top


def add(verbs: Any, name: str, says: str, run: Callable[[Any], int], lab: bool = False) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=says, description=says[0].upper() + says[1:] + ".")
    verb.set_defaults(run=run)
    if lab:
        verb.add_argument("lab", help='the lab\'s folder name, or its number: "03"')
    verb.add_argument("--course", type=Path, default=None, help="course folder [default: ./course, or here]")
    verb.add_argument("--labs", type=Path, default=None, help="folder of labs [default: found beside the course]")
    return verb


def add_release(verbs: Any) -> None:
    verb = add(verbs, "release", "make nbgrader's release of a lab", run_release, lab=True)
    verb.add_argument("--publish", action="store_true", help="also put it into nbgrader's exchange for students")


def add_grade(verbs: Any) -> None:
    verb = add(verbs, "grade", "collect, judge, record, write feedback and export", run_grade, lab=True)
    verb.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="<student>.ipynb or <student>/lab.ipynb")
    verb.add_argument("--csv", type=Path, default=Path("grades.csv"), help="where the grades go [default: grades.csv]")
    add_judging(verb)


def add_judging(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--jobs", type=int, default=None, help="submissions judged at once [default: one per core]")
    verb.add_argument("--new-seed", action="store_true", help="draw new hidden cases: regrades everybody")
    verb.add_argument(
        "--engine", choices=("local", "slurm"), default="local", help="this machine, or a cluster [default: local]"
    )
    verb.add_argument(
        "--nodes", type=int, default=None, help="with slurm: tasks at once, each with --jobs [default: course.toml]"
    )


def add_students(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--student", action="append", default=[], metavar="ID", help="only this one; may be repeated")


# --- verbs --------------------------------------------------------------------------------------------


def run_release(arguments: argparse.Namespace) -> int:
    from autograder.judge import cycle
    from autograder.labs import find_lab

    path = cycle.release(open_course(arguments), find_lab(arguments.lab), publish=arguments.publish)
    print(f"{path}: released, equal to the lab's own notebook byte for byte")
    return 0


def run_judge(arguments: argparse.Namespace) -> int:
    from autograder.judge import cycle
    from autograder.labs import find_lab

    course, lab = open_course(arguments), find_lab(arguments.lab)
    where = engine_of(arguments, course)
    return tell("judge", cycle.judge(course, lab, new_seed=arguments.new_seed, students=arguments.student, **where))


def engine_of(arguments: argparse.Namespace, course: Any) -> dict[str, Any]:
    """Where `judge` runs, and how many submissions at once: here, or in each task on a cluster."""
    from autograder.judge import cycle

    if arguments.engine == "local":
        return {"jobs": arguments.jobs or cycle.default_jobs()}
    from autograder.judge.slurm import Slurm

    engine = Slurm(course.root, tasks=arguments.nodes, cores=arguments.jobs)
    return {"engine": engine, "jobs": engine.request.cores}


def run_record(arguments: argparse.Namespace) -> int:
    from autograder.judge import cycle
    from autograder.labs import find_lab
    from autograder.staff import late

    course, lab = open_course(arguments), find_lab(arguments.lab)
    status = tell("record", cycle.record(course, lab, arguments.student))
    late.settle(course, [lab.slug])
    return status


def run_feedback(arguments: argparse.Namespace) -> int:
    from autograder.judge import cycle
    from autograder.labs import find_lab
    from autograder.staff import late

    course, lab = open_course(arguments), find_lab(arguments.lab)
    late.settle(course, [lab.slug])
    return tell("feedback", cycle.write_feedback(course, lab, arguments.student))


def run_export(arguments: argparse.Namespace) -> int:
    from autograder.staff import exports, late

    name = "grades.csv" if arguments.format == "csv" else f"grades-{arguments.format}.csv"
    course = open_course(arguments)
    late.settle(course)
    print(exports.export(course, arguments.to or Path(name), arguments.format))
    return 0


def run_grade(arguments: argparse.Namespace) -> int:
    """All steps; a problem with one submission does not keep the others from their grade."""
    from autograder.judge import cycle
    from autograder.judge.receipt import all_refused
    from autograder.judge.tiers import NOT_FOR_GRADES, machine_tier
    from autograder.labs import find_lab
    from autograder.staff import exports, late

    start = time.monotonic()
    course, lab = open_course(arguments), find_lab(arguments.lab)
    where = engine_of(arguments, course)
    status = tell("collect", cycle.collect(course, lab, arguments.folder))
    status |= tell("judge", cycle.judge(course, lab, new_seed=arguments.new_seed, **where))
    status |= tell("record", cycle.record(course, lab))
    late.settle(course)
    status |= tell("feedback", cycle.write_feedback(course, lab, fresh=False))
    print(exports.export(course, arguments.csv))
    print(table(cycle.scores(course, lab), all_refused(course.vault.folder, lab.slug)))
    print(f"{lab.slug}: {time.monotonic() - start:.0f} s" + (f". {NOT_FOR_GRADES}" if machine_tier() == "T0" else ""))
    return status


def table(scores: dict[str, dict[str, Any]], refused: dict[str, Any]) -> str:
    """Student, points, whether a person still has something to read, and whose last file was refused."""
    lines = [f"{'student':24} {'points':>8}  of"]
    for student, row in sorted(scores.items()):
        waits = "  a written answer waits for a person" if row["needs_manual_grade"] else ""
        again = "  a newer file was refused" if student in refused else ""
        lines.append(f"{student:24} {row['score']:8g}  {row['max_score']:g}{waits}{again}")
    lines += [
        f"{student:24} {'-':>8}  refused: {refused[student].staff[0]}" for student in sorted(refused.keys() - scores)
    ]
    return "\n".join(lines)


def tell(step: str, progress: Any) -> int:
    """One line for the step, one per problem; the exit status."""
    print(f"{step}: {progress.text}", flush=True)
    for student, says in sorted(progress.problems.items()):
        print(f"  {student}: {says}", file=sys.stderr)
    return 1 if progress.problems else 0


def open_course(arguments: argparse.Namespace) -> Any:
    """The course folder: --course, ./course, or a folder above that holds nbgrader_config.py."""
    from autograder.judge.cycle import Course

    if arguments.course is not None:
        return Course(arguments.course)
    here = Path.cwd()
    for folder in (here / "course", here, *here.parents):
        if (folder / "nbgrader_config.py").is_file():
            return Course(folder)
    return Course(here / "course")
