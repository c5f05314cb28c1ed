"""The notebooks' builder, its house rules, its leak scan, and its runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.nbgraderformat import MetadataValidator
from traitlets.config.loader import PyFileConfigLoader

from course.notebooks import (
    NotebookError,
    build,
    discover,
    folder_leaks,
    leaks,
    lint,
    main,
    open_source,
    release_files,
    source_notebook,
    student_notebook,
    student_text,
    write_source,
)
from course.notebooks.build import to_text
from course.notebooks.execute import attach, execute, has_outputs, scrub
from course.notebooks.lint import COMMON, LAB, LECTURE, words
from course.notebooks.lint_code import CODE, LAB_CODE
from course.notebooks.sources import REPOSITORY

DATA = Path(__file__).parent / "data"
TINY_LAB = DATA / "labs" / "00_tiny"
TINY_LECTURE = DATA / "lectures" / "00_tiny.py"


@pytest.fixture
def lab(tmp_path):
    """A copy of the tiny lab that a test may spoil."""
    return shutil.copytree(TINY_LAB, tmp_path / "00_tiny")


@pytest.fixture
def lecture(tmp_path):
    """A copy of the tiny lecture and its notebook that a test may spoil."""
    shutil.copy(TINY_LECTURE.with_suffix(".ipynb"), tmp_path)
    return Path(shutil.copy(TINY_LECTURE, tmp_path))


def edit(path, old, new):
    """Replace `old`, which must be there, in a file."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path.name}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def findings(path):
    """What the house rules say of the source at `path`, as one text."""
    source = open_source(path)
    return "\n".join(map(str, lint(source, build(source))))


# ---------------------------------------------------------------- building


def test_the_tiny_lab_builds_to_its_golden_bytes():
    """The student's version of a fixed lab is the committed file, byte for byte."""
    assert student_text(open_source(TINY_LAB)) == (TINY_LAB / "lab.ipynb").read_text(encoding="utf-8")


def test_building_twice_gives_the_same_bytes():
    """Nothing random, no date and no path enters a notebook."""
    for source in discover(DATA):
        assert to_text(build(source)) == to_text(build(source))
        assert str(REPOSITORY) not in to_text(build(source))


def test_a_new_cell_leaves_the_ids_of_the_others(lab):
    """Ids depend on a cell's content, not on its place, so a diff shows only what changed."""
    before = [cell.id for cell in build(open_source(lab)).cells]
    edit(lab / "lab.py", "# %% [markdown]\n# Try it", "# %% [markdown]\n# A new sentence.\n# %% [markdown]\n# Try it")
    after = [cell.id for cell in build(open_source(lab)).cells]
    assert len(after) == len(before) + 1
    assert [name for name in after if name in before] == before


def test_equal_cells_get_different_ids(lab):
    """nbformat refuses a notebook with one id twice."""
    edit(lab / "lab.py", "value = 21\nprint(value)", "value = 21\n# %%\nvalue = 21")
    ids = [cell.id for cell in build(open_source(lab)).cells]
    assert len(set(ids)) == len(ids)


def test_shorthand_becomes_the_whole_nbgrader_metadata():
    """Roles expand to schema 3 with points from lab.toml, and nbgrader's own validator accepts them."""
    notebook = source_notebook(TINY_LAB)
    MetadataValidator().validate_nb(notebook)
    by_id = {cell.id: cell.metadata for cell in notebook.cells}
    common = {"schema_version": 3, "task": False}
    assert by_id["double"]["nbgrader"] == {
        "grade": False, "grade_id": "double", "locked": False, "solution": True, **common,
    }  # fmt: skip
    assert by_id["check-double"]["nbgrader"] == {
        "grade": True, "grade_id": "check-double", "locked": True, "points": 2, "solution": False, **common,
    }  # fmt: skip
    assert by_id["why"]["nbgrader"] == {
        "grade": True, "grade_id": "why", "locked": False, "points": 1.5, "solution": True, **common,
    }  # fmt: skip
    assert notebook.metadata.kernelspec.name == "python3" and "jupytext" not in notebook.metadata


