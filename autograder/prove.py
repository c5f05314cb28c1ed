"""The graders' own exam: `python -m autograder prove [LAB ...] [--quick] [--mutate]`.

For every code question the worked solution must earn all points, the untouched release none, every known mistake must
lose points and be named, and every generic cheat must earn nothing. A survivor is a hole in the checks.

The default goes through the real judge, as a class's notebooks do. `--quick` calls the answers in this process: for
authors, in seconds, but blind to the sandbox (`oracle imported`) and with a stand-in for measured memory.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from autograder.checks import Outcome, Runner, examine
from autograder.cli import interpret_without_gpu
from autograder.labs import Lab, LabError, all_labs, find_lab, load_lab
from autograder.mutate import Survey, survey, unexplained
from autograder.question import Case, Question
from autograder.redteam.bench import Judged, Quick
from autograder.redteam.cheats import cheats
from autograder.score import Report
from autograder.student import visible_seed

MISTAKES_PER_QUESTION = 5


@dataclass(frozen=True)
class Answer:
    """One answer to one question, and what must come of it."""

    question: str
    kind: str  # reference | release | mistake | cheat
    name: str
    cells: tuple[tuple[str, str], ...]  # (name, source) of each code cell of the notebook
    may_raise: tuple[str, ...] = ()  # for a cheat: errors by which the defence may stop it


@dataclass(frozen=True)
class Verdict:
    """What one answer earned under one seed; `problem` is empty when that is what must be."""

    lab: str
    question: str
    kind: str
    name: str
    seed: str  # public | hidden
    earned: float
    points: float
    problem: str = ""


# --- the answers ----------------------------------------------------------------------------------------


def notebook(lab: Lab, added: str = "") -> tuple[tuple[str, str], ...]:
    """The graded cells of lab.py with all worked solutions, and a last cell that redefines one of them."""
    cells = []
    for index, cell in enumerate(lab.cells):
        question = cell.metadata.get("question")
        if question or "setup" in cell.metadata.get("tags", ()):
            cells.append((question or f"setup {index}", cell.source))
    # At the end, where a student's own cells come too: a setup cell may define an answer around the student's part.
    return (*cells, ("added", added)) if added else tuple(cells)


def released(lab: Lab) -> tuple[tuple[str, str], ...]:
    """The setup and solution cells of the committed student notebook."""
    path = lab.folder / "lab.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    graded = [c for c in cells if {"setup", "solution"} & set(c["metadata"].get("tags", ()))]
    return tuple((cell["id"], "".join(cell["source"])) for cell in graded)


def answers(lab: Lab, question: Question) -> Iterator[Answer]:
    """Everything that is proved about one question."""
    name = question.name
    yield Answer(name, "reference", "worked solution", notebook(lab))
    if (lab.folder / "lab.ipynb").is_file():
        yield Answer(name, "release", "untouched", released(lab))
    text = (lab.folder / "mistakes.py").read_text(encoding="utf-8")
    for known in lab.mistakes(name):
        source = f"{text}\n\n{question.answer} = {known.name}\n"
        yield Answer(name, "mistake", known.name, notebook(lab, source))
    cases = [case for _, case in question.draw(visible_seed(lab.slug), draws=1)]
    for cheat in cheats(question, cases):
        yield Answer(name, "cheat", cheat.name, notebook(lab, cheat.source), cheat.may_raise)


# --- what must hold -------------------------------------------------------------------------------------


def demands(lab: Lab, question: Question) -> Iterator[str]:
    """What a question must declare before anything runs; yields what is missing."""
    known = lab.mistakes(question.name)
    mechanisms = {type(mechanism).__name__ for mechanism in question.mechanism}
    if not (lab.folder / "lab.ipynb").is_file():
        yield "no lab.ipynb to prove the release with: build it with `python -m course notebooks`"
    if len(known) < MISTAKES_PER_QUESTION:
        yield f"{len(known)} mistakes: add {MISTAKES_PER_QUESTION - len(known)} more to mistakes.py"
    if "Forbids" in mechanisms and question.library is None:
        yield 'Forbids without a library answer: add `library = "lambda …: …"` that calls what is forbidden'
    if "MemorySlope" in mechanisms and not any("MemorySlope" in mistake.fails for mistake in known):
        yield 'MemorySlope without a full N × N answer: add a mistake with fails="MemorySlope"'
    taken = {q.answer for q in lab.checks.values()} & {mistake.name for mistake in known}
    if taken:
        yield f"mistakes named like an answer of this lab: rename {', '.join(sorted(taken))}"


def problem(answer: Answer, report: Report, errors: Sequence[str]) -> str:
    """What is wrong with what the answer earned, and what to do; empty when it is as it must be."""
    if answer.kind == "reference":
        return "" if report.passed and report.earned == report.points else f"must pass: {why(report)}"
    if answer.kind == "release":
        as_must_be = report.earned == 0 and not report.attempted
        return "" if as_must_be else f'must be "not attempted yet", is "{report.status}": {why(report)}'
    if answer.kind == "mistake":
        if report.earned >= report.points:
            return "survives: add a case that it fails, or strike it from mistakes.py"
        if report.mistake != answer.name:
            told = f"{report.mistake!r} is named" if report.mistake else "no mistake is named"
            return f"loses points, but {told}: add a case on which the two differ ({why(report)})"
        return ""
    if report.earned > 0:
        return f"earns {report.earned:g} of {report.points:g}: make the first case or a mechanism tell it apart"
    stopped_by = set(errors) - set(answer.may_raise)
    if stopped_by and all(errors):
        return f"proves nothing, it only fails with {', '.join(sorted(stopped_by))}: {why(report)}"
    return ""


def why(report: Report) -> str:
    """The first thing that a report finds wrong."""
    if not report.attempted:
        return report.note or "not attempted yet"
    failed = [f"{c.name}: {c.message}" for c in report.cases if not c.passed]
    failed += [f"{m.name}: {m.message}" for m in report.mechanisms if not m.passed]
    return failed[0] if failed else "everything passes"


class Recorder:
    """Passes calls on to a runner and keeps the type of error of each ("" for none)."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.measures = runner, runner.measures
        self.errors: list[str] = []

    def call(self, question: Question, case: Case) -> Outcome:
        outcome = self.runner.call(question, case)
        self.errors.append(outcome.error)
        return outcome

    def peak(self, question: Question, case: Case, warmup: Case) -> tuple[Outcome, int | None]:
        return self.runner.peak(question, case, warmup)

    def race(self, question: Question, oracle: Any, cases: Sequence[Case]) -> list[tuple[Outcome, float]] | None:
        return self.runner.race(question, oracle, cases)


