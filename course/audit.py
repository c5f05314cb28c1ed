"""`python -m course audit`: every number of the source lectures that the units touch, recomputed and judged.

The records are `course/claims/NN_slug.toml`, one file per unit. A record quotes a number, says in `compute` how it
follows, and under which rule the two must agree. The verdict is computed:

    reproduced            the recomputed value agrees with the printed one
    corrected             it does not: a slip, shown with its arithmetic
    shown in kind         a statement without a number, or beyond this machine: what it says holds on our own runs
    not testable here     needs what is not here; the record says what

The command reruns the records in one child process that meets `refimpl` by name, compares each verdict with the
record's `expect`, and writes `course/audit.md`. `--check` writes nothing: it fails on a changed verdict or stale page.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "course" / "claims"
PAGE = ROOT / "course" / "audit.md"
REPRODUCED, CORRECTED, IN_KIND, UNTESTABLE = "reproduced", "corrected", "shown in kind", "not testable here"
VERDICTS = (REPRODUCED, CORRECTED, IN_KIND, UNTESTABLE)
ID = re.compile(r"(S\d)\.(\d+)([a-z]?)")
KEYS = {"id", "row", "quote", "claim", "value", "compute", "rule", "how", "expect", "why", "shows", "columns", "cells"}
NUMBERS = re.compile(
    r"\d|\bO\(|mathcal\{O\}|\b(?:two|three|third|single|half|double|twice|quadratic\w*|exponentially)\b", re.IGNORECASE
)


class AuditError(Exception):
    """The records are not in order; the message says where and what to do."""


@dataclass(frozen=True)
class Record:
    """One number of a lecture, and how it is recomputed."""

    id: str  # S3.514: source, line of its text, and a letter where a line holds several numbers
    unit: str
    row: int
    quote: str
    claim: str
    expect: str
    why: str
    value: Any = True
    compute: str = ""
    rule: str = "equal"
    how: str = "number"  # number | kind | none
    use: tuple[str, ...] = ()
    shows: dict[str, str] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, int]:
        """(source, line)."""
        source, line, _ = ID.fullmatch(self.id).groups()  # type: ignore[union-attr]
        return source, int(line)


@dataclass(frozen=True)
class Finding:
    """A record with what its recomputation gave."""

    record: Record
    verdict: str
    value: Any
    why: str  # with the recomputed numbers filled in
    error: str = ""

    @property
    def as_expected(self) -> bool:
        return self.verdict == self.record.expect and not self.error


# --- records ---------------------------------------------------------------------------------------------------------


def read_records(folder: Path = FOLDER) -> list[Record]:
    """All records, in the order of the units and of the files."""
    found = [record for path in sorted(folder.glob("[0-9]*.toml")) for record in read_file(path)]
    twice = [name for name, count in Counter(record.id for record in found).items() if count > 1]
    if twice:
        raise AuditError(
            f"{folder}: two records are called {', '.join(twice)}. Add a letter: {twice[0]}a, {twice[0]}b."
        )
    return found


def read_file(path: Path) -> Iterator[Record]:
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    for table in raw["claim"]:
        unknown = table.keys() - KEYS
        if unknown:
            raise AuditError(f"{path.name}: {table.get('id')}: unknown key {sorted(unknown)}. Keys: {sorted(KEYS)}.")
        for one in expand(table):
            record = Record(**one, unit=path.stem, use=tuple(raw.get("use", ())))
            check_record(path, record)
            yield record


def expand(table: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A table with `columns` and `cells` is one record per cell; `{column}` in its texts is filled in."""
    columns, cells = table.pop("columns", []), table.pop("cells", [[]])
    for cell in cells:
        given = dict(zip(columns, cell, strict=True))
        one = {key: fill(text, given) if isinstance(text, str) and key != "compute" else text
               for key, text in table.items()}  # fmt: skip
        yield {**one, "given": given} | {key: given[key] for key in ("quote", "value") if key in given}


def check_record(path: Path, record: Record) -> None:
    """A record that could not be judged is refused when it is read."""
    where = f"{path.name}: {record.id}"
    if not ID.fullmatch(record.id):
        raise AuditError(f"{where}: an id is source, dot, line, perhaps a letter: S3.514 or S1.288b.")
    if record.expect not in VERDICTS or record.how not in ("number", "kind", "none"):
        raise AuditError(f"{where}: expect is one of {', '.join(VERDICTS)}; how is number, kind or none.")
    if record.how != "none" and not record.compute:
        raise AuditError(f'{where}: no `compute`. Say how the value follows, or how = "none" and why it cannot here.')
    if not record.why.strip():
        raise AuditError(f"{where}: no `why`. Say how the number follows, where it slips, or what is missing here.")