def test_every_code_cell_of_a_lab_has_one_role_tag():
    """The judge decides by tag what it runs."""
    tags = [set(cell.metadata.tags) for cell in source_notebook(TINY_LAB).cells if cell.cell_type == "code"]
    assert tags == [{"setup"}, {"solution"}, {"check"}, {"explore"}]


def test_the_stub_keeps_signature_and_docstring_and_names_the_question():
    """Only the region between the delimiters is replaced."""
    cell = next(cell for cell in student_notebook(TINY_LAB).cells if cell.id == "double")
    assert cell.source == 'def double(x):\n    """Twice x, same shape."""\n    raise NotImplementedError("double")'


@pytest.mark.parametrize("begin", ["# BEGIN SOLUTION", "### BEGIN SOLUTION", "#BEGIN SOLUTION"])
def test_every_spelling_of_the_delimiter_is_removed(lab, begin):
    """An author who types more or fewer # loses nothing to the students."""
    edit(lab / "lab.py", "    # BEGIN SOLUTION\n    twice", f"    {begin}\n    twice")
    source = open_source(lab)
    student = student_notebook(lab)
    assert "x + x" not in to_text(student) and not leaks(source, student) and not findings(lab)


def test_a_written_question_keeps_its_task_and_loses_its_answer():
    """The task stays in the cell that the student edits."""
    cell = next(cell for cell in student_notebook(TINY_LAB).cells if cell.id == "why")
    assert cell.source.startswith("## Question 2.") and cell.source.endswith("YOUR ANSWER HERE")


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("lab.py", 'question="double"', 'qestion="double"', 'Did you mean "question"?'),
        ("lab.py", 'question="double"', 'question="treble"', "no [questions.treble] (it has: double, why)"),
        ("lab.py", 'question="double"', "question=7", "is no question name"),
        ("lab.py", 'question="double"', 'question="double" check="double"', "Split it in two"),
        ("lab.py", '# %% check="double"', '# %% [markdown] check="double"', "belongs to a code cell"),
        ("lab.py", "# %% [markdown]\n# Try", '# %% check="double"\n# %% [markdown]\n# Try', 'a second check="double"'),
        (
            "lab.py",
            "value = 21",
            "value = 21  # BEGIN SOLUTION\n# END SOLUTION",
            "a question, a check or a written mark",
        ),
        ("lab.py", 'written="why"', 'written="double"', "`written = true` under [questions.double]"),
        ("lab.py", "    # END SOLUTION\n", "", "needs its END line"),
        ("lab.toml", "points = 2\n", "", "points missing"),
        ("lab.toml", "difficulty = 1", "difficulty = 4", "it is 1, 2 or 3"),
        ("lab.toml", 'title = "Tiny"', "title = Tiny", "not valid TOML"),
        ("lab.toml", 'data = ["numbers.csv"]', 'data = "numbers.csv"', "write a list of strings"),
    ],
)
def test_a_source_that_cannot_be_built_says_what_to_do(lab, file, old, new, says):
    """The message names the file, the thing, and the way out."""
    edit(lab / file, old, new)
    with pytest.raises(NotebookError) as caught:
        student_text(open_source(lab))
    assert says in str(caught.value) and "00_tiny" in str(caught.value)


def test_a_path_without_source_says_what_a_source_is(tmp_path):
    """A typing error in a path is no traceback."""
    with pytest.raises(NotebookError, match=r"Give a lecture's \.py or a lab's folder"):
        open_source(tmp_path / "99_nothing.ipynb")


def test_a_lecture_has_nothing_to_grade(lecture):
    """Questions live in labs; a lecture's shorthand is a mistake."""
    edit(lecture, "# %%\nimport", '# %% question="q"\nimport')
    with pytest.raises(NotebookError, match='Move "q" to a lab'):
        build(open_source(lecture))


