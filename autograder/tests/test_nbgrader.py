"""In nbgrader, points come from verdicts alone, and nothing a student wrote can run in a page that staff open."""

import copy
from types import SimpleNamespace

import nbformat
import pytest
from nbgrader.utils import determine_grade
from traitlets.config import Config, Configurable

from autograder import nbgrader as steps
from autograder.judge.cells import fingerprint, grade_id, runnable
from autograder.judge.vault import Vault
from autograder.judge.verdict import Verdict, bank_version, save
from autograder.nbgrader import JudgeCells, LatePolicy, RepairMetadata, SanitizeOutputs
from autograder.synthetic import MARKUP

RESOURCES = {"nbgrader": {"assignment": "00_tiny", "student": "ann"}}


class Converter(Configurable):
    """Stands for nbgrader's converter above a step: it knows the course folder."""

    def __init__(self, root):
        super().__init__()
        self.coursedir = SimpleNamespace(root=str(root))


@pytest.fixture(autouse=True)
def labs(monkeypatch, tiny):
    monkeypatch.setenv("COURSE_LABS", str(tiny.folder.parent))
    steps.lab_of.cache_clear()


@pytest.fixture
def notebook(tiny_release):
    return copy.deepcopy(tiny_release.notebook)


@pytest.fixture
def course(tmp_path):
    (tmp_path / "course.toml").write_text(
        '[grading]\nminimum_tier = "T0"\n[late]\ngrace_minutes = 10\npenalty_per_day = 0.1\ndays = 3\n'
    )
    return tmp_path


@pytest.fixture
def judge_cells(course):
    """JudgeCells as nbgrader makes it: below a converter that knows the course folder."""
    return JudgeCells(parent=Converter(course))


def public(earned, points=4):
    return {"question": "q", "points": points, "earned": earned, "status": "partly right", "note": "", "mistake": "",
            "diagnosis": "<b>you</b>", "cases": [], "mechanisms": []}  # fmt: skip


@pytest.fixture
def judged(tiny, tiny_release, course):
    """Save a verdict on a notebook, with the fields given."""

    def write(notebook, **fields):
        questions = {"spread": public(2.5), "stream_sum": public(6.0, 6)}
        verdict = Verdict(
            "00_tiny",
            "ann",
            fingerprint(runnable(notebook, tiny_release)),
            bank_version(tiny),
            "j",
            "d",
            "T0",
            "now",
            questions,
        )
        save(Verdict(**{**vars(verdict), **fields}), Vault(course / ".judge"))

    return write


def grades(notebook):
    """What nbgrader's own code reads from the check cells."""
    return [determine_grade(cell)[0] for cell in notebook.cells if grade_id(cell).startswith("check-")]


# --- points ---------------------------------------------------------------------------------------------


def test_a_verdict_becomes_points_and_words(judge_cells, judged, notebook):
    """One display with the judge's message, escaped, and one number, as nbgrader reads it."""
    judged(notebook, notes=["a <note>"])
    result, _ = judge_cells.preprocess(notebook, RESOURCES)
    assert grades(result) == [2.5, 6.0]
    cell = next(cell for cell in result.cells if grade_id(cell) == "check-spread")
    assert [output.output_type for output in cell.outputs] == ["display_data", "execute_result"]
    assert "<b>you</b>" not in cell.outputs[0].data["text/html"] and cell.outputs[1].data["text/plain"] == "2.5"
    notes = result.cells[0].source
    assert "8.5 of 10 points" in notes and "a &lt;note&gt;" in notes and "T0: not for grades" in notes
    nbformat.validate(result)


def forged(notebook):
    for cell in notebook.cells:
        if grade_id(cell).startswith("check-"):
            cell.outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "4.0"}, execution_count=1)]


def weak(judged, notebook, course):
    judged(notebook)
    (course / "course.toml").write_text('[grading]\nminimum_tier = "T1"')


def broken(judged, notebook, course):
    judged(notebook)
    (course / "course.toml").write_text("not toml [")


def rekeyed(judged, notebook, course):
    judged(notebook)
    (course / ".judge" / "key").write_text("00" * 32)


