"""One policy decides when a result is right; these are its borders."""

import math

import pytest
import torch

from autograder.tolerance import Tolerance, alike, assert_close, compare, has_nan, structure

WANT = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)


def moved(by):
    return WANT + torch.tensor([0.0, by, 0.0], dtype=torch.float64)


def kinds(got, want, **options):
    return [difference.kind for difference in compare(got, want, **options).differences]


def test_the_bound_is_rtol_of_the_largest_value_where_rounding_costs_nothing():
    """With an oracle that loses nothing in low precision, 1e-5 of the scale is allowed: here 4e-5."""
    assert compare(moved(3.9e-5), WANT).ok
    assert kinds(moved(4.1e-5), WANT) == ["value"]


def test_the_bound_widens_with_what_the_oracle_itself_loses():
    """Eight times the low-precision error is added, and the report names error and bound."""
    low = moved(1e-3)
    assert compare(moved(-7.9e-3), WANT, low).ok
    result = compare(moved(-8.2e-3), WANT, low)
    (difference,) = result.differences
    assert difference.error == pytest.approx(8.2e-3)
    assert difference.bound == pytest.approx(8e-3 + 4e-5)
    assert difference.values == ((1,), pytest.approx(-2.0082), -2.0)
    assert "1 of 3 values are off: largest error 0.0082, allowed 0.008" in difference.message


def test_a_question_may_change_both_numbers():
    """rtol and factor are the whole policy."""
    assert compare(moved(0.3), WANT, tolerance=Tolerance(rtol=0.1)).ok
    assert not compare(moved(3e-3), WANT, moved(1e-3), Tolerance(rtol=0.0, factor=2.0)).ok


def test_a_passed_result_reports_the_tensor_closest_to_its_bound():
    """That is the figure a student sees beside a green case."""
    result = compare((moved(1e-9), moved(3e-5)), (WANT, WANT))
    assert result.ok
    assert (result.error, result.bound) == (pytest.approx(3e-5), pytest.approx(4e-5))


def test_nan_is_never_a_pass():
    """Not in a tensor, not as a number."""
    assert kinds(torch.tensor([1.0, math.nan, 4.0]), WANT) == ["nan"]
    assert kinds(math.nan, 1.0) == ["nan"]
    assert compare(torch.tensor([math.nan, 1.0]), torch.ones(2).double()).differences[0].values[0] == (0,)


def test_an_oracle_that_returns_nan_is_an_error_of_the_check():
    """No answer could be right, so nobody may be graded on it."""
    with pytest.raises(ValueError, match=r"the oracle returned NaN at result\[1\]"):
        compare((WANT, torch.ones(1)), (WANT, torch.tensor([math.nan])))


@pytest.mark.parametrize("wrong", [[1.0, 5.0], [math.inf, 5.0], [-math.inf, -math.inf], [1e30, 5.0]])
def test_infinities_must_stand_where_the_oracle_has_them(wrong):
    """With their sign, and nowhere else; the finite values beside them keep a finite bound."""
    want = torch.tensor([-math.inf, 5.0], dtype=torch.float64)
    assert compare(torch.tensor([-math.inf, 5.0]), want).ok
    assert not compare(torch.tensor(wrong), want).ok


def test_a_result_of_infinities_alone_must_be_equal():
    """There is no scale to allow a share of."""
    want = torch.full((2,), -math.inf, dtype=torch.float64)
    assert compare(want.float(), want).ok
    assert not compare(torch.tensor([-math.inf, -1e30]), want).ok


def test_the_scale_is_a_magnitude():
    """A large negative value sets it like a large positive one."""
    want = torch.tensor([-100.0, 1.0], dtype=torch.float64)
    assert compare(want + 0.9e-3, want).ok
    assert not compare(want + 1.1e-3, want).ok


def test_an_overflow_of_the_low_precision_run_does_not_widen_the_bound():
    """Only finite rounding errors count."""
    assert not compare(moved(1.0), WANT, torch.tensor([math.inf, -2.0, 4.0])).ok
    assert not compare(moved(1.0), WANT, torch.full((3,), math.inf)).ok


