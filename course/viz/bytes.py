"""Who moves or owns the bytes, and what that costs: byte bars, the roofline, and lines against a rival.

Plain data in, a Figure out. Colours are roles of `course.viz.style`, given by the caller as names.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from course.viz import style
from course.viz.style import ALT, AMBER, DASHES, DOTS, FOIL, HERO, INK, MUTED, PAPER, label_ends, log2_axis

# Colour, marker, dash: a role never comes without its dash and marker.
ROLES = {
    "hero": (HERO, "o", DASHES[0]),
    "foil": (FOIL, "s", DASHES[1]),
    "alt": (ALT, "^", DASHES[2]),
    "ink": (INK, "D", DASHES[3]),
}
FILLS = {"hero": HERO, "foil": FOIL, "alt": ALT, "ink": INK, "amber": AMBER, "dots": DOTS}
DARK = {HERO, FOIL, INK}  # fills on which white text can be read


def byte_bars(
    rows: Mapping[str, Mapping[str, float]],
    parts: Mapping[str, str],
    *,
    unit: str = "GB",
    limit: tuple[str, float] | None = None,
    claim: str,
    sub: str,
    mark: str = "",
) -> Figure:
    """Horizontal stacks, one per row; `parts` names each part's fill, in the order of stacking. Totals in bold.

    limit = (name, value) draws a red dashed line, such as a card's memory. Values stand inside parts wide enough.
    """
    fig, ax = _figure(1.35 + 0.52 * len(rows), claim, sub, mark)
    longest = max(sum(row.values()) for row in rows.values())
    longest = max(longest, limit[1] if limit else 0)
    unnamed = list(parts)
    for y, row in enumerate(rows.values()):
        left = 0.0
        for part, fill in parts.items():
            value = row.get(part, 0.0)
            if not value:
                continue
            color, wide = FILLS[fill], value > 0.055 * longest
            hatch = "////" if fill == "amber" else None
            ax.barh(y, value, left=left, height=0.62, color=color, edgecolor=PAPER, lw=1.2 if wide else 0, hatch=hatch)
            if wide:
                inside = "white" if color in DARK else INK
                box = None if color in DARK else {"boxstyle": "round,pad=0.15", "facecolor": PAPER, "edgecolor": "none"}
                ax.text(
                    left + value / 2, y, f"{value:.1f}", ha="center", va="center", fontsize=9, color=inside, bbox=box
                )
            if wide and part in unnamed:  # named once, above the first bar that has room for it
                unnamed.remove(part)
                ink = MUTED if fill in ("amber", "dots") else color
                ax.text(left, y - 0.36, part, color=ink, fontsize=9, fontweight="bold", va="bottom")
            left += value
        ax.text(left + 0.012 * longest, y, f"{left:.1f} {unit}", va="center", fontweight="bold")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(ylim=(len(rows) - 0.5, -0.85), xlim=(0, 1.16 * longest), xlabel=unit)
    ax.grid(visible=False)
    if limit is not None:
        ax.axvline(limit[1], color=FOIL, ls=(0, (5, 2)), lw=1.4)
        ax.text(limit[1], -0.85, f" {limit[0]}", color=FOIL, fontsize=9, fontweight="bold", va="bottom")
    return fig


def roofline(
    dots: Mapping[str, tuple[float, float, str]],
    *,
    flop_per_s: float,
    bytes_per_s: float,
    claim: str,
    sub: str,
    mark: str = "",
) -> Figure:
    """Kernels under one machine's roof: name -> (FLOP per byte, FLOP/s, role); axes in FLOP/B and TFLOP/s."""
    fig, ax = _figure(3.9, claim, sub, mark)
    ridge = flop_per_s / bytes_per_s
    xs = [x for x, _, _ in dots.values()]
    lo, hi = min(*xs, ridge) / 6, max(*xs, ridge) * 6
    x = np.geomspace(lo, hi, 200)
    ax.plot(x, np.minimum(flop_per_s, x * bytes_per_s) / 1e12, color=INK, marker="", ls="-", lw=1.6)
    ax.plot([ridge, ridge], [1e-9, flop_per_s / 1e12], color=MUTED, marker="", ls=(0, (1, 1.5)), lw=1)
    lowest = min(y for _, y, _ in dots.values()) / 1e12
    for name, (at, rate, role) in dots.items():
        color, marker, _ = ROLES[role]
        ax.plot(at, rate / 1e12, marker=marker, ms=9, color=color, ls="")
        ax.annotate(name, (at, rate / 1e12), xytext=(10, -4), textcoords="offset points", color=color, fontsize=9,
                    fontweight="bold", va="top")  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=(lo, hi), ylim=(lowest / 4, flop_per_s / 1e12 * 2.2))
    ax.set(xlabel="arithmetic per byte from HBM (FLOP/B)", ylabel="TFLOP/s")
    ax.text(
        hi,
        flop_per_s / 1e12 * 1.08,
        f"{flop_per_s / 1e12:.0f} TFLOP/s ",
        ha="right",
        va="bottom",
        color=INK,
        fontsize=9,
    )
    ax.text(ridge, lowest / 3.6, f" ridge: {ridge:.0f} FLOP/B", color=MUTED, fontsize=9, va="bottom")
    at = ridge / 6
    ax.annotate(f"{bytes_per_s / 1e9:,.0f} GB/s", (at, at * bytes_per_s / 1e12), xytext=(-6, 6),
                textcoords="offset points", color=INK, fontsize=9, ha="right")  # fmt: skip
    return fig


