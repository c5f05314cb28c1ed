"""Figures of a machine's limits: what they draw is where the numbers say."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt

from course.viz import FOIL, floors, machine_roof, power_law, use_style

WORDS = {"claim": "A finding", "sub": "An experiment"}


@pytest.fixture(autouse=True)
def style():
    """Every test draws in the course's style and leaves no figure and no setting behind."""
    with matplotlib.rc_context():
        matplotlib.use("agg")
        use_style()
        yield
    plt.close("all")


def roof(**changes):
    dots = {"copy": (0.1, 1e9, "foil"), "matmul": (100.0, 9e10, "hero"), "tiny": (0.1, 1e6, "alt")}
    return machine_roof(dots, flop_per_s=1e11, bytes_per_s=1e10, **WORDS, **changes)


def lines(ax, width=0.0):
    return [line for line in ax.get_lines() if line.get_linestyle() != "None" and line.get_linewidth() >= width]


def test_the_roof_is_the_smaller_of_slope_and_peak():
    """Left of the ridge it rises with the bandwidth, right of it stays at the peak."""
    x, y = lines(roof().axes[0], 1.5)[0].get_data()
    np.testing.assert_allclose(y, np.minimum(100, 10 * np.asarray(x)))
    assert min(x) < 10 < max(x)


def test_every_dot_stands_where_it_was_measured_and_has_its_name():
    """FLOP per byte across, GFLOP/s up; nothing lies outside the axes."""
    ax = roof().axes[0]
    dots = [line.get_data() for line in ax.get_lines() if line.get_linestyle() == "None"]
    assert [(float(x[0]), float(y[0])) for x, y in dots] == [(0.1, 1.0), (100.0, 90.0), (0.1, 0.001)]
    assert {"copy", "matmul", "tiny"} <= {text.get_text() for text in ax.texts}
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert left < 0.1 and right > 100 and low < 0.001 and high > 100


def test_names_of_neighbours_do_not_lie_on_each_other():
    """A name that would meet the next dot's name steps down."""
    dots = {"scores, 9 heads": (28.0, 9e10, "hero"), "LM head, 512 rows": (136.0, 1.4e11, "hero")}
    far = {"scale ten": (0.1, 4e6, "alt")}  # so that a decade takes few points
    fig = machine_roof(dots | far, flop_per_s=1.8e11, bytes_per_s=1.3e10, **WORDS)
    fig.canvas.draw()
    left, right = (t.get_window_extent() for t in fig.axes[0].texts if t.get_text() in dots)
    assert not left.overlaps(right)


def test_toy_weights_are_marked():
    """A figure made without the real model says so."""
    assert "toy weights" in [text.get_text() for text in roof(mark="toy weights").texts]


def test_all_floors_are_inside_the_axes_with_their_names():
    """The lowest limit is visible too, and each line is named at its end."""
    limits = {"overhead": ([0.002] * 3, "alt"), "memory": ([0.3, 0.3, 0.6], "foil")}
    ax = floors([1, 2, 4], [0.4, 0.5, 0.9], limits, xlabel="rows", ylabel="ms", **WORDS).axes[0]
    low, high = ax.get_ylim()
    assert low < 0.002 and high > 0.9
    assert {"overhead", "memory", "measured"} <= {text.get_text() for text in ax.texts}


def test_a_law_is_solid_among_its_data_and_dashed_red_beyond():
    """The dashed part begins at the largest x; the run made just now is a ring of its own."""
    data = {"compute": {"x": [4.0, 1.0, 16.0], "y": [2.0, 3.0, 1.5], "others": [(4.0, 2.5)]}}
    law = lambda x: 1 + 2 / x**0.5  # noqa: E731
    ax = power_law(data, {"compute": law}, ylabel="loss", live={"compute": (1.0, 3.1)}, **WORDS).axes[0]
    inside, beyond = lines(ax)
    assert (min(inside.get_xdata()), max(inside.get_xdata())) == pytest.approx((1, 16))
    assert min(beyond.get_xdata()) == pytest.approx(16) and beyond.get_color() == FOIL
    np.testing.assert_allclose(beyond.get_ydata(), [law(x) for x in beyond.get_xdata()])
    assert any(line.get_markerfacecolor() == "none" and line.get_ydata()[0] == 3.1 for line in ax.get_lines())