def fill(text: str, values: dict[str, Any]) -> str:
    """`{name}` and `{name:.1f}` replaced where the name is known; other braces, TeX for example, stay."""

    def replaced(found: re.Match[str]) -> str:
        name, _, spec = found[1].partition(":")
        return format(values[name], spec) if name in values else found[0]

    return re.sub(r"\{(\w+(?::[^{}]*)?)\}", replaced, text)


# --- judging ---------------------------------------------------------------------------------------------------------


def audit(records: Sequence[Record], root: Path = ROOT) -> list[Finding]:
    """Recompute all records in one child process and judge them."""
    asked = [
        {"id": r.id, "use": r.use, "compute": r.compute, "shows": r.shows, "given": r.given}
        for r in records
        if r.compute
    ]
    results = recompute(asked, root) if asked else {}
    return [judge(record, results.get(record.id, {})) for record in records]


def recompute(asked: list[dict[str, Any]], root: Path = ROOT) -> dict[str, Any]:
    """What the child process says: id -> value and shows, or error. It imports `refimpl`; this process does not."""
    command = [sys.executable, "-m", "course.claims.recompute"]
    made = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, cwd=root, check=False)
    if made.returncode:
        raise AuditError(f"{' '.join(command[1:])} ended with {made.returncode}:\n{made.stderr.strip()[-2000:]}")
    return dict(json.loads(made.stdout.splitlines()[-1]))


def judge(record: Record, result: dict[str, Any]) -> Finding:
    """The verdict, and `why` with the recomputed numbers in it."""
    if error := result.get("error", ""):
        return Finding(record, UNTESTABLE, None, record.why, error)
    value = result.get("value")
    why = fill(record.why, {**record.given, "x": value, **result.get("shows", {})})
    if record.how == "none":
        return Finding(record, UNTESTABLE, value, why)
    good = IN_KIND if record.how == "kind" else REPRODUCED
    return Finding(record, good if agrees(record.rule, record.value, value) else CORRECTED, value, why)


def agrees(rule: str, printed: Any, value: Any) -> bool:
    """Whether a recomputed value is what is printed.

    equal           the same
    rounded         rounded half up to the digits that are printed
    within P %      nearer than P percent of what is printed
    at least        not less than what is printed; `less than`: less
    all equal       two ways to compute it agree, whatever is printed
    below X         smaller than X, whatever is printed: for errors
    """
    if rule == "equal":
        return bool(value == printed)
    if rule == "rounded":
        return Decimal(str(value)).quantize(Decimal(str(printed)), ROUND_HALF_UP) == Decimal(str(printed))
    if rule == "at least":
        return bool(value >= float(printed))
    if rule == "less than":
        return bool(value < float(printed))
    if rule == "all equal":
        return len(set(value)) == 1
    if found := re.fullmatch(r"within ([\d.]+) %", rule):
        pairs = zip(printed, value, strict=True) if isinstance(value, list) else [(printed, value)]
        return all(abs(got - float(said)) <= float(found[1]) / 100 * abs(float(said)) for said, got in pairs)
    if found := re.fullmatch(r"below (\S+)", rule):
        return bool(math.isfinite(value) and value < float(found[1]))
    raise AuditError(f"unknown rule {rule!r}: equal, rounded, within P %, at least, less than, all equal, below X")


# --- the index of lines ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A line, or several, of a source that holds numbers and no claim of its own, and why not."""

    source: str
    lines: tuple[int, ...]
    why: str


def read_index(folder: Path = FOLDER) -> tuple[dict[str, list[list[int]]], list[Entry]]:
    """(source -> ranges of lines that the audited units cover, lines without a record and the reason)."""
    raw = tomllib.loads((folder / "lines.toml").read_text(encoding="utf-8"))
    entries = [Entry(each["source"], tuple(spread(each["lines"])), each["why"]) for each in raw["line"]]
    return raw["covered"], entries


def spread(lines: Sequence[int | list[int]]) -> Iterator[int]:
    """[3, [7, 9]] is 3, 7, 8, 9."""
    for each in lines:
        yield from [each] if isinstance(each, int) else range(each[0], each[1] + 1)


