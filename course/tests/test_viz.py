"""The look of figures, and the words that travel with them."""

import matplotlib
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt

from course.viz import (
    ALT,
    AMBER,
    FOIL,
    HERO,
    INK,
    PAPER,
    binary,
    claim,
    label_ends,
    log2_axis,
    note,
    show,
    use_style,
    wrap,
)
from course.viz import display as display_module
from course.viz.display import to_png
from course.viz.style import STYLE, spread

ALT_TEXT = "A line from 0 at the left to 2 at the right: it rises."


@pytest.fixture(autouse=True)
def style():
    """Every test draws in the course's style and leaves no figure and no setting behind."""
    with matplotlib.rc_context():
        matplotlib.use("agg")
        use_style()
        yield
    plt.close("all")


def luminance(colour):
    """Relative luminance of WCAG 2: 0 black, 1 white."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def lightness(colour):
    """CIE L*, 0 to 100: what a greyscale print keeps."""
    return 116 * luminance(colour) ** (1 / 3) - 16


def drawing():
    fig, ax = plt.subplots()
    lines = {name: ax.plot([1, 2, 4], [1, 2, end])[0] for name, end in {"naive": 3.0, "tiled": 3.02}.items()}
    return fig, ax, lines


def test_line_colours_are_seen_on_white():
    """Contrast of at least 3 to 1 (WCAG 2, graphics); amber has less and is for fills."""
    contrast = {
        colour: (luminance(PAPER) + 0.05) / (luminance(colour) + 0.05) for colour in (INK, HERO, FOIL, ALT, AMBER)
    }
    assert min(contrast[colour] for colour in (INK, HERO, FOIL, ALT)) >= 3 > contrast[AMBER]


def test_colours_stay_apart_in_greyscale():
    """The five roles step through lightness, at least 12 apart."""
    steps = np.diff([lightness(colour) for colour in (INK, HERO, FOIL, ALT, AMBER)])
    assert steps.min() >= 12


def test_each_colour_has_its_own_dash_and_marker():
    """Colour is never alone."""
    cycle = list(STYLE["axes.prop_cycle"])
    assert [row["color"] for row in cycle] == [HERO, FOIL, ALT, INK]
    assert len({row["marker"] for row in cycle}) == len({str(row["linestyle"]) for row in cycle}) == 4


def test_claim_writes_both_lines_on_the_left_edge():
    """Finding above experiment, inside the figure, left of the axes."""
    fig, ax, _ = drawing()
    claim(fig, "A finding", "An experiment")
    fig.canvas.draw()
    title, sub = fig.texts
    assert title.get_position()[0] == sub.get_position()[0] < ax.get_position().x0
    assert title.get_position()[1] > sub.get_position()[1] > ax.get_position().y1


@pytest.mark.parametrize(("title", "sub", "what"), [("t" * 73, "s", "title has 73"), ("t", "s" * 96, "sub has 96")])
def test_a_claim_that_does_not_fit_is_refused(title, sub, what):
    """A line that runs out of the figure would be cut in silence."""
    with pytest.raises(ValueError, match=what):
        claim(drawing()[0], title, sub)


def test_a_claim_needs_the_style():
    """Without the layout engine the two lines would lie on the axes."""
    with matplotlib.rc_context({"figure.constrained_layout.use": False}):
        fig = plt.figure()
    with pytest.raises(ValueError, match="Call use_style"):
        claim(fig, "t", "s")


def test_labels_at_line_ends_do_not_overlap():
    """Two lines that end in one place get names one line height apart, each in its line's colour."""
    fig, ax, lines = drawing()
    label_ends(ax, lines, gap=12.5)
    fig.canvas.draw()
    low, high = sorted(ax.texts, key=lambda text: text.get_window_extent().y0)
    assert (high.get_window_extent().y0 - low.get_window_extent().y0) * 72 / fig.dpi >= 12.5 - 0.1
    assert {text.get_text(): text.get_color() for text in ax.texts} == {
        n: line.get_color() for n, line in lines.items()
    }