# ---------------------------------------------------------------- nbgrader


def test_the_configuration_loads_without_nbgrader_running():
    """Any traitlets program can read it; the judge's cells stand where nbgrader would run the student's code."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(REPOSITORY / "course")).load_config()
    assert Path(config.CourseDirectory.root) == REPOSITORY / "course"
    assert config.Autograde.autograde_preprocessors[0] == "autograder.nbgrader.JudgeCells"
    assert not any("Execute" in step for step in config.Autograde.autograde_preprocessors)
    assert config.GenerateFeedback.preprocessors[0] == "autograder.nbgrader.SanitizeOutputs"
    assert config.OverwriteCells.add_missing_cells is True
    assert config.CourseDirectory.course_id


def course_with(tmp_path, sources):
    """A course folder that holds the source versions, our configuration, and an environment to run nbgrader in."""
    config = f"load_subconfig({str(REPOSITORY / 'course' / 'nbgrader_config.py')!r})\n"
    config += f"c = get_config()\nc.CourseDirectory.root = {str(tmp_path)!r}\n"
    (tmp_path / "nbgrader_config.py").write_text(config)
    for source in sources:
        folder = write_source(source.folder, tmp_path / "source" / source.slug / "lab.ipynb").parent
        (folder / "staff.md").write_text("left here by mistake")
        for name in source.data:
            shutil.copy(source.folder / name, folder)
    # nbgrader's gradebook calls `alembic` by name.
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def run(command, folder, env):
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.e2e
@pytest.mark.slow
def test_the_real_command_releases_the_golden_lab(tmp_path):
    """`nbgrader generate_assignment`, as an instructor types it, writes the committed bytes and no other file."""
    source = open_source(TINY_LAB)
    env = course_with(tmp_path, [source])
    run([sys.executable, "-m", "nbgrader", "generate_assignment", source.slug], tmp_path, env)
    released = tmp_path / "release" / source.slug
    assert (released / "lab.ipynb").read_bytes() == source.notebook.read_bytes()
    assert folder_leaks(source, released) == []
    assert sorted(path.name for path in released.iterdir()) == ["lab.ipynb", "numbers.csv"]


GENERATE_ALL = """
import sys
from nbgrader.apps import NbGraderAPI
from traitlets.config.loader import PyFileConfigLoader
api = NbGraderAPI(config=PyFileConfigLoader("nbgrader_config.py", path=".").load_config())
for slug in sys.argv[1:]:
    result = api.generate_assignment(slug)
    assert result["success"], result
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_every_student_version_is_what_nbgrader_releases(tmp_path):
    """nbgrader's own release of every lab of the course equals ours, byte for byte."""
    sources = [source for source in discover() if source.is_lab]
    env = course_with(tmp_path, sources)
    run([sys.executable, "-c", GENERATE_ALL, *(source.slug for source in sources)], tmp_path, env)
    for source in sources:
        released = tmp_path / "release" / source.slug
        assert (released / "lab.ipynb").read_bytes() == student_text(source).encode(), source.slug
        assert folder_leaks(source, released) == []


# ---------------------------------------------------------------- house rules

