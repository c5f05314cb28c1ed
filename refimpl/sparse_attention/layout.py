"""A pattern as tiles: which tiles of the score matrix exist, which of them are whole, and the masks of the others.

Whole tiles need no mask, empty ones are never touched, and the others share a few masks: a sliding window has one for
its near edge and one for its far edge, however long the text is. So a layout takes memory per tile, not per pair.
Rows of tiles are stored as in a sparse matrix (CSR): tile row r has the entries starts[r] … starts[r + 1], first the
whole ones. FlexAttention's BlockMask holds the same, but calls the pattern again inside a partial tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from refimpl.shapes import Bool, Int, Tensor
from refimpl.sparse_attention.patterns import Pattern

__all__ = ["BlockLayout", "block_layout"]


@dataclass(frozen=True)
class BlockLayout:
    """The tiles of one pattern at one length; the same for all heads."""

    block: int  # queries and keys of a tile
    q_len: int
    k_len: int
    pairs: int  # (query, key) pairs that the pattern allows
    starts: Int[Tensor, "rows_and_one"]  # first entry of each tile row, and the number of entries
    whole_ends: Int[Tensor, "rows"]  # entries of a row before this one are whole
    columns: Int[Tensor, "entries"]  # which tile column
    masks: Int[Tensor, "entries"]  # which of `tiles`; -1 where whole
    tiles: Bool[Tensor, "masks block block"]  # the different masks, each once
    order: Int[Tensor, "rows"]  # tile rows, longest first: a GPU should not wait for a late long one

    @property
    def density(self) -> float:
        """Allowed pairs over all pairs."""
        return self.pairs / max(1, self.q_len * self.k_len)

    @property
    def tile_density(self) -> float:
        """Tiles that are computed over all tiles: what is paid for, since a partial tile costs as much as a whole."""
        rows = len(self.whole_ends)
        return len(self.columns) / max(1, rows * -(-self.k_len // self.block))

    @property
    def nbytes(self) -> int:
        """Of everything stored."""
        return sum(x.nbytes for x in self._tensors().values())

    def to(self, device: torch.device | str) -> "BlockLayout":
        """The same layout on another device."""
        return replace(self, **{name: x.to(device) for name, x in self._tensors().items()})

    def flops(self, dim: int) -> int:
        """Matmul FLOPs of one head's forward: 4 block² dim per tile."""
        return 4 * self.block**2 * dim * len(self.columns)

    def rows(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Per tile row: its queries, the columns of whole tiles, those of partial tiles, and their masks."""
        starts, ends = self.starts.tolist(), self.whole_ends.tolist()
        for r, whole in enumerate(ends):
            queries = slice(r * self.block, min((r + 1) * self.block, self.q_len))
            partial = slice(whole, starts[r + 1])
            yield queries, self.columns[starts[r] : whole], self.columns[partial], self.tiles[self.masks[partial]]

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}


def block_layout(pattern: Pattern, q_len: int, k_len: int | None = None, *, block: int = 64) -> BlockLayout:
    """Ask the pattern once about every pair, one row of tiles at a time, and keep the tiles that are not empty.

    Work q_len k_len, memory block k_len at a time; do it once per length and keep the layout. A pattern without
    structure at this block size keeps a mask per tile: q_len k_len bytes in the worst case.
    """
    k_len = q_len if k_len is None else k_len
    if block < 1 or min(q_len, k_len) < 0:
        raise ValueError(f"block_layout: block at least 1 and lengths at least 0, given {block}, {q_len}, {k_len}")
    known: dict[bytes, int] = {}
    kept = [_tile_row(pattern, first, q_len, k_len, block, known) for first in range(0, q_len, block)]
    counts = torch.tensor([len(columns) for _, columns, _, _ in kept], dtype=torch.int32)
    starts = torch.cat((torch.zeros(1, dtype=torch.int32), counts.cumsum(0).to(torch.int32)))
    stored = torch.frombuffer(bytearray(b"".join(known) or block * block), dtype=torch.bool).view(-1, block, block)
    empty = [torch.zeros(0, dtype=torch.int32)]
    return BlockLayout(
        block=block, q_len=q_len, k_len=k_len, pairs=sum(pairs for pairs, _, _, _ in kept),
        starts=starts, whole_ends=starts[:-1] + torch.tensor([whole for *_, whole in kept], dtype=torch.int32),
        columns=torch.cat(empty + [columns for _, columns, _, _ in kept]),
        masks=torch.cat(empty + [masks for _, _, masks, _ in kept]),
        tiles=stored, order=counts.argsort(descending=True, stable=True).to(torch.int32),
    )  # fmt: skip


def _tile_row(pattern: Pattern, first: int, q_len: int, k_len: int, block: int, known: dict[bytes, int]):
    """(pairs, columns, masks, number of whole tiles) of one row; new masks go into `known`."""
    real, width = min(block, q_len - first), -(-k_len // block)
    i = torch.arange(first, first + real)[:, None] + k_len - q_len
    allowed = torch.zeros(block, width * block, dtype=torch.bool)
    allowed[:real, :k_len] = pattern(i, torch.arange(k_len)[None, :])
    tiles = allowed.view(block, width, block).transpose(0, 1)  # (columns, block, block)
    # Rows beyond the last query are never written, so they do not make a tile partial.
    whole = tiles[:, :real].flatten(1).all(1).nonzero()[:, 0]
    partial = (tiles.flatten(1).any(1) & ~tiles[:, :real].flatten(1).all(1)).nonzero()[:, 0]
    masks = [known.setdefault(tiles[c].contiguous().numpy().tobytes(), len(known)) for c in partial.tolist()]
    entries = torch.cat((torch.full((len(whole),), -1), torch.tensor(masks, dtype=torch.long)))
    return int(allowed.sum()), torch.cat((whole, partial)).to(torch.int32), entries.to(torch.int32), len(whole)
