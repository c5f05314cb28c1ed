"""A model made smaller by removing what it uses least: single weights, patterns, whole parts.

unstructured            exactly N weights stay: globally, per layer, per row; n of every m; packing
wanda                   scores that know the inputs
structured              gates on layers, heads, FFN channels and features; the smaller model without them
hard_concrete           random gates with a differentiable L0 norm
shearing                gates trained to a target shape by Lagrange multipliers (LLM-Shearing)
dynamic_batch_loading   its Algorithm 1: more data for the domains that recover slowly
"""

from refimpl.pruning.dynamic_batch_loading import (
    Update,
    dynamic_batch_loading,
    loss_difference,
    sample_domains,
    update_weight,
)
from refimpl.pruning.hard_concrete import HardConcrete
from refimpl.pruning.shearing import Shearing
from refimpl.pruning.structured import (
    Gates,
    channel_norms,
    cut,
    gate_gradients,
    gated,
    head_norms,
    layer_influence,
    open_gates,
)
from refimpl.pruning.unstructured import (
    budgets,
    keep_largest,
    keep_largest_global,
    keep_largest_per_layer,
    keep_largest_per_row,
    n_m_bits_per_weight,
    n_m_mask,
    pack_n_m,
    pruned,
    unpack_n_m,
)
from refimpl.pruning.wanda import input_norms, wanda_scores

__all__ = [
    "Gates",
    "HardConcrete",
    "Shearing",
    "Update",
    "budgets",
    "channel_norms",
    "cut",
    "dynamic_batch_loading",
    "gate_gradients",
    "gated",
    "head_norms",
    "input_norms",
    "keep_largest",
    "keep_largest_global",
    "keep_largest_per_layer",
    "keep_largest_per_row",
    "layer_influence",
    "loss_difference",
    "n_m_bits_per_weight",
    "n_m_mask",
    "open_gates",
    "pack_n_m",
    "pruned",
    "sample_domains",
    "unpack_n_m",
    "update_weight",
    "wanda_scores",
]