LECTURE_FAULTS = {
    "header_has_its_parts": [
        ("# # 00 · Tiny lecture", "# # Tiny lecture", "the title has another form"),
        ("# # 00 · Tiny lecture", "# # 07 · Tiny lecture", "the title has another form"),
        ("*How far does one line go?*", "How far does one line go.", "question in italics"),
        ("**You need** nothing. ", "", "lacks **You need**"),
        ("**You will be able to** read a number. ", "", "lacks **You will be able to**"),
        ("**Time** 5 min", "**Time** short", "lacks **Time**"),
        ("# %% [markdown]\n# # 00", "# %%\n# # 00", "does not begin with its header"),
    ],
    "headings_do_not_skip_levels": [
        ("# ## A picture", "# #### A picture", '"A picture" jumps from level 2 to level 4'),
        ("# ## A picture", "# # A picture", "a second title"),
    ],
    "links_inside_lead_somewhere": [("One line from 0", "[One](#nowhere) line from 0", "(#nowhere) leads nowhere")],
    "pictures_have_alt_text": [
        ("One line from 0", "![](a.png) One line from 0", "a picture without alt text"),
        ("One line from 0", '<img src="a.png"> One line from 0', "a picture without alt text"),
        ("One line from 0", "![a line](attachment:a.png) from 0", "an attached picture"),
    ],
    "prose_comes_in_short_blocks": [("One line from 0", "word " * 181, "words between two code cells (limit 180)")],
    "notebook_is_short": [("How far does", "word " * 2501 + "does", "(limit for a lecture 2,500)")],
    "lecture_cells_are_announced": [
        ('# %% tags=["hide-output"]\nprint', "# %%\nprint", "no sentence above it"),
        ("# One line from 0 to 2.\n", "", "right below a heading"),
    ],
    "cells_are_python": [("print(1 + 1, my_guess)", "print(1 +", "not valid Python")],
    "figures_have_alt_text": [
        (', alt="A line from 0 at the left to 2 at the right: it rises."', "", "show() without alt text"),
        ('alt="A line from 0 at the left to 2 at the right: it rises."', 'alt=" "', "show() without alt text"),
        ("A line from 0 at the left to 2 at the right: it rises.", "A rising line.", "without a number"),
        ("A line from 0 at the left", "A line 1" + " and" * 60, "(limit 60)"),
        ("show(fig, alt=", "plt.show()\nshow(fig, alt=", "plt.show() shows a figure without words"),
    ],
}
LAB_FAULTS = {
    "every_question_is_complete": [
        ('# %% [markdown] hints="double"', "# %% [markdown]", "`double` has no hints cell"),
        ('# %% check="double"\nlab.check("double")\n', "", "`double` has no check cell"),
        ('# %% [markdown] written="why"', "# %% [markdown]", "`why` has no written cell"),
    ],
    "hints_are_three_nested_folds": [
        ("<details><summary>Hint 3: nearly code</summary>", "**Hint 3**", "not three nested <details>"),
        ("</details></details></details>", "</details></details>", "not three nested <details>"),
    ],
    "numbers_equal_lab_toml": [
        ("| 1 `double` | 2 | 5 | ●○○ |", "| 1 `double` | 3 | 5 | ●○○ |", "the table of questions differs"),
        ("Double it (2 points, 5 minutes, ●○○)", "Double it (2 points, 9 minutes, ●○○)", "does not end in (2 points"),
        ("**Time** 15 min", "**Time** 20 min", "**Time** is not 15 min"),
        ("# # Lab 00 · Tiny\n", "# # Lab 00 · Small\n", 'the title is not "Tiny"'),
    ],
    "lab_opens_itself": [('open_lab("00_tiny")', 'open_lab("01_other")', 'no setup cell with open_lab("00_tiny")')],
    "checks_only_check": [('lab.check("double")', 'lab.check("double"); print(1)', "holds something else")],
    "solutions_leave_a_stub": [
        ('    """Twice x, same shape."""\n', "", "has no docstring"),
        ("    # BEGIN SOLUTION\n", "", "has no solution region"),
        (
            "    # BEGIN SOLUTION\n    twice",
            "    y = [\n    # BEGIN SOLUTION\n    x\n    # END SOLUTION\n    ]\n    # BEGIN SOLUTION\n    twice",
            "the stub of `double` is not valid Python",
        ),
    ],
    "graded_cells_import_what_is_there": [
        ("from autograder import open_lab", "import pandas\nfrom autograder import open_lab", "imports `pandas`"),
        ("    # BEGIN SOLUTION\n", "    # BEGIN SOLUTION\n    from refimpl import shapes\n", "imports `refimpl`"),
    ],
}


