"""The house rules for a notebook, each as a function that yields what is wrong and the way out.

A rule takes a `Draft` and yields (cell number or None, what, fix). `COMMON` rules read every notebook, `LECTURE` and
`LAB` rules one kind. Rules about Python code are in `lint_code`; sizes and their origin are in the table of LIMITS.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nbformat.notebooknode import NotebookNode

from course.notebooks.build import REGION, role
from course.notebooks.sources import Problem, Source

LIMITS = {
    "words in a lecture": 2500,  # 45 to 50 minutes of reading and running
    "words in a lab": 2000,  # what is visible; the folded hints are opened on demand
    "words between two code cells": 180,  # readers call more a wall of text
    "words of alt text": 60,
}
Finding = tuple[int | None, str, str]
PARTS = {False: ("question", "check", "hints"), True: ("written",)}  # by Question.written
FENCE = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)|<img\b([^>]*)>", re.I)


@dataclass(frozen=True)
class Draft:
    """A built notebook with its source, as the rules see it."""

    source: Source
    cells: list[NotebookNode]

    def numbered(self, cell_type: str) -> Iterator[tuple[int, NotebookNode]]:
        return ((i, cell) for i, cell in enumerate(self.cells, start=1) if cell.cell_type == cell_type)

    def of_role(self, wanted: str) -> dict[str, tuple[int, NotebookNode]]:
        """Question name -> (cell number, cell) of the cells with one role."""
        found = ((i, cell, role(cell)) for i, cell in enumerate(self.cells, start=1))
        return {name: (i, cell) for i, cell, (kind, name) in found if kind == wanted}


def lint(source: Source, notebook: NotebookNode) -> list[Problem]:
    """Every rule broken by `notebook`, in the order of the cells."""
    from course.notebooks.lint_code import CODE, LAB_CODE  # imports this module

    draft = Draft(source, notebook.cells)
    rules = [*COMMON, *CODE, *([*LAB, *LAB_CODE] if source.is_lab else LECTURE)]
    findings = [finding for rule in rules for finding in rule(draft)]
    findings.sort(key=lambda finding: finding[0] or 0)
    return [Problem(source.shown, *finding) for finding in findings]


def visible(markdown: str) -> str:
    """What a student reads without opening anything: no fold, no answer, no fenced code."""
    text = FENCE.sub("", REGION.sub("", markdown))
    while (folded := re.sub(r"<details[^>]*>(?:(?!<details).)*?</details>", "", text, flags=re.S)) != text:
        text = folded  # innermost folds first
    return text


def words(markdown: str) -> int:
    """Words of prose: a display equation, a table and an image count nothing, inline math one word."""
    text = re.sub(r"\$\$.*?\$\$", "", visible(markdown), flags=re.S)
    text = re.sub(r"\$[^$\n]+\$", " x ", IMAGE.sub("", text))
    text = re.sub(r"^\s*\|.*$", "", re.sub(r"<[^>]+>", "", text), flags=re.M)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def headings(draft: Draft) -> list[tuple[int, int, str]]:
    """(cell number, level, text) of every markdown heading."""
    found = []
    for number, cell in draft.numbered("markdown"):
        for line in visible(cell.source).splitlines():
            if match := re.match(r"(#{1,6})\s+(.*\S)", line):
                found.append((number, len(match[1]), match[2]))
    return found


def header_has_its_parts(draft: Draft) -> Iterator[Finding]:
    """The first cell says what, for whom, what for, and how long."""
    number, kind = draft.source.number, "Lab " if draft.source.is_lab else ""
    head = draft.cells[0] if draft.cells else None
    if head is None or head.cell_type != "markdown":
        yield 1, "the notebook does not begin with its header", "Begin with a markdown cell: title, question, time."
        return
    unit = re.escape(number) if number else r"\d+"
    if not re.match(rf"# {kind}{unit} · \S", head.source):
        yield 1, "the title has another form", f"Begin with `# {kind}{number or '00'} · Title`: the slug's number."
    parts = {"**You need**": r"\*\*You need\*\*\s*\S", "**Time** 45 min": r"\*\*Time\*\*[^\n]*?\d+ min"}
    if not draft.source.is_lab:
        parts["the unit's question in italics, *…?*"] = r"^\*[^*\n].*\?\*\s*$"
        parts["**You will be able to**"] = r"\*\*You will be able to\*\*\s*\S"
    for name, pattern in parts.items():
        if not re.search(pattern, head.source, re.M):
            yield 1, f"the header lacks {name}", "Add it: a reader decides on this cell whether to stay."


def headings_do_not_skip_levels(draft: Draft) -> Iterator[Finding]:
    """One title; below it each heading is at most one level deeper than the one before."""
    before = 0
    for number, level, text in headings(draft):
        if level > before + 1:
            yield number, f'"{text}" jumps from level {before} to level {level}', f"Write {'#' * (before + 1)}."
        if level == 1 and number > 1:
            yield number, f'"{text}" is a second title', "Write ##: screen readers expect one level-1 heading."
        before = level


def links_inside_lead_somewhere(draft: Draft) -> Iterator[Finding]:
    """A link to #anchor needs that heading, spelt as Jupyter or as GitHub spells it, or an id."""
    anchors = set()
    for _, _, text in headings(draft):
        github = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        anchors |= {text.replace(" ", "-"), github}
    for _, cell in draft.numbered("markdown"):
        anchors |= set(re.findall(r"<a\s+(?:id|name)=[\"']([^\"']+)", cell.source))
    for number, cell in draft.numbered("markdown"):
        for target in re.findall(r"\]\(#([^)]*)\)", cell.source):
            if target not in anchors:
                yield number, f"the link (#{target}) leads nowhere", "Name the section in words, or mend the anchor."


