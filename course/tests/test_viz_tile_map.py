"""The tile map's arithmetic against brute force, and the figures of unit 04 as drawn."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from course.viz import against, byte_bars, count_tiles, roofline, tile_map, tile_maps, use_style
from course.viz.bytes import fitted_slope
from course.viz.tile_map import DIAGONAL, FULL, SKIPPED, tile_kinds

WORDS = {"claim": "A finding", "sub": "An experiment."}


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    """A figure left open would count against matplotlib's limit in other tests."""
    from matplotlib import pyplot as plt

    with matplotlib.rc_context():
        yield
    plt.close("all")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n", "block_q", "block_k"), [(8, 2, 2), (13, 4, 3), (13, 3, 5), (1, 4, 4), (16, 32, 4)])
def test_kinds_and_counts_equal_a_look_at_every_pair(n, block_q, block_k, causal):
    """A tile is full, diagonal or skipped exactly if all, some or none of its pairs are visible."""
    visible = np.tril(np.ones((n, n), bool)) if causal else np.ones((n, n), bool)
    kinds = tile_kinds(n, block_q, block_k, causal=causal)
    computed = 0
    for (i, j), kind in np.ndenumerate(kinds):
        part = visible[i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
        assert kind == (FULL if part.all() else DIAGONAL if part.any() else SKIPPED)
        computed += part.size if part.any() else 0
    counts = count_tiles(n, block_q, block_k, causal=causal)
    assert (counts.computed, counts.needed) == (computed, visible.sum())
    assert counts.loaded + counts.skipped == kinds.size


def test_the_longer_side_of_a_tile_decides_the_waste():
    """Where one side divides the other, computed minus needed pairs is n · max(B_r, B_c) / 2, less the diagonal."""
    n = 512
    for block_q, block_k in [(64, 64), (128, 32), (32, 128), (256, 16)]:
        counts = count_tiles(n, block_q, block_k)
        assert counts.computed - n * n // 2 == n * max(block_q, block_k) // 2


def test_a_block_below_one_is_refused():
    """An empty tile would loop for ever; the message names the three numbers."""
    with pytest.raises(ValueError, match="at least 1"):
        tile_kinds(8, 0, 4)


def test_the_map_draws_one_patch_per_tile_and_returns_its_counts():
    """What a reader sees and what the counter says come from one place."""
    from matplotlib import pyplot as plt

    use_style()
    _, ax = plt.subplots()
    counts = tile_map(ax, 64, 16, 8)
    assert len(ax.patches) == counts.loaded + counts.skipped == 32
    assert ax.get_ylim() == (64, 0)  # query 0 on top, as in a matrix


def test_every_map_carries_its_own_counter():
    """One title and one red counter per tile shape."""
    fig = tile_maps(64, {(16, 16): "10 loaded", (32, 8): "12 loaded"}, **WORDS)
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert {"10 loaded", "12 loaded"} <= set(texts)


def test_byte_bars_write_each_total_and_name_each_part_once():
    """Totals are sums of the parts; a part is named above the first bar that has room."""
    rows = {"standard": {"S": 30.0, "io": 10.0}, "flash": {"io": 4.0}}
    fig = byte_bars(rows, {"S": "foil", "io": "hero"}, limit=("card", 35.0), **WORDS)
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert "40.0 GB" in texts and "4.0 GB" in texts
    assert texts.count("S") == texts.count("io") == 1


def test_roofline_places_dots_where_they_were_measured():
    """x is FLOP per byte, y is TFLOP/s; the roof's corner is the ridge."""
    fig = roofline(
        {"a": (20.0, 1e13, "foil"), "b": (200.0, 1e14, "hero")}, flop_per_s=3e14, bytes_per_s=1.5e12, **WORDS
    )
    lines = fig.axes[0].get_lines()
    assert {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines[2:]} == {
        (20.0, 10.0),
        (200.0, 100.0),
    }
    assert max(lines[0].get_ydata()) == 300.0


def test_slopes_are_fitted_where_fixed_costs_have_faded():
    """n² + constant fits 2, not less."""
    x = [64, 128, 256, 512, 1024, 2048]
    assert fitted_slope(x, [n * n + 20_000 for n in x]) == pytest.approx(2, abs=0.05)


def test_against_draws_every_line_of_every_panel():
    """Panels are independent: their own axes, their own names."""
    lines = {"naive": ([1, 2, 4], [1.0, 4.0, 16.0], "foil"), "tiled": ([1, 2, 4], [1.0, 2.0, 4.0], "hero")}
    fig = against({"time": lines, "memory": lines}, xlabel="N", slopes=True, **WORDS)
    assert [len(ax.get_lines()) for ax in fig.axes] == [2, 2]
    assert any("N$^{2.0}$" in text.get_text() for text in fig.axes[0].texts)
