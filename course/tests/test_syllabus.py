"""The syllabus is what lectures, labs and dates say, and nothing is typed twice."""

import pytest

from course import syllabus
from course.tests.tree import ROOT, plant

COURSE = """title = "A course"
[term]
name = "spring"
starts = 2027-01-11
ends = 2027-05-07
[deadlines]
"03_a" = 2027-01-29T23:59:00Z
[late]
grace_minutes = 15
penalty_per_day = 0.1
days = 4
[weights]
"03_a" = 3.0
"""
LAB = 'title = "Lab A"\nminutes = 100\n[questions.f]\npoints = 4\nminutes = 12\ndifficulty = 2\n'
LECTURE = (
    "# %% [markdown]\n# # 03 · A title\n# *Why so?*\n#\n# **You need** unit 01.\n#\n"
    "# **You will be able to** do it.\n#\n# **Time** 45 min, 20 s of CPU.\n"
)


@pytest.fixture
def tree(tmp_path):
    """Two units: one whole, one with a lab alone."""
    written = "[questions.why]\npoints = 6\nminutes = 9\ndifficulty = 1\nwritten = true\n"
    return plant(
        tmp_path, course__course_dot_toml=COURSE, lectures__03_a_dot_py=LECTURE, labs__03_a__lab_dot_toml=LAB + written,
        labs__05_b__lab_dot_toml=LAB + 'needs = ["triton"]\n',
    )  # fmt: skip


def test_this_repositorys_syllabus_is_in_step():
    """`python -m course syllabus` writes it."""
    assert (ROOT / syllabus.PAGE).read_text(encoding="utf-8") == syllabus.rendered(ROOT)


def test_the_calendar_has_a_row_a_unit(tree):
    """Points are added, shares sum to the whole, a lab that is not named has no deadline."""
    rows = syllabus.rendered(tree).split("## Calendar")[1].splitlines()
    assert "| 03 A title | 45 min | 100 min | 10 | Fri 29 Jan 2027, 23:59 UTC | 75 % |" in rows
    assert "| 05 Lab A |  | 100 min | 4 | no deadline | 25 % |" in rows


def test_a_unit_says_its_question_and_its_objectives(tree):
    """In the words of the lecture's front cell."""
    page = syllabus.rendered(tree)
    assert "*Why so?* [Lecture](../lectures/03_a.ipynb)" in page
    assert "**You need** unit 01." in page and "**You will be able to** do it." in page
    assert "| `f` | 4 | 12 | ●●○ | by the judge |" in page and "| `why` | 6 | 9 | ●○○ | by a person |" in page
    assert "| `f` | 4 | 12 | ●●○ | by the judge, needs triton |" in page


def test_the_late_policy_is_said_in_words(tree):
    """With the numbers of course.toml."""
    assert "15 minutes are forgiven, then 10 % of the points earned for each day begun; after 4 days" in (
        syllabus.rendered(tree)
    )


def test_a_stale_page_is_named_and_mended(tree, monkeypatch, capsys):
    """`--check` writes nothing."""
    monkeypatch.setattr(syllabus, "ROOT", tree)
    assert syllabus.main(["--check"]) == 1 and "STALE course/syllabus.md" in capsys.readouterr().err
    assert not (tree / syllabus.PAGE).exists()
    assert syllabus.main([]) == 0 and syllabus.main(["--check"]) == 0