def against(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float], str]]],
    *,
    xlabel: str,
    claim: str,
    sub: str,
    slopes: bool = False,
    mark: str = "",
) -> Figure:
    """Panels side by side: y label -> line name -> (x, y, role), base-2 axes, names where the lines end.

    `slopes` writes the exponent fitted to the upper half of each line beside its name.
    """
    style.use_style()
    fig, axes = plt.subplots(1, len(panels), figsize=(7.2, 3.6), squeeze=False)
    style.claim(fig, claim, sub)
    for ax, (label, lines) in zip(axes.flat, panels.items(), strict=True):
        drawn = {}
        for name, (x, y, role) in lines.items():
            color, marker, dash = ROLES[role]
            text = f"{name}\nN$^{{{fitted_slope(x, y):.1f}}}$" if slopes else name
            drawn[text] = ax.plot(x, y, color=color, marker=marker, ls=dash)[0]
        _binary_axes(ax, lines)
        ax.set_xlabel(xlabel)
        ax.set_title(label, color=INK)
        label_ends(ax, drawn, gap=25 if slopes else 12.5)
    _mark(fig, mark)
    return fig


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent of y = c x^a, fitted to the upper half of the points, where fixed costs have faded."""
    half = len(x) // 2 if len(x) > 3 else 0
    return float(np.polyfit(np.log2(x[half:]), np.log2(y[half:]), 1)[0])


def _binary_axes(ax: Axes, lines: Mapping[str, tuple[Sequence[float], Sequence[float], str]]) -> None:
    xs = sorted({x for line in lines.values() for x in line[0]})
    ys = np.concatenate([np.asarray(line[1], dtype=float) for line in lines.values()])
    powers = range(int(np.floor(np.log2(ys.min()))), int(np.ceil(np.log2(ys.max()))) + 1)
    step = max(1, -(-len(powers) // 7))
    log2_axis(ax, xs)
    ticks = [2.0**p for p in powers[::step]]
    log2_axis(ax, ticks, axis="y")
    ax.yaxis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])  # 2,048 ms, not 2Ki ms


def _figure(height: float, claim: str, sub: str, mark: str) -> tuple[Figure, Axes]:
    style.use_style()
    fig, ax = plt.subplots(figsize=(7.2, height))
    style.claim(fig, claim, sub)
    _mark(fig, mark)
    return fig, ax


def _mark(fig: Figure, mark: str) -> None:
    """Words such as "toy weights" where nobody overlooks them."""
    if mark:
        fig.text(0.985, 0.015, mark, color=FOIL, fontsize=9, fontweight="bold", ha="right", va="bottom")


__all__ = ["against", "byte_bars", "fitted_slope", "roofline"]
