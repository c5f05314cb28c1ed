"""Figures of unit 01: who looks at whom, one key at a time, as a map, and layer by layer; and how many matmuls it is.

Every function takes plain data, the two lines of words that the figure claims, and an optional `mark` for toy weights;
it returns a Figure and shows nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from course.viz import style
from course.viz.style import ALT, AMBER, DOTS, FOIL, HERO, INK, MUTED, PAPER

INKED = LinearSegmentedColormap.from_list("weight", [PAPER, "#9DBBD8", HERO, "#06213B"])  # lightness falls throughout
FAINT = 0.4  # weights are drawn as w ** 0.4: without it 0.01 would look like 0
PARTS: dict[str, tuple[str, str]] = {  # colour and hatch of each part of a block, the same in every figure
    "projections": (HERO, ""),
    "attention": (ALT, ""),
    "output": (INK, ""),
    "ffn": (AMBER, "////"),
}


def lookup(
    tokens: Sequence[str], weights: Mapping[str, Sequence[float]], *, claim: str, sub: str, mark: str = ""
) -> Figure:
    """The weight one query gives to each key, one panel per head; the largest, a hard lookup's answer, is named."""
    height = 1.1 + 1.25 * len(weights)
    fig, axes = _figure(height, claim=claim, sub=sub, mark=mark, rows=len(weights), sharex=True)
    for ax, (name, given) in zip(axes, weights.items(), strict=True):
        row = np.asarray(given, dtype=float)
        best = int(row.argmax())
        bars = ax.bar(np.arange(len(row)), row, color=DOTS, width=0.7)
        bars[best].set_color(HERO)
        inside = row[best] > 0.4 * max(1.0, row.max())  # above a tall bar the number would run into the title
        ax.annotate(f"{row[best]:.2f}", (best, row[best]), xytext=(0, -4 if inside else 3), textcoords="offset points",
                    color=PAPER if inside else HERO, ha="center", va="top" if inside else "bottom", fontsize=8.5,
                    fontweight="bold", annotation_clip=False)  # fmt: skip
        ax.set_title(name, color=INK)
        ax.set(ylim=(0, max(1.0, row.max())), yticks=[0, 1], ylabel="weight")
    axes[-1].set_xticks(np.arange(len(tokens)), tokens, rotation=45, ha="right", rotation_mode="anchor")
    axes[-1].get_xticklabels()[-1].set_color(FOIL)  # the query itself
    return fig


def attention_maps(maps: Mapping[str, Any], *, sink: Any = None, claim: str, sub: str, mark: str = "") -> Figure:
    """Weights (q_len, k_len) of a few heads side by side; below, `sink` (layers, heads): the weight on token 0.

    Each map is named by its key, "title" or "title\\nsecond line". Small weights are drawn darker than they are.
    """
    columns = len(maps)
    size = min(7.2 / columns, 2.9)  # inches of one square map with its labels
    height = 1.25 + size + (1.55 if sink is not None else 0.3)
    style.use_style()
    fig = plt.figure(figsize=(7.2, height))
    style.claim(fig, claim, sub)
    rows = 1 if sink is None else 2
    grid = fig.add_gridspec(rows, columns, height_ratios=[size, 1.5][:rows])
    for i, (name, weights) in enumerate(maps.items()):
        _map(fig.add_subplot(grid[0, i]), name, np.asarray(weights, dtype=float), first=i == 0)
    if sink is not None:
        _strip(fig.add_subplot(grid[1, :]), np.asarray(sink, dtype=float))
    _mark(fig, mark)
    return fig


def _map(ax: Axes, name: str, weights: np.ndarray, *, first: bool) -> None:
    ax.imshow(weights, cmap=INKED, norm=PowerNorm(FAINT, 0, 1), interpolation="nearest", aspect="equal")
    ax.set_title(name, color=INK, fontsize=9.5)
    ax.set_xlabel("key")
    if first:
        ax.set_ylabel("query")
    ax.grid(visible=False)
    ends = [0, weights.shape[1] - 1], [0, weights.shape[0] - 1]
    ax.set_xticks(ends[0])
    ax.set_yticks(ends[1])
    ax.set_xlim(-0.03 * weights.shape[1], weights.shape[1] - 0.5)  # a heavy first column must not look like an axis
    ax.spines["left"].set_visible(False)


def _strip(ax: Axes, sink: np.ndarray) -> None:
    layers, heads = sink.shape
    spread = np.linspace(-0.28, 0.28, heads) if heads > 1 else np.zeros(1)
    at = np.arange(layers)
    ax.plot((at[:, None] + spread).ravel(), sink.ravel(), ".", color=DOTS, ms=4, ls="", clip_on=False)
    ax.hlines(sink.mean(axis=1), at - 0.4, at + 0.4, color=HERO, lw=3, zorder=3)
    ax.set(xlabel="layer (bar: mean of its heads; dot: one head)", ylabel="weight on\ntoken 0",
           xlim=(-0.7, layers - 0.3), ylim=(0, 1), yticks=[0, 0.5, 1])  # fmt: skip