def judge(lab: Lab, answer: Answer, bench: Judged | Quick, seeds: dict[str, int]) -> list[Verdict]:
    """The answer under every seed, in one process that keeps its state."""
    question, points = lab.checks[answer.question], lab.questions[answer.question].points
    known = lab.mistakes(question.name) if answer.kind == "mistake" else ()
    verdicts = []
    with bench.open(answer.cells) as runner:
        for name, seed in seeds.items():
            recorder = Recorder(runner)
            oracle = lab.oracle(question)
            report = examine(question, recorder, oracle=oracle, seed=seed, mistakes=known, points=points)
            found = problem(answer, report, recorder.errors)
            verdict = Verdict(lab.slug, question.name, answer.kind, answer.name, name, report.earned, points, found)
            verdicts.append(verdict)
    return verdicts


class Worker:
    """One process of several that judge answers; it keeps its labs and zygotes warm."""

    benches: ClassVar[dict[Path, Judged | Quick]] = {}

    @classmethod
    def judge(cls, folder: Path, answer: Answer, quick: bool, seeds: dict[str, int]) -> list[Verdict]:
        if folder not in cls.benches:
            cls.benches[folder] = (Quick if quick else Judged)(load_lab(folder))
        bench = cls.benches[folder]
        return judge(bench.lab, answer, bench, seeds)

    @staticmethod
    def survey(folder: Path, question: str, seed: int) -> Survey:
        lab = load_lab(folder)
        return survey(lab, lab.checks[question], (visible_seed(lab.slug), seed))


# --- the table ------------------------------------------------------------------------------------------


def kill_table(verdicts: Sequence[Verdict]) -> str:
    """One line per question: what each kind of answer earned, and how many are as they must be."""
    lines = [f"{'question':42} {'reference':>10} {'release':>8} {'mistakes killed':>16} {'named':>7} {'cheats':>7}"]
    for lab, question in dict.fromkeys((v.lab, v.question) for v in verdicts):
        mine = [v for v in verdicts if (v.lab, v.question) == (lab, question)]
        mistakes = by_name(mine, "mistake")
        killed = sum(all(v.earned < v.points for v in same) for same in mistakes.values())
        named = sum(all(not v.problem for v in same) for same in mistakes.values())
        caught = by_name(mine, "cheat")
        held = sum(all(not v.problem for v in same) for same in caught.values())
        lines.append(
            f"{lab + ' ' + question:42} {share(mine, 'reference'):>10} {share(mine, 'release'):>8}"
            f" {f'{killed} of {len(mistakes)}':>16} {f'{named}':>7} {f'{held} of {len(caught)}':>7}"
        )
    return "\n".join(lines)


def holes(survivors: Sequence[Verdict]) -> list[str]:
    """One line per answer that is not as it must be; the first seed under which it is not speaks."""
    seeds: dict[tuple[str, ...], list[str]] = {}
    problems: dict[tuple[str, ...], str] = {}
    for v in survivors:
        answer = (f"{v.lab} {v.question}", v.kind, v.name)
        seeds.setdefault(answer, []).append(v.seed)
        problems.setdefault(answer, v.problem)
    return [
        f"{where}: {kind} “{name}” ({' and '.join(seeds[where, kind, name])} seed) {text}"
        for (where, kind, name), text in problems.items()
    ]


