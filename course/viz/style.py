"""The look of every figure: colours with roles, one style, and the few marks that carry the words.

Colours have the same role in all units: `HERO` this unit's method, `FOIL` what fails or the limit, `ALT` the rival,
`INK` the exact baseline, `AMBER` hatched fill only (too light for a line). Each line colour comes with its own dash
and marker, so that colour is never alone; lightness steps keep a greyscale print readable.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, HERO, FOIL, ALT, AMBER = "#1B1F24", "#0B4F8A", "#C8452F", "#4FA392", "#E8B23A"
MUTED, RULE, PAPER, DOTS = "#5B6470", "#E6E9EE", "#FFFFFF", "#B4BCC8"
TITLE_CHARACTERS, SUB_CHARACTERS = 72, 95  # what fits on one line at 7.2 inches

# One dash and one marker per role, in the order of the colour cycle.
DASHES: Sequence[Any] = ["-", (0, (5, 2)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.5))]
STYLE: dict[str, Any] = {
    "figure.figsize": (7.2, 3.9),
    "figure.dpi": 96,
    "savefig.dpi": 192,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.10,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the bytes are the same everywhere
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9AA3AF",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.8,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "svg.hashsalt": "course",
    "axes.prop_cycle": cycler(color=[HERO, FOIL, ALT, INK])
    + cycler(marker=["o", "s", "^", "D"])
    + cycler(linestyle=DASHES),
}


def use_style() -> None:
    """Switch matplotlib to the course's style; in a notebook, figures that Jupyter draws itself are sharp too."""
    matplotlib.rcParams.update(cast(Any, STYLE))  # its type lists every key by name
    try:
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # a plain script needs neither
        return
    if get_ipython() is not None:
        set_matplotlib_formats("retina")


def claim(fig: Figure, title: str, sub: str) -> None:
    """Write the finding and, below it, the experiment, on the left edge of the figure and not of its axes."""
    for name, text, limit in (("title", title, TITLE_CHARACTERS), ("sub", sub, SUB_CHARACTERS)):
        if len(text) > limit:
            raise ValueError(
                f"claim: the {name} has {len(text)} characters and one line holds {limit}: {text!r}. "
                "State one finding; move the rest to the prose below the figure."
            )
    width, height = fig.get_size_inches()
    engine = fig.get_layout_engine()
    if engine is None:
        raise ValueError("claim: this figure has no layout. Call use_style() before plt.subplots().")
    engine.set(rect=(0, 0, 1, 1 - 0.62 / height))  # type: ignore[call-arg]  # inches kept free for the two lines
    fig.text(0.12 / width, 1 - 0.14 / height, title, fontsize=11.5, fontweight="bold", va="top")
    fig.text(0.12 / width, 1 - 0.37 / height, sub, fontsize=9, color=MUTED, va="top")


def label_ends(ax: Axes, lines: Mapping[str, Line2D], gap: float = 12.5, dx: float = 8) -> None:
    """Write each line's name in its colour where it ends; names closer than `gap` points move apart."""
    ax.figure.canvas.draw()  # the layout decides where the ends are
    points = 72 / ax.figure.dpi
    ends = {name: _end(line) for name, line in lines.items()}
    height = {name: float(ax.transData.transform(end)[1]) * points for name, end in ends.items()}
    order = sorted(lines, key=lambda name: height[name])
    for name, shifted in zip(order, spread([height[name] for name in order], gap), strict=True):
        ax.annotate(
            name, ends[name], xytext=(dx, shifted - height[name]), textcoords="offset points",
            color=str(lines[name].get_color()), va="center", fontsize=9.5, fontweight="bold", annotation_clip=False,
        )  # fmt: skip


def _end(line: Line2D) -> tuple[float, float]:
    x, y = (np.asarray(data, dtype=float)[-1] for data in line.get_data())
    return float(x), float(y)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending `heights` moved as little as needed so that neighbours are `gap` apart."""
    moved = list(heights)
    for _ in range(50):  # each sweep halves what is left; four labels settle in a few
        for i in range(len(moved) - 1):
            if (short := gap - (moved[i + 1] - moved[i])) > 0:
                moved[i] -= short / 2
                moved[i + 1] += short / 2
    return moved


def log2_axis(ax: Axes, ticks: Sequence[float], axis: Literal["x", "y"] = "x", unit: str = "") -> None:
    """A base-2 axis with exactly these ticks, written 64, 1Ki, 256Ki; `unit` follows the last one."""
    which = ax.xaxis if axis == "x" else ax.yaxis
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log", base=2)
    labels = [binary(tick) for tick in ticks]
    labels[-1] += f" {unit}" if unit else ""
    which.set_ticks(list(ticks), labels)


def binary(number: float) -> str:
    """64 -> "64", 1024 -> "1Ki", 3 * 2**20 -> "3Mi", 0.5 -> "0.5"."""
    for power, suffix in ((30, "Gi"), (20, "Mi"), (10, "Ki")):
        if number >= 2**power:
            return f"{number / 2**power:g}{suffix}"
    return f"{number:g}"


def note(
    ax: Axes,
    text: str,
    xy: tuple[float, float],
    offset: tuple[float, float] = (24, 18),
    color: str = FOIL,
) -> None:
    """A remark on a white card, `offset` points away from the data point `xy`, tied to it by a thin line."""
    ax.annotate(
        text, xy, xytext=offset, textcoords="offset points", color=color, fontsize=9, va="center",
        bbox={"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": "none"},
        arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 3},
    )  # fmt: skip


def wrap(text: str, characters: int = 28) -> str:
    """`text` broken into lines of at most `characters`, for notes and labels; words stay whole."""
    return "\n".join(textwrap.wrap(text, characters, break_long_words=False))
