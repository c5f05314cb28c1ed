"""Figures and how to show them: plain data in, an Axes or a Figure out; only `show` displays."""

from course.viz.attention_maps import attention_maps, decoding_steps, lookup, matmul_bars
from course.viz.bytes import against, byte_bars, roofline
from course.viz.display import show
from course.viz.machine import floors, machine_roof, power_law
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
from course.viz.tile_map import count_tiles, tile_map, tile_maps
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
    "against",
    "attention_maps",
    "binary",
    "by_layer",
    "byte_bars",
    "cash_box",
    "claim",
    "count_tiles",
    "decoding_steps",
    "exactness",
    "floors",
    "growth",
    "label_ends",
    "log2_axis",
    "lookup",
    "machine_roof",
    "matmul_bars",
    "note",
    "power_law",
    "roofline",
    "row_maxima",
    "running_max",
    "show",
    "tile_map",
    "tile_maps",
    "use_style",
    "wrap",
]