def test_spread_moves_nothing_that_is_apart():
    """Labels stay beside their lines where there is room."""
    assert spread([0.0, 20.0, 40.0], 12.5) == [0.0, 20.0, 40.0]
    close = spread([0.0, 1.0, 2.0], 10.0)
    assert np.diff(close).min() >= 9.9 and abs(np.mean(close) - 1.0) < 1e-9


@pytest.mark.parametrize(
    ("number", "text"), [(0.5, "0.5"), (64, "64"), (1024, "1Ki"), (3 * 2**20, "3Mi"), (2**31, "2Gi"), (1536, "1.5Ki")]
)
def test_powers_of_two_are_written_short(number, text):
    """The labels of token and byte axes."""
    assert binary(number) == text


@pytest.mark.parametrize("axis", ["x", "y"])
def test_log2_axis_has_exactly_the_ticks_it_was_given(axis):
    """Base 2, no minor ticks, the unit at the last one."""
    fig, ax, _ = drawing()
    log2_axis(ax, [1, 1024, 2**18], axis, "tokens")
    fig.canvas.draw()
    which = ax.xaxis if axis == "x" else ax.yaxis
    assert [label.get_text() for label in which.get_ticklabels()] == ["1", "1Ki", "256Ki tokens"]
    assert which.get_scale() == "log" and len(which.get_minorticklocs()) == 0


def test_notes_stand_on_a_white_card():
    """A remark stays readable over grid and lines."""
    _, ax, _ = drawing()
    note(ax, wrap("a remark that is longer than one line", 20), (2, 2))
    assert matplotlib.colors.to_hex(ax.texts[0].get_bbox_patch().get_facecolor()) == PAPER.lower()
    assert ax.texts[0].get_text().count("\n") == 1


def test_wrap_keeps_words_whole():
    """No word is cut, and no line is longer than asked unless one word is."""
    assert wrap("one two three", 7) == "one two\nthree"
    assert wrap("indivisible", 4) == "indivisible"


def test_show_stores_the_words_and_closes_the_figure(monkeypatch):
    """The output carries PNG, alt text, plain text and half of its pixels as size; the figure is gone."""
    sent = {}
    monkeypatch.setattr(InteractiveShell, "initialized", classmethod(lambda cls: True))
    monkeypatch.setattr("IPython.display.display", lambda data, **more: sent.update(data=data, **more))
    fig, _, _ = drawing()
    show(fig, alt=ALT_TEXT)
    assert sent["data"]["text/plain"] == ALT_TEXT and sent["data"]["image/png"].startswith("iVBORw0KGgo")
    assert sent["metadata"] == {"image/png": {"alt": ALT_TEXT, "width": 691, "height": 374}} and sent["raw"]
    assert not plt.fignum_exists(fig.number)


def test_show_in_a_script_prints_the_words(capsys):
    """Where no picture can be shown, the words are."""
    show(drawing()[0], alt=ALT_TEXT)
    assert capsys.readouterr().out == ALT_TEXT + "\n"


@pytest.mark.parametrize(
    ("alt", "what"), [("", "no number"), ("A rising line.", "no number"), ("1 " + "word " * 60, "61 words")]
)
def test_show_refuses_words_that_cannot_stand_for_a_figure(alt, what):
    """At most 60 words, and a number; the figure stays open so that the author can try again."""
    fig, _, _ = drawing()
    with pytest.raises(ValueError, match=what):
        show(fig, alt=alt)
    assert plt.fignum_exists(fig.number)


def test_the_same_drawing_gives_the_same_bytes():
    """No version, no date: a committed lecture changes only where its figure does."""
    first, second = (to_png(drawing()[0]) for _ in range(2))
    assert first == second and b"Software" not in first and b"Creation" not in first


def test_the_package_exports_what_authors_need():
    """Lectures import from course.viz alone."""
    import course.viz

    assert {"show", "use_style", "claim", "HERO"} <= set(course.viz.__all__)
    assert course.viz.show is display_module.show
