"""Notebooks from text: build, check, release and run every `.ipynb` of the course.

The authors write `lectures/<slug>.py` and `labs/<slug>/lab.py`; `python -m course notebooks` makes the rest.
"""

from course.notebooks.build import build
from course.notebooks.cli import main
from course.notebooks.leaks import folder_leaks, leaks
from course.notebooks.lint import lint
from course.notebooks.release import release_files, source_notebook, student_notebook, student_text, write_source
from course.notebooks.sources import NotebookError, Problem, Source, discover, open_source

__all__ = [
    "NotebookError",
    "Problem",
    "Source",
    "build",
    "discover",
    "folder_leaks",
    "leaks",
    "lint",
    "main",
    "open_source",
    "release_files",
    "source_notebook",
    "student_notebook",
    "student_text",
    "write_source",
]
