"""Which expert reads which token: a gate's choice, the room each expert has, and the loss that spreads the load.

A routing is a table (tokens, choices) of expert numbers with a weight for each. A token that found no room has expert
-1 and weight 0: its residual stream passes the layer unchanged.
Source: Shazeer et al. 2017 (top-k gating); Fedus et al. 2021, Switch Transformer, sections 2.1 and 2.2.
"""

import math
from typing import NamedTuple

import torch

from refimpl.shapes import Float, Int, Tensor

__all__ = [
    "NOWHERE",
    "Routing",
    "capacity",
    "dropped",
    "load",
    "load_balance_loss",
    "switch_routing",
    "to_fixed",
    "top_k_routing",
    "within_capacity",
]

NOWHERE = -1  # the expert of a choice that was dropped


class Routing(NamedTuple):
    """For every token its experts and what their outputs are multiplied by."""

    expert: Int[Tensor, "tokens choices"]
    weight: Float[Tensor, "tokens choices"]
    experts: int  # how many there are, the unused ones included


def top_k_routing(logits: Float[Tensor, "tokens experts"], k: int, *, renormalize: bool = True) -> Routing:
    """The k experts of highest gate per token, weighted by softmax over those k, or over all with renormalize=False.

    Equal scores go to the lower expert number. Gradients reach the gate through the weights of the chosen ones.
    """
    experts = logits.shape[1]
    if not 1 <= k <= experts:
        raise ValueError(f"top_k_routing: k lies between 1 and {experts} experts, given {k}")
    # A stable sort, not topk: ties must not depend on the machine.
    chosen = logits.sort(dim=1, descending=True, stable=True).indices[:, :k]
    weight = logits.gather(1, chosen).softmax(1) if renormalize else logits.softmax(1).gather(1, chosen)
    return Routing(chosen, weight, experts)


def switch_routing(logits: Float[Tensor, "tokens experts"], *, room: int | None = None) -> Routing:
    """One expert per token, weighted by its gate p: y = p_i(x) E_i(x). With `room`, later tokens of a full expert drop.

    The weight is not renormalised: 1 would give the gate no gradient.
    """
    routing = top_k_routing(logits, 1, renormalize=False)
    return routing if room is None else within_capacity(routing, room)


def capacity(tokens: int, experts: int, *, factor: float | int, choices: int = 1) -> int:
    """Room of each expert: factor * tokens * choices / experts, rounded up. factor 1 is room for a perfect balance."""
    if factor <= 0 or experts < 1:
        raise ValueError(f"capacity: factor must be positive and experts at least 1, given {factor} and {experts}")
    return math.ceil(factor * tokens * choices / experts)


def within_capacity(routing: Routing, room: int) -> Routing:
    """The routing with every choice beyond an expert's `room` dropped, first choices before second, in token order.

    Dropped weights are 0; the others stay as they are, so such a token's output shrinks.
    """
    order = routing.expert.T.flatten()  # all first choices, then all second choices
    taken = torch.nn.functional.one_hot(order, routing.experts)
    place = (taken.cumsum(0) - 1).gather(1, order[:, None])[:, 0]  # how many came before at the same expert
    fits = (place < room).view(routing.expert.shape[::-1]).T
    return Routing(torch.where(fits, routing.expert, NOWHERE), torch.where(fits, routing.weight, 0.0), routing.experts)


def to_fixed(expert: Int[Tensor, "tokens"], experts: int, *, dtype: torch.dtype = torch.float32) -> Routing:
    """A routing that no gate decides, such as a hash: one expert per token with weight 1."""
    return Routing(expert[:, None], torch.ones(len(expert), 1, dtype=dtype, device=expert.device), experts)


def load(routing: Routing) -> Int[Tensor, "experts"]:
    """Tokens that each expert reads."""
    return torch.bincount(routing.expert[routing.expert != NOWHERE], minlength=routing.experts)


def dropped(routing: Routing) -> int:
    """Tokens that no expert reads."""
    return int((routing.expert == NOWHERE).all(dim=1).sum())


def load_balance_loss(logits: Float[Tensor, "tokens experts"], routing: Routing) -> Float[Tensor, ""]:
    """E sum_i f_i P_i: f_i the share of tokens whose first choice is expert i, P_i the mean gate of i. 1 at best.

    Only P has a gradient; multiplied by f it pushes the gates of crowded experts down most. Take the routing before
    capacity: what was dropped was wanted.
    """
    share = torch.bincount(routing.expert[:, 0], minlength=routing.experts).to(logits.dtype) / len(logits)
    return routing.experts * (share * logits.softmax(dim=1).mean(dim=0)).sum()