def cases(faults):
    return [pytest.param(*fault, id=f"{rule}-{i}") for rule, rows in faults.items() for i, fault in enumerate(rows)]


@pytest.mark.parametrize(("old", "new", "says"), cases(LECTURE_FAULTS))
def test_a_lecture_that_breaks_a_rule_is_told_which(lecture, old, new, says):
    """Each rule finds its own fault and names file, cell and the way out."""
    edit(lecture, old, new)
    assert says in findings(lecture) and "00_tiny.py" in findings(lecture)


@pytest.mark.parametrize(("old", "new", "says"), cases(LAB_FAULTS))
def test_a_lab_that_breaks_a_rule_is_told_which(lab, old, new, says):
    """Each rule finds its own fault."""
    edit(lab / "lab.py", old, new)
    assert says in findings(lab)


def test_every_rule_has_a_failing_example():
    """A rule that nothing can break is no rule."""
    rules = {rule.__name__ for rule in (*COMMON, *LECTURE, *LAB, *CODE, *LAB_CODE)}
    assert rules == LECTURE_FAULTS.keys() | LAB_FAULTS.keys()


def test_the_tiny_notebooks_break_no_rule():
    """What the examples spoil is clean before."""
    assert findings(TINY_LAB) == findings(TINY_LECTURE) == ""


def test_words_count_what_a_reader_reads():
    """Folds, answers, tables, displayed formulas and code count nothing; a formula in the line is one word."""
    text = (
        "two words\n\n$$a = b + c$$\n| a | table |\n<details>a <details>b</details> c</details>\n```\ncode here\n```\n"
    )
    assert words(text) == 2
    assert words("the sum $a + b$ is small") == 5
    assert words("task\n### BEGIN SOLUTION\nmany words here\n### END SOLUTION\n") == 1


# ---------------------------------------------------------------- leaks


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("Try it on", "`twice = x + x` is all. Try it on", "a line of the solution of `double`: twice = x + x"),
        ("value = 21", "value = 21  # MARK SCHEME", "MARK SCHEME is still there"),
        (
            "Try it on",
            "Is your result the square? If it **is the square of\neach element, twice a number and its square** Try it",
            "words of mistakes.py",
        ),
        ("Try it on", "Beware of squared_instead. Try it on", "a name of mistakes.py: squared_instead"),
        ("Try it on", "No, both are bound by memory traffic, my own run shows the same time. Try", "words of staff.md"),
        ("Try it on", "No: both read and write every element once, and that is what costs. Try", "solution of `why`"),
    ],
)
def test_text_that_belongs_to_staff_is_found(lab, old, new, says):
    """Wherever it stands in the student's notebook."""
    new = new.replace("\n", "\n# ")
    edit(lab / "lab.py", old, new)
    assert says in "\n".join(map(str, leaks(open_source(lab), student_notebook(lab))))


def test_a_cell_marked_as_given_may_show_a_line(lab):
    """An author can give a line away, and the source says so."""
    edit(lab / "lab.py", "# %%\nvalue = 21", '# %% tags=["given"]\nx = 1\ntwice = x + x\nvalue = 21')
    assert leaks(open_source(lab), student_notebook(lab)) == []


def test_solutions_that_were_never_removed_are_found():
    """The scan does not trust the step before it: the source version itself is one large leak."""
    found = "\n".join(map(str, leaks(open_source(TINY_LAB), source_notebook(TINY_LAB))))
    assert "BEGIN SOLUTION is still there" in found and "twice = x + x" in found


