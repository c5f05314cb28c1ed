"""Run the experts: each token through its own, and nothing computed for the others.

`grouped_experts` sorts the tokens by expert, so that each expert multiplies one block of rows; `dense_experts` runs
every expert on every token and throws most of it away: what a mixture is equal to, and E / k times the work.
"""

import torch
from torch import nn

from refimpl.mixture_of_experts.routing import NOWHERE, Routing, load_balance_loss, top_k_routing, within_capacity
from refimpl.shapes import Float, Int, Tensor

__all__ = ["MixtureOfExperts", "dense_experts", "expert_flops", "grouped_experts", "grouped_matmul", "sort_by_expert"]

Tokens = Float[Tensor, "tokens model"]
W1 = Float[Tensor, "experts model hidden"]
W2 = Float[Tensor, "experts hidden model"]


def dense_experts(x: Tokens, routing: Routing, w_1: W1, w_2: W2) -> Tokens:
    """y = sum over choices of weight * relu(x W_1[e]) W_2[e], every expert on every token. 4 T E model hidden FLOPs."""
    outputs = torch.relu(x @ w_1) @ w_2  # (experts, tokens, model)
    y = torch.zeros_like(x)
    for expert, weight in zip(routing.expert.T, routing.weight.T, strict=True):
        chosen = outputs[expert.clamp(min=0), torch.arange(len(x))]
        y = y + torch.where(expert == NOWHERE, 0.0, weight)[:, None] * chosen
    return y


def grouped_experts(x: Tokens, routing: Routing, w_1: W1, w_2: W2, *, matmul=None) -> Tokens:
    """The same, each expert on its own tokens: 4 T k model hidden FLOPs, less what was dropped.

    matmul(rows, w, counts) multiplies consecutive groups of rows by their own matrix; `grouped_matmul` if None.
    """
    matmul = matmul or grouped_matmul
    token, weight, counts = sort_by_expert(routing)
    hidden = torch.relu(matmul(x[token], w_1, counts))
    out = matmul(hidden, w_2, counts) * weight[:, None]
    return torch.zeros_like(x).index_add(0, token, out)


def sort_by_expert(
    routing: Routing,
) -> tuple[Int[Tensor, "kept"], Float[Tensor, "kept"], Int[Tensor, "experts"]]:
    """(token of each row, weight of each row, rows per expert), rows in order of expert; dropped choices left out."""
    expert = routing.expert.flatten()
    order = expert.argsort(stable=True)
    order = order[int((expert == NOWHERE).sum()) :]  # -1 sorts first
    counts = torch.bincount(expert[order], minlength=routing.experts)
    return order // routing.expert.shape[1], routing.weight.flatten()[order], counts


def grouped_matmul(
    rows: Float[Tensor, "kept inner"], w: Float[Tensor, "experts inner cols"], counts: Int[Tensor, "experts"]
) -> Float[Tensor, "kept cols"]:
    """rows[group e] @ w[e] for consecutive groups of counts[e] rows, some of them empty."""
    groups = rows.split(counts.tolist())
    return torch.cat([group @ matrix for group, matrix in zip(groups, w, strict=True)])


def expert_flops(tokens: int, *, choices: int, model: int, hidden: int) -> int:
    """Matmul FLOPs of the experts: two products per choice, however many experts there are."""
    return 4 * tokens * choices * model * hidden


class MixtureOfExperts(nn.Module):
    """A feed-forward layer of E experts of which each token uses k: parameters times E, compute times k.

    After a call `balance` holds the load-balance loss of that call, to be added to the model's loss, and `routing` who
    went where. `room` is the capacity per expert, None for no limit. A `hash_` function of the tokens' ids in place of
    the gate is for callers that have them: pass a routing made by `to_fixed`.
    """

    def __init__(self, model: int, hidden: int, *, experts: int, choices: int = 1, room: int | None = None):
        super().__init__()
        self.gate = nn.Linear(model, experts, bias=False)
        self.w_1 = nn.Parameter(torch.randn(experts, model, hidden) * model**-0.5)
        self.w_2 = nn.Parameter(torch.randn(experts, hidden, model) * hidden**-0.5)
        self.choices, self.room = choices, room
        self.routing: Routing | None = None
        self.balance: Tensor | None = None

    def forward(
        self, x: Float[Tensor, "*batch model"], routing: Routing | None = None
    ) -> Float[Tensor, "*batch model"]:
        flat = x.flatten(0, -2)
        if routing is None:
            logits = self.gate(flat)
            routing = top_k_routing(logits, self.choices, renormalize=self.choices > 1)
            self.balance = load_balance_loss(logits, routing)
            routing = routing if self.room is None else within_capacity(routing, self.room)
        self.routing = routing
        return grouped_experts(flat, routing, self.w_1, self.w_2).view_as(x)
