"""The generated tables of README.md: the units from the tree, the commands from the Makefile.

`python -m course readme` rewrites what stands between `<!-- generated: NAME -->` and `<!-- end -->`;
`--check` only compares, for CI.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from course.audit import VERDICTS, read_records

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TARGET = re.compile(r"^([a-z0-9]+):[^#\n]*## (.+)$", re.MULTILINE)
LECTURE_TITLE = re.compile(r"^# # \d\d · (.+)$", re.MULTILINE)
# The grader counts: mistakes.py may make them in a loop. A process of its own, since course/ imports nothing of ours.
MISTAKES = """
import json, sys, pathlib, autograder.labs as labs
print(json.dumps({lab.slug: len(lab.all_mistakes) for lab in labs.all_labs(pathlib.Path(sys.argv[1]))}))
"""
LECTURE_MINUTES = re.compile(r"\*\*Time\*\* (\d+) min")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def units(root: Path) -> str:
    """One row a unit: what there is to read, to do, and for how many points."""
    lectures = {path.stem: path for path in (root / "lectures").glob("[0-9]*.py")}
    labs = {path.parent.name: path for path in (root / "labs").glob("[0-9]*/lab.toml")}
    rows = []
    for slug in sorted(lectures.keys() | labs.keys()):
        title, lecture, lab, questions, points = slug[3:].replace("_", " "), "", "", "", ""
        if slug in lectures:
            text = lectures[slug].read_text(encoding="utf-8")
            title = found[1] if (found := LECTURE_TITLE.search(text)) else title
            minutes = found[1] if (found := LECTURE_MINUTES.search(text)) else "?"
            lecture = f"[lecture](lectures/{slug}.ipynb), {minutes} min"
        if slug in labs:
            settings = tomllib.loads(labs[slug].read_text(encoding="utf-8"))
            graded = settings.get("questions", {}).values()
            title = settings["title"]
            lab = f"[lab](labs/{slug}/lab.ipynb), {settings['minutes']} min"
            questions, points = str(len(graded)), str(sum(question["points"] for question in graded))
        rows.append([f"{slug[:2]} {title}", lecture, lab, questions, points])
    return table(["unit", "read", "do", "questions", "points"], rows)


def coverage(root: Path) -> str:
    """One row a unit that exists: what it covers, what is graded, what the checks recognise, what was audited."""
    folder = root / "course" / "claims"
    records = read_records(folder) if folder.is_dir() else []
    slugs = {path.stem for path in (root / "lectures").glob("[0-9]*.py")}
    slugs |= {path.parent.name for path in (root / "labs").glob("[0-9]*/lab.toml")}
    known, rows = mistakes_named(root), []
    for slug in sorted(slugs):
        own = [record for record in records if record.unit == slug]
        lab = root / "labs" / slug
        toml = lab / "lab.toml"
        settings = tomllib.loads(toml.read_text(encoding="utf-8")) if toml.is_file() else {}
        graded = settings.get("questions", {}).values()
        counts = Counter(record.expect for record in own)
        rows.append([
            slug[:2], ", ".join(str(row) for row in sorted({record.row for record in own})),
            str(len(graded)), str(sum(question["points"] for question in graded)), str(known.get(slug, 0)),
            ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]),
        ])  # fmt: skip
    return table(["unit", "rows", "questions", "points", "mistakes it names", "numbers of the source lectures"], rows)


def mistakes_named(root: Path) -> dict[str, int]:
    """Slug -> how many known mistakes its checks recognise."""
    if not any((root / "labs").glob("[0-9]*/mistakes.py")):
        return {}
    command = [sys.executable, "-c", MISTAKES, str(root / "labs")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"The labs' mistakes cannot be counted:\n{ran.stderr[-2000:]}")
    return dict(json.loads(ran.stdout))


def measured(root: Path) -> str:
    """Figures of committed results, with the machine and the command that measures them anew."""
    rows = []
    for path in sorted((root / "refimpl" / "bench" / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for row in result["rows"]:
            if row.get("implementation") == "tiled" and row.get("causal"):
                where = (
                    f"{result['provenance']['device']}, {result['threads']} thread(s), {result['provenance']['date']}"
                )
                rows.append([
                    f"tiled causal attention, plain PyTorch, {result['shape']['seq']:,} tokens",
                    f"1/{row['memory_under_naive']:.0f} of naive attention's extra memory, "
                    f"{row['time_over_sdpa']:.2f} times the time of PyTorch's fused one",
                    where, "`make bench`",
                ])  # fmt: skip
    return table(["what", "figure", "where", "command"], rows)


def targets(root: Path) -> list[tuple[str, str]]:
    """(name, what it does) of each documented target of the Makefile."""
    return TARGET.findall((root / "Makefile").read_text(encoding="utf-8"))


def commands(root: Path) -> str:
    return table(["command", "what it does"], [[f"`make {name}`", says] for name, says in targets(root)])


BLOCKS: dict[str, Callable[[Path], str]] = {
    "units": units,
    "coverage": coverage,
    "measured": measured,
    "commands": commands,
}


def rendered(root: Path) -> str:
    """README.md as it should be: hand-written text kept, each generated block made anew."""
    text = (root / "README.md").read_text(encoding="utf-8")
    return BLOCK.sub(lambda block: f"{block[1]}\n{BLOCKS[block['name']](root)}\n{block[3]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite README.md, or with `--check` only say whether it is stale."""
    argv = sys.argv[1:] if argv is None else argv
    path, text = ROOT / "README.md", rendered(ROOT)
    if path.read_text(encoding="utf-8") == text:
        print("README.md is in step with the tree.")
        return 0
    if "--check" in argv:
        print("STALE README.md: a table is not what the tree says. Run: python -m course readme", file=sys.stderr)
        return 1
    path.write_text(text, encoding="utf-8")
    print("README.md: written")
    return 0
