"""A message about a graded answer tells what is wrong and no number that the answer chose."""

import pytest

from autograder.judge.discreet import discreet

SAID = {
    "a transposed result": ("result: shape (7, 4), expected (4, 7)", "result: shape (7, 4), expected (4, 7)"),
    "a shape that spells a number": ("m: shape (0, 216293), expected (4, 7)", "m: shape (0, ?), expected (4, 7)"),
    "a shape that spells it in pieces": (
        "result: shape (0, 21, 62, 93, 11, 12, 13), expected (4, 7)",
        "result: shape (…), expected (4, 7)",
    ),
    "one axis": ("result: shape (9,), expected (4,)", "result: shape (?,), expected (4,)"),
    "a length": ("a list of 216293, expected a list of 4", "a list of about 220,000, expected a list of 4"),
    "a count with commas": ("216,293 of 999,999 values are off", "about 220,000 of about 1,000,000 values are off"),
    "ordinary counts": ("3 of 28 values are NaN", "3 of 28 values are NaN"),
    "errors": ("largest error 0.0022, allowed 1.7e-06", "largest error 0.0022, allowed 1.7e-06"),
    "a collective": (
        "rank 0 brings shape (0, 894881) torch.float32, rank 1 brings shape (0, 1) torch.float32",
        "rank 0 brings shape (0, ?) torch.float32, rank 1 brings shape (0, 1) torch.float32",
    ),
    "what was expected stays": (
        "a tensor of shape (3,), expected a Tensor of shape (4096, 12345)",
        "a tensor of shape (?,), expected a Tensor of shape (4096, 12345)",
    ),
}


@pytest.mark.parametrize(("before", "after"), SAID.values(), ids=SAID)
def test_numbers_that_an_answer_chose_are_not_repeated(before, after):
    """Expected sizes and small counts stay, all else is rounded or left out."""
    assert discreet(before) == after


def test_a_mechanism_names_its_own_sizes():
    """Only shapes are looked at there: sizes are the judge's, and counts were rounded where they were made."""
    said = "peak extra memory grows (4,096: 3.4 MiB); rank 0 brings shape (0, 55555)"
    assert discreet(said, counts=False) == "peak extra memory grows (4,096: 3.4 MiB); rank 0 brings shape (0, ?)"
