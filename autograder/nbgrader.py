"""The judge's verdicts in nbgrader: preprocessors that replace execution, and clean what people will look at.

`RepairMetadata` and `SanitizeOutputs` belong in `c.Autograde.sanitize_preprocessors`, `JudgeCells` in
`c.Autograde.autograde_preprocessors` in place of `Execute`, `SanitizeOutputs` once more in front of
`c.GenerateFeedback.preprocessors`. `install(config)` puts them there. Nothing of a student's runs in nbgrader.
"""

import copy
import functools
import html
import math
import tomllib
from pathlib import Path
from typing import Any

from nbconvert.exporters.exporter import ResourcesDict
from nbformat.notebooknode import NotebookNode, from_dict
from nbformat.v4 import new_markdown_cell, new_output
from nbgrader.api import Gradebook
from nbgrader.plugins import LateSubmissionPlugin
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Unicode
from traitlets.config import Config

from autograder import feedback
from autograder.judge.cells import CHECK, WRITTEN, Release, fingerprint, grade_id, kind, runnable
from autograder.judge.intake import load_release, repair
from autograder.judge.receipt import load_receipt
from autograder.judge.tiers import NOT_FOR_GRADES
from autograder.judge.vault import Vault
from autograder.judge.verdict import Verdict, bank_version, check, load, rebuild
from autograder.labs import Lab, find_lab
from autograder.overlay import use_overlay
from autograder.sanitize import OUTPUTS_LIMIT, plain_code, plain_markdown, plain_output

NOTES_CELL, RUBRIC_CELL = "autograder-notes", "autograder-rubric"
ACTIVE_FILES = ["*.htm*", "*.xhtml", "*.svg*", "*.xml", "*.js", "*.mjs", "*.css", "*.swf", "*.pdf", "*.mht*"]


def install(config: Config) -> Config:
    """Put our steps into nbgrader's configuration: no run of ours depends on a copied list being complete."""
    config.Autograde.sanitize_preprocessors = [
        "autograder.nbgrader.RepairMetadata",
        "autograder.nbgrader.SanitizeOutputs",
        "nbgrader.preprocessors.DeduplicateIds",
        "nbgrader.preprocessors.OverwriteKernelspec",
        "nbgrader.preprocessors.OverwriteCells",
        "nbgrader.preprocessors.CheckCellMetadata",
    ]
    config.Autograde.autograde_preprocessors = [
        "autograder.nbgrader.JudgeCells",
        "autograder.nbgrader.PlainSources",
        "nbgrader.preprocessors.SaveAutoGrades",
        "nbgrader.preprocessors.AssignLatePenalties",
        "nbgrader.preprocessors.CheckCellMetadata",
    ]
    config.GenerateFeedback.preprocessors = [
        "autograder.nbgrader.SanitizeOutputs",
        "autograder.nbgrader.PlainSources",
        "autograder.nbgrader.ShowReceipt",
        "autograder.nbgrader.RubricsOfMarked",
        "nbgrader.preprocessors.GetGrades",
        "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
    ]
    config.AssignLatePenalties.plugin_class = "autograder.nbgrader.LatePolicy"
    config.OverwriteCells.add_missing_cells = True
    config.HTMLExporter.filters = {"markdown2html": "autograder.sanitize.markdown2html"}
    # A page of a student's own, served beside formgrader, would act with the instructor's rights.
    ignored = config.CourseDirectory.get("ignore", [])
    config.CourseDirectory.ignore = [*ignored, *(name for name in ACTIVE_FILES if name not in ignored)]
    return config


def course_root(step: Any) -> Path:
    """The course folder of a running nbgrader step: a converter above it holds the course directory."""
    while step is not None:
        if getattr(step, "coursedir", None) is not None:
            return Path(step.coursedir.root)
        step = step.parent
    return Path.cwd()  # nbgrader works in the course folder


def settings(course: Path) -> dict[str, Any]:
    """course.toml, or nothing where there is none."""
    path = course / "course.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def minimum_tier(course: Path) -> str:
    return str(settings(course).get("grading", {}).get("minimum_tier", "T0"))


