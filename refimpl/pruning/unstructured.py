"""Single weights removed: exactly N stay, over the whole model, per layer or per row, or n of every m neighbours.

    arg min over W_P of L(x; W_P)   subject to   ||W_P||_0 = N

Nobody can search all W_P. So each weight gets a score, how much its loss would hurt, and the N best stay. Magnitude
takes |W|; `refimpl.pruning.wanda` takes |W| times the size of the input; chance is the bar that both have to clear.
A zero costs no memory only where the format knows it: `pack_n_m` stores n values and n positions for m weights.

Sources: LeCun et al. 1989 (optimal brain damage); Han et al. 2015 (magnitude); Mishra et al. 2021 (2:4).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from refimpl.shapes import Bool, Float, Integer, Tensor

__all__ = [
    "budgets",
    "keep_largest",
    "keep_largest_global",
    "keep_largest_per_layer",
    "keep_largest_per_row",
    "n_m_bits_per_weight",
    "n_m_mask",
    "pack_n_m",
    "pruned",
    "unpack_n_m",
]


def keep_largest(scores: Float[Tensor, "..."], keep: int) -> Bool[Tensor, "..."]:
    """True at exactly `keep` positions, the largest scores. Of equal scores the first in memory stay.

    Equal scores are common: quantized weights have few values, and `scores > threshold` would miss the budget.
    """
    flat = scores.flatten()
    _check("keep_largest", keep, flat.numel())
    if flat.isnan().any():
        raise ValueError(f"keep_largest: {int(flat.isnan().sum())} of {flat.numel()} scores are NaN: no order to keep")
    if keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    smallest_kept = flat.kthvalue(flat.numel() - keep + 1).values
    mask = flat > smallest_kept
    ties = (flat == smallest_kept).nonzero().flatten()
    mask[ties[: keep - int(mask.sum())]] = True
    return mask.view(scores.shape)


def keep_largest_global(scores: Mapping[str, Tensor], keep: int) -> dict[str, Tensor]:
    """One budget for all matrices: a matrix of small weights may lose nearly everything."""
    mask = keep_largest(torch.cat([s.flatten() for s in scores.values()]), keep)
    parts = mask.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def keep_largest_per_layer(scores: Mapping[str, Tensor], keep: int) -> dict[str, Tensor]:
    """Every matrix keeps the same share, and together they keep exactly `keep`."""
    shares = budgets([s.numel() for s in scores.values()], keep)
    return {name: keep_largest(s, share) for (name, s), share in zip(scores.items(), shares, strict=True)}


def keep_largest_per_row(scores: Float[Tensor, "rows cols"], keep: int) -> Bool[Tensor, "rows cols"]:
    """Exactly `keep` in every row: each output keeps as many inputs as every other. Equal scores: the first stay."""
    _check("keep_largest_per_row", keep, scores.shape[1])
    if keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    smallest_kept = scores.kthvalue(scores.shape[1] - keep + 1, dim=1, keepdim=True).values
    above, ties = scores > smallest_kept, scores == smallest_kept
    room = keep - above.sum(1, keepdim=True)
    return above | (ties & (ties.cumsum(1) <= room))


def budgets(sizes: list[int], keep: int) -> list[int]:
    """`keep` dealt out in proportion to `sizes`, in whole numbers whose sum is `keep` (largest remainders)."""
    total = sum(sizes)
    _check("budgets", keep, total)
    shares = [size * keep // total for size in sizes]
    remainders = [size * keep % total for size in sizes]
    most = sorted(range(len(sizes)), key=lambda i: -remainders[i])
    for i in most[: keep - sum(shares)]:
        shares[i] += 1
    return shares


def _check(function: str, keep: int, count: int) -> None:
    if not 0 <= keep <= count:
        raise ValueError(f"{function}: keep={keep:,} of {count:,} weights; choose 0 to {count:,}")


# --- n:m -------------------------------------------------------------------------------------------------------------


def n_m_mask(scores: Float[Tensor, "rows cols"], n: int, m: int) -> Bool[Tensor, "rows cols"]:
    """The n largest of every m neighbours in a row. Tensor cores since Ampere multiply 2:4 at twice the rate."""
    if not 0 < n <= m or scores.shape[1] % m:
        raise ValueError(f"n_m_mask: {n}:{m} needs 0 < n <= m and rows of a multiple of {m}, given {scores.shape[1]}")
    groups = scores.reshape(len(scores), -1, m)
    better = torch.zeros_like(groups, dtype=torch.uint8)  # how many neighbours come before this one
    for i in range(m):
        other = groups[..., i : i + 1]
        better += torch.where(
            torch.arange(m, device=scores.device) > i, other >= groups, other > groups
        )  # of equals the first comes first
    return (better < n).view(scores.shape)


def pack_n_m(
    weight: Float[Tensor, "rows cols"], mask: Bool[Tensor, "rows cols"], n: int, m: int
) -> tuple[Float[Tensor, "rows packed"], Integer[Tensor, "rows packed"]]:
    """(values, positions): n of every m weights and where in their group of m they stood, uint8. packed = cols n / m.

    A position takes log2(m) bits on hardware; here a byte.
    """
    groups = mask.view(len(mask), -1, m)
    if not bool((groups.sum(-1) == n).all()):
        raise ValueError(f"pack_n_m: the mask does not keep {n} of every {m} weights of a row; make it with n_m_mask")
    positions = groups.nonzero()[:, 2].view(len(mask), -1)
    return weight[mask].view(len(mask), -1), positions.to(torch.uint8)


def unpack_n_m(
    values: Float[Tensor, "rows packed"], positions: Integer[Tensor, "rows packed"], n: int, m: int
) -> Float[Tensor, "rows cols"]:
    """The matrix with its zeros."""
    rows, groups = len(values), values.shape[1] // n
    dense = values.new_zeros(rows, groups, m)
    dense.scatter_(2, positions.long().view(rows, groups, n), values.view(rows, groups, n))
    return dense.flatten(1)


def n_m_bits_per_weight(n: int, m: int, bits: int) -> float:
    """n (bits + log2 m) / m: 2:4 of 16-bit weights takes 9 bits per weight, not 8."""
    return n * (bits + (m - 1).bit_length()) / m


# --- a model and its masks -------------------------------------------------------------------------------------------


@contextmanager
def pruned(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the `with`, the weights of the named linear layers are 0 where their mask is False; restored after."""
    weights = {name: model.get_parameter(f"{name}.weight").detach() for name in masks}  # detached: the same memory
    before = {name: weight.clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.mul_(masks[name])
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(before[name])
