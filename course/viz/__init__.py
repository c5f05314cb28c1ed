"""Figures and how to show them: plain data in, an Axes or a Figure out; only `show` displays."""

from course.viz.display import show
from course.viz.style import (
    ALT,
    AMBER,
    DOTS,
    FOIL,
    HERO,
    INK,
    MUTED,
    PAPER,
    RULE,
    binary,
    claim,
    label_ends,
    log2_axis,
    note,
    use_style,
    wrap,
)
from course.viz.trace import by_layer, cash_box, exactness, growth, row_maxima, running_max

__all__ = [
    "ALT",
    "AMBER",
    "DOTS",
    "FOIL",
    "HERO",
    "INK",
    "MUTED",
    "PAPER",
    "RULE",
    "binary",
    "by_layer",
    "cash_box",
    "claim",
    "exactness",
    "growth",
    "label_ends",
    "log2_axis",
    "note",
    "row_maxima",
    "running_max",
    "show",
    "use_style",
    "wrap",
]
