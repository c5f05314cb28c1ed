"""Trace figures: a stream of numbers and the state that follows it. Unit 03 uses all of them.

Every function takes plain data (tensors, arrays, lists), the two lines of words that the figure claims, and an optional
`mark` for toy weights; it returns a Figure and shows nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.viz import style
from course.viz.style import AMBER, DOTS, FOIL, HERO, INK, MUTED, PAPER, label_ends, log2_axis, note

RING: dict[str, Any] = {"marker": "o", "ms": 6, "mfc": PAPER, "mec": FOIL, "mew": 1.6, "ls": "", "clip_on": False}
LOOKS: list[tuple[str, str, Any]] = [(FOIL, "s", (0, (5, 2))), (HERO, "o", "-")]  # colour, marker, dash by role
WHERE_LOG_STARTS = 1e-17  # an error of exactly 0 has no place on a log axis


def records(values: Any) -> np.ndarray:
    """Positions at which the running maximum rises; the first finite value counts as one."""
    values = np.asarray(values, dtype=float)
    before = np.concatenate([[-np.inf], np.maximum.accumulate(values)[:-1]])
    return np.flatnonzero(values > before)


def running_max(rows: Mapping[str, Any], *, claim: str, sub: str, mark: str = "") -> Figure:
    """Scores in the order of the keys, their running maximum, and a ring wherever it rises; one panel per row."""
    fig, axes = _figure(len(rows), height=1.0 + 1.55 * len(rows), claim=claim, sub=sub, mark=mark)
    for ax, (name, values) in zip(axes, rows.items(), strict=True):
        values = np.asarray(values, dtype=float)
        at = records(values)
        ax.plot(values, ".", color=DOTS, ms=3, zorder=1)
        ax.plot(np.maximum.accumulate(values), color=HERO, drawstyle="steps-post", marker="", ls="-", zorder=2)
        ax.plot(at, values[at], zorder=3, **RING)
        count = f"{len(at)} new maxima" if len(at) > 1 else "1 maximum, the first key"
        ax.set_title(name, color=HERO)
        ax.set_title(count, color=FOIL, loc="right")
        ax.set_ylabel("score")
    axes[-1].set_xlabel("position of the key")
    return fig


def cash_box(scores: Sequence[float], *, base: int = 2, claim: str, sub: str, mark: str = "") -> Figure:
    """What a running sum holds after each score, term by term, measured in the unit base^m of that moment."""
    fig, axes = _figure(1, len(scores), height=3.3, claim=claim, sub=sub, mark=mark, sharey=True)
    m = -np.inf
    for step, ax in enumerate(axes, start=1):
        seen, before = scores[:step], m
        m = max(seen)
        bottom = 0.0
        for i, score in enumerate(seen):
            height, new = float(base) ** (score - m), i == step - 1
            look: dict[str, Any] = {"facecolor": AMBER, "hatch": "////"} if new else {"facecolor": HERO}
            ax.add_patch(Rectangle((0.2, bottom), 0.6, height, edgecolor=PAPER, lw=1.4, **look))
            ax.text(0.85, bottom + height / 2, f"{base}$^{{{score:g}}}$", fontsize=9, color=MUTED, va="center")
            bottom += height
        ax.text(0.5, bottom + 0.05, f"{bottom:g}", ha="center", fontweight="bold")
        ax.set_title(f"after {scores[step - 1]:g}", color=INK)
        changed = f"unit {base}$^{{{m:g}}}$" + (", new" if m > before and step > 1 else "")
        ax.set_xlabel(changed, color=FOIL if changed.endswith("new") else MUTED)
        ax.set(xlim=(0, 1.15), ylim=(0, 2.2), xticks=[])
    axes[0].set_ylabel("sum, in the unit below")
    return fig


def row_maxima(maxima: Any, limits: Mapping[str, float], *, claim: str, sub: str, mark: str = "") -> Figure:
    """Histogram of the largest entry of each row, and where the exponential of each format overflows."""
    fig, (ax,) = _figure(1, height=3.4, claim=claim, sub=sub, mark=mark)
    maxima = np.asarray(maxima, dtype=float)
    edges = np.arange(0, max(limits.values()) + 6, 2)
    tallest = float(np.histogram(maxima, edges)[0].max())
    ax.hist(maxima, bins=edges.tolist(), color=HERO, edgecolor=PAPER)
    for (name, limit), color, height in zip(limits.items(), (FOIL, INK), (1.16, 0.9), strict=False):
        ax.axvline(limit, color=color, ls=(0, (5, 2)) if color == FOIL else (0, (1, 1.5)))
        share = f"{(maxima > limit).sum():,} of {len(maxima):,} rows to its right"
        side = -1 if limit > edges[-1] / 2 else 1
        ax.annotate(
            f"{name}: exp is inf beyond {limit:.1f}\n{share}", (limit, tallest * height), xytext=(6 * side, 0),
            textcoords="offset points", color=color, fontsize=9, va="top", ha="left" if side > 0 else "right",
            fontweight="bold",
        )  # fmt: skip
    ax.set(xlabel="largest logit of the row", ylabel="rows", ylim=(0, tallest * 1.2), xlim=(0, edges[-1]))
    return fig


def by_layer(
    values: Any, *, label: str, claim: str, sub: str, expected: tuple[str, float] | None = None, log: bool = False,
    color: str = HERO, mark: str = "",
) -> Figure:  # fmt: skip
    """One grey dot per head, the layer's mean as a line; `expected` = (name, level) draws a dotted baseline."""
    values = np.asarray(values, dtype=float)
    layers, heads = values.shape
    fig, (ax,) = _figure(1, height=3.4, claim=claim, sub=sub, mark=mark)
    spread = np.linspace(-0.25, 0.25, heads)  # side by side, so that equal heads stay visible
    ax.plot((np.arange(layers)[:, None] + spread).ravel(), values.ravel(), ".", color=DOTS, ms=5, ls="")
    lines = {"mean": ax.plot(np.arange(layers), values.mean(axis=1), color=color, marker="", ls="-")[0]}
    if expected is not None:
        name, level = expected
        lines[name] = ax.plot([-0.5, layers - 0.5], [level, level], color=INK, marker="", ls=(0, (1, 1.5)), lw=1.4)[0]
    if log:
        log2_axis(ax, [2.0**i for i in range(int(np.ceil(np.log2(values.max()))) + 1)], axis="y")
    ax.set(xlabel="layer", ylabel=label, xlim=(-0.6, layers - 0.4))
    label_ends(ax, lines)
    return fig