@functools.cache
def lab_of(assignment: str) -> tuple[Lab, Release, str]:
    """The lab behind an assignment, its release and its bank version; read once per process."""
    lab = find_lab(assignment)
    return lab, load_release(lab.folder), bank_version(lab)


class RepairMetadata(NbGraderPreprocessor):
    """First step: the graded cells become exactly the released ones, so that one slip stops no class."""

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        use_overlay(course_root(self))  # plain `nbgrader autograde` begins here
        _, release, _ = lab_of(resources["nbgrader"]["assignment"])
        repaired, notes = repair(nb, release)
        for note in notes:
            self.log.warning("%s: %s", resources["nbgrader"]["student"], note.staff)
        return repaired, resources


class SanitizeOutputs(NbGraderPreprocessor):
    """What a student's notebook shows becomes plain text and PNG; raw HTML in its prose becomes visible text.

    Left alone: prose that is the release's own, and outputs of graded cells, every one of which JudgeCells writes.
    """

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        _, release, _ = lab_of(resources["nbgrader"]["assignment"])
        ours = {cell.source for cell in release.notebook.cells}
        nb.metadata = copy.deepcopy(release.notebook.metadata)
        for cell in nb.cells:
            cell.pop("attachments", None)
            # Tags, MIME types and names of lexers reach the page, too.
            cell.metadata = from_dict({key: cell.metadata[key] for key in ("nbgrader",) if key in cell.metadata})
            if cell.cell_type != "code" and cell.source not in ours:
                cell.source = plain_markdown(cell.source)
            elif cell.cell_type == "code" and kind(cell) != CHECK:
                cell.outputs = [plain_output(output) for output in cell.outputs[:OUTPUTS_LIMIT]]
        return nb, resources


class PlainSources(NbGraderPreprocessor):
    """After judging (a verdict is about the code as it was): spell out what an editor would hide in the code."""

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        for cell in nb.cells:
            if cell.cell_type == "code" and kind(cell) != CHECK:
                cell.source = plain_code(cell.source)
        return nb, resources


class ShowReceipt(NbGraderPreprocessor):
    """On top of the feedback: what was mended when the file came in, or why the newest file was not taken."""

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        assignment, student = resources["nbgrader"]["assignment"], resources["nbgrader"]["student"]
        receipt = load_receipt(course_root(self) / ".judge", assignment, student)
        if receipt is not None and receipt.lines:
            nb.cells.insert(0, new_markdown_cell("\n".join(receipt.lines), id="autograder-receipt"))
        return nb, resources


class JudgeCells(NbGraderPreprocessor):
    """In place of Execute: put the verdict's points and words where nbgrader looks for them. Fails closed."""

    judge_folder = Unicode("", help="folder of keys and verdicts; default: .judge beside the gradebook").tag(
        config=True
    )

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        assignment, student = resources["nbgrader"]["assignment"], resources["nbgrader"]["student"]
        cells = [cell for cell in nb.cells if kind(cell) == CHECK]
        try:
            verdict = self.find(nb, assignment, student)
        except Exception as problem:
            # Whatever went wrong, nbgrader must see an error: a cell without output would get full marks.
            self.log.error("%s, %s: %s", assignment, student, problem)
            for cell in cells:
                write_error(cell)
            return nb, resources
        for cell in cells:
            write_verdict(cell, verdict)
        nb.cells = [notes_cell(verdict), *with_rubrics(nb.cells, lab_of(assignment)[0])]
        return nb, resources

    def find(self, nb: NotebookNode, assignment: str, student: str) -> Verdict:
        """The verified verdict on exactly this notebook."""
        course = course_root(self)
        _, release, bank = lab_of(assignment)
        folder = Path(self.judge_folder) if self.judge_folder else course / ".judge"
        verdict = load(assignment, student, Vault(folder))
        submission = fingerprint(runnable(nb, release))
        check(verdict, submission_sha256=submission, bank_version=bank, minimum_tier=minimum_tier(course))
        return verdict


