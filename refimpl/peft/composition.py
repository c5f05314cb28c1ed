"""Several modules at once: their sum, their mean, or a choice of its own for each text of a batch.

    W + sum over i of w_i scale_i B_i A_i = W + [B_1 … B_n] diag(w_1 scale_1, …, w_n scale_n) [A_1; …; A_n]

So a combination of LoRA modules is one LoRA layer whose rank is the sum of theirs, exactly. Averaging the A and the B
apart is not the average of the modules: it adds the products of every B_i with every A_j.
Source: S1, "One task, composed modules"; Ilharco et al. 2023 (sums), Chronopoulou et al. 2023 (means),
Huang et al. 2023 (learned weights), Sheng et al. 2023 (many modules in one batch).
"""

from collections.abc import Sequence

import torch
from torch import nn

from refimpl.peft.attach import MergeableDelta
from refimpl.peft.lora import LoRA, LoRALinear
from refimpl.shapes import Float, Tensor

__all__ = ["Combined", "averaged", "routed", "summed"]


class Combined(MergeableDelta):
    """LoRA modules with weights: (modules,) for all texts, or (batch, modules), a row for each text of the batch.

    Weights may require gradients: then the combination itself is learned, modules numbers for a new task.
    """

    def __init__(self, modules: Sequence[LoRA], weights: Float[Tensor, "*batch modules"]):
        super().__init__()
        if not modules or weights.ndim not in (1, 2) or weights.shape[-1] != len(modules):
            raise ValueError(f"Combined: {len(modules)} modules and weights {tuple(weights.shape)} do not fit")
        self.names = modules[0].names
        if any(module.names != self.names for module in modules):
            raise ValueError("Combined: the modules belong to different layers; train them with the same targets")
        self.modules_, self.weights = nn.ModuleList(modules), weights

    @property
    def share(self) -> Float[Tensor, "*batch rank"]:
        """w_i scale_i once for each rank of module i."""
        each = [self.weights[..., i, None].expand(*self.weights.shape[:-1], m.rank) * m.scale
                for i, m in enumerate(self.modules_)]  # fmt: skip
        return torch.cat(each, dim=-1)

    def wrap(self, i: int, layer: nn.Module) -> LoRALinear:
        a, b = torch.cat([m.a[i] for m in self.modules_]), torch.cat([m.b[i] for m in self.modules_], dim=1)
        return LoRALinear(layer, a, b, share=self.share)

    def merged_weight(self, i: int, weight: Float[Tensor, "out in_features"]) -> Float[Tensor, "out in_features"]:
        return weight + self.wrap(i, nn.Identity()).delta.to(weight.dtype)


def summed(modules: Sequence[LoRA]) -> Combined:
    """Every module in full: what each has learned, and whatever they do to each other."""
    return Combined(modules, torch.ones(len(modules)))


def averaged(modules: Sequence[LoRA]) -> Combined:
    """Every module by 1 / n: modules of one task agree and keep their strength, those of n tasks lose it."""
    return Combined(modules, torch.full((len(modules),), 1 / len(modules)))


def routed(modules: Sequence[LoRA], weights: Float[Tensor, "batch modules"]) -> Combined:
    """Each text of the batch by its own weights, such as those of a `ModuleIndex`: many tasks in one pass."""
    return Combined(modules, weights)
