"""Find labs and load what is in a lab's folder. Labs are loaded by path; oracles are resolved by name.

A lab is one folder `labs/<slug>/`. It is looked for in `$COURSE_LABS`, in a parent of the working folder that holds
`labs/<slug>`, and beside the installed package, so a folder with only a notebook in it works.
"""

import difflib
import importlib
import importlib.util
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from autograder.question import Mistake, Question

LAB_KEYS = ("title", "minutes", "module", "imports", "seconds", "data", "questions")
QUESTION_KEYS = ("points", "minutes", "difficulty", "needs", "written", "rubric")


class LabError(Exception):
    """A lab can not be found or its folder is not in order; the message says what to do."""


@dataclass(frozen=True)
class QuestionInfo:
    """What `lab.toml` says of one question."""

    name: str
    points: float
    minutes: int
    difficulty: int
    needs: tuple[str, ...] = ()
    written: bool = False
    rubric: tuple[tuple[float, str], ...] = ()  # of a written answer: points, and what they are for


@dataclass(frozen=True)
class Lab:
    """A lab's folder, read."""

    slug: str
    folder: Path
    title: str
    minutes: int
    questions: dict[str, QuestionInfo]
    imports: tuple[str, ...] = ()
    seconds: float = 20.0
    data: tuple[str, ...] = field(default=())

    @cached_property
    def checks(self) -> dict[str, Question]:
        """The code questions that `checks.py` declares, by name; on the judge's side with the term's private cases."""
        from autograder.overlay import with_variants

        module = load_file(self.folder / "checks.py", f"checks_of_{self.slug}")
        declared = [value.__question__ for value in vars(module).values() if hasattr(value, "__question__")]
        questions = {question.name: question for question in declared}
        self._same_names(questions, "checks.py")
        return with_variants(self, questions)

    @cached_property
    def all_mistakes(self) -> tuple[Mistake, ...]:
        module = load_file(self.folder / "mistakes.py", f"mistakes_of_{self.slug}")
        lists = [v.__mistakes__ for v in vars(module).values() if "__mistakes__" in getattr(v, "__dict__", ())]
        known = tuple(mistake for found in lists for mistake in found)
        unknown = {mistake.question for mistake in known} - self.checks.keys()
        if unknown:
            raise LabError(f"{self.folder}/mistakes.py: no question {sorted(unknown)} in checks.py")
        return known

    def mistakes(self, question: str) -> list[Mistake]:
        return [mistake for mistake in self.all_mistakes if mistake.question == question]

    def oracle(self, question: Question) -> Callable[..., Any] | None:
        """The function that `question.oracle` names; only trusted code may ask."""
        if question.oracle is None:
            return None
        module_name, _, function = question.oracle.partition(":")
        module = self.reference if module_name == "reference" else self._import(question, module_name)
        if not hasattr(module, function):
            names = close_names(function, vars(module))
            raise LabError(f"{self.slug}: the oracle of {question.name!r}, {question.oracle}, does not exist.{names}")
        return getattr(module, function)

    @cached_property
    def reference(self) -> ModuleType:
        """The lab's own oracles, where `refimpl` has none."""
        return load_file(self.folder / "reference.py", f"reference_of_{self.slug}")

    @cached_property
    def cells(self) -> list[Any]:
        """The cells of `lab.py`, solutions included."""
        import jupytext  # heavy, and only authors' and graders' machines need it

        text = (self.folder / "lab.py").read_text(encoding="utf-8")
        return jupytext.reads(text, fmt="py:percent").cells

    def solution(self, question: str) -> str:
        """The worked solution's cell."""
        return self._cell("question", question)

    def hints(self, question: str) -> str:
        """The hint ladder's cell, as markdown."""
        return self._cell("hints", question)

    def _import(self, question: Question, module_name: str) -> ModuleType:
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise LabError(f"{self.slug}: the oracle of {question.name!r} can not be imported: {error}") from None

    def _cell(self, option: str, question: str) -> str:
        for cell in self.cells:
            if cell.metadata.get(option) == question:
                return cell.source
        raise LabError(f'{self.folder}/lab.py has no cell with {option}="{question}"')

    def _same_names(self, found: Iterable[str], where: str) -> None:
        wanted = {name for name, info in self.questions.items() if not info.written}
        missing, extra = wanted - set(found), set(found) - wanted
        if missing or extra:
            raise LabError(
                f"{self.folder}/{where} and lab.toml name different questions: "
                f"only in lab.toml {sorted(missing)}, only in {where} {sorted(extra)}"
            )


