"""What every lab owes its students and its graders, whatever its topic.

The house rules (table and headings equal lab.toml, three hints and a check for each question, a stub with its
docstring, alt text, length) are `course.notebooks.lint`; here each lab must break none of them.
"""

import ast
import inspect
import re
import runpy

import pytest

from autograder.labs import load_lab
from course.notebooks import build, leaks, lint, open_source, source_notebook, student_notebook, student_text
from course.notebooks.build import REGION

MISTAKES_PER_QUESTION = 5
MARKS = ("full", "half", "zero")  # the three answers that make marking quick and even


def code_questions(lab):
    return [name for name, question in open_source(lab).questions.items() if not question.written]


def written_questions(lab):
    return [name for name, question in open_source(lab).questions.items() if question.written]


def cells(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_the_lab_breaks_no_house_rule(lab):
    """Header, table, hints, checks, stubs, pictures and length are as CONTRIBUTING says."""
    source = open_source(lab)
    assert "\n".join(map(str, lint(source, build(source)))) == ""


def test_the_committed_notebook_is_what_the_source_makes(lab):
    """Readers on GitHub and students get the version that the tests below have seen."""
    committed = lab / "lab.ipynb"
    repair = f"run: python -m course notebooks labs/{lab.name}"
    assert committed.is_file() and committed.read_text(encoding="utf-8") == student_text(open_source(lab)), repair


def test_nothing_that_belongs_to_staff_reaches_a_student(lab):
    """No line of a solution, no prepared mistake, no staff note, no output."""
    source = open_source(lab)
    assert "\n".join(map(str, leaks(source, student_notebook(lab)))) == ""


def test_every_solution_becomes_a_stub_that_names_its_question(lab):
    """As many stubs as solution regions, each raising NotImplementedError with the question's name."""
    for before, after in zip(
        cells(source_notebook(lab), "solution"), cells(student_notebook(lab), "solution"), strict=True
    ):
        stub = f'raise NotImplementedError("{before.id}")'
        assert after.source.count(stub) == len(REGION.findall(before.source)) >= 1, before.id


def test_a_stub_raises_when_it_is_called(lab, tmp_path):
    """An untouched answer says that it is not written yet; it never returns something that might earn points."""
    student = student_notebook(lab)
    path = tmp_path / "student.py"  # a file, because @triton.jit reads the source of its function
    path.write_text("\n\n".join(cell.source for cell in student.cells if {"setup", "solution"} & tags(cell)), "utf-8")
    namespace = runpy.run_path(str(path))
    for name in stub_functions(student):
        needed = [p for p in inspect.signature(namespace[name]).parameters.values() if p.default is p.empty]
        by_name = {p.name: None for p in needed if p.kind is p.KEYWORD_ONLY}
        with pytest.raises(NotImplementedError):
            namespace[name](*[None for p in needed if p.name not in by_name], **by_name)


def tags(cell):
    return set(cell.metadata.get("tags", []))


def stub_functions(student):
    """Names of the plain functions whose whole body is a docstring and the stub."""
    for cell in cells(student, "solution"):
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.FunctionDef) and not node.decorator_list:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if isinstance(body[0], ast.Raise) and all(p.arg != "self" for p in node.args.args):
                    yield node.name


def test_every_code_question_has_its_prepared_mistakes(lab):
    """At least five plausible wrong answers, each with a diagnosis, none named like an answer of the lab."""
    loaded = load_lab(lab)
    few = {name: len(loaded.mistakes(name)) for name in code_questions(lab)}
    few = {name: count for name, count in few.items() if count < MISTAKES_PER_QUESTION}
    assert not few, f"fewer than {MISTAKES_PER_QUESTION} mistakes: {few}"
    answers = {question.answer for question in loaded.checks.values()}
    assert not answers & {mistake.name for mistake in loaded.all_mistakes}
    assert all(mistake.says.strip() for mistake in loaded.all_mistakes)


def test_staff_can_mark_every_written_question(lab):
    """staff.md has a section for each, with a full, a half and a zero answer."""
    notes = (lab / "staff.md").read_text(encoding="utf-8")
    sections = re.split(r"^#+ ", notes, flags=re.M)
    for name in written_questions(lab):
        section = next((part for part in sections if re.search(rf"\b{name}\b", part.partition("\n")[0])), "")
        missing = [mark for mark in MARKS if not re.search(rf"\b{mark}\b", section, re.I)]
        assert not missing, f"staff.md needs a heading that names `{name}`, and below it a {', '.join(missing)} answer"


def test_points_and_minutes_add_up(lab):
    """The questions fit into the lab's time, and no question is worth nothing."""
    source = open_source(lab)
    assert sum(question.minutes for question in source.questions.values()) <= source.minutes
    assert all(question.points > 0 for question in source.questions.values())
