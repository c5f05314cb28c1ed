"""The tile animator of unit 04: what FlashAttention loads, masks and skips, and what crosses between HBM and SRAM."""

import traitlets

from course.viz.widgets.explorable import Explorable, bundle, option

MOST_STEPS = 65_536  # tiles that the browser walks through on each change


class FlashTiles(Explorable):
    """Step through the tiles of one head's forward pass, with counters for HBM and SRAM beside the standard algorithm.

    algorithm: "1", K and V tiles outside, or "2", Q tiles outside. Sizes are in rows, SRAM in KiB of fp16.
    step: tiles already visited in the first view; None takes two fifths of all.
    """

    title = "FlashAttention, tile by tile"
    _esm = bundle("flash_tiles.js")
    settings = option(traitlets.Dict)
    step = option(traitlets.Int, -1)

    def __init__(
        self, n: int = 1024, dim: int = 64, *, block_q: int = 128, block_k: int = 128, sram_kib: int = 192,
        causal: bool = True, algorithm: str = "2", step: int | None = None,
    ):  # fmt: skip
        if algorithm not in ("1", "2"):
            raise ValueError(f'algorithm is {algorithm!r}; "1" has K and V tiles outside, "2" Q tiles.')
        sizes = {"n": n, "dim": dim, "block_q": block_q, "block_k": block_k, "sram_kib": sram_kib}
        if low := [f"{name}={size}" for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{', '.join(low)}: every size must be at least 1.")
        if (tiles := -(-n // block_q) * -(-n // block_k)) > MOST_STEPS:
            raise ValueError(f"{tiles:,} tiles; at most {MOST_STEPS:,} can be stepped through. Make the blocks larger.")
        settings = {"n": n, "dim": dim, "blockQ": block_q, "blockK": block_k, "sramKib": sram_kib}
        super().__init__(
            settings={**settings, "causal": causal, "algorithm": algorithm}, step=-1 if step is None else step
        )

    def alt(self) -> str:
        s = self.settings
        order = "for each Q tile all K and V" if s["algorithm"] == "2" else "for each K, V tile all Q"
        return (
            f"Explorable: FlashAttention's tiles over {s['n']:,} x {s['n']:,} scores, {s['blockQ']} queries by"
            f" {s['blockK']} keys{', causal' if s['causal'] else ''}, {order}; {s['sramKib']} KiB of SRAM."
        )