def by_name(verdicts: Sequence[Verdict], kind: str) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.kind == kind:
            found.setdefault(verdict.name, []).append(verdict)
    return found


def share(verdicts: Sequence[Verdict], kind: str) -> str:
    """Least and most of the points that this kind earned, in percent."""
    shares = sorted({round(100 * v.earned / v.points) for v in verdicts if v.kind == kind})
    return "–".join(f"{s} %" for s in shares) or "?"


# --- the command ----------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    interpret_without_gpu()
    start = time.monotonic()
    try:
        labs = [find_lab(name) for name in options.labs] or all_labs()
        return (mutate if options.mutate else run)(labs, options, start)
    except LabError as error:
        print(f"prove: {error}", file=sys.stderr)
        return 2


def mutate(labs: Sequence[Lab], options: argparse.Namespace, start: float) -> int:
    """Survey the mutants of every oracle and say which of them no case notices."""
    tasks = [(lab.folder, name, options.seed) for lab in labs for name in chosen(lab, options)]
    surveys = list(several(Worker.survey, tasks, options.jobs))
    by_slug = {lab.slug: lab for lab in labs}
    wrong = [(s, text) for s in surveys for text in unexplained(by_slug[s.lab].checks[s.question], s)]
    print(f"{'question':42} {'mutants':>8} {'killed':>7} {'equivalent':>11} {'unexplained':>12}")
    for s in surveys:
        holes = sum(owner is s and text.startswith("survivor") for owner, text in wrong)
        killed, explained = len(s.fates) - len(s.survivors), len(s.survivors) - holes
        print(f"{s.lab + ' ' + s.question:42} {len(s.fates):8} {killed:7} {explained:11} {holes:12}  {s.note}")
    for s, text in wrong:
        print(f"HOLE     {s.lab} {s.question}: {text}")
    total = sum(len(s.fates) for s in surveys)
    print(f"{total} mutants tried in {time.monotonic() - start:.0f} s, {len(wrong)} holes; hidden seed {options.seed}")
    write_json(options, {"seed": options.seed, "surveys": [asdict(s) for s in surveys]})
    return 1 if wrong else 0


def chosen(lab: Lab, options: argparse.Namespace) -> list[str]:
    """The questions of this lab that were asked for."""
    return [name for name in lab.checks if not options.question or name in options.question]


def run(labs: Sequence[Lab], options: argparse.Namespace, start: float) -> int:
    missing, tasks = [], []
    for lab in labs:
        seeds = {"public": visible_seed(lab.slug), "hidden": options.seed}
        questions = [lab.checks[name] for name in chosen(lab, options)]
        missing += [f"{lab.slug} {q.name}: {text}" for q in questions for text in demands(lab, q)]
        # In this process nothing keeps an answer from importing the oracle.
        todo = [a for q in questions for a in answers(lab, q) if not (options.quick and a.name == "oracle imported")]
        tasks += [(lab.folder, answer, options.quick, seeds) for answer in todo]
    verdicts = [verdict for some in several(Worker.judge, tasks, options.jobs) for verdict in some]
    survivors = [v for v in verdicts if v.problem]
    print(kill_table(verdicts))
    for text in missing:
        print(f"MISSING  {text}")
    for text in holes(survivors):
        print(f"HOLE     {text}")
    print(
        f"{len(verdicts)} answers judged in {time.monotonic() - start:.0f} s, {len(survivors)} holes, "
        f"{len(missing)} things missing; hidden seed {options.seed}{' (quick: not through the judge)' * options.quick}"
    )
    write_json(options, {"seed": options.seed, "missing": missing, "verdicts": [asdict(v) for v in verdicts]})
    return 1 if survivors or missing else 0


def write_json(options: argparse.Namespace, result: dict[str, Any]) -> None:
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def several(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Any]:
    """The results of `work` on all tasks, in order, from `jobs` processes (1: from this one)."""
    if jobs == 1:
        try:
            yield from progress((work(*task) for task in tasks), len(tasks))
        finally:
            while Worker.benches:
                Worker.benches.popitem()[1].close()
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from progress(pool.map(work, *zip(*tasks, strict=True)), len(tasks))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="autograder prove", description=__doc__.split("\n\n")[1])
    parser.add_argument("labs", nargs="*", metavar="LAB", help="a lab's slug or number; none means all")
    parser.add_argument("--quick", action="store_true", help="call answers in this process: seconds, for authors")
    parser.add_argument("--mutate", action="store_true", help="mutate the oracles instead, and list what survives")
    parser.add_argument("--question", action="append", help="only this question (may be given again)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(62), help="the hidden seed, to repeat a run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that judge at the same time")
    parser.add_argument("--json", metavar="FILE", help="also write every verdict to FILE")
    return parser.parse_args(argv)


def progress(items: Iterable[Any], total: int) -> Iterator[Any]:
    """A progress bar on stderr where there is someone to look."""
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        return iter(tqdm(items, total=total, unit="answer", disable=not sys.stderr.isatty(), leave=False))
    return iter(items)


if __name__ == "__main__":
    sys.exit(main())
