"""Build a notebook from its py:percent source, with the same bytes on every machine.

jupytext reads the cells; this module expands the authors' shorthand into nbgrader's metadata (schema 3), sets the tags,
and names each cell by its question or by a hash of its content, so that an unchanged cell keeps its id.
"""

import difflib
import hashlib
import re
from collections import Counter
from typing import Any

import jupytext
import nbformat
from nbformat.notebooknode import NotebookNode

from course.notebooks.sources import NAME, NotebookError, Question, Source

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
ROLES = ("question", "check", "written", "hints")
OPTIONS = ("tags", *ROLES)
# jupytext's own notes about blank lines; they would turn an edit of white space into another notebook.
NOISE = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker"}
TAGS = {"question": "solution", "check": "check"}
# nbgrader takes any line that holds the delimiter, so both spellings of the comment work.
REGION = re.compile(r"^[ \t#]*BEGIN SOLUTION[^\n]*\n(.*?)^[ \t#]*END SOLUTION[^\n]*$", re.M | re.S)


def build(source: Source) -> NotebookNode:
    """The notebook of `source`: a lecture without outputs, or a lab with its solutions still in."""
    text = source.path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    cells = [_cell(source, number, cell) for number, cell in enumerate(notebook.cells, start=1)]
    _refuse_doubles(source, cells)
    _name(cells)
    metadata = {**METADATA, "source_sha256": source.sha256()}
    result = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    nbformat.validate(result)
    return result


def to_text(notebook: NotebookNode) -> str:
    """The file's content, written as nbconvert writes it: sorted keys, one newline at the end."""
    return str(nbformat.writes(notebook, version=4)).rstrip("\n") + "\n"


def role(cell: NotebookNode) -> tuple[str, str]:
    """What a built cell is for: ("question", "merge"), ("check", "merge"), … or ("", "")."""
    if "hints" in cell.metadata:
        return "hints", cell.metadata["hints"]
    grader = cell.metadata.get("nbgrader", {})
    name = grader.get("grade_id", "")
    if grader.get("locked"):
        return "check", name.removeprefix("check-")
    if grader.get("solution"):
        return ("written" if grader["grade"] else "question"), name
    return "", ""


def _cell(source: Source, number: int, cell: NotebookNode) -> NotebookNode:
    options = {key: value for key, value in cell.metadata.items() if key not in NOISE}
    where = f"{source.shown}, cell {number}"
    if unknown := [key for key in options if key not in OPTIONS]:
        near = difflib.get_close_matches(unknown[0], OPTIONS, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        raise NotebookError(f'{where}: unknown cell option "{unknown[0]}". Options: {", ".join(OPTIONS)}.{hint}')
    roles = [key for key in ROLES if key in options]
    if len(roles) > 1:
        raise NotebookError(f"{where}: a cell is either {roles[0]} or {roles[1]}. Split it in two.")
    new = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
    metadata = _metadata(source, where, cell.cell_type, options, roles[0] if roles else "")
    return new(cell.source, metadata=metadata)


def _metadata(source: Source, where: str, cell_type: str, options: dict[str, Any], role_: str) -> dict[str, Any]:
    tags = list(dict.fromkeys(options.get("tags", [])))
    if not role_:
        if source.is_lab and cell_type == "code" and not {"setup", "explore"} & set(tags):
            tags.append("explore")
        return {"tags": tags} if tags else {}
    question = _question(source, where, options[role_], written=role_ == "written")
    expected = "code" if role_ in TAGS else "markdown"
    if cell_type != expected:
        raise NotebookError(
            f'{where}: {role_}="{question.name}" belongs to a {expected} cell, this one is {cell_type}.'
        )
    if role_ == "hints":
        return {"hints": question.name, **({"tags": tags} if tags else {})}
    if role_ in TAGS and TAGS[role_] not in tags:
        tags.append(TAGS[role_])
    return {"nbgrader": _nbgrader(role_, question), **({"tags": tags} if tags else {})}


def _question(source: Source, where: str, name: Any, *, written: bool) -> Question:
    if not source.is_lab:
        raise NotebookError(f'{where}: a lecture has no questions to grade. Move "{name}" to a lab.')
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise NotebookError(f'{where}: {name!r} is no question name. Write a Python name in quotes: question="merge".')
    if name not in source.questions:
        rows = ", ".join(source.questions) or "none"
        raise NotebookError(f"{where}: lab.toml has no [questions.{name}] (it has: {rows}). Add it, or mend the name.")
    question = source.questions[name]
    if written and not question.written:
        raise NotebookError(f"{where}: lab.toml must say `written = true` under [questions.{name}].")
    return question


def _nbgrader(role_: str, question: Question) -> dict[str, Any]:
    graded = role_ != "question"
    fields: dict[str, Any] = {
        "grade": graded,
        "grade_id": f"check-{question.name}" if role_ == "check" else question.name,
        "locked": role_ == "check",
        "schema_version": 3,
        "solution": role_ != "check",
        "task": False,
    }
    return {**fields, "points": question.points} if graded else fields


def _refuse_doubles(source: Source, cells: list[NotebookNode]) -> None:
    seen: dict[tuple[str, str], int] = {}
    for number, cell in enumerate(cells, start=1):
        kind, name = role(cell)
        if kind and seen.setdefault((kind, name), number) != number:
            first = seen[kind, name]
            raise NotebookError(
                f'{source.shown}, cell {number}: a second {kind}="{name}"; the first is cell {first}. Keep one.'
            )


def _name(cells: list[NotebookNode]) -> None:
    """Give every cell an id that depends on its content alone; a repeated content gets a running number."""
    seen: Counter[str] = Counter()
    for cell in cells:
        kind, name = role(cell)
        content = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        key = (f"{kind}-{name}" if kind in ("check", "hints") else name) or content
        cell["id"] = f"{key}-{seen[key]}" if seen[key] else key
        seen[key] += 1