def pictures_have_alt_text(draft: Draft) -> Iterator[Finding]:
    """Every markdown image says what it shows; attachments are refused, because jupytext drops them."""
    for number, cell in draft.numbered("markdown"):
        if "attachment:" in cell.source:
            yield number, "an attached picture", "Draw it in a cell: the .py source cannot hold an attachment."
        for alt, tag in IMAGE.findall(cell.source):
            if not alt.strip() and not re.search(r"\balt=[\"']\s*[^\"'\s]", tag):
                yield number, "a picture without alt text", "Say in words what it shows: ![two curves …](…)."


def prose_comes_in_short_blocks(draft: Draft) -> Iterator[Finding]:
    """At most 180 words between two code cells; a written answer is a pause too."""
    limit, total, start, seen_pause = LIMITS["words between two code cells"], 0, 0, False
    for number, cell in enumerate(draft.cells, start=1):
        if cell.cell_type == "markdown":
            total, start = total + words(cell.source), start or number
        if cell.cell_type == "code" or role(cell)[0] == "written":
            if seen_pause and total > limit:
                fix = "Cut it, or let a cell compute something in between."
                yield start, f"{total} words between two code cells (limit {limit})", fix
            total, start, seen_pause = 0, 0, True


def notebook_is_short(draft: Draft) -> Iterator[Finding]:
    """A lecture has at most 2,500 visible words, a lab 2,000."""
    kind = "lab" if draft.source.is_lab else "lecture"
    limit, total = LIMITS[f"words in a {kind}"], sum(words(cell.source) for _, cell in draft.numbered("markdown"))
    if total > limit:
        yield None, f"{total:,} words (limit for a {kind} {limit:,})", "Read it aloud; where you skip, cut."


def lecture_cells_are_announced(draft: Draft) -> Iterator[Finding]:
    """A sentence stands above each code cell; the cell that reveals a prediction may follow the guess."""
    for number, cell in draft.numbered("code"):
        above = draft.cells[number - 2] if number > 1 else None
        if above is not None and above.cell_type == "code":
            if "hide-output" not in cell.metadata.get("tags", []):
                yield number, "a code cell with no sentence above it", "Announce it in one markdown sentence."
        elif above is None or above.source.rstrip().splitlines()[-1].startswith("#"):
            yield number, "a code cell right below a heading", "Write one sentence between: what it does, and why."