def write_verdict(cell: NotebookNode, verdict: Verdict) -> None:
    """Exactly one display and one number: nbgrader takes the first `execute_result` for the grade."""
    public = verdict.questions.get(grade_id(cell).removeprefix("check-"))
    maximum = float(cell.metadata["nbgrader"]["points"])
    if public is None or not 0 <= float(public["earned"]) <= maximum:  # NaN is refused, too
        return write_error(cell)
    points = float(public["earned"])
    report = rebuild(public)
    shown = {"text/plain": feedback.as_text(report, reveal=False), "text/html": feedback.as_html(report, reveal=False)}
    cell.execution_count = 1
    cell.outputs = [
        new_output("display_data", shown),
        new_output("execute_result", {"text/plain": repr(points)}, execution_count=1),
    ]
    return None


def write_error(cell: NotebookNode) -> None:
    """No verdict, no points: an error output is what nbgrader counts as zero. Why is in the log, for staff."""
    text = "not graded, so no points: there is no valid verdict on this notebook. Staff have been told why."
    cell.execution_count = None
    cell.outputs = [new_output("error", ename="NotGraded", evalue=text, traceback=[f"NotGraded: {text}"])]


def notes_cell(verdict: Verdict) -> NotebookNode:
    """What a student reads first: the points, what was mended, and how much the tier is worth."""
    possible = sum(question["points"] for question in verdict.questions.values())
    lines = [f"**Code questions: {verdict.earned:g} of {possible:g} points.** Written answers are read by a person."]
    lines += [f"- {html.escape(note)}" for note in verdict.notes]
    lines += [f"- {NOT_FOR_GRADES}"] if verdict.tier == "T0" else []
    return new_markdown_cell("\n".join(lines), id=NOTES_CELL)


def with_rubrics(cells: list[NotebookNode], lab: Lab) -> list[NotebookNode]:
    """The cells, and before each written answer what its points are for: formgrader shows both together."""
    result = []
    for cell in cells:
        info = lab.questions.get(grade_id(cell)) if kind(cell) == WRITTEN else None
        if info and info.rubric:
            lines = [f"- **{points:g}** {says}" for points, says in info.rubric]
            text = "\n".join([f"**How `{info.name}` is marked ({info.points:g} points)**", "", *lines])
            result.append(new_markdown_cell(text, id=f"{RUBRIC_CELL}-{info.name}"))
        result.append(cell)
    return result


class RubricsOfMarked(NbGraderPreprocessor):
    """In feedback: a rubric stays with an answer that a person has marked; before that the page says so."""

    def preprocess(self, nb: NotebookNode, resources: ResourcesDict) -> tuple[NotebookNode, ResourcesDict]:
        names = resources["nbgrader"]
        with Gradebook(names["db_url"]) as gradebook:
            for cell in nb.cells:
                name = cell.get("id", "").removeprefix(f"{RUBRIC_CELL}-")
                if name == cell.get("id"):
                    continue
                grade = gradebook.find_grade(name, names["notebook"], names["assignment"], names["student"])
                if grade.needs_manual_grade and grade.manual_score is None:
                    cell.source = f"*Your answer to `{name}` has not been marked yet: a person reads it.*"
        return nb, resources


class LatePolicy(LateSubmissionPlugin):
    """The late policy of course.toml: a grace period, a share of the score for each day begun, then nothing."""

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float | None:
        return penalty(settings(course_root(self)).get("late", {}), score, total_seconds_late)


def penalty(policy: dict[str, Any], score: float, seconds_late: float) -> float | None:
    """The points that lateness costs; None where there is nothing to take."""
    late = seconds_late - 60 * policy.get("grace_minutes", 0)
    if late <= 0 or not policy:
        return None
    days = math.ceil(late / 86_400)
    if days > policy.get("days", math.inf):
        return score
    return round(min(score, score * policy.get("penalty_per_day", 0.0) * days), 2)
