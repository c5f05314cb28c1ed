"""Fitting L(x) = L_inf + (x_c / x)^alpha to a few training runs, with a range of validity and an interval.

x is parameters, tokens or FLOPs; L the validation loss in nats. L_inf is the loss that no amount of x removes (Kaplan
et al. write the law without it, Hoffmann et al. with it). alpha says how fast the rest falls: ten times the x leaves
10^-alpha of it. A fit speaks for the range of its data and for nothing else: `PowerLaw.covers` asks.
Source: Kaplan et al. 2020, equations 1.1 to 1.3; Hoffmann et al. 2022, equation 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from refimpl.shapes import Float, Tensor

__all__ = ["KAPLAN", "Intervals", "PowerLaw", "bootstrap", "fit_power_law", "lower_envelope"]

KAPLAN = {"parameters": 0.076, "data": 0.095, "compute": 0.050}  # published exponents (compute: optimally allocated)
ALPHAS = (0.005, 5.0)  # searched; a steeper or flatter law than this is not one


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = floor + (x_c / x)^alpha, and the x between which it was seen to hold."""

    floor: float  # L_inf, nats
    x_c: float  # where the reducible loss is 1 nat
    alpha: float
    low: float  # smallest and largest x of the data
    high: float
    residual: float  # root of the mean squared deviation, nats

    def __call__(self, x: float) -> float:
        """The loss the law expects at x, inside its range or not."""
        return self.floor + (self.x_c / x) ** self.alpha

    def covers(self, x: float) -> bool:
        """True where x lies among the data; elsewhere the law is a guess."""
        return self.low <= x <= self.high


class Intervals(NamedTuple):
    """(low, high) that held the value in `level` of the bootstrap draws."""

    floor: tuple[float, float]
    alpha: tuple[float, float]
    level: float


def fit_power_law(x: Sequence[float | int], loss: Sequence[float | int], *, floor: float | None = None) -> PowerLaw:
    """Least squares in the loss. For a given alpha the law is a straight line in x^-alpha, so only alpha is searched.

    floor: L_inf where it is known, such as 0 for Kaplan's form; fitted (at least 0) where None. Needs three different
    x, four to leave anything over to judge the fit by.
    """
    xs, losses = _checked(x, loss)
    floors, scales, alphas, sse = _fit(xs, losses[None], floor)
    unit = xs.log().mean().exp()
    alpha = alphas.item()
    x_c = unit.item() * scales.item() ** (1 / alpha)
    residual = (sse.item() / len(xs)) ** 0.5
    return PowerLaw(floors.item(), x_c, alpha, xs.min().item(), xs.max().item(), residual)


def bootstrap(
    x: Sequence[float | int], loss: Sequence[float | int], *, floor: float | None = None, draws: int = 1000,
    seed: int = 0, level: float = 0.9,
) -> Intervals:  # fmt: skip
    """How far the fit moves when its residuals are dealt out anew: intervals of the exponent and the floor.

    Residuals of a fit with p parameters to n points are too small by sqrt(1 - p/n); they are blown up accordingly.
    The interval holds for noise between runs. It says nothing about a law of another form, nor beyond the data.
    """
    xs, losses = _checked(x, loss)
    p = 3 if floor is None else 2
    if len(xs) <= p:
        raise ValueError(f"bootstrap: {len(xs)} runs leave no residuals for {p} fitted numbers; give {p + 2} or more")
    law = fit_power_law(x, loss, floor=floor)
    expected = torch.tensor([law(value) for value in xs.tolist()], dtype=torch.float64)
    residuals = (losses - expected) * (len(xs) / (len(xs) - p)) ** 0.5
    pick = torch.randint(len(xs), (draws, len(xs)), generator=torch.Generator().manual_seed(seed))
    floors, _, alphas, _ = _fit(xs, expected + residuals[pick], floor)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return Intervals(tuple(floors.quantile(ends).tolist()), tuple(alphas.quantile(ends).tolist()), level)


def lower_envelope(x: Sequence[float | int], loss: Sequence[float | int]) -> list[int]:
    """Indices of the runs that no cheaper run beats, cheapest first: what the best allocation of compute achieves."""
    best, kept = float("inf"), []
    for i in sorted(range(len(x)), key=lambda i: (x[i], loss[i])):
        if loss[i] < best:
            best = loss[i]
            kept.append(i)
    return kept


def _checked(x, loss):
    xs, losses = (torch.as_tensor(values, dtype=torch.float64) for values in (x, loss))
    if xs.ndim != 1 or xs.shape != losses.shape or len(xs.unique()) < 3 or xs.min() <= 0:
        raise ValueError(
            f"fit_power_law: needs one loss for each x, at least 3 different x, all positive; given x={list(x)}, "
            f"loss={list(loss)}"
        )
    return xs, losses


def _fit(xs: Float[Tensor, "runs"], losses: Float[Tensor, "draws runs"], floor: float | None):
    """(floor, scale, alpha, sum of squares) per draw, x counted in units of its geometric mean."""
    x = xs / xs.log().mean().exp()  # x^-alpha of raw token counts would span 40 orders of magnitude
    low, high = (torch.full((len(losses),), bound, dtype=torch.float64).log() for bound in ALPHAS)
    for _ in range(6):  # each round looks 20 times closer around the best of 81
        steps = torch.linspace(0, 1, 81, dtype=torch.float64)
        alphas = (low[:, None] + (high - low)[:, None] * steps).exp()
        floors, scales, sse = _line(x[None, None] ** -alphas[..., None], losses[:, None], floor)
        best = sse.argmin(dim=1, keepdim=True)
        log_best, width = alphas.gather(1, best).log()[:, 0], (high - low) / 40
        low, high = log_best - width, log_best + width
    picked = [values.gather(1, best)[:, 0] for values in (floors, scales, alphas, sse)]
    if (picked[1] <= 0).all():
        raise ValueError("fit_power_law: the loss does not fall with x, so there is no power law to fit")
    return picked


def _line(u, losses, floor):
    """Least squares of losses = floor + scale * u along the last axis, with floor >= 0 and scale >= 0."""
    mean_u, mean_l = u.mean(-1), losses.mean(-1)
    slope = ((u - mean_u[..., None]) * losses).sum(-1) / ((u - mean_u[..., None]) ** 2).sum(-1)
    level = mean_l - slope * mean_u
    if floor is not None or (level < 0).any():
        given = torch.zeros_like(level) if floor is None else torch.full_like(level, floor)
        through = ((losses - given[..., None]) * u).sum(-1) / (u * u).sum(-1)
        fixed = level < 0 if floor is None else torch.ones_like(level, dtype=torch.bool)
        level, slope = torch.where(fixed, given, level), torch.where(fixed, through, slope)
    slope = slope.clamp(min=0)
    return level, slope, ((losses - level[..., None] - slope[..., None] * u) ** 2).sum(-1)
