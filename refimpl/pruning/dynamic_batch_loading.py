"""LLM-Shearing's second half, Algorithm 1: load more of the domains that recover slowly.

    every m steps:   l_t[i]  <- loss on validation data of domain i
                     D_t[i]  <- max(l_t[i] - l_ref[i], 0)
                     w_t     <- w_{t-m} exp(D_t), divided by its sum
    every step:      a batch in which domain i has the share w_t[i]

The references are losses the model is expected to reach; domains beyond theirs keep what they had, before the division.
Source: Xia et al. 2023, "Sheared LLaMA", Algorithm 1; S1.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from refimpl.shapes import Float, Int, Tensor

__all__ = ["Update", "dynamic_batch_loading", "loss_difference", "sample_domains", "update_weight"]


class Update(NamedTuple):
    """What happened at a step t with t mod m = 0."""

    step: int
    losses: list[float]  # l_t, nats
    differences: list[float]  # D_t
    weights: list[float]  # w_t, in force from this step on


def loss_difference(losses: Float[Tensor, "domains"], reference: Float[Tensor, "domains"]) -> Float[Tensor, "domains"]:
    """max(l - l_ref, 0)."""
    return (losses - reference).clamp(min=0)


def update_weight(weights: Float[Tensor, "domains"], differences: Float[Tensor, "domains"]) -> Float[Tensor, "domains"]:
    """w exp(D) / sum of w exp(D). A domain of weight 0 stays at 0."""
    return (weights.log() + differences).softmax(dim=0)  # the same numbers, and exp cannot overflow


def sample_domains(
    weights: Float[Tensor, "domains"], batch: int, rng: torch.Generator | None = None
) -> Int[Tensor, "batch"]:
    """The domain of each sequence of a batch, drawn in proportion to the weights."""
    return torch.multinomial(weights, batch, replacement=True, generator=rng)


def dynamic_batch_loading(
    train: Callable[[Tensor], object],
    validate: Callable[[], Sequence[float | int]],
    reference: Sequence[float | int],
    weights: Sequence[float | int],
    *,
    steps: int,
    interval: int,
    batch: int,
    rng: torch.Generator | None = None,
) -> Iterator[Update]:
    """Algorithm 1. Runs `train(domains)` once a step, domains (batch,), and yields an `Update` every `interval` steps.

    train: loads a sequence of each named domain and updates theta (with gates and multipliers, while pruning).
    validate: the losses of all domains. Constant loading is interval = steps + 1.
    """
    w, l_ref = torch.tensor(weights, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    if w.shape != l_ref.shape or (w < 0).any() or w.sum() <= 0:
        raise ValueError(
            "dynamic_batch_loading: every domain needs a weight, at least 0, and a reference loss; given "
            f"{weights} and {reference}"
        )
    w = w / w.sum()
    for t in range(1, steps + 1):
        if t % interval == 0:
            losses = torch.tensor(validate(), dtype=torch.float64)
            differences = loss_difference(losses, l_ref)
            w = update_weight(w, differences)
            yield Update(t, losses.tolist(), differences.tolist(), w.tolist())
        train(sample_domains(w, batch, rng))