@pytest.mark.parametrize(
    ("got", "want", "kind"),
    [
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "value"),
        (torch.tensor([1.0, 3.0]), torch.tensor([1, 3]), "type"),
        (torch.tensor([1, 0]), torch.tensor([True, False]), "type"),
        (torch.tensor([True, True]), torch.tensor([True, False]), "value"),
        (torch.tensor([1, -2, 4]), WANT, "type"),
        (torch.ones(3, 2), torch.ones(2, 3).double(), "shape"),
        (torch.ones(2, 3), [torch.ones(3), torch.ones(3)], "structure"),
        ([1.0], (1.0, 2.0), "structure"),
        ({"a": 1.0}, {"b": 1.0}, "structure"),
        (3, {"b": 1.0}, "structure"),
        (None, 1.0, "type"),
        (True, 1.0, "type"),
        ("1.0", 1.0, "type"),
        (1.0, None, "type"),
        (1, True, "type"),
        (2, 3, "value"),
        ("a", "b", "value"),
        (3.0, torch.tensor(3.0), "type"),
        (torch.ones(2), 1.0, "type"),
        (1.1, 1.0, "value"),
    ],
)
def test_what_is_not_the_result_is_told_apart_by_kind(got, want, kind):
    """Structure, type, shape or value: the words of the report depend on it."""
    assert kinds(got, want) == [kind]


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1, 2])),
        (torch.ones(2, dtype=torch.float16), torch.ones(2).double()),
        (torch.nn.Parameter(torch.ones(2)), torch.ones(2).double()),
        ([1, 2.0], (1.0, 2.0)),
        (torch.tensor(2.0), 2.0),
        (2, 2.0),
        ({"b": None, "a": "x"}, {"a": "x", "b": None}),
        (torch.empty(0), torch.empty(0).double()),
        ((), ()),
    ],
)
def test_forms_that_mean_the_same_pass(got, want):
    """A list for a tuple, a whole number for a float, another width of the same kind of number."""
    assert compare(got, want).ok


class SaysEqual(torch.Tensor):
    """A tensor that agrees with everything."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return torch.tensor(0.0)


@pytest.mark.parametrize(
    "got",
    [torch.ones(3).as_subclass(SaysEqual), torch.ones(3).to_sparse(), torch.ones(3, device="meta")],
    ids=["subclass", "sparse", "meta"],
)
def test_only_plain_tensors_are_compared(got):
    """A subclass could answer every comparison itself; sparse and meta tensors hold no numbers to read."""
    assert kinds(got, torch.ones(3).double()) == ["type"]
    assert not alike(got, torch.zeros(3))


def test_every_part_that_differs_is_reported_with_its_place():
    """A nested result says where."""
    result = compare({"out": (WANT, WANT), "n": 1}, {"out": (WANT, WANT + 1), "n": 2})
    assert [difference.where for difference in result.differences] == ["result['out'][1]", "result['n']"]


def test_a_transposed_shape_is_named_as_such():
    """The likeliest cause stands in the message."""
    assert "is an axis transposed?" in compare(torch.ones(3, 2), torch.ones(2, 3)).differences[0].message
    assert "transposed" not in compare(torch.ones(3, 3), torch.ones(2, 3)).differences[0].message


def test_assert_close_raises_with_every_difference():
    """For tests of other packages."""
    assert_close(WANT, WANT)
    with pytest.raises(AssertionError, match=r"result\[0\]: .*\nresult\[1\]: "):
        assert_close((WANT + 1, 2), (WANT, 1))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan])),
        (torch.tensor([100.0, 0.0]), torch.tensor([100.0, 0.05])),
        ([1, {"a": 2.0}], (1, {"a": 2.0001})),
        (math.nan, math.nan),
        (None, None),
        ("x", "x"),
        (torch.tensor([math.inf]), torch.tensor([math.inf])),
    ],
)
def test_a_known_mistake_is_recognised_up_to_rounding(a, b):
    """One part in a thousand of the scale; NaN equals NaN here."""
    assert alike(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([100.0, 0.0]), torch.tensor([100.0, 0.3])),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), [1.0, 1.0]),
        ([1, 2], [1, 2, 3]),
        ([1, 2], [1, 3]),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}),
        (math.nan, 1.0),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 2}),
        (1.0, 1.1),
        (None, 0),
        ("x", "y"),
        (torch.tensor([math.nan]), torch.tensor([1.0])),
    ],
)
def test_different_results_are_not_taken_for_each_other(a, b):
    """A diagnosis that fits by chance would mislead."""
    assert not alike(a, b)


def test_a_structure_is_described_without_its_numbers():
    """What a message may show of a hidden case."""
    described = structure({"a": [torch.ones(2, 3), 7], "b": None})
    assert described == {"a": ["a Tensor of shape (2, 3)", "a value of type int"], "b": "None"}


def test_a_dict_shows_the_oracles_names_and_none_of_the_answers():
    """An answer could put hidden numbers into its keys; the oracle's are names, unless they are data themselves."""
    named = compare({"3.14159": 1, "y": 2}, {"z": 1}).differences[0].message
    assert named == "a dict of 2, expected a dict of 1 with keys ['z']"
    assert compare({}, {31: 1}).differences[0].message == "a dict of 0, expected a dict of 1"


def test_nan_is_found_anywhere():
    """Integers have none."""
    assert has_nan([{"a": torch.tensor([1.0, math.nan])}])
    assert not has_nan([torch.ones(2), torch.tensor([1])])