def test_a_release_holds_the_notebook_and_declared_data_only(tmp_path):
    """Everything else in the folder is a leak, by name."""
    source = open_source(TINY_LAB)
    assert release_files(source) == ["lab.ipynb", "numbers.csv"]
    for name in ("lab.ipynb", "numbers.csv", "mistakes.py", "sub/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [problem.what for problem in folder_leaks(source, tmp_path)]
    assert found == ["a release holds mistakes.py", "a release holds sub/notes.txt"]


@pytest.mark.parametrize("name", ["staff.md", "mistakes.py", "absent.csv"])
def test_staff_files_cannot_be_declared_as_data(lab, name):
    """lab.toml cannot send out what must stay, nor what is not there."""
    edit(lab / "lab.toml", "numbers.csv", name)
    with pytest.raises(NotebookError, match="is no data file of this folder"):
        release_files(open_source(lab))


# ---------------------------------------------------------------- command


def test_check_is_clean_then_stale_then_clean_again(lab, capsys):
    """An edit makes the notebook stale, the message carries the command that repairs it, and it repairs it."""
    assert main(["--check", str(lab)]) == 0
    edit(lab / "lab.py", "value = 21", "value = 22")
    assert main(["--check", str(lab)]) == 1
    message = capsys.readouterr().err
    assert "STALE" in message and f"python -m course notebooks {lab}" in message
    assert main([str(lab)]) == 0 and main(["--check", str(lab)]) == 0


def test_a_leak_is_never_written(lab):
    """The notebook on disk stays as it was."""
    before = (lab / "lab.ipynb").read_bytes()
    edit(lab / "lab.py", "Try it on", "`twice = x + x` is all. Try it on")
    assert main([str(lab)]) == 1 and (lab / "lab.ipynb").read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('    raise NotImplementedError(\\"double\\")', "    return x * 2"),
        ("YOUR ANSWER HERE", "No, because …"),
        ('"execution_count": null', '"execution_count": 1'),
    ],
)
def test_a_notebook_with_answers_in_it_is_not_overwritten(lab, capsys, old, new):
    """Somebody who works in the repository's own copy keeps the work; the message says where to put it."""
    edit(lab / "lab.ipynb", old, new)
    worked_in = (lab / "lab.ipynb").read_bytes()
    assert main([str(lab)]) == 1 and (lab / "lab.ipynb").read_bytes() == worked_in
    assert "holds somebody's answers; not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["--check"]])
def test_a_merge_conflict_in_a_notebook_is_explained(lab, lecture, capsys, command):
    """A file that is no JSON any more is named, with the way out."""
    for path in (lab / "lab.ipynb", lecture.with_suffix(".ipynb")):
        path.write_text("<<<<<<< HEAD\n" + path.read_text())
    assert main([*command, str(lab), str(lecture)]) == 1
    assert capsys.readouterr().err.count("Delete it; it is made from the .py file") == 2


def test_a_broken_source_does_not_stop_the_others(lab, lecture, capsys):
    """One author's mistake is reported; every other notebook is still checked."""
    edit(lab / "lab.py", 'question="double"', 'qestion="double"')
    assert main(["--check", str(lab), str(lecture)]) == 1
    out = capsys.readouterr()
    assert "unknown cell option" in out.err and "2 notebooks checked" in out.out and "1 with problems" in out.out


def test_no_notebook_of_the_course_is_stale(capsys):
    """What is committed is what the sources make; the message names the command."""
    assert main(["--check"]) == 0, capsys.readouterr().err


# ---------------------------------------------------------------- outputs


def committed(lecture):
    return nbformat.read(lecture.with_suffix(".ipynb"), as_version=4)


def test_prose_may_change_without_a_new_run(lecture):
    """Outputs belong to the code: they survive a new sentence, and the check asks only for a build."""
    edit(lecture, "The next cell computes one.", "The next cell computes a number.")
    assert main(["--check", str(lecture)]) == 1
    assert main([str(lecture)]) == 0 and main(["--check", str(lecture)]) == 0
    assert committed(lecture).cells[2].outputs


