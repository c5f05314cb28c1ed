"""nbgrader's options for this course, the one place where they live.

nbgrader reads this file when it runs in `course/`; `course.notebooks` reads it to build the student versions, so both
make the same bytes. The steps are named by import strings: reading the file imports nothing of ours.
"""

import os
import tomllib
from pathlib import Path

c = get_config()  # type: ignore[name-defined]  # traitlets puts it there

COURSE = Path(__file__).resolve().parent
SETTINGS_FILE = COURSE / "course.toml"
SETTINGS = tomllib.loads(SETTINGS_FILE.read_text(encoding="utf-8")) if SETTINGS_FILE.is_file() else {}

# nbgrader warns on every command when the root is relative.
c.CourseDirectory.root = str(COURSE)
c.CourseDirectory.course_id = SETTINGS.get("course_id", "efficient-llm")
# The gradebook is a SQLite file in this folder unless a server is named. SQLAlchemy 2.1 takes `postgresql:` to mean
# another driver than the one that is installed with the course, hence the driver's name.
GRADEBOOK = os.environ.get("COURSE_GRADEBOOK") or SETTINGS.get("grading", {}).get("gradebook")
if GRADEBOOK:
    c.CourseDirectory.db_url = GRADEBOOK.replace("postgresql://", "postgresql+psycopg2://", 1)
# Files that never travel, even when someone puts them beside a notebook.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "feedback", "*.py", "*.toml", "*.md"]
# A page of a student's own, served beside formgrader, would act with the instructor's rights.
c.CourseDirectory.ignore += ["*.htm*", "*.xhtml", "*.svg*", "*.xml", "*.js", "*.mjs", "*.css", "*.swf"]
c.CourseDirectory.ignore += ["*.pdf", "*.mht*"]
c.Exchange.root = str((COURSE / SETTINGS.get("exchange", "exchange")).resolve())
c.Exchange.timezone = "UTC"

# Release. `course.notebooks` runs the same list without SaveCells, which writes to the gradebook.
c.GenerateAssignment.preprocessors = [
    "nbgrader.preprocessors.IncludeHeaderFooter",
    "nbgrader.preprocessors.LockCells",
    "course.notebooks.release.NameStubs",
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.CheckCellMetadata",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.SaveCells",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbgrader.preprocessors.ClearMarkScheme",
    "nbgrader.preprocessors.ComputeChecksums",  # again: the step before may have changed a cell
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("{question}")'}
c.ClearSolutions.text_stub = "YOUR ANSWER HERE"

# Grading: the verdict was computed outside the student's process; JudgeCells puts it where nbgrader looks for grades.
# `autograder grade` installs the same lists; here they serve plain `nbgrader autograde` and the formgrader's button.
c.Autograde.sanitize_preprocessors = [
    "autograder.nbgrader.RepairMetadata",
    "autograder.nbgrader.SanitizeOutputs",
    "nbgrader.preprocessors.DeduplicateIds",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.OverwriteCells",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.Autograde.autograde_preprocessors = [
    "autograder.nbgrader.JudgeCells",
    "autograder.nbgrader.PlainSources",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.AssignLatePenalties.plugin_class = "autograder.nbgrader.LatePolicy"
c.OverwriteCells.add_missing_cells = True  # a student who deletes a graded cell gets it back, with no points
c.Execute.timeout = 120  # the Validate button runs a whole notebook cell by cell

# Feedback: nothing a student printed reaches a page that staff open before it is made harmless.
c.GenerateFeedback.preprocessors = [
    "autograder.nbgrader.SanitizeOutputs",
    "autograder.nbgrader.PlainSources",
    "autograder.nbgrader.ShowReceipt",
    "autograder.nbgrader.RubricsOfMarked",
    "nbgrader.preprocessors.GetGrades",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
# A second line, in formgrader and feedback alike: rendered prose keeps only elements of a short list.
c.HTMLExporter.filters = {"markdown2html": "autograder.sanitize.markdown2html"}
