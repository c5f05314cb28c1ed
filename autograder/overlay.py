"""Private cases of a term: `overlay = "../private"` under [grading] of course.toml.

The course is open, so its cases can be studied. An instructor keeps a folder outside the repository,
`<overlay>/<lab>/checks.py`, whose functions give a question more cases, or other ones. Each is called with the
generator and the public cases it may keep, and returns all cases that count:

    from autograder import Case
    from autograder.overlay import variant

    @variant("merge")
    def three_workers(rng, public):
        yield from public
        yield Case("a worker without keys", ...)

Only the judge reads it: its course folder names it, and the environment ($COURSE_OVERLAY) hands it to the judge's own
processes. A student's process gets neither; `lab.check` shows the public cases. The files are part of the bank's
version, so a changed variant judges everybody again. One that is not in order stops the run before anybody is judged.
"""

import dataclasses
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autograder.question import Case, Question, generator

if TYPE_CHECKING:
    from autograder.labs import Lab

VARIABLE = "COURSE_OVERLAY"
TRIAL_SEEDS = (0, 1)  # a variant must give cases before a class is judged with it

Change = Callable[[torch.Generator, list[Case]], Iterable[Case]]


def variant(question: str) -> Callable[[Change], Change]:
    """Declare the function below as the cases of `question` in this term."""

    def declare(change: Change) -> Change:
        change.__variant__ = question  # type: ignore[attr-defined]
        return change

    return declare


def use_overlay(course: Path) -> None:
    """From here on, and in processes started from here, labs are loaded with the course's overlay, if it has one."""
    from autograder.labs import LabError

    path = course / "course.toml"
    settings = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = settings.get("grading", {}).get("overlay", "")
    if not isinstance(named, str):
        raise LabError(f'{path}: overlay is {named!r}; it names a folder, as overlay = "../private"')
    if not named:
        os.environ.pop(VARIABLE, None)
        return
    folder = (course / named).resolve()
    if not folder.is_dir():
        raise LabError(f'{path}: overlay = "{named}" is no folder ({folder}). Make it, or take the line out.')
    os.environ[VARIABLE] = str(folder)


def folder_of(lab: "Lab") -> Path | None:
    """The lab's part of the overlay in force, or None."""
    from autograder.labs import LabError

    if not os.environ.get(VARIABLE):
        return None
    overlay = Path(os.environ[VARIABLE])
    if not overlay.is_dir():
        raise LabError(f"${VARIABLE} names {overlay}, which is no folder on this machine")
    if overlay.resolve() in (lab.folder.resolve(), lab.folder.resolve().parent):
        raise LabError(f"the overlay {overlay} is the folder of public labs: keep private cases outside the repository")
    return overlay / lab.slug if (overlay / lab.slug).is_dir() else None


def files_of(lab: "Lab") -> list[Path]:
    """Everything that the lab's variants may rest on, for the bank's version."""
    folder = folder_of(lab)
    if folder is None:
        return []
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def with_variants(lab: "Lab", questions: dict[str, Question]) -> dict[str, Question]:
    """The questions, with the cases that the overlay gives them. LabError where the overlay is not in order."""
    from autograder.labs import LabError, close_names, load_file

    folder = folder_of(lab)
    if folder is None:
        return questions
    file = folder / "checks.py"
    if not file.is_file():
        raise LabError(f"{folder} has no checks.py: add the variants of {lab.slug}, or remove the folder")
    try:
        module = load_file(file, f"overlay_of_{lab.slug}")
    except Exception as problem:
        raise LabError(f"{file}: {type(problem).__name__}: {problem}") from None
    changed = dict(questions)
    for change in declared(file, vars(module).values()):
        name = change.__variant__  # type: ignore[attr-defined]
        if name not in questions:
            raise LabError(f"{file}: {lab.slug} has no question {name!r}.{close_names(name, questions)}")
        if changed[name] is not questions[name]:
            raise LabError(f"{file}: two variants of {name!r}; put their cases into one function")
        changed[name] = dataclasses.replace(questions[name], spec=overlaid(questions[name].spec, change))
        try_out(file, changed[name])
    if changed == questions:
        raise LabError(f'{file} declares no variant: decorate a function with @variant("{next(iter(questions), "")}")')
    return changed


def declared(file: Path, values: Iterable[Any]) -> Iterator[Change]:
    yield from (value for value in values if callable(value) and hasattr(value, "__variant__"))


def overlaid(spec: Any, change: Change) -> Any:
    """The question's class with other cases: mechanisms, tolerance and `drive` stay its own."""

    def cases(self: Any, rng: torch.Generator) -> list[Case]:
        return list(change(rng, list(spec.cases(rng))))

    return type(type(spec).__name__, (type(spec),), {"cases": cases, "__doc__": type(spec).__doc__})()


def try_out(file: Path, question: Question) -> None:
    """Draw the cases as the judge will, so that a slip is the instructor's message and not a class without points."""
    from autograder.labs import LabError

    where = f"{file}: the variant of {question.name!r}"
    for seed in TRIAL_SEEDS:
        try:
            cases = question.spec.cases(generator(seed, question.name, 0))
        except Exception as problem:
            raise LabError(f"{where} raised {type(problem).__name__}: {problem}") from None
        if not cases or any(not isinstance(case, Case) for case in cases):
            raise LabError(f"{where} must give cases, and gave {cases!r:.200}")
        names = [case.name for case in cases]
        if len(set(names)) < len(names):
            raise LabError(f"{where} gives two cases the same name; results are told by name: {sorted(names)}")