def index_problems(records: Sequence[Record], folder: Path = FOLDER) -> Iterator[str]:
    """Records and index agree without the lecture texts: every place is covered, none is both claim and no claim."""
    covered, entries = read_index(folder)
    reasons = {(entry.source, line): entry.why for entry in entries for line in entry.lines}
    for record in records:
        source, line = record.place
        if not any(first <= line <= last for first, last in covered.get(source, [])):
            yield f"{record.id}: line {line} lies outside what lines.toml covers of {source}. Extend `covered`."
        if record.place in reasons:
            yield f"{record.id}: lines.toml says this line holds no claim. Remove it there."
    for (source, line), why in reasons.items():
        if not why.strip():
            yield f"{source}.{line}: no reason why it holds no claim."


def source_problems(texts: Path, records: Sequence[Record], folder: Path = FOLDER) -> Iterator[str]:
    """With the lecture texts at hand: every quote stands on its line, every line with a number is accounted for."""
    covered, entries = read_index(folder)
    known = {record.place for record in records} | {(e.source, line) for e in entries for line in e.lines}
    for source, ranges in covered.items():
        (path,) = sorted(texts.glob(f"{int(source[1:]):03}_*.txt"))
        lines = path.read_text(encoding="utf-8").splitlines()
        for record in records:
            if record.place[0] == source and squeezed(record.quote) not in squeezed(lines[record.place[1] - 1]):
                yield f"{record.id}: the quote {record.quote!r} is not on line {record.place[1]} of {path.name}."
        for first, last in ranges:
            for number in range(first, min(last, len(lines)) + 1):
                if NUMBERS.search(lines[number - 1]) and (source, number) not in known:
                    yield f"{source}.{number}: no record and no reason: {lines[number - 1].strip()[:80]}"


def squeezed(text: str) -> str:
    return " ".join(text.split())


# --- the page --------------------------------------------------------------------------------------------------------

SOURCES = {
    "S0": "Long context in LLMs. Systems for Machine Learning, CMSC828G, University of Maryland (`000_…`)",
    "S1": "Lecture 5: Efficiency in LLMs. CSC6203/CIE6021, CUHK Shenzhen, winter 2023 (`001_…`)",
    "S2": "Long context LLM training with FPDT (`002_…`); its numbers belong to units 15 and 16",
    "S3": "Lecture 15: Transformer models. CSDS 451, Case Western Reserve University, 16 October 2024 (`003_…`)",
}
HEAD = """# The audit of the sources

Generated by `python -m course audit`; do not edit. `python -m course audit --check` recomputes everything and fails
where a verdict or this page no longer holds; `python -m course audit S3.402` shows one record and its command.

The course grew out of four lectures. Every number in them that a unit touches is a record in `course/claims/`: what is
printed, how it follows, and under which rule the two must agree. The verdict is computed; recomputed numbers are filled
into the last column. Lines that hold a number and no claim of it stand in `course/claims/lines.toml`, each with a
reason. A slip is not a fault of the lecturer; finding it is a lab question.
"""


def rendered(findings: Sequence[Finding]) -> str:
    """The page."""
    slips = [f for f in findings if f.verdict == CORRECTED]
    parts = [HEAD, f"**{summary(findings)}**, of {len(findings)} numbers and formulas.\n", rows_table(findings)]
    parts.append("An id names source and line: `S3.514` is line 514 of the text of S3.\n")
    parts.append("".join(f"- **{name}**: {title}.\n" for name, title in SOURCES.items()))
    parts.append("## The slips\n\nWhat does not follow, with the arithmetic.\n")
    parts.append("".join(f"- **{f.record.id}** {printed(f)} · {f.record.claim} {f.why}\n" for f in slips))
    for unit in dict.fromkeys(f.record.unit for f in findings):
        parts += [f"## Unit {unit[:2]}: {unit[3:].replace('_', ' ')}\n", unit_table(findings, unit)]
    return "\n".join(parts)


def summary(findings: Sequence[Finding]) -> str:
    count = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS)


def rows_table(findings: Sequence[Finding]) -> str:
    """One line per row of the course's list of facts: how many of each verdict."""
    lines = [["row", *VERDICTS]]
    for row in sorted({finding.record.row for finding in findings}):
        count = Counter(finding.verdict for finding in findings if finding.record.row == row)
        lines.append([str(row), *(str(count[verdict] or "") for verdict in VERDICTS)])
    return table(lines)