def load_lab(folder: Path) -> Lab:
    """Read `folder/lab.toml`."""
    path = folder / "lab.toml"
    if not path.is_file():
        raise LabError(f"{path} does not exist; make a lab with `python -m autograder new-lab SLUG`")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise LabError(f"{path}: {error}") from None
    expect_keys(path, "the top level", raw, LAB_KEYS, required=("title", "minutes", "questions"))
    questions = {name: read_question(path, name, table) for name, table in raw["questions"].items()}
    return Lab(
        slug=folder.name,
        folder=folder,
        title=raw["title"],
        minutes=raw["minutes"],
        questions=questions,
        imports=tuple(raw.get("imports", ())),
        seconds=float(raw.get("seconds", 20)),
        data=tuple(raw.get("data", ())),
    )


def read_question(path: Path, name: str, table: dict[str, Any]) -> QuestionInfo:
    expect_keys(path, f"[questions.{name}]", table, QUESTION_KEYS, required=("points", "minutes", "difficulty"))
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise LabError(f"{path}: question {name!r} must be a Python name; it becomes the answer's and the cell's name")
    if not 1 <= table["difficulty"] <= 3:
        raise LabError(f"{path}: [questions.{name}] difficulty is {table['difficulty']}, must be 1, 2 or 3 (dots)")
    rubric = read_rubric(f"{path}: [questions.{name}]", table)
    return QuestionInfo(name, **{**table, "needs": tuple(table.get("needs", ())), "rubric": rubric})


def read_rubric(where: str, table: dict[str, Any]) -> tuple[tuple[float, str], ...]:
    """`rubric = ["1 claim: …", …]`: each line begins with its points, and they add up to the question's."""
    found = []
    for line in table.get("rubric", ()):
        points, _, says = line.partition(" ")
        if not re.fullmatch(r"\d+(\.\d+)?", points) or not says.strip():
            raise LabError(
                f'{where}: rubric has the line "{line}"; write its points first, as in "1 claim: what earns it"'
            )
        found.append((float(points), says.strip()))
    if found and (not table.get("written") or sum(points for points, _ in found) != table["points"]):
        raise LabError(f"{where}: rubric is for a written question, and its points must add up to {table['points']}")
    return tuple(found)


def expect_keys(path: Path, where: str, got: dict[str, Any], known: Iterable[str], required: Iterable[str]) -> None:
    for key in got:
        if key not in known:
            raise LabError(
                f'{path}: {where} has no key "{key}". Keys here: {", ".join(known)}.{close_names(key, known)}'
            )
    missing = [key for key in required if key not in got]
    if missing:
        raise LabError(f"{path}: {where} lacks {', '.join(missing)}")


def close_names(name: str, known: Iterable[str]) -> str:
    """Did you mean …? with a leading space, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""


def load_file(path: Path, name: str) -> ModuleType:
    """Execute one Python file as a module that `import` does not know."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise LabError(f"{path} does not exist")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # inspect.getsource and dataclasses look the module up by name
    spec.loader.exec_module(module)
    return module


def lab_roots() -> list[Path]:
    """Folders that may hold labs, nearest first."""
    roots = [Path(os.environ["COURSE_LABS"])] if os.environ.get("COURSE_LABS") else []
    roots += [parent / "labs" for parent in (Path.cwd(), *Path.cwd().parents)]
    package = Path(__file__).resolve().parent
    return [*roots, package.parent / "labs", package / "_labs"]


def find_lab(slug: str) -> Lab:
    """The lab `slug`; its number alone will do (`"03"`)."""
    known: list[str] = []
    for root in lab_roots():
        if (root / slug / "lab.toml").is_file():
            return load_lab(root / slug)
        found = [lab.parent.name for lab in sorted(root.glob("[0-9]*/lab.toml"))]
        if slug.isdigit() and (match := [name for name in found if name.split("_")[0] == slug.zfill(2)]):
            return load_lab(root / match[0])
        known += found
    here = f" Labs here: {', '.join(sorted(set(known)))}." if known else " No labs were found; set $COURSE_LABS."
    raise LabError(f"there is no lab {slug!r}.{here}{close_names(slug, known)}")


def all_labs(root: Path | None = None) -> list[Lab]:
    """Every lab of the first root that has any, in order."""
    for candidate in [root] if root else lab_roots():
        folders = sorted(path.parent for path in candidate.glob("[0-9]*/lab.toml"))
        if folders:
            return [load_lab(folder) for folder in folders]
    return []
