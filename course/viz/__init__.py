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
    "claim",
    "label_ends",
    "log2_axis",
    "note",
    "show",
    "use_style",
    "wrap",
]
