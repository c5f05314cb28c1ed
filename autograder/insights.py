"""What a class did: which mistakes, which questions were hard, what nobody has a diagnosis for. `autograder insights`.

Everything comes from the signed verdicts and from the record of tries. Nobody is named unless you ask for names, and a
group of one or two people is not shown: in a class where one person made a mistake, "one person" is a name.
"""

import argparse
import json
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autograder.judge.calls import ERRORS, OURS
from autograder.judge.history import tries
from autograder.judge.vault import Vault, write_atomically
from autograder.judge.verdict import BadVerdict, CycleError, Verdict, load
from autograder.labs import Lab, find_lab

SMALLEST_GROUP = 3  # people; fewer could be recognised
STOPS = ERRORS | OURS | {"Timeout", "Crash", "Exception", "Overtime"}
DESCRIPTION = """Which mistakes a class made, which questions were hard, and what nobody has a diagnosis for yet.
Exit status: 0 a report was made, 1 and some verdicts could not be read, 2 there is nothing to report on."""


@dataclass(frozen=True)
class Group:
    """Students who did the same thing in one question."""

    question: str
    what: str
    students: tuple[str, ...]
    says: str = ""  # the diagnosis, or the shape of the messages


@dataclass(frozen=True)
class Item:
    """One question, as test theory sees it."""

    question: str
    students: int
    passed: int
    partly: int
    failed: int
    untried: int
    difficulty: float  # mean share of the points; 1 is easy
    discrimination: float | None  # correlation with the rest of the lab; None where either does not vary
    hardest: str = ""  # the case that the fewest pass, of those who tried
    hardest_passed: float = 1.0


@dataclass(frozen=True)
class Insights:
    """A class in one lab."""

    lab: str
    students: int
    items: list[Item]
    mistakes: list[Group]
    undiagnosed: list[Group]
    attempts: dict[str, int] = field(default_factory=dict)  # student -> tries
    gained: float | None = None  # mean share of the points between first and last try, of those with several
    unread: dict[str, str] = field(default_factory=dict)


# --- what the verdicts say ----------------------------------------------------------------------------


def gather(lab: Lab, vault: Vault) -> Insights:
    """Read every verdict of the lab and count."""
    verdicts, unread = [], {}
    for path in sorted((vault.folder / "verdicts" / lab.slug).glob("*.json")):
        try:
            verdicts.append(load(lab.slug, path.stem, vault))
        except BadVerdict as problem:
            unread[path.stem] = str(problem)
    if not verdicts:
        raise CycleError(f"there is no verdict on {lab.slug} in {vault.folder}: run `autograder judge {lab.slug}`")
    history = {verdict.student: tries(lab.slug, verdict.student, vault) for verdict in verdicts}
    return Insights(
        lab.slug,
        len(verdicts),
        [item(name, verdicts) for name in lab.checks if any(name in v.questions for v in verdicts)],
        groups(diagnosed(verdicts)),
        groups(unexplained(verdicts), by_words=True),
        {student: max(1, len(records)) for student, records in history.items()},
        gain(history.values(), sum(info.points for info in lab.questions.values() if not info.written)),
        unread,
    )


def item(name: str, verdicts: Sequence[Verdict]) -> Item:
    """Difficulty and discrimination of one question, and its hardest case."""
    there = [v for v in verdicts if name in v.questions]
    mine = [v.questions[name] for v in there]
    shares = [q["earned"] / q["points"] if q["points"] else 0.0 for q in mine]
    rest = [sum(q["earned"] for other, q in v.questions.items() if other != name) for v in there]
    states = Counter(q["status"] for q in mine)
    passes: dict[str, list[bool]] = {}
    for case in (case for q in mine for case in q["cases"]):
        passes.setdefault(case["name"], []).append(case["passed"])
    rates = {case: statistics.mean(passed) for case, passed in passes.items()}
    hardest = min(rates, key=lambda case: rates[case], default="")
    return Item(
        name,
        students=len(mine),
        passed=states["passed"],
        partly=states["partly right"],
        failed=states["not right yet"],
        untried=states["not attempted yet"],
        difficulty=statistics.mean(shares),
        discrimination=correlation(shares, rest),
        hardest=hardest,
        hardest_passed=rates.get(hardest, 1.0),
    )


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's r, or None where it has no meaning."""
    if len(a) < SMALLEST_GROUP or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return statistics.correlation(a, b)


