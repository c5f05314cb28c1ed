"""Mixture of experts: many feed-forward networks, of which each token uses one or two.

| | |
| --- | --- |
| who reads what: top-k, Switch, capacity, balance | `routing` |
| experts by a fixed function of the token | `hash_layers` |
| the computation, in plain PyTorch | `eager` |
| grouped matrix product in Triton | `kernel` |
"""

from refimpl.mixture_of_experts.eager import MixtureOfExperts, dense_experts, expert_flops, grouped_experts
from refimpl.mixture_of_experts.routing import (
    Routing,
    capacity,
    dropped,
    load,
    load_balance_loss,
    switch_routing,
    to_fixed,
    top_k_routing,
    within_capacity,
)

__all__ = [
    "MixtureOfExperts",
    "Routing",
    "capacity",
    "dense_experts",
    "dropped",
    "expert_flops",
    "grouped_experts",
    "load",
    "load_balance_loss",
    "switch_routing",
    "to_fixed",
    "top_k_routing",
    "within_capacity",
]