def exactness(
    by_scale: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    by_cut: Any,
    *,
    claim: str,
    sub: str,
    mark: str = "",
) -> Figure:
    """Left: largest error against the factor on the logits; first method red, second blue, NaN ends a line.

    Right: the error of a merge for every cut, `by_cut[i]` after i + 1 keys.
    """
    fig, (left, right) = _figure(1, 2, height=3.5, claim=claim, sub=sub, mark=mark)
    for (name, pair), (color, marker, dash) in zip(by_scale.items(), LOOKS, strict=False):
        scales, errors = (np.asarray(values, dtype=float) for values in pair)
        good = np.isfinite(errors)
        left.plot(scales[good], errors[good], color=color, marker=marker, ls=dash)
        where = (scales[good][-1], errors[good][-1])
        if good.all():
            left.annotate(name, where, xytext=(0, -14), textcoords="offset points", color=color, ha="right",
                          fontsize=9, fontweight="bold", va="center")  # fmt: skip
        else:
            note(left, f"{name}: NaN from ×{scales[~good][0]:g} on", where, (4, 44), color)
    log2_axis(left, list(next(iter(by_scale.values()))[0]))
    left.set(yscale="log", xlabel="factor on the logits", ylabel="largest error", ylim=(1e-9, 1e-4))
    by_cut = np.maximum(np.asarray(by_cut, dtype=float), WHERE_LOG_STARTS)
    right.plot(np.arange(1, len(by_cut) + 1), by_cut, ".", color=HERO, ms=3)
    right.set(yscale="log", xlabel="cut after key", ylim=(WHERE_LOG_STARTS / 2, 1e-13))
    right.set_title("fp64, every cut", color=HERO)
    left.set_title("float32, every scale", color=INK)
    return fig


def growth(
    sizes: Sequence[int], series: Mapping[str, Sequence[float]], *, label: str, unit: str, claim: str, sub: str,
    mark: str = "",
) -> Figure:  # fmt: skip
    """Bytes against length on log axes, first series in red, second in blue; the fitted exponent stands beside each."""
    fig, (ax,) = _figure(1, height=3.5, claim=claim, sub=sub, mark=mark)
    lines = {}
    for (name, given), (color, marker, dash) in zip(series.items(), LOOKS, strict=False):
        values = np.asarray(given, dtype=float)
        slope = np.polyfit(np.log2(sizes), np.log2(values), 1)[0]
        line = ax.plot(sizes, values, color=color, marker=marker, ls=dash)[0]
        lines[f"{name}\nN$^{{{slope:.2f}}}$"] = line
    lowest = min(min(v) for v in series.values())
    highest = max(max(v) for v in series.values())
    powers = range(int(np.floor(np.log2(lowest))), int(np.ceil(np.log2(highest))) + 1, 2)
    log2_axis(ax, list(sizes))
    log2_axis(ax, [2.0**p for p in powers], axis="y")
    ax.set(xlabel="keys and queries N", ylabel=f"{label} ({unit})")
    label_ends(ax, lines, gap=26)
    return fig


def _figure(
    rows: int, columns: int = 1, *, height: float, claim: str, sub: str, mark: str, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A styled figure with its two lines of words; `mark` stands in red where nobody overlooks it."""
    style.use_style()
    fig, axes = plt.subplots(rows, columns, figsize=(7.2, height), sharex=rows > 1, sharey=sharey, squeeze=False)
    style.claim(fig, claim, sub)
    if mark:
        fig.text(0.985, 0.015, mark, color=FOIL, fontsize=9, fontweight="bold", ha="right", va="bottom")
    return fig, list(axes.flat)
