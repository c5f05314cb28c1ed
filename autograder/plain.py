"""nbgrader as it comes, without the judge: what its own Execute makes of the same release.

The rehearsal uses it to show that the course fails closed there too. Nothing else may: student code runs in a kernel.
"""

import copy
import json
import os
from typing import Any

import nbformat

from autograder.judge.cells import SOLUTION, grade_id, kind
from autograder.judge.cycle import Course, open_api
from autograder.judge.intake import load_release
from autograder.labs import Lab

EXECUTE_TIMEOUT = 240


def execute_plainly(course: Course, lab: Lab, student: str, question: str, source: str) -> float | None:
    """Points that an unchanged `nbgrader autograde` gives for one question; its kernel runs the check cell."""
    config: Any = copy.deepcopy(course.config)  # Config.copy shares its sections
    del config.Autograde["autograde_preprocessors"], config.Autograde["sanitize_preprocessors"]
    config.OverwriteCells.add_missing_cells = False
    config.Execute.timeout = EXECUTE_TIMEOUT
    config.KernelManager.transport = "ipc"  # no port, and no warning about one
    config.KernelManager.ip = str(course.root.parent / "kernel")
    config.CourseDirectory.db_url = f"sqlite:///{course.root}/plain.db"
    config.CourseDirectory.submitted_directory = "plain_submitted"
    config.CourseDirectory.autograded_directory = "plain_autograded"
    config.CourseDirectory.release_directory = "plain_release"
    target = course.root / "plain_submitted" / student / lab.slug / "lab.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(nbformat.writes(only_question(lab, question, source)), encoding="utf-8")
    previous = os.environ.get("COURSE_LABS")
    os.environ["COURSE_LABS"] = str(lab.folder.parent)
    try:
        return autograde_plainly(config, lab.slug, student, question)
    finally:
        if previous is not None:
            os.environ["COURSE_LABS"] = previous


def autograde_plainly(config: Any, slug: str, student: str, question: str) -> float | None:
    api = open_api(config)
    made = [api.generate_assignment(slug, force=True), api.autograde(slug, student, force=True)]
    if not all(result["success"] for result in made):
        return None
    with api.gradebook as opened:
        return float(opened.find_grade(f"check-{question}", "lab", slug, student).score)


def only_question(lab: Lab, question: str, source: str) -> Any:
    """The release with one answer filled in, without what only takes time: explore cells and other checks."""
    notebook = nbformat.from_dict(json.loads(json.dumps(load_release(lab.folder).notebook)))
    wanted = []
    for cell in notebook.cells:
        if grade_id(cell) == question:
            cell.source = source
        setup = "setup" in cell.metadata.get("tags", [])
        if setup or kind(cell) == SOLUTION or grade_id(cell) == f"check-{question}":
            wanted.append(cell)
    notebook.cells = wanted
    return notebook