def unit_table(findings: Sequence[Finding], unit: str) -> str:
    lines = [["id", "printed", "claim", "recomputed", "verdict", "how, and why"]]
    for f in (f for f in findings if f.record.unit == unit):
        verdict = f"**{f.verdict}**" if f.verdict == CORRECTED else f.verdict
        lines.append([f.record.id, printed(f), f.record.claim, outcome(f), verdict, f.why])
    return table(lines)


def table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [[cell.replace("|", "\\|").replace("\n", " ").strip() for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rest])


def printed(finding: Finding) -> str:
    """The quote, as code: TeX in it is text here."""
    return f"`{squeezed(finding.record.quote).replace('`', '')}`"


def outcome(finding: Finding) -> str:
    """The recomputed value; an error within rounding is said in words, because its digits differ between machines."""
    exact = finding.record.rule.startswith("below") and finding.verdict == REPRODUCED
    return "exact to rounding" if exact else shown(finding.value)


def shown(value: Any) -> str:
    """A recomputed value for a reader: five digits, thousands separated."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "holds" if value else "does not hold"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.5g}" if abs(value) < 1e5 else f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(shown(each) for each in value)
    return str(value)


# --- the command -----------------------------------------------------------------------------------------------------


def chosen(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Records by row ("3"), unit ("02", "02_cost_model"), source ("S3") or id ("S3.514"); all where none is named."""
    if not names:
        return list(records)
    unknown = [name for name in names if not any(matches(record, name) for record in records)]
    if unknown:
        rows = ", ".join(str(row) for row in sorted({record.row for record in records}))
        units = ", ".join(sorted({record.unit for record in records}))
        raise AuditError(f"nothing is called {', '.join(unknown)}. Rows: {rows}. Units: {units}. Or an id: S3.514.")
    return [record for record in records if any(matches(record, name) for name in names)]


def matches(record: Record, name: str) -> bool:
    source, line = record.place
    return name in (str(record.row), record.unit, record.unit[:2], source, f"{source}.{line}", record.id)


def report(findings: Sequence[Finding], verbose: bool) -> None:
    """One line a record; with `verbose` also its command and its reason."""
    for f in findings:
        mark = " " if f.as_expected else "!"
        print(f"{mark} {f.record.id:9} row {f.record.row:<2} {f.verdict:18} {printed(f)[:46]:46}  {outcome(f)}")
        if verbose:
            for text in (f.record.claim, f.record.compute or "(nothing to run)", f.why):
                print(f"            {text}")
        if not f.as_expected:
            print(f"            expected {f.record.expect}. {f.error}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="course audit", description="Recompute the numbers of the source lectures.")
    parser.add_argument("names", nargs="*", metavar="ROW|UNIT|ID", help="only these: 3, 02, S3, S3.514 [default: all]")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a changed verdict or a stale page")
    parser.add_argument("--quiet", action="store_true", help="only the summary and what is wrong")
    parser.add_argument("--sources", type=Path, metavar="DIR", help="folder of the lecture texts: check every quote")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Rerun the claims; write the page unless asked to check, or asked for a part."""
    arguments = parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    try:
        records = read_records(FOLDER)
        problems = [*index_problems(records, FOLDER)]
        if arguments.sources:
            problems += source_problems(arguments.sources, records, FOLDER)
        findings = audit(chosen(records, arguments.names))
    except AuditError as error:
        print(f"course audit: {error}", file=sys.stderr)
        return 2
    report([f for f in findings if not (arguments.quiet and f.as_expected)], verbose=len(findings) < 10)
    print(f"{summary(findings)}, of {len(findings)}.")
    changed = [f.record.id for f in findings if not f.as_expected]
    if changed:
        problems.append(f"CHANGED {', '.join(changed)}: the verdict is not what the record expects. Mend one of them.")
    if not arguments.names:
        problems += page_problems(findings, write=not arguments.check and not changed)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def page_problems(findings: Sequence[Finding], *, write: bool) -> Iterator[str]:
    """Write the page, or say that it is stale."""
    text = rendered(findings)
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return
    if not write:
        yield f"STALE {PAGE.relative_to(ROOT)}: it is not what the records give. Run: python -m course audit"
        return
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: written")


if __name__ == "__main__":
    sys.exit(main())
