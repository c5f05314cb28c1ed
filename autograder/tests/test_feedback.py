"""What a student reads: the same words in HTML and in plain text."""

import re

import pytest

from autograder.feedback import COLOURS, as_html, as_text
from autograder.mechanism import MechanismResult
from autograder.score import CaseResult, Report
from autograder.tolerance import Difference

DIFFERENCE = Difference("result[0]", "value", "1 of 6 values are off", 0.5, 0.1, ((0, 2), 1.23456789, -7.0))
FAILED = Report(
    "merge",
    4,
    (
        CaseResult("plain <case>", True, error=2e-7, bound=1e-5),
        CaseResult("odd", False, message="result[0]: 1 of 6 values are off", differences=(DIFFERENCE,)),
        CaseResult("late", False, message="ValueError: <b>no</b>"),
    ),
    (MechanismResult("Forbids", False, "`aten.softmax` was called"),),
    mistake="swapped",
    diagnosis="You swapped `a` & `b`.",
)
PASSED = Report("merge", 4, (CaseResult("plain", True),))
UNTOUCHED = Report("merge", 4, attempted=False, note="there is no `merge` in this notebook")


def words(html):
    """The text that a browser shows."""
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#x27;", "'"), ("&amp;", "&")):
        html = re.sub(r"<[^>]+>", " ", html).replace(entity, character)
    return set(re.findall(r"[\w.-]+", html))


def test_a_failure_says_what_where_and_why():
    """Case by case, then mechanisms, diagnosis and the way on."""
    assert as_text(FAILED).splitlines() == [
        "merge: not right yet · 0 of 4 points",
        "  ✓ plain <case> (largest error 2.0e-07, allowed 1.0e-05)",
        "  ✗ odd",
        "      result[0]: 1 of 6 values are off",
        "      first at index (0, 2): got 1.23457, expected -7",
        "  ✗ late",
        "      ValueError: <b>no</b>",
        "  ✗ Forbids: `aten.softmax` was called",
        "",
        "  What happened: You swapped `a` & `b`.",
        "",
        '  A hint: lab.hint("merge")',
    ]


@pytest.mark.parametrize("report", [FAILED, PASSED, UNTOUCHED], ids=["failed", "passed", "untouched"])
def test_html_and_text_say_the_same(report):
    """A screen reader or a log misses nothing."""
    missing = words(as_text(report).replace("`", " ")) - words(as_html(report))
    assert not missing


def test_a_grade_shows_no_expected_value():
    """Without `reveal`, place and size of the error remain."""
    for shown in (as_text(FAILED, reveal=False), as_html(FAILED, reveal=False)):
        assert "1 of 6 values are off" in shown
        assert "-7" not in shown
        assert "1.23" not in shown


def test_a_student_s_text_can_not_become_markup():
    """Case names, messages and diagnoses are escaped; only `code` becomes an element."""
    html = as_html(FAILED)
    assert "<b>no</b>" not in html
    assert "plain &lt;case&gt;" in html
    assert "You swapped <code>a</code> &amp; <code>b</code>." in html


def test_pass_and_fail_are_told_without_colour():
    """A mark and a spoken word on every line, and a status role on the whole."""
    html = as_html(FAILED)
    assert html.count('aria-label="failed"') == 3
    assert html.count('aria-label="passed"') == 1
    assert 'role="status"' in html


def test_a_passed_question_offers_the_worked_solution_and_no_hint():
    """The other way round for a failed one; nothing of either for one that was not attempted."""
    assert 'lab.solution("merge")' in as_text(PASSED)
    assert "hint" not in as_text(PASSED)
    assert "solution" not in as_text(FAILED)
    assert as_text(UNTOUCHED) == ("merge: not attempted yet · 0 of 4 points\n  there is no `merge` in this notebook")
    assert "lab." not in as_html(UNTOUCHED)


def test_every_status_has_a_colour_of_its_own():
    """A report can always be drawn."""
    assert len(set(COLOURS.values())) == 4
    for report in (FAILED, PASSED, UNTOUCHED, Report("q", 2, (CaseResult("a", True), CaseResult("b", False)))):
        assert COLOURS[report.status] in as_html(report)


def test_a_difference_without_an_index_is_told_too():
    """A wrong number or string has no place inside."""
    scalar = CaseResult("n", False, differences=(Difference("result", "value", "differs", values=((), 3, 4)),))
    assert "      got 3, expected 4" in as_text(Report("q", 1, (scalar,))).splitlines()


def test_at_most_three_differences_are_listed():
    """The first ones are the ones to mend."""
    many = CaseResult("n", False, differences=tuple(Difference(f"part {i}", "type", "wrong") for i in range(5)))
    shown = as_text(Report("q", 1, (many,)))
    assert "part 2" in shown
    assert "part 3" not in shown