def test_code_that_changed_makes_outputs_stale(lecture, capsys):
    """The build drops outputs of other code, and the check then asks for a run."""
    edit(lecture, "my_guess = 3", "my_guess = 4")
    assert main([str(lecture)]) == 0
    assert not any(cell.get("outputs") for cell in committed(lecture).cells)
    capsys.readouterr()
    assert main(["--check", str(lecture)]) == 1
    assert "notebooks --execute" in capsys.readouterr().err


def test_a_forged_stamp_does_not_carry_outputs(lecture):
    """Outputs are taken over only where the code beside them is the same."""
    fresh, old = build(open_source(lecture)), committed(lecture)
    old.cells[1].source = "my_guess = 5"
    assert not has_outputs(attach(fresh, old))


def test_an_edited_output_count_is_stale(lecture):
    """Everything but the outputs themselves is compared, metadata included."""
    path = lecture.with_suffix(".ipynb")
    edit(path, '"execution_count": 3', '"execution_count": 9')
    assert main(["--check", str(lecture)]) == 1


@pytest.mark.slow
def test_running_again_gives_the_same_bytes(lecture):
    """Two runs of a lecture differ in nothing: no time, no path, no id, the figure's bytes included."""
    before = lecture.with_suffix(".ipynb").read_bytes()
    lecture.with_suffix(".ipynb").unlink()
    assert main(["--execute", str(lecture)]) == 0
    assert lecture.with_suffix(".ipynb").read_bytes() == before
    figure = committed(lecture).cells[-1]
    assert figure.metadata.mystnb.image.alt == figure.outputs[0].metadata["image/png"].alt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os; print(os.getcwd())", "a machine path in an output"),
        ("import warnings; warnings.warn('soon gone')", "the cell wrote to stderr"),
        ("print('DeprecationWarning: soon gone')", "a warning in an output"),
        ("print(object())", "a memory address in an output"),
        ("from IPython.display import Image; Image(to_png(fig))", "a figure without alt text"),
    ],
)
def test_outputs_of_one_machine_are_refused(lecture, code, says):
    """What another reader's machine would not print must not be committed."""
    edit(lecture, "show(fig, alt", f"from course.viz.display import to_png\n{code}\nshow(fig, alt")
    if "Image" in code:  # the picture must be the cell's value
        edit(lecture, 'it rises.")', f'it rises.")\n{code.partition("; ")[2]}')
    source = open_source(lecture)
    notebook = build(source)
    execute(notebook, source, lambda _: None)
    assert says in "\n".join(map(str, scrub(source, notebook)))


@pytest.mark.slow
def test_a_cell_that_fails_is_named_with_its_error(lecture):
    """The author reads file, cell, error and the cell's text, and no notebook is written."""
    before = lecture.with_suffix(".ipynb").read_bytes()
    edit(lecture, "max(6, 7)", "max(6, seven)")
    source = open_source(lecture)
    with pytest.raises(NotebookError, match=r"00_tiny\.py, cell 3: NameError: name 'seven'"):
        execute(build(source), source, lambda _: None)
    assert main(["--execute", str(lecture)]) == 1 and lecture.with_suffix(".ipynb").read_bytes() == before


@pytest.mark.slow
def test_a_notebook_that_takes_too_long_is_refused(lecture):
    """The limit is for the whole notebook, and the message says what to do."""
    edit(lecture, "max(6, 7)", "import time; time.sleep(60)")
    source = open_source(lecture)
    with pytest.raises(NotebookError, match=r"cell 3: the notebook needs more than 15 s\. Make the sizes smaller"):
        execute(build(source), source, lambda _: None, timeout_s=15)


def test_the_committed_notebooks_are_valid_json_with_unix_newlines():
    """GitHub, Colab and nbgitpuller read them as they are."""
    for source in (*discover(DATA), *discover()):
        if source.notebook.is_file():
            raw = source.notebook.read_bytes()
            assert b"\r" not in raw and raw.endswith(b"}\n") and json.loads(raw)["nbformat"] == 4
