"""From results to points."""

import pytest

from autograder.mechanism import MechanismResult
from autograder.question import Mistake
from autograder.score import CaseResult, Report
from autograder.tolerance import Difference


def report(*passed, weights=None, mechanisms=(), points=6.0, **more):
    weights = weights or [1.0] * len(passed)
    cases = [CaseResult(f"case {i}", ok, w) for i, (ok, w) in enumerate(zip(passed, weights, strict=True))]
    return Report("q", points, tuple(cases), tuple(MechanismResult("M", ok, "", c) for ok, c in mechanisms), **more)


@pytest.mark.parametrize(
    ("result", "earned", "status"),
    [
        (report(True, True, True), 6.0, "passed"),
        (report(True, False, True), 4.0, "partly right"),
        (report(True, False, weights=[1, 2]), 2.0, "partly right"),
        (report(True, False, False, True, True, True, True, points=4), 2.86, "partly right"),
        (report(False, True, True), 0.0, "not right yet"),
        (report(True, True, mechanisms=[(False, 1.0)]), 0.0, "not right yet"),
        (report(True, True, mechanisms=[(False, 0.5)]), 3.0, "partly right"),
        (report(True, True, mechanisms=[(False, 0.5), (False, 0.5), (True, 1.0)]), 1.5, "partly right"),
        (report(True, False, mechanisms=[(True, 1.0)]), 3.0, "partly right"),
        (report(attempted=False), 0.0, "not attempted yet"),
        (report(), 0.0, "not right yet"),
    ],
)
def test_points_follow_from_cases_weights_and_mechanisms(result, earned, status):
    """Edge cases count only once the plain one passes; a failed mechanism takes its share."""
    assert (result.earned, result.status) == (earned, status)
    assert result.passed == (status == "passed")


def test_a_diagnosis_is_added_to_a_report_and_nothing_else_changes():
    """No known mistake leaves it as it was."""
    before = report(False)
    after = before.with_diagnosis(Mistake("q", "swapped", "You swapped them.", lambda: None))
    assert (after.mistake, after.diagnosis, after.cases) == ("swapped", "You swapped them.", before.cases)
    assert before.with_diagnosis(None) is before


def test_the_public_report_holds_no_hidden_number():
    """Names, weights and messages; neither inputs nor expected values, error or bound."""
    difference = Difference("result", "value", "1 of 3", 0.5, 0.1, ((0,), 123.25, 456.5))
    case = CaseResult("plain", False, 2.0, "1 of 3 are off", (difference,), 0.5, 0.1, 12.345)
    public = Report("q", 4, (case,), (MechanismResult("Forbids", True, "no call", 0.5),), note="a note").public()
    assert public["cases"] == [
        {"name": "plain", "passed": False, "weight": 2.0, "message": "1 of 3 are off", "milliseconds": 12.3}
    ]
    assert public["mechanisms"] == [{"name": "Forbids", "passed": True, "message": "no call", "costs": 0.5}]
    assert (public["earned"], public["status"], public["note"]) == (0.0, "not right yet", "a note")
    assert "123.25" not in str(public)
    assert "456.5" not in str(public)
