"""One machine and its limits: its roofline, the three floors under an operation's time, and a law with its range.

Plain data in, a Figure out. Colours are roles of `course.viz.style`, given by the caller as names.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from course.viz import style
from course.viz.bytes import ROLES, _figure
from course.viz.style import DOTS, FOIL, HERO, INK, MUTED, PAPER, label_ends, log2_axis

Dots = Mapping[str, tuple[float, float, str]]


def machine_roof(dots: Dots, *, flop_per_s: float, bytes_per_s: float, claim: str, sub: str, mark: str = "") -> Figure:
    """Operations under the roof of the machine that ran them: name -> (FLOP per byte, FLOP/s, role), in GFLOP/s."""
    fig, ax = _figure(4.3, claim, sub, mark)
    ridge = flop_per_s / bytes_per_s
    xs, ys = [x for x, _, _ in dots.values()], [y / 1e9 for _, y, _ in dots.values()]
    lo, hi, top = min(*xs, ridge) / 3, max(*xs, ridge) * 12, flop_per_s / 1e9
    x = np.geomspace(lo, hi, 200)
    roof = np.minimum(top, x * bytes_per_s / 1e9)
    ax.plot(x, roof, color=INK, marker="", ls="-", lw=1.6)
    ax.plot([ridge, ridge], [min(ys) / 9, top], color=MUTED, marker="", ls=(0, (1, 1.5)), lw=1)
    for name, (at, rate, role) in dots.items():
        color, marker, _ = ROLES[role]
        ax.plot(at, rate / 1e9, marker=marker, ms=8, color=color, ls="")
        ahead = any(at < x <= 12 * at and 0.4 < y / rate < 2.5 for x, y, _ in dots.values())  # its name would be met
        card = {"boxstyle": "round,pad=0.1", "facecolor": PAPER, "edgecolor": "none"}
        ax.annotate(name, (at, rate / 1e9), xytext=(8, -14 if ahead else -3), textcoords="offset points", color=color,
                    fontsize=9, fontweight="bold", va="top", bbox=card)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=(lo, hi), ylim=(min(ys) / 9, max(top, *ys) * 2.6))
    ax.set(xlabel="arithmetic per byte from main memory (FLOP/B)", ylabel="GFLOP/s")
    ax.text(hi, top * 1.1, f"{top:,.0f} GFLOP/s ", ha="right", va="bottom", color=INK, fontsize=9)
    ax.text(ridge, min(ys) / 8, f" ridge: {ridge:.0f} FLOP/B", color=MUTED, fontsize=9, va="bottom")
    at = ridge**0.75 * lo**0.25  # on the slope, nearer to the ridge than to the operations below it
    ax.annotate(
        f"{bytes_per_s / 1e9:,.1f} GB/s", (at, at * bytes_per_s / 1e9), xytext=(-6, 6), textcoords="offset points",
        color=INK, fontsize=9, ha="right",
    )  # fmt: skip
    _plain(ax)
    return fig


def floors(
    x: Sequence[float],
    measured: Sequence[float],
    limits: Mapping[str, tuple[Sequence[float], str]],
    *,
    xlabel: str,
    ylabel: str,
    claim: str,
    sub: str,
    mark: str = "",
) -> Figure:
    """Measured times as rings over the limits that hold them up: name -> (times, role); whichever is highest, holds."""
    fig, ax = _figure(3.7, claim, sub, mark)
    drawn = {}
    for name, (times, role) in limits.items():
        color, _, dash = ROLES[role]
        drawn[name] = ax.plot(x, times, color=color, marker="", ls=dash)[0]
    ax.plot(x, measured, marker="o", ms=7, color=INK, mfc=PAPER, mew=1.6, ls="", clip_on=False, zorder=3)
    ax.annotate("measured", (x[0], measured[0]), xytext=(0, -16), textcoords="offset points", color=INK, fontsize=9.5,
                fontweight="bold")  # fmt: skip
    log2_axis(ax, x)
    ax.set_yscale("log")
    every = [*measured, *(t for times, _ in limits.values() for t in times)]
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(min(every) / 2, max(every) * 2.5))
    _plain(ax, x_too=False)
    label_ends(ax, drawn)
    return fig


def power_law(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    laws: Mapping[str, Callable[[float], float]],
    *,
    ylabel: str,
    claim: str,
    sub: str,
    live: Mapping[str, tuple[float, float]] | None = None,
    mark: str = "",
) -> Figure:
    """Runs and the law fitted to them, one panel per x: panels[label] = {"x", "y"}, and "others" as pairs drawn pale.

    The law is solid between the smallest and the largest x that it was fitted to, dashed and red beyond: a guess.
    `live` adds a run made just now, as a ring.
    """
    style.use_style()
    fig, axes = plt.subplots(1, len(panels), figsize=(7.2, 3.6), squeeze=False, sharey=True)
    style.claim(fig, claim, sub)
    for ax, (label, data) in zip(axes.flat, panels.items(), strict=True):
        law, x = laws[label], np.asarray(data["x"], dtype=float)
        others = np.asarray(data.get("others", []), dtype=float).reshape(-1, 2)
        ax.plot(others[:, 0], others[:, 1], "o", ms=3.5, color=DOTS, ls="")
        inside, beyond = np.geomspace(x.min(), x.max(), 60), np.geomspace(x.max(), x.max() * 30, 30)
        ax.plot(inside, [law(v) for v in inside], color=HERO, marker="", ls="-")
        ax.plot(beyond, [law(v) for v in beyond], color=FOIL, marker="", ls=(0, (5, 2)), lw=1.4)
        ax.annotate("a guess", (beyond[15], law(beyond[15])), xytext=(-5, -5), textcoords="offset points", color=FOIL,
                    fontsize=9, fontweight="bold", ha="right", va="top")  # fmt: skip
        ax.plot(x, data["y"], "o", color=HERO, ls="", ms=5.5)
        if live and label in live:
            ax.plot(*live[label], marker="o", ms=10, mfc="none", mec=FOIL, mew=1.6, ls="")
        ax.set_xscale("log")
        ax.set_xlabel(label)
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes.flat[0].set_ylabel(ylabel)
    if mark:
        fig.text(0.985, 0.015, mark, color=FOIL, fontsize=9, fontweight="bold", ha="right", va="bottom")
    return fig


def _plain(ax: Axes, *, x_too: bool = True) -> None:
    """Ticks as plain numbers: 0.01, 1, 100."""
    for axis in (ax.xaxis, ax.yaxis) if x_too else (ax.yaxis,):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())


__all__ = ["floors", "machine_roof", "power_law"]
