"""Private cases count in a grade, are seen by nobody else, and stop the run if they are not in order."""

import os

import pytest

from autograder import open_lab, prove
from autograder.judge import cycle
from autograder.judge.course import Course
from autograder.judge.judge import judge_cells
from autograder.judge.session import Cell
from autograder.judge.verdict import bank_version
from autograder.labs import LabError, load_lab
from autograder.overlay import VARIABLE, use_overlay
from autograder.question import generator
from autograder.redteam.bench import Quick

HEAD = "import torch\nfrom autograder import Case\nfrom autograder.overlay import variant\n\n"
MORE = HEAD + (
    '@variant("spread")\ndef more(rng, public):\n    yield from public\n'
    '    yield Case("private: far from zero", torch.randn(5, generator=rng) + 1000.0, weight=3)\n'
)


@pytest.fixture(autouse=True)
def no_overlay(monkeypatch, tiny):
    """Whatever a test sets, the next one starts without; the shared lab keeps its public questions."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    assert tiny.checks


@pytest.fixture
def course(tmp_path):
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "nbgrader_config.py").write_text("c = get_config()\n")
    return tmp_path / "course"


def overlay(course, text, slug="00_tiny", setting='overlay = "../private"'):
    (course / "course.toml").write_text(f"[grading]\n{setting}\n")
    if text is not None:
        (course.parent / "private" / slug).mkdir(parents=True, exist_ok=True)
        (course.parent / "private" / slug / "checks.py").write_text(text)


def names(lab, question="spread"):
    return [case.name for case in lab.checks[question].spec.cases(generator(0))]


def test_a_variant_adds_cases_and_leaves_the_rest_of_the_question_alone(tiny, course):
    """Mechanisms, tolerance, `drive` and the other questions are the public ones."""
    overlay(course, MORE)
    Course(course)
    lab = load_lab(tiny.folder)
    assert names(lab) == [*names(tiny), "private: far from zero"]
    assert names(lab, "stream_sum") == names(tiny, "stream_sum")
    ours, public = lab.checks["spread"], tiny.checks["spread"]
    assert (ours.drive_source, ours.text, ours.name) == (public.drive_source, public.text, public.name)
    assert [type(m) for m in ours.mechanism] == [type(m) for m in public.mechanism]


def test_a_variant_may_replace_every_case(tiny, course):
    """Other constants for this term."""
    overlay(course, HEAD + '@variant("spread")\ndef other(rng, public):\n    return [Case("ours", torch.ones(3))]\n')
    Course(course)
    assert names(load_lab(tiny.folder)) == ["ours"]


def test_a_variant_is_judged(tiny, course, tiny_cells, zygote):
    """An answer that knows the public cases loses points on the private one; the honest one loses none."""
    overlay(course, MORE)
    Course(course)
    lab = load_lab(tiny.folder)
    honest = judge_cells(lab, tiny_cells, 5, zygote)["spread"]
    assert honest.passed and honest.cases[-1].name == "private: far from zero"
    tuned = (
        "\n\nhonest = spread\n\n\ndef spread(x):\n    return honest(x) if x.abs().max() < 500 else honest(x) * 0 - 1\n"
    )
    report = judge_cells(lab, [*tiny_cells, Cell("added", tuned)], 5, zygote)["spread"]
    assert [case.passed for case in report.cases][-1] is False and 0 < report.earned < report.points
    assert judge_cells(tiny, [*tiny_cells, Cell("added", tuned)], 5, zygote)["spread"].passed


def test_a_changed_variant_is_a_new_version_of_the_bank(tiny, course):
    """So everybody is judged again, as with a changed check; also where only a data file changed."""
    versions = [bank_version(load_lab(tiny.folder))]
    overlay(course, MORE)
    Course(course)
    versions.append(bank_version(load_lab(tiny.folder)))
    overlay(course, MORE.replace("1000.0", "2000.0"))
    versions.append(bank_version(load_lab(tiny.folder)))
    (course.parent / "private" / "00_tiny" / "constants.csv").write_text("1,2\n")
    versions.append(bank_version(load_lab(tiny.folder)))
    assert len(set(versions)) == 4
    overlay(course, None, setting="")
    Course(course)
    assert bank_version(load_lab(tiny.folder)) == versions[0]


def test_students_check_on_the_public_cases(tiny, course, monkeypatch):
    """A notebook anywhere, also in the instructor's course folder: only the judge's commands set the overlay."""
    overlay(course, MORE)
    monkeypatch.chdir(course)
    monkeypatch.setenv("COURSE_LABS", str(tiny.folder.parent))
    assert names(open_lab("00_tiny")._lab) == names(tiny)


def test_a_lab_without_variants_is_as_it_was(tiny, course):
    """The overlay may hold one lab of many."""
    overlay(course, MORE, slug="09_other")
    Course(course)
    assert names(load_lab(tiny.folder)) == names(tiny)


def test_the_reference_is_proved_on_the_variants(tiny, course):
    """`prove` with the overlay in its environment: the worked solution must pass a private case, too."""
    overlay(course, MORE)
    use_overlay(course)
    lab = load_lab(tiny.folder)
    answer = next(a for a in prove.answers(lab, lab.checks["spread"]) if a.kind == "reference")
    bench = Quick(lab)
    (proved,) = prove.judge(lab, answer, bench, {"hidden": 3})
    assert not proved.problem and proved.earned == proved.points


WRONG = {
    "a syntax error": ("def (:", "SyntaxError"),
    "an error while loading": ("import no_such_module", "No module named"),
    "nothing declared": (HEAD, "declares no variant"),
    "an unknown question": (MORE.replace('"spread"', '"sprad"'), 'Did you mean "spread"'),
    "two variants of a question": (MORE + MORE.removeprefix(HEAD).replace("def more", "def again"), "two variants"),
    "an error while drawing": (MORE.replace("torch.randn", "torch.no_such"), "raised AttributeError"),
    "no cases": (HEAD + '@variant("spread")\ndef none(rng, public):\n    return []\n', "must give cases"),
    "no generator and no list": (HEAD + '@variant("spread")\ndef none(rng, public):\n    pass\n', "TypeError"),
    "no Case": (HEAD + '@variant("spread")\ndef f(rng, public):\n    return [1]\n', "must give cases"),
    "a name twice": (MORE.replace("yield from public", "yield from [*public, *public]"), "same name"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG)
def test_an_overlay_that_is_not_in_order_is_refused_before_anybody_is_judged(text, says, tiny, course):
    """The message names the file; no verdict is written."""
    overlay(course, text)
    with pytest.raises(LabError, match=says) as refused:
        cycle.judge(Course(course), load_lab(tiny.folder))
    assert "checks.py" in str(refused.value)
    assert not (course / ".judge" / "verdicts").exists()


def test_a_folder_that_is_not_there_or_is_public_is_refused(tiny, course):
    """A slip in course.toml must not grade a class without its private cases."""
    overlay(course, None, setting='overlay = "../no-such"')
    with pytest.raises(LabError, match="no folder"):
        Course(course)
    overlay(course, None, setting="overlay = 3")
    with pytest.raises(LabError, match="overlay is 3"):
        Course(course)
    overlay(course, None, setting=f'overlay = "{tiny.folder.parent}"')
    Course(course)
    with pytest.raises(LabError, match="outside the repository"):
        _ = load_lab(tiny.folder).checks
    os.environ[VARIABLE] = str(course / "gone")
    with pytest.raises(LabError, match="on this machine"):
        _ = load_lab(tiny.folder).checks


def test_a_folder_without_checks_is_refused(tiny, course):
    """An empty folder is a file forgotten."""
    overlay(course, MORE)
    (course.parent / "private" / "00_tiny" / "checks.py").unlink()
    Course(course)
    with pytest.raises(LabError, match=r"has no checks\.py"):
        _ = load_lab(tiny.folder).checks
