"""A class of made-up students whose scores are known: for rehearsals and tests, never for anything else.

Each student is the lab's release with some answers filled in: the worked solutions, the known mistakes, cheats, and
the accidents that stop other graders. What each is worth is put together per question from three kinds: full points
for a worked solution, none for what cannot run, and for the rest a direct evaluation in this process that uses neither
sandbox nor verdict nor nbgrader.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import nbformat
from nbformat.notebooknode import NotebookNode

from autograder.checks import examine
from autograder.judge.cells import Release, grade_id
from autograder.labs import Lab
from autograder.question import Question
from autograder.student import AnswerInPlace

FULL, ZERO = "full", "zero"
Answer = Callable[..., Any]

LOOP = "def {answer}(*args, **kwargs):\n    while True:\n        pass\n"
EXIT = "import os\n\n\ndef {answer}(*args, **kwargs):\n    os._exit(3)\n"
IMPORT_ORACLE = "from {module} import {function} as {answer}\n"
RETURN_INPUT = "def {answer}(*args, **kwargs):\n    return args[0] if args else None\n"
FORGE = """import os, sys


def {answer}(*args, **kwargs):
    sys.displayhook(1000.0)
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\\x0a\\x00\\x00\\x00\\x00\\x00\\x00\\x00" + b'{{"ok":true}}'[:10])
        except OSError:
            pass
    return 1000.0