SPOILED = {
    "no verdict": lambda judged, notebook, course: None,
    "an older submission": lambda judged, notebook, course: judged(notebook, submission_sha256="older"),
    "other checks": lambda judged, notebook, course: judged(notebook, bank_version="other"),
    "another student": lambda judged, notebook, course: judged(notebook, student="ben"),
    "no such question": lambda judged, notebook, course: judged(notebook, questions={}),
    "points out of range": lambda judged, notebook, course: judged(
        notebook, questions={"spread": public(4.5), "stream_sum": public(-1.0, 6)}
    ),
    "tier too low": weak,
    "broken settings": broken,
    "another key": rekeyed,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_without_a_valid_verdict_there_are_no_points(judge_cells, judged, notebook, course, spoil):
    """Plain nbgrader would give full marks to a cell without output; forged outputs are overwritten, too."""
    forged(notebook)
    spoil(judged, notebook, course)
    result, _ = judge_cells.preprocess(notebook, RESOURCES)
    assert grades(result) == [0, 0]
    shown = " ".join(str(cell.outputs) for cell in result.cells if grade_id(cell).startswith("check-"))
    assert str(course) not in shown and "no points" in shown


def test_a_notebook_changed_after_the_verdict_gets_nothing(judge_cells, judged, notebook):
    """The verdict is about the cells that ran."""
    judged(notebook)
    next(cell for cell in notebook.cells if grade_id(cell) == "spread").source = "def spread(x):\n    return 0"
    assert grades(judge_cells.preprocess(notebook, RESOURCES)[0]) == [0, 0]


def test_the_folder_of_verdicts_can_be_configured(judged, notebook, course, tmp_path):
    """For sites that keep keys elsewhere."""
    judged(notebook)
    step = JudgeCells(judge_folder=str(course / ".judge"), parent=Converter(tmp_path / "elsewhere"))
    assert grades(step.preprocess(notebook, RESOURCES)[0]) == [2.5, 6.0]


def test_without_a_converter_the_course_is_the_working_folder(monkeypatch, tmp_path):
    """nbgrader works in the course folder."""
    monkeypatch.chdir(tmp_path)
    assert steps.course_root(JudgeCells()) == tmp_path
    assert steps.minimum_tier(tmp_path) == "T0"


def test_our_steps_stand_where_nbgrader_looks():
    """Execute is gone from the list, and nothing depends on what a copied configuration says."""
    config = Config()
    config.Autograde.autograde_preprocessors = ["nbgrader.preprocessors.Execute"]
    steps.install(config)
    listed = config.Autograde.autograde_preprocessors
    assert listed[0] == "autograder.nbgrader.JudgeCells" and not any("Execute" in name for name in listed)
    assert config.Autograde.sanitize_preprocessors[0] == "autograder.nbgrader.RepairMetadata"


# --- repair and cleaning --------------------------------------------------------------------------------


def test_repair_comes_first_and_is_logged(notebook, tiny_release):
    """For staff; the student reads it on top of the feedback."""
    pasted = copy.deepcopy(next(cell for cell in notebook.cells if grade_id(cell) == "spread"))
    pasted["id"] = "pasted"
    notebook.cells.append(pasted)
    result, _ = RepairMetadata().preprocess(notebook, RESOURCES)
    assert [grade_id(cell) for cell in result.cells if grade_id(cell)] == list(tiny_release.graded)


def test_a_students_markup_cannot_run(notebook):
    """In prose, raw cells, outputs, attachments and metadata; the release's own HTML stays."""
    ours = next(cell for cell in notebook.cells if "<details>" in cell.source)
    notebook.metadata["title"] = MARKUP
    output = nbformat.v4.new_output(
        "display_data", {"text/html": MARKUP, "image/svg+xml": MARKUP, "text/plain": "kept"}
    )
    notebook.cells += [
        nbformat.v4.new_markdown_cell(MARKUP, attachments={"a": {"image/svg+xml": MARKUP}}),
        nbformat.v4.new_raw_cell(MARKUP),
        nbformat.v4.new_code_cell("1", outputs=[output] * 100),
    ]
    before = ours.source
    result, _ = SanitizeOutputs().preprocess(notebook, RESOURCES)
    prose, raw, code = result.cells[-3:]
    for text in (prose.source, raw.source, str(code.outputs), str(result.metadata)):
        assert "<script" not in text and "<img" not in text and "](javascript:" not in text
    assert "attachments" not in prose and len(code.outputs) == steps.OUTPUTS_LIMIT
    assert code.outputs[0].data == {"text/plain": "kept"}
    assert ours.source == before
    again, _ = SanitizeOutputs().preprocess(copy.deepcopy(result), RESOURCES)
    assert nbformat.writes(again) == nbformat.writes(result)


# --- late policy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minutes", "penalty"),
    [(5, None), (11, 1.0), (24 * 60 + 5, 1.0), (24 * 60 + 11, 2.0), (3 * 24 * 60, 3.0), (5 * 24 * 60, 10.0)],
)
def test_the_late_policy_is_that_of_the_course(course, minutes, penalty):
    """Grace, then a share for each day begun, then nothing is left."""
    plugin = LatePolicy(parent=Converter(course))
    assert plugin.late_submission_penalty("ann", 10.0, minutes * 60) == penalty


def test_without_a_policy_nothing_is_late(tmp_path):
    """A course without course.toml takes everything."""
    plugin = LatePolicy(parent=Converter(tmp_path))
    assert plugin.late_submission_penalty("ann", 10.0, 10**6) is None
