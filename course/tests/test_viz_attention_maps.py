"""Figures of who looks at whom: what they draw is what the data say."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex

from course.viz import FOIL, HERO, attention_maps, decoding_steps, lookup, matmul_bars
from course.viz.attention_maps import INKED
from course.viz.display import to_png

WORDS = {"claim": "One finding", "sub": "One experiment."}
ENCODER = {"projections": 24, "attention": 16, "output": 1, "ffn": 2}
DECODER = {"projections": 48, "attention": 32, "output": 2, "ffn": 2}


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


def causal(n):
    """Even attention over all tokens so far."""
    return torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]


def test_the_hard_answer_is_blue_and_named():
    """The largest share is the only blue bar, and its value stands above it."""
    fig = lookup(["a", "b", "c"], {"a head": torch.tensor([0.1, 0.6, 0.3])}, **WORDS)
    bars = fig.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([0.1, 0.6, 0.3])
    assert [to_hex(bar.get_facecolor()).upper() == HERO for bar in bars] == [False, True, False]
    assert "0.60" in texts(fig)


def test_every_key_of_a_lookup_has_its_word_and_the_query_is_red():
    """Words stand once, below the last panel; the last of them asks."""
    fig = lookup(["the", "cat", "it"], {"one": [1, 0, 0], "two": [0, 1, 0]}, **WORDS)
    labels = fig.axes[-1].get_xticklabels()
    assert [label.get_text() for label in labels] == ["the", "cat", "it"]
    assert labels[-1].get_color() == FOIL


def test_a_map_shows_the_weights_it_was_given():
    """Rows are queries from top to bottom, columns keys; nothing is normalised or turned."""
    weights = causal(6)
    fig = attention_maps({"a head": weights}, **WORDS)
    assert np.array_equal(fig.axes[0].images[0].get_array(), weights.numpy())
    assert fig.axes[0].yaxis_inverted()


def test_maps_share_one_scale():
    """A weight of 0.5 is equally dark in every map, whatever the largest weight of that map is."""
    fig = attention_maps({"faint": causal(6) / 10, "full": causal(6)}, **WORDS)
    assert {ax.images[0].get_clim() for ax in fig.axes} == {(0, 1)}


def test_more_weight_is_darker_in_greyscale_too():
    """Lightness falls all along the colour map."""
    red, green, blue = INKED(np.linspace(0, 1, 50))[:, :3].T
    assert (np.diff(0.299 * red + 0.587 * green + 0.114 * blue) < 0).all()


def test_the_strip_shows_every_head_and_the_mean_of_each_layer():
    """One dot per head, one blue bar per layer at the mean of its heads."""
    sink = torch.tensor([[0.0, 0.1], [0.4, 0.6], [1.0, 0.5]])
    strip = attention_maps({"a head": causal(4)}, sink=sink, **WORDS).axes[1]
    assert sorted(strip.lines[0].get_ydata()) == pytest.approx(sorted(sink.flatten().tolist()))
    bars = strip.collections[0].get_segments()
    assert [bar[0][1] for bar in bars] == pytest.approx([0.05, 0.5, 0.75])
    assert strip.get_ylim() == (0, 1)


def test_a_strip_of_one_head_works():
    """A model with a single head has one dot per layer, in the middle."""
    strip = attention_maps({"a head": causal(4)}, sink=torch.tensor([[0.3], [0.7]]), **WORDS).axes[1]
    assert strip.lines[0].get_xdata().tolist() == [0, 1]


def test_the_parts_of_a_block_add_up_to_its_total():
    """Bars are as long as their counts, one after the other, and the total stands at the end."""
    fig = matmul_bars({"encoder": ENCODER}, **WORDS)
    bars = fig.axes[0].patches
    assert [bar.get_width() for bar in bars] == [24, 16, 1, 2]
    assert bars[-1].get_x() + bars[-1].get_width() == 43
    assert "43" in texts(fig)


def test_a_printed_total_that_is_wrong_is_marked_in_red():
    """The line stands at the printed number; a right one leaves no mark."""
    fig = matmul_bars({"encoder": ENCODER, "decoder": DECODER}, printed={"encoder": 43, "decoder": 81}, **WORDS)
    red = [line for line in fig.axes[0].lines if line.get_color() == FOIL]
    assert [list(line.get_xdata()) for line in red] == [[81, 81]]
    assert "84, printed 81" in texts(fig)


def test_a_step_of_decoding_names_its_candidates_and_marks_the_chosen():
    """The first candidate is the chosen one: blue, with its probability."""
    fig = decoding_steps([("of", [("France", 0.7), ("it", 0.2)]), ("France", [("is", 0.9), ("was", 0.1)])], **WORDS)
    assert len(fig.axes) == 2
    assert [bar.get_width() for bar in fig.axes[0].patches] == pytest.approx([0.7, 0.2])
    assert to_hex(fig.axes[1].patches[0].get_facecolor()).upper() == HERO
    assert {"France  0.70", "was  0.10", "2. after “France”"} <= set(texts(fig))


FIGURES = {
    "two maps": lambda **k: attention_maps({"a head\nbelow": causal(80), "another\nbelow": causal(80)}, **WORDS, **k),
    "three maps": lambda **k: attention_maps(
        {f"head {i}\nbelow": causal(80) for i in range(3)}, sink=torch.rand(30, 9), **WORDS, **k
    ),
    "lookup": lambda **k: lookup(["a", "b"], {"a head": [0.2, 0.8]}, **WORDS, **k),
    "attention_maps": lambda **k: attention_maps({"a head": causal(5)}, sink=torch.rand(3, 2), **WORDS, **k),
    "matmul_bars": lambda **k: matmul_bars({"encoder": ENCODER}, **WORDS, **k),
    "decoding_steps": lambda **k: decoding_steps([("a", [("b", 0.5)])], **WORDS, **k),
}


@pytest.mark.parametrize("name", FIGURES)
def test_toy_weights_are_named_in_the_figure_and_only_there(name):
    """A mark is drawn where one is given."""
    assert "toy weights" in texts(FIGURES[name](mark="toy weights"))
    assert "toy weights" not in texts(FIGURES[name]())


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_the_same_data_have_the_same_bytes(name):
    """No date, no random order: a committed notebook does not change by itself."""
    torch.manual_seed(0)
    first = to_png(FIGURES[name]())
    torch.manual_seed(0)
    assert to_png(FIGURES[name]()) == first


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_at_the_edge(name):
    """Axes with their labels lie inside the figure; what sticks out is lost in the PNG."""
    fig = FIGURES[name]()
    fig.canvas.draw()
    width, height = fig.get_size_inches() * fig.dpi
    for ax in fig.axes:
        box = ax.get_tightbbox()
        assert min(box.x0, box.y0) >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
