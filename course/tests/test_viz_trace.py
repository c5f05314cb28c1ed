"""Figures that follow a stream: what they draw is what the data say."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from course.viz import FOIL, HERO, by_layer, cash_box, exactness, growth, row_maxima, running_max
from course.viz.display import to_png
from course.viz.trace import records

WORDS = {"claim": "One finding", "sub": "One experiment."}


@pytest.fixture(autouse=True)
def no_window():
    """No window opens, and no figure and no setting stays behind."""
    with matplotlib.rc_context():
        matplotlib.use("agg")
        yield
    plt.close("all")


def texts(fig):
    """Every word that stands in the figure."""
    return [t.get_text() for t in fig.findobj(matplotlib.text.Text) if t.get_text()]


def line(ax, color):
    """The data of the axes' line in this colour."""
    return next(entry.get_ydata() for entry in ax.lines if to_hex(entry.get_color()).upper() == color)


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        ([3, 1, 2], [0]),
        ([1, 3, 2, 4], [0, 1, 3]),
        ([2, 2, 2], [0]),
        ([-np.inf, -np.inf, 5], [2]),
        ([-5, -7, -4], [0, 2]),
    ],
)
def test_a_record_is_a_score_above_all_before_it(values, positions):
    """Equal scores change no unit, and a masked key is never a maximum."""
    assert records(values).tolist() == positions


def test_running_max_draws_the_maximum_so_far_and_counts_its_changes():
    """The blue line never falls, ends at the row's maximum, and the number on the right is the number of rings."""
    scores = torch.tensor([1.0, 3.0, 2.0, 4.0, 0.0])
    fig = running_max({"a head": scores}, **WORDS)
    assert line(fig.axes[0], HERO).tolist() == [1, 3, 3, 4, 4]
    assert fig.axes[0].get_title(loc="right") == "3 new maxima"
    assert any(entry.get_ydata().tolist() == [1, 3, 4] for entry in fig.axes[0].lines)


def test_running_max_says_so_when_the_first_key_wins():
    """A sink at key 0 gives one maximum, in the singular."""
    fig = running_max({"a head": [5.0, 1.0, 2.0]}, **WORDS)
    assert fig.axes[0].get_title(loc="right") == "1 maximum, the first key"


@pytest.mark.parametrize("scores", [[1, 3, 2, 4], [4, 3, 2, 1], [2, 2]])
def test_the_cash_box_holds_the_sum_in_its_own_unit(scores):
    """The number above the last bar times its unit is the whole sum."""
    fig = cash_box(scores, **WORDS)
    bars = fig.axes[-1].patches
    held = sum(bar.get_height() for bar in bars)
    assert held * 2 ** max(scores) == sum(2**score for score in scores)
    assert f"{held:g}" in texts(fig)


def test_the_cash_box_names_each_change_of_unit():
    """Only a larger score is called a new unit, in red."""
    fig = cash_box([1, 3, 2, 4], **WORDS)
    new = [ax.get_xlabel().endswith("new") for ax in fig.axes]
    assert new == [False, True, False, True]
    assert [ax.xaxis.label.get_color() == FOIL for ax in fig.axes] == new


def test_row_maxima_counts_the_rows_beyond_each_limit():
    """The counts are computed from the data, not typed."""
    fig = row_maxima(torch.tensor([5.0, 12.0, 30.0, 40.0]), {"float16": 11.09, "float32": 88.7}, **WORDS)
    words = " ".join(texts(fig))
    assert "3 of 4 rows" in words
    assert "0 of 4 rows" in words


def test_by_layer_draws_the_mean_of_the_heads():
    """One dot per head; the line is their mean; the baseline stands where it was given."""
    values = torch.tensor([[1.0, 3.0, 8.0], [5.0, 7.0, 6.0], [2.0, 2.0, 2.0]])
    fig = by_layer(values, label="records", expected=("random", 7.5), **WORDS)
    assert line(fig.axes[0], HERO).tolist() == [4, 6, 2]
    assert sum(len(entry.get_ydata()) == values.numel() for entry in fig.axes[0].lines) == 1
    assert any(list(entry.get_ydata()) == [7.5, 7.5] for entry in fig.axes[0].lines)
    assert "random" in texts(fig)


def test_exactness_says_where_a_method_ends_in_nan():
    """A NaN ends the line, and the factor at which it begins is written beside it."""
    by_scale = {"textbook": ([1, 2, 4], [1e-7, 1e-7, float("nan")]), "one pass": ([1, 2, 4], [1e-7, 1e-7, 1e-7])}
    fig = exactness(by_scale, [0.0, 1e-16, 2e-16], **WORDS)
    assert "textbook: NaN from ×4 on" in texts(fig)
    assert len(line(fig.axes[0], FOIL)) == 2
    assert (fig.axes[1].lines[0].get_ydata() > 0).all()  # an exact 0 has no place on a log axis


@pytest.mark.parametrize(("power", "written"), [(1, "N$^{1.00}$"), (2, "N$^{2.00}$")])
def test_growth_fits_the_exponent_that_it_writes(power, written):
    """The exponent beside the line is the slope of the data on log axes."""
    sizes = [256, 512, 1024]
    fig = growth(sizes, {"bytes": [n**power / 2**10 for n in sizes]}, label="bytes", unit="KiB", **WORDS)
    assert any(written in text for text in texts(fig))


def every_figure(**words):
    yield running_max({"a": [1.0, 2.0]}, **words)
    yield cash_box([1, 2], **words)
    yield row_maxima([1.0, 2.0], {"float16": 11.09, "float32": 88.7}, **words)
    yield by_layer([[1.0, 2.0], [1.0, 1.0]], label="x", log=True, **words)
    yield exactness({"a": ([1, 2], [1e-7, 1e-7])}, [1e-16], **words)
    yield growth([1, 2], {"a": [1.0, 2.0]}, label="x", unit="B", **words)


def test_toy_weights_are_marked_on_every_figure():
    """A figure made with random weights says so; one made with real weights does not."""
    for fig in every_figure(mark="toy weights", **WORDS):
        assert "toy weights" in texts(fig)
    for fig in every_figure(**WORDS):
        assert "toy weights" not in texts(fig)


def test_the_same_data_give_the_same_bytes():
    """Committed notebooks change only when their figures do."""
    for first, second in zip(every_figure(**WORDS), every_figure(**WORDS), strict=True):
        assert to_png(first) == to_png(second)