def every_question_is_complete(draft: Draft) -> Iterator[Finding]:
    """Each question of lab.toml has its cell; a code question also its check, before the next one, and its hints."""
    cells, checks = draft.of_role("question"), draft.of_role("check")
    for name, question in draft.source.questions.items():
        missing = [kind for kind in PARTS[question.written] if name not in draft.of_role(kind)]
        for kind in missing:
            marker = "# %% [markdown]" if kind in ("hints", "written") else "# %%"
            yield None, f"`{name}` has no {kind} cell", f'Add `{marker} {kind}="{name}"`.'
        if not missing and not question.written:
            at, check = cells[name][0], checks[name][0]
            if check < at or any(at < other < check for other, _ in cells.values()):
                yield check, f"the check of `{name}` is not below its question", "A student looks for it there."


def hints_are_three_nested_folds(draft: Draft) -> Iterator[Finding]:
    """Idea, then shapes, then nearly code: each fold inside the one before."""
    for name, (number, cell) in draft.of_role("hints").items():
        depths, depth = [], 0
        for closing in re.findall(r"<(/?)details\b", cell.source):
            depth += -1 if closing else 1
            depths.append(depth)
        summaries = len(re.findall(r"<summary>\s*Hint \d", cell.source))
        if depths != [1, 2, 3, 2, 1, 0] or summaries != 3:
            fix = "Nest them: <details><summary>Hint 1: …</summary> … three times, then </details></details></details>."
            yield number, f"the hints of `{name}` are not three nested <details>", fix


def numbers_equal_lab_toml(draft: Draft) -> Iterator[Finding]:
    """Points, minutes and dots in the header's table and above each question are those of lab.toml."""
    source, head = draft.source, draft.cells[0].source if draft.cells else ""
    if source.title and f"· {source.title}\n" not in head + "\n":
        yield 1, f'the title is not "{source.title}" as in lab.toml', "Make the two equal."
    if not re.search(rf"\*\*Time\*\* {source.minutes} min", head):
        yield 1, f"**Time** is not {source.minutes} min as in lab.toml", "Make the two equal."
    rows = [[part.strip() for part in line.strip(" |").split("|")] for line in head.splitlines() if "|" in line]
    rows = [row for row in rows if re.search("[●○]", row[-1])]
    want = [[f"{q.points:g}", str(q.minutes), q.dots] for q in source.questions.values()]
    if [row[-3:] for row in rows] != want:
        table = "; ".join(f"{name} {' '.join(row)}" for name, row in zip(source.questions, want, strict=True))
        yield 1, "the table of questions differs from lab.toml", f"One row each: title, points, minutes, dots: {table}."
    yield from _heads(draft)


def _heads(draft: Draft) -> Iterator[Finding]:
    for name, question in draft.source.questions.items():
        number, _ = draft.of_role("written" if question.written else "question").get(name, (0, None))
        above = [text for cell, _, text in headings(draft) if cell <= number]
        # A remark may follow the dots: (4 points, 10 minutes, ●●○, written).
        if number and not (above and re.search(re.escape(question.head[:-1]) + r"(, [^()]*)?\)$", above[-1])):
            fix = "A student plans with these numbers; copy them from lab.toml."
            yield number, f"the heading above `{name}` does not end in {question.head}", fix


Rule = Callable[[Draft], Iterator[Finding]]
COMMON: list[Rule] = [
    header_has_its_parts,
    headings_do_not_skip_levels,
    links_inside_lead_somewhere,
    pictures_have_alt_text,
    prose_comes_in_short_blocks,
    notebook_is_short,
]
LECTURE: list[Rule] = [lecture_cells_are_announced]
LAB: list[Rule] = [every_question_is_complete, hints_are_three_nested_folds, numbers_equal_lab_toml]
