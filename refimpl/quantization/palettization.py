"""Palettization: a few chosen values ("colours"), and for every number the index of its nearest one.

Lloyd's k-means moves each colour to the mean of what is nearest to it, again and again; the squared error never grows.
Plain Lloyd compares every number with every colour. On a line that is not needed: in sorted order the numbers nearest
to one colour are neighbours, they end half-way to the next colour, and their sum is a difference of two prefix sums.
After one sort a step costs O(colours log n) in place of O(colours n), and the result is the same.
Source: S1, "Palettization"; Lloyd 1982; Han et al. 2016 (weights).
"""

import math
from dataclasses import dataclass

import torch

from refimpl.quantization.uniform import Group, from_groups, to_groups
from refimpl.shapes import Float, Integer, Tensor

__all__ = ["Palette", "kmeans", "kmeans_1d", "palettize", "palettize_picture"]


@dataclass(frozen=True)
class Palette:
    """Indices with their colours, one palette per group."""

    indices: Integer[Tensor, "*shape"]  # uint8, one byte each here, `bits` in storage
    colours: Float[Tensor, "groups colours"]  # ascending
    group: Group

    @property
    def bits(self) -> int:
        """ceil(log2 colours)."""
        return max(1, math.ceil(math.log2(self.colours.shape[1])))

    def dequantize(self) -> Float[Tensor, "*shape"]:
        """colours[index], each group from its own palette."""
        values = self.colours.gather(1, to_groups(self.indices, self.group).long())
        return from_groups(values, self.group, self.indices.shape)

    @property
    def nbytes(self) -> int:
        """Packed indices and palettes."""
        return math.ceil(self.indices.numel() * self.bits / 8) + self.colours.nbytes


def palettize(w: Float[Tensor, "*shape"], colours: int = 16, *, group: Group = "tensor", steps: int = 300) -> Palette:
    """The nearest of `colours` k-means values for each number; groups as in `uniform.quantize`. At most 256 colours."""
    if not 1 <= colours <= 256:
        raise ValueError(f"palettize: an index is one byte, so 1 to 256 colours; given {colours}")
    if not torch.isfinite(w).all():
        raise ValueError("palettize: w holds inf or NaN, which has no nearest colour; find where it comes from first")
    groups = to_groups(w, group).contiguous()
    found = kmeans_1d(groups, colours, steps=steps)
    halves = (found[:, 1:] + found[:, :-1]) / 2
    indices = torch.searchsorted(halves.contiguous(), groups).to(torch.uint8)
    return Palette(from_groups(indices, group, w.shape), found, group)


def kmeans_1d(x: Float[Tensor, "groups size"], colours: int, *, steps: int = 300) -> Float[Tensor, "groups colours"]:
    """Lloyd's algorithm on each row, from evenly spread quantiles until nothing moves, or `steps` times; ascending.

    A colour that is nearest to nothing stays where it is. Sums are float64: prefix sums of a million numbers lose
    the digits that a small cluster needs in float32.
    """
    x = x.sort(dim=1).values
    sums = torch.nn.functional.pad(x.double().cumsum(1), (1, 0))  # sums[:, i] = sum of the i smallest
    size = x.shape[1]
    start = ((torch.arange(colours, device=x.device) + 0.5) * size / colours).long()
    centres = x[:, start].double()
    ends = centres.new_tensor([0, size]).long().expand(len(x), 2)
    for _ in range(steps):
        halves = ((centres[:, 1:] + centres[:, :-1]) / 2).to(x.dtype).contiguous()
        cuts = torch.cat((ends[:, :1], torch.searchsorted(x, halves, right=True), ends[:, 1:]), dim=1)
        counts = cuts.diff(dim=1)
        moved = torch.where(counts > 0, sums.gather(1, cuts).diff(dim=1) / counts.clamp(min=1), centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.to(x.dtype)


def kmeans(
    points: Float[Tensor, "n features"], weights: Float[Tensor, "n"], colours: int, *, steps: int = 100
) -> Float[Tensor, "colours features"]:
    """Plain Lloyd for points of any dimension, each counted `weights` times: O(n colours features) per step.

    Colours start at the points that add most error as things stand, the first against the mean (farthest first), so
    that nothing is random. A colour that is nearest to nothing stays where it is.
    """
    centres = points[:0]
    known = (points * weights[:, None]).sum(0, keepdim=True) / weights.sum()
    for _ in range(colours):
        error = weights * torch.cdist(points, known).amin(1).square()
        known = centres = torch.cat((centres, points[error.argmax()][None]))
    for _ in range(steps):
        nearest = torch.cdist(points, centres).argmin(1)
        mass = torch.zeros_like(centres[:, 0]).index_add(0, nearest, weights)
        sums = torch.zeros_like(centres).index_add(0, nearest, points * weights[:, None])
        moved = torch.where(mass[:, None] > 0, sums / mass.clamp(min=weights.min())[:, None], centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def palettize_picture(
    picture: Float[Tensor, "height width 3"], colours: int = 16
) -> tuple[Integer[Tensor, "height width"], Float[Tensor, "colours 3"]]:
    """(index of each pixel, palette): k-means on its different colours, each counted as often as it occurs."""
    seen, which, counts = picture.reshape(-1, 3).unique(dim=0, return_inverse=True, return_counts=True)
    palette = kmeans(seen, counts.to(seen.dtype), colours)
    nearest = torch.cdist(seen, palette).argmin(1)
    return nearest[which].view(picture.shape[:2]), palette
