"""Tile maps: which tiles of the score matrix a method loads, masks or skips. Units 04, 05, 06 and 16.

The geometry (`tile_kinds`, `TileCounts`) is plain arithmetic; `tile_map` draws one map into an Axes, `tile_maps`
several into a Figure with its two lines of words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from course.viz import style
from course.viz.style import AMBER, FOIL, HERO, INK, MUTED, PAPER

SKIPPED, DIAGONAL, FULL = 0, 1, 2
LOOKS: dict[int, dict[str, Any]] = {
    FULL: {"facecolor": HERO, "edgecolor": PAPER, "linewidth": 1.4},
    DIAGONAL: {"facecolor": AMBER, "edgecolor": PAPER, "linewidth": 1.4, "hatch": "////"},
    SKIPPED: {"facecolor": PAPER, "edgecolor": "#C3CAD3", "linewidth": 0.8, "linestyle": (0, (3, 2))},
}


@dataclass(frozen=True)
class TileCounts:
    """Tiles by kind, and pairs of query and key: computed in loaded tiles, and needed by the mask."""

    full: int
    diagonal: int
    skipped: int
    computed: int
    needed: int

    @property
    def loaded(self) -> int:
        return self.full + self.diagonal

    @property
    def waste(self) -> float:
        """Computed pairs beyond the needed ones, as a share of the needed ones."""
        return self.computed / self.needed - 1


def tile_kinds(n: int, block_q: int, block_k: int, *, causal: bool = True) -> np.ndarray:
    """SKIPPED, DIAGONAL or FULL for each tile, (query tiles, key tiles); the last tiles may be shorter."""
    if min(n, block_q, block_k) < 1:
        raise ValueError(f"tile_kinds: n and both blocks must be at least 1, given {n}, {block_q}, {block_k}")
    first_q, first_k = np.arange(0, n, block_q)[:, None], np.arange(0, n, block_k)[None, :]
    if not causal:
        return np.full((len(first_q), first_k.shape[1]), FULL)
    last_q, last_k = np.minimum(first_q + block_q, n) - 1, np.minimum(first_k + block_k, n) - 1
    return np.where(first_k > last_q, SKIPPED, np.where(last_k > first_q, DIAGONAL, FULL))


def count_tiles(n: int, block_q: int, block_k: int, *, causal: bool = True) -> TileCounts:
    """How many tiles of each kind there are, and how many pairs they cost."""
    kinds = tile_kinds(n, block_q, block_k, causal=causal)
    heights = np.minimum(n - np.arange(0, n, block_q), block_q)[:, None]
    widths = np.minimum(n - np.arange(0, n, block_k), block_k)[None, :]
    return TileCounts(
        full=int((kinds == FULL).sum()),
        diagonal=int((kinds == DIAGONAL).sum()),
        skipped=int((kinds == SKIPPED).sum()),
        computed=int((heights * widths)[kinds != SKIPPED].sum()),
        needed=n * (n + 1) // 2 if causal else n * n,
    )


def tile_map(ax: Axes, n: int, block_q: int, block_k: int, *, causal: bool = True, words: bool = True) -> TileCounts:
    """Draw the n x n scores as tiles: blue loaded whole, hatched loaded and masked, dashed white never touched."""
    kinds = tile_kinds(n, block_q, block_k, causal=causal)
    for (i, j), kind in np.ndenumerate(kinds):
        y, x = i * block_q, j * block_k
        ax.add_patch(Rectangle((x, y), min(block_k, n - x), min(block_q, n - y), **LOOKS[int(kind)]))
    if causal:
        ax.plot([0, n], [0, n], color=INK, lw=1.6, ls="-", marker="")
    ax.set(xlim=(0, n), ylim=(n, 0), aspect="equal", xlabel="key", ylabel="query")
    ax.set_xticks([0, n // 2, n])
    ax.set_yticks([0, n // 2, n])
    ax.grid(visible=False)
    if words and causal:
        for text, x, y in (("loaded", 0.27, 0.73), ("skipped", 0.73, 0.27)):
            card = {"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": "none"}
            ax.text(x * n, y * n, text, ha="center", va="center", fontsize=9, color=MUTED, bbox=card)
    return count_tiles(n, block_q, block_k, causal=causal)


def tile_maps(
    n: int,
    blocks: Mapping[tuple[int, int], str],
    *,
    claim: str,
    sub: str,
    causal: bool = True,
    mark: str = "",
) -> Figure:
    """One map per (block_q, block_k), side by side; the text of `blocks` is its counter, in red above the map."""
    style.use_style()
    fig, axes = plt.subplots(1, len(blocks), figsize=(7.2, 3.6), squeeze=False, sharey=True)
    style.claim(fig, claim, sub)
    for ax, ((block_q, block_k), counter) in zip(axes.flat, blocks.items(), strict=True):
        tile_map(ax, n, block_q, block_k, causal=causal)
        ax.set_title(f"{block_q} × {block_k}\n", color=INK)
        ax.text(0, 1.02, counter, transform=ax.transAxes, color=FOIL, fontsize=9, fontweight="bold", va="bottom")
        if ax is not axes.flat[0]:
            ax.set_ylabel("")
    if mark:
        fig.text(0.985, 0.015, mark, color=FOIL, fontsize=9, fontweight="bold", ha="right", va="bottom")
    return fig
