"""Experts as deltas: a gate sends each token to a few of several small ones; and (IA)³, the smallest of all.

    experts   y = W x + scale sum over the k best e of g_e(x) B_e A_e x       g = softmax over the k best of G x
    (IA)³     key and value features, and those inside the feed-forward block, times a trained vector each

A mixture of LoRA experts is a mixture-of-experts layer (`refimpl.mixture_of_experts`) whose experts are thin: its gate
looks at the token, so it cannot be merged. (IA)³ can: a vector scales rows or columns of the weights.
Source: S1, "Expert in MOE"; Zadouri et al. 2023 (mixture of LoRA experts), Liu et al. 2022 (IA³).
"""

from collections.abc import Sequence

import torch
from torch import nn

from refimpl.mixture_of_experts.eager import grouped_matmul, sort_by_expert
from refimpl.mixture_of_experts.routing import Routing, top_k_routing
from refimpl.peft.attach import LayerDelta, MergeableDelta, matching
from refimpl.shapes import Float, Tensor

__all__ = ["IA3", "ExpertsLinear", "LoRAExperts"]


class ExpertsLinear(nn.Module):
    """A layer with low-rank experts beside it; after a call `routing` says who went where.

    gate (experts, in), a (experts, in, rank), b (experts, rank, out). Beside the base a token costs 2 in experts FLOPs
    for the gate and 2 choices rank (in + out) for its experts.
    """

    def __init__(self, base: nn.Module, gate: Tensor, a: Tensor, b: Tensor, *, choices: int, scale: float):
        super().__init__()
        self.base, self.gate, self.a, self.b = base, gate, a, b
        self.choices, self.scale = choices, scale
        self.routing: Routing | None = None

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out"]:
        y, flat = self.base(x), x.flatten(0, -2)
        gate, a, b = (p.to(x.dtype) for p in (self.gate, self.a, self.b))
        self.routing = top_k_routing(flat @ gate.T, self.choices, renormalize=self.choices > 1)
        token, weight, counts = sort_by_expert(self.routing)
        rows = grouped_matmul(grouped_matmul(flat[token], a, counts), b, counts) * (self.scale * weight)[:, None]
        return y + torch.zeros_like(y).flatten(0, -2).index_add(0, token, rows).view_as(y)


class LoRAExperts(LayerDelta):
    """A gate and `experts` pairs of thin matrices for every linear layer whose name ends in one of `targets`.

    Trained numbers: experts * (in + rank * (in + out)), summed over the layers; each token uses `choices` of them.
    """

    def __init__(
        self, model: nn.Module, *, experts: int = 4, choices: int = 2, rank: int = 2, alpha: float | int = 4,
        targets: Sequence[str] = ("q_proj", "v_proj"), seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        layers, draw = matching(model, targets), torch.Generator().manual_seed(seed)
        self.names, self.choices, self.scale = list(layers), choices, alpha / rank
        self.gate, self.a, self.b = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for layer in layers.values():
            out, inner = layer.weight.shape
            self.gate.append(torch.randn(experts, inner, generator=draw) * inner**-0.5)
            self.a.append(torch.randn(experts, inner, rank, generator=draw) * inner**-0.5)
            self.b.append(torch.zeros(experts, rank, out))

    def wrap(self, i: int, layer: nn.Module) -> ExpertsLinear:
        return ExpertsLinear(layer, self.gate[i], self.a[i], self.b[i], choices=self.choices, scale=self.scale)


class IA3(MergeableDelta):
    """One number per feature of keys, values and the inside of the feed-forward block, all 1 at the start.

    outputs: layers whose output features are scaled; inputs: layers whose input features are.
    Trained numbers: layers * (2 kv_heads dim + ffn).
    """

    def __init__(
        self, model: nn.Module, *, outputs: Sequence[str] = ("k_proj", "v_proj"), inputs: Sequence[str] = ("down_proj",)
    ):
        super().__init__()
        layers = matching(model, (*outputs, *inputs))
        self.names, self.at_input = list(layers), [name.endswith(tuple(inputs)) for name in layers]
        widths = [m.in_features if at else m.out_features for m, at in zip(layers.values(), self.at_input, strict=True)]
        self.vectors = nn.ParameterList(torch.ones(width) for width in widths)

    def wrap(self, i: int, layer: nn.Module) -> nn.Sequential:
        scale = _Scale(self.vectors[i])
        return nn.Sequential(scale, layer) if self.at_input[i] else nn.Sequential(layer, scale)

    def merged_weight(self, i: int, weight: Float[Tensor, "out in_features"]) -> Float[Tensor, "out in_features"]:
        vector = self.vectors[i].to(weight.dtype)
        return weight * (vector if self.at_input[i] else vector[:, None])


class _Scale(nn.Module):
    def __init__(self, vector: Tensor):
        super().__init__()
        self.vector = vector

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        return x * self.vector.to(x.dtype)