def matmul_bars(
    rows: Mapping[str, Mapping[str, int]], *, printed: Mapping[str, int] | None = None, claim: str, sub: str,
    mark: str = "",
) -> Figure:  # fmt: skip
    """Matmuls of each row as a stack of its parts, the total at the end; `printed` {row: total} adds a source's count.

    A printed total that differs from the counted one is drawn as a red line across its row, with both numbers.
    """
    fig, (ax,) = _figure(1.25 + 0.62 * len(rows), claim=claim, sub=sub, mark=mark)
    for y, (name, parts) in enumerate(rows.items()):
        left = 0
        for part, count in parts.items():
            color, hatch = PARTS[part]
            ax.barh(y, count, left=left, color=color, hatch=hatch, edgecolor=PAPER, height=0.6, lw=1.2)
            if count >= 3:
                dark = color in (HERO, INK)
                ax.text(left + count / 2, y, str(count), ha="center", va="center", color=PAPER if dark else INK,
                        fontweight="bold", fontsize=9.5)  # fmt: skip
            left += count
        _total(ax, y, left, (printed or {}).get(name))
    _part_names(ax, next(iter(rows.values())))
    ax.set_yticks(range(len(rows)), list(rows), color=INK)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set(xlabel="matmuls per block", xlim=(0, 1.22 * max(sum(parts.values()) for parts in rows.values())))
    return fig


def _total(ax: Axes, y: int, counted: int, printed: int | None) -> None:
    text, color = f"{counted}", INK
    if printed is not None and printed != counted:
        text, color = f"{counted}, printed {printed}", FOIL
        ax.plot([printed, printed], [y - 0.42, y + 0.42], color=FOIL, marker="", ls=(0, (3, 1.5)), lw=2)
    ax.annotate(text, (max(counted, printed or 0), y), xytext=(7, 0), textcoords="offset points", va="center",
                fontweight="bold", color=color)  # fmt: skip


def _part_names(ax: Axes, parts: Mapping[str, int]) -> None:
    """The names of the parts above the first bar, each in its colour (amber is too light for words: ink)."""
    x = 0.0
    for part in parts:
        color = PARTS[part][0]
        words = ax.annotate(("▨ " if part == "ffn" else "■ ") + part, (x, 1.0), xytext=(0, 5), annotation_clip=False,
                            xycoords=("axes fraction", "axes fraction"), textcoords="offset points", fontsize=9.5,
                            color=INK if color == AMBER else color, fontweight="bold")  # fmt: skip
        x += (len(words.get_text()) + 2.5) / 62


def decoding_steps(
    steps: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, claim: str, sub: str, mark: str = ""
) -> Figure:
    """One panel per step: what was read last, and the likeliest next tokens with probability, the chosen first."""
    fig, axes = _figure(2.8, claim=claim, sub=sub, mark=mark, columns=len(steps), sharey=True)
    for number, (ax, (read, candidates)) in enumerate(zip(axes, steps, strict=True), start=1):
        p = [probability for _, probability in candidates]
        at = np.arange(len(p))
        ax.barh(at, p, color=[HERO, *[DOTS] * (len(p) - 1)], height=0.42)
        for y, (token, probability) in enumerate(candidates):
            ax.text(0, y - 0.3, f"{token}  {probability:.2f}", fontsize=9, color=HERO if y == 0 else MUTED,
                    fontweight="bold" if y == 0 else "normal", va="bottom")  # fmt: skip
        ax.set_title(f"{number}. after “{read}”", color=INK, fontsize=9.5)
        ax.set(xlim=(0, 1.05), xticks=[0, 1], yticks=[], ylim=(len(p) - 0.5, -0.75))
        ax.grid(visible=False)
        ax.spines["left"].set_visible(False)
    axes[len(axes) // 2].set_xlabel("probability of the next token")
    return fig


def _figure(
    height: float, *, rows: int = 1, columns: int = 1, claim: str, sub: str, mark: str, sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """A styled figure with its two lines of words."""
    style.use_style()
    fig, axes = plt.subplots(rows, columns, figsize=(7.2, height), squeeze=False, sharex=sharex, sharey=sharey)
    style.claim(fig, claim, sub)
    _mark(fig, mark)
    return fig, list(axes.flat)


def _mark(fig: Figure, mark: str) -> None:
    """`toy weights`, in red, where nobody overlooks it."""
    if mark:
        fig.text(0.985, 0.015, mark, color=FOIL, fontsize=9, fontweight="bold", ha="right", va="bottom")