def diagnosed(verdicts: Iterable[Verdict]) -> Iterable[tuple[str, str, str, str]]:
    """(question, mistake, what it says, student)"""
    for verdict in verdicts:
        for name, question in verdict.questions.items():
            if question["mistake"]:
                yield name, question["mistake"], question["diagnosis"], verdict.student


def unexplained(verdicts: Iterable[Verdict]) -> Iterable[tuple[str, str, str, str]]:
    """(question, failed cases and mechanisms, shape of the first message, student) where no mistake is named."""
    for verdict in verdicts:
        for name, question in verdict.questions.items():
            failed = [each for each in (*question["cases"], *question["mechanisms"]) if not each["passed"]]
            if failed and not question["mistake"]:
                yield name, ", ".join(each["name"] for each in failed), shape(failed[0]["message"]), verdict.student


def shape(message: str) -> str:
    """A message without numbers and without the student's words: what two people with one fault share."""
    kind = message.partition(":")[0]
    if kind in STOPS:
        return f"stopped with {kind}"
    message = re.sub(r"`[^`]*`|“[^”]*”|\[[^\]]*\]", "…", message)
    message = re.sub(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?|\b(?:nan|inf)\b", "#", message)
    return re.sub(r"#(?:[\s×x,]*#)+", "#", message)[:160]


def groups(found: Iterable[tuple[str, str, str, str]], *, by_words: bool = False) -> list[Group]:
    """Students by question and by what they did (and, `by_words`, by what was said), the largest group first.

    A known mistake may be said in several ways ("This explains 3 of your 4 wrong results"); the first one stands.
    """
    together: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for question, what, says, student in found:
        key = (question, what, says) if by_words else (question, what)
        together.setdefault(key, (says, []))[1].append(student)
    made = [Group(key[0], key[1], tuple(sorted(who)), says) for key, (says, who) in together.items()]
    return sorted(made, key=lambda group: (-len(group.students), group.question, group.what, group.says))


def gain(histories: Iterable[Sequence[dict[str, Any]]], possible: float) -> float | None:
    """Mean gain from the first to the last try, in shares of the points, of those who tried more than once."""
    several = [records for records in histories if len(records) > 1]
    if len(several) < SMALLEST_GROUP or not possible:
        return None
    return statistics.mean(sum(r[-1]["earned"].values()) - sum(r[0]["earned"].values()) for r in several) / possible


# --- the report ---------------------------------------------------------------------------------------


def small(count: int) -> str:
    """A count, unless it could be a name."""
    return str(count) if count == 0 or count >= SMALLEST_GROUP else f"<{SMALLEST_GROUP}"


def shown(found: Sequence[Group], names: bool) -> tuple[list[Group], int]:
    """The groups that may be shown, and how many people are in the others."""
    visible = [group for group in found if names or len(group.students) >= SMALLEST_GROUP]
    return visible, sum(len(group.students) for group in found if group not in visible)


def text(found: Insights, names: bool = False) -> str:
    """The whole report for a terminal."""
    lines = [f"{found.lab}: {found.students} students", ""]
    lines.append(
        f"{'question':22} {'passed':>7} {'partly':>7} {'failed':>7} {'untried':>8} {'mean':>6} {'discr.':>7}  hardest"
    )
    for each in found.items:
        counts = [str(n) if names else small(n) for n in (each.passed, each.partly, each.failed, each.untried)]
        discrimination = "" if each.discrimination is None else f"{each.discrimination:.2f}"
        hardest = f"{each.hardest} ({each.hardest_passed:.0%} pass)" if each.hardest_passed < 1 else ""
        lines.append(
            f"{each.question:22} {counts[0]:>7} {counts[1]:>7} {counts[2]:>7} {counts[3]:>8} {each.difficulty:6.0%}"
            f" {discrimination:>7}  {hardest}"
        )
    lines += ["", *listed("Mistakes that were diagnosed", found.mistakes, names)]
    lines += ["", *listed("Failures without a diagnosis (a large group deserves a mistake in mistakes.py)",
                          found.undiagnosed, names, words=True)]  # fmt: skip
    lines += ["", attempts_line(found)]
    return "\n".join(lines)


def listed(title: str, found: Sequence[Group], names: bool, words: bool = False) -> list[str]:
    visible, hidden = shown(found, names)
    lines = [f"{title}:" if found else f"{title}: none"]
    for group in visible:
        who = f"  [{', '.join(group.students)}]" if names else ""
        bar = "#" * min(40, len(group.students))
        says = f" · {group.says}" if group.says and words else ""
        lines.append(f"  {len(group.students):4} {bar} {group.question}: {group.what}{says}{who}")
    if hidden:
        lines.append(f"       {hidden} more in groups of fewer than {SMALLEST_GROUP}, not shown (--names shows them)")
    return lines


def attempts_line(found: Insights) -> str:
    counts = list(found.attempts.values())
    line = f"Tries: median {statistics.median(counts):g}, most {max(counts)}"
    if found.gained is not None:
        line += f"; from the first to the last try {found.gained:+.0%} of the points"
    return line


def as_data(found: Insights, names: bool = False) -> dict[str, Any]:
    """The report as data, with the same rule about people."""

    def public(all_of_them: Sequence[Group]) -> list[dict[str, Any]]:
        visible, _ = shown(all_of_them, names)
        return [{**asdict(g), "students": list(g.students) if names else len(g.students)} for g in visible]

    items = [asdict(each) for each in found.items]
    if not names:
        items = [{k: small(v) if k in ("passed", "partly", "failed", "untried") else v for k, v in i.items()}
                 for i in items]  # fmt: skip
    attempts = found.attempts if names else sorted(found.attempts.values())
    return {"lab": found.lab, "students": found.students, "items": items, "mistakes": public(found.mistakes),
            "undiagnosed": public(found.undiagnosed), "tries": attempts, "gained": found.gained}  # fmt: skip


# --- the command --------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    from autograder.cli import interpret_without_gpu, open_course
    from autograder.insights_page import page

    arguments = parser().parse_args(argv)
    if arguments.labs is not None:
        os.environ["COURSE_LABS"] = str(arguments.labs.resolve())
    interpret_without_gpu()
    lab, vault = find_lab(arguments.lab), open_course(arguments).vault
    found = gather(lab, vault)
    if found.students < SMALLEST_GROUP and not arguments.names:
        raise CycleError(f"{found.students} students are too few to stay unnamed; --names shows the report with names")
    report = arguments.html or vault.folder / "reports" / f"{lab.slug}-insights.html"
    write_atomically(report, page(found, arguments.names))
    if arguments.json:
        write_atomically(
            arguments.json, json.dumps(as_data(found, arguments.names), indent=1, ensure_ascii=False) + "\n"
        )
    print(text(found, arguments.names))
    print(f"{report}: the same with a figure")
    for student, why in sorted(found.unread.items()):
        print(f"  not counted: {why if arguments.names else why.replace(student, 'one student')}", file=sys.stderr)
    return 1 if found.unread else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="autograder insights", description=DESCRIPTION)
    made.add_argument("lab", help='the lab\'s folder name, or its number: "03"')
    made.add_argument("--names", action="store_true", help="name students, and show groups of one and two")
    made.add_argument("--course", type=Path, default=None, help="course folder [default: ./course, or here]")
    made.add_argument("--labs", type=Path, default=None, help="folder of labs [default: found beside the course]")
    made.add_argument("--html", type=Path, default=None, help="the page [default: in the judge's private folder]")
    made.add_argument("--json", type=Path, default=None, help="also write the counts as JSON")
    return made


if __name__ == "__main__":
    sys.exit(main())