"""
MARKUP = "<script>alert('markup')</script> <img src=x onerror=alert('markup')> [a link](javascript:alert('markup'))"


@dataclass
class Student:
    """One made-up student: a notebook (or the bytes of none), and what each question should earn."""

    name: str
    says: str
    notebook: NotebookNode | None = None
    content: bytes = b""
    worth: dict[str, str | Answer] = field(default_factory=dict)  # FULL, ZERO, or an answer to evaluate

    @property
    def refused(self) -> bool:
        return self.notebook is None

    def bytes(self) -> bytes:
        return self.content if self.notebook is None else nbformat.writes(self.notebook).encode()


@dataclass
class Classroom:
    """Makes the students of one lab."""

    lab: Lab
    release: Release

    @property
    def questions(self) -> list[Question]:
        return list(self.lab.checks.values())

    @property
    def last(self) -> Question:
        """The last code question: no other answer can need it."""
        order = [name for name in self.lab.questions if name in self.lab.checks]
        return self.lab.checks[order[-1]]

    def students(self, whole: bool = True) -> list[Student]:
        """All of them, or those that show that a lab's questions are graded as the lab says."""
        if not whole:
            few = (self.perfect, self.empty, self.half, self.first_mistakes, self.last_mistakes, self.no_notebook)
            return [make() for make in few]
        plain = [self.perfect, self.empty, self.half, self.first_mistakes, self.last_mistakes]
        cheats = [self.oracle_imported, self.input_returned, self.reply_forged, self.outputs_forged]
        accidents = [self.syntax_error, self.infinite_loop, self.hanging_cell, self.crash, self.crashing_cell]
        slips = [self.deleted, self.duplicated, self.renamed, self.edited_check, self.markup, self.no_notebook]
        return [make() for make in (*plain, *cheats, *accidents, *slips)]

    # --- plain ---

    def perfect(self) -> Student:
        return self.solved("perfect", "every worked solution")

    def empty(self) -> Student:
        return Student("empty", "the release, untouched", self.fill({}), worth=dict.fromkeys(self.lab.checks, ZERO))

    def half(self) -> Student:
        names = [question.name for question in self.questions]
        solved = names[: (len(names) + 1) // 2]
        sources = {name: self.lab.solution(name) for name in solved}
        worth: dict[str, str | Answer] = {name: FULL if name in solved else ZERO for name in names}
        return Student("half", f"solved: {', '.join(solved)}", self.fill(sources), worth=worth)

    def first_mistakes(self) -> Student:
        return self.mistaken("mistakes-first", 0)

    def last_mistakes(self) -> Student:
        return self.mistaken("mistakes-last", -1)

    def mistaken(self, name: str, index: int) -> Student:
        """Every question answered with one of its known mistakes."""
        text = (self.lab.folder / "mistakes.py").read_text(encoding="utf-8")
        sources, worth = {}, {}
        for question in self.questions:
            mistake = self.lab.mistakes(question.name)[index]
            sources[question.name] = f"{text}\n{question.answer} = {mistake.name}\n"
            worth[question.name] = mistake.answer
        return Student(name, "a known mistake in every question", self.fill(sources), worth=dict(worth))

    # --- cheats ---

    def oracle_imported(self) -> Student:
        sources = {}
        for question in self.questions:
            module, _, function = (question.oracle or "reference:none").partition(":")
            names = {"module": module, "function": function, "answer": question.answer}
            sources[question.name] = IMPORT_ORACLE.format(**names)
        return self.cheating("cheat-oracle", "imports the oracle", sources)

    def input_returned(self) -> Student:
        """May be worth something where the input happens to be right; so it is evaluated."""
        student = self.cheating("cheat-input", "returns its input", self.each(RETURN_INPUT))
        student.worth = dict.fromkeys(self.lab.checks, lambda *args, **kwargs: args[0] if args else None)
        return student

    def reply_forged(self) -> Student:
        return self.cheating("cheat-reply", "writes a reply of its own to every descriptor", self.each(FORGE))

    def outputs_forged(self) -> Student:
        """Claims points where nbgrader would look for them: in outputs and in metadata."""
        student = self.cheating("cheat-outputs", "forges outputs and points of the check cells", {})
        assert student.notebook is not None
        for cell in student.notebook.cells:
            if grade_id(cell).startswith("check-"):
                result = nbformat.v4.new_output("execute_result", {"text/plain": "1000.0"}, execution_count=1)
                cell.outputs, cell.execution_count = [result], 1
                cell.metadata["nbgrader"]["points"] = 1000
        return student

    def cheating(self, name: str, says: str, sources: Mapping[str, str]) -> Student:
        return Student(name, says, self.fill(sources), worth=dict.fromkeys(self.lab.checks, ZERO))

    # --- accidents ---

    def syntax_error(self) -> Student:
        return self.spoiled("syntax-error", "a syntax error in the last question", "def {answer}(:\n    pass\n")

    def infinite_loop(self) -> Student:
        return self.spoiled("infinite-loop", "the last question never returns", LOOP)

    def crash(self) -> Student:
        return self.spoiled("crash", "the last question ends the process", EXIT)

    def hanging_cell(self) -> Student:
        return self.with_cell("hanging-cell", "all solved, and a cell that never ends", "while True:\n    pass")

    def crashing_cell(self) -> Student:
        return self.with_cell("crashing-cell", "all solved, and a cell that ends the process", "import os\nos._exit(1)")

    # --- slips ---

    def deleted(self) -> Student:
        """The cell of the last question and the first check cell are gone."""
        student = self.spoiled("deleted", "last answer and first check cell deleted", "")
        assert student.notebook is not None
        gone = {self.last.name, f"check-{self.questions[0].name}"}
        student.notebook.cells = [cell for cell in student.notebook.cells if grade_id(cell) not in gone]
        return student

    def duplicated(self) -> Student:
        """Solved, with the first answer and its check cell pasted a second time, labels and all."""
        student = self.solved("duplicated", "all solved, two graded cells copied and pasted")
        assert student.notebook is not None
        first = self.questions[0].name
        for name in (first, f"check-{first}"):
            index = next(i for i, cell in enumerate(student.notebook.cells) if grade_id(cell) == name)
            student.notebook.cells.insert(index + 1, copy.deepcopy(student.notebook.cells[index]))
            student.notebook.cells[index + 1]["id"] = f"pasted-{name}"[:64]
        return student

    def renamed(self) -> Student:
        solution = self.lab.solution(self.last.name)
        source = f"{solution}\n\nmy_{self.last.answer} = {self.last.answer}\ndel {self.last.answer}\n"
        return self.spoiled(
            "renamed", "the last answer under another name", source.replace("{", "{{").replace("}", "}}")
        )

    def edited_check(self) -> Student:
        """Nothing solved; every check cell replaced by one that shows a large number."""
        student = self.cheating("edited-check", "check cells replaced by a number", {})
        assert student.notebook is not None
        for cell in student.notebook.cells:
            if grade_id(cell).startswith("check-"):
                cell.source = "1000.0"
        return student

    def markup(self) -> Student:
        """Solved, with HTML and scripts in prose and outputs: staff will open this page."""
        student = self.solved("markup", "all solved, scripts in prose and outputs")
        assert student.notebook is not None
        shown = nbformat.v4.new_output("display_data", {"text/html": MARKUP, "text/plain": "plain"})
        student.notebook.cells += [
            nbformat.v4.new_markdown_cell(MARKUP, id="markup-prose"),
            nbformat.v4.new_code_cell("1 + 1", outputs=[shown], id="markup-output"),
            nbformat.v4.new_raw_cell(MARKUP, id="markup-raw"),
        ]
        return student

    def no_notebook(self) -> Student:
        return Student("no-notebook", "hands in something that is no notebook", content=b'{"cells": [[[[' * 40)

    # --- parts ---

    def solved(self, name: str, says: str) -> Student:
        sources = {question.name: self.lab.solution(question.name) for question in self.questions}
        return Student(name, says, self.fill(sources), worth=dict.fromkeys(self.lab.checks, FULL))

    def spoiled(self, name: str, says: str, template: str) -> Student:
        """All solved but the last question, which holds `template`."""
        student = self.solved(name, says)
        sources = {question.name: self.lab.solution(question.name) for question in self.questions}
        sources[self.last.name] = template.format(answer=self.last.answer)
        student.notebook = self.fill(sources)
        student.worth[self.last.name] = ZERO
        return student

    def with_cell(self, name: str, says: str, source: str) -> Student:
        """All solved, and a cell of the student's own behind the first code cell."""
        student = self.solved(name, says)
        assert student.notebook is not None
        student.notebook.cells.insert(3, nbformat.v4.new_code_cell(source, id="my-own-cell"))
        return student

    def fill(self, sources: Mapping[str, str]) -> NotebookNode:
        notebook = copy.deepcopy(self.release.notebook)
        for cell in notebook.cells:
            if grade_id(cell) in sources:
                cell.source = sources[grade_id(cell)]
        return notebook

    def each(self, template: str) -> dict[str, str]:
        return {question.name: template.format(answer=question.answer) for question in self.questions}


def expected(lab: Lab, student: Student, seed: int) -> dict[str, float]:
    """Question -> points, from the lab itself."""
    points = {}
    for name, worth in student.worth.items():
        possible = lab.questions[name].points
        if callable(worth):
            points[name] = evaluate(lab, lab.checks[name], worth, seed)
        else:
            points[name] = possible if worth == FULL else 0.0
    return points


def evaluate(lab: Lab, question: Question, answer: Answer, seed: int) -> float:
    """Points of `answer`, called in this process."""
    runner = AnswerInPlace({question.answer: answer})
    points = lab.questions[question.name].points
    return examine(question, runner, oracle=lab.oracle(question), seed=seed, points=points).earned
