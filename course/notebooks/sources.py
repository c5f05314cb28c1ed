"""Where notebooks come from: one lecture file or one lab folder, and the rows of its `lab.toml`.

The source of truth is a jupytext py:percent file. A lecture is `lectures/<slug>.py`; a lab is `labs/<slug>/lab.py`
with its `lab.toml`. The `.ipynb` beside the `.py` is generated from it and committed.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class NotebookError(Exception):
    """A source that cannot become a notebook. The message says where, what, and the way out."""


@dataclass(frozen=True)
class Problem:
    """One finding in one notebook: what is wrong, and what to do about it."""

    path: str  # as the author would type it
    cell: int | None  # counted from 1, None for the whole notebook
    what: str
    fix: str

    def __str__(self) -> str:
        place = self.path if self.cell is None else f"{self.path}, cell {self.cell}"
        return f"{place}: {self.what}\n    {self.fix}"


@dataclass(frozen=True)
class Question:
    """One row of `[questions]` in lab.toml."""

    name: str
    points: float
    minutes: int
    difficulty: int  # 1 to 3, shown as ●○○ to ●●●
    written: bool = False

    @property
    def dots(self) -> str:
        return "●" * self.difficulty + "○" * (3 - self.difficulty)

    @property
    def head(self) -> str:
        """How the heading of the question ends: "(4 points, 12 minutes, ●●○)"."""
        return f"({self.points:g} point{'' if self.points == 1 else 's'}, {self.minutes} minutes, {self.dots})"


@dataclass(frozen=True)
class Source:
    """One notebook source. `questions` and the fields below it are empty for a lecture."""

    path: Path  # the .py file
    slug: str
    title: str = ""
    minutes: int = 0
    questions: Mapping[str, Question] = field(default_factory=dict)
    imports: tuple[str, ...] = ()  # what setup and solution cells may import beyond the usual
    data: tuple[str, ...] = ()  # files of the lab's folder that travel with the notebook

    @property
    def is_lab(self) -> bool:
        return self.path.name == "lab.py"

    @property
    def folder(self) -> Path:
        return self.path.parent

    @property
    def notebook(self) -> Path:
        return self.path.with_suffix(".ipynb")

    @property
    def shown(self) -> str:
        """The path an author would type, from the repository's root where that is possible."""
        return shown(self.path)

    @property
    def number(self) -> str:
        """The unit's number as the slug writes it: "03", or "" for a folder without one."""
        match = re.match(r"\d+", self.slug)
        return match[0] if match else ""

    def sha256(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def shown(path: Path) -> str:
    """`path` relative to the repository, or as it is."""
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


def open_source(path: Path) -> Source:
    """The source behind `path`: a lab folder, a `lab.py`, a lecture's `.py`, or one of their `.ipynb`."""
    path = Path(path).resolve()
    path = path / "lab.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        raise NotebookError(
            f"{shown(path)}: no such notebook source. Give a lecture's .py or a lab's folder, "
            "for example lectures/03_online_softmax.py or labs/03_online_softmax."
        )
    if path.name != "lab.py":
        return Source(path, path.stem)
    return Source(path, path.parent.name, **_settings(path.with_name("lab.toml")))


def discover(root: Path = REPOSITORY) -> Iterator[Source]:
    """Every lecture and every lab under `root`, in the order of their numbers; found, never listed."""
    for path in sorted((root / "lectures").glob("[!_]*.py")):
        yield open_source(path)
    for path in sorted((root / "labs").glob("*/lab.py")):
        yield open_source(path)


def _settings(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotebookError(
            f"{shown(path)}: missing. A lab needs it for points and minutes; copy labs/_template/lab.toml."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise NotebookError(f"{shown(path)}: not valid TOML: {error}.") from None
    questions = {name: _question(path, name, row) for name, row in table.get("questions", {}).items()}
    lists = {key: _strings(path, key, table.get(key, [])) for key in ("imports", "data")}
    return {"title": table.get("title", ""), "minutes": table.get("minutes", 0), "questions": questions, **lists}


def _strings(path: Path, key: str, value: Iterable[object]) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise NotebookError(f"{shown(path)}: `{key}` is {value!r}; write a list of strings.")
    return tuple(str(item) for item in value)


def _question(path: Path, name: str, row: Mapping[str, Any]) -> Question:
    where = f"{shown(path)}, [questions.{name}]"
    if not NAME.fullmatch(name):
        raise NotebookError(f"{where}: a question's name is a Python name: letters, digits, underscores.")
    if missing := [key for key in ("points", "minutes", "difficulty") if key not in row]:
        raise NotebookError(f"{where}: {', '.join(missing)} missing. Each question has points, minutes and difficulty.")
    if row["difficulty"] not in (1, 2, 3):
        raise NotebookError(f"{where}: difficulty is {row['difficulty']!r}; it is 1, 2 or 3 (the dots ●○○ to ●●●).")
    return Question(name, row["points"], row["minutes"], row["difficulty"], bool(row.get("written", False)))
