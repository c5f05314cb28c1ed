"""LLM-Shearing's first half: train gates until the model has a shape that was given before.

    min over theta, z   max over lambda, phi   L(theta, z) + sum over kinds of part
        lambda (E||z||_0 - target) + phi (E||z||_0 - target)^2

Each kind of part (layers, heads, FFN channels, features) has its own target, and heads and channels one in each layer,
so that the result is a model that everybody's code can run. Weights and gates walk down the gradient, the multipliers
up: as long as too many parts are open, the price of an open part rises.

Source: Xia et al. 2023, "Sheared LLaMA", section 2.1; the form with two multipliers: Wang et al. 2020.
"""

from collections.abc import Iterator

import torch
from torch import nn

from refimpl.models.llama import LlamaConfig
from refimpl.pruning.hard_concrete import HardConcrete
from refimpl.pruning.structured import Gates, gate_shapes
from refimpl.pruning.unstructured import keep_largest
from refimpl.shapes import Float, Tensor

__all__ = ["Shearing"]

TARGETS = {"layers": "layers", "heads": "kv_heads", "ffn": "ffn", "model": "model"}  # kind of part -> size it decides


class Shearing(nn.Module):
    """Gates over a Llama of shape `source` and multipliers that press them to the shape `target`."""

    def __init__(self, source: LlamaConfig, target: LlamaConfig):
        super().__init__()
        self.source, self.target = source, target
        self.wanted = {kind: getattr(target, size) for kind, size in TARGETS.items()}
        shapes = gate_shapes(source)
        for kind, want in self.wanted.items():
            if not 0 < want <= shapes[kind][-1]:
                raise ValueError(f"Shearing: target has {want} {kind}, source {shapes[kind][-1]}; cutting cannot add")
        if source.heads * target.kv_heads != target.heads * source.kv_heads or source.dim != target.dim:
            raise ValueError("Shearing: heads go in whole groups; keep dim and heads / kv_heads of the source")
        self.gates = nn.ModuleDict({kind: HardConcrete(*shape) for kind, shape in shapes.items()})
        # one pair per constraint: heads and channels have one in each layer
        self.lagrange = nn.ParameterDict({kind: torch.zeros(2, *shape[:-1]) for kind, shape in shapes.items()})

    def sample(self, rng: torch.Generator | None = None) -> Gates:
        """One draw of every gate."""
        return Gates(**{kind: gate.sample(rng) for kind, gate in self.gates.items()})

    def open_parts(self) -> dict[str, Float[Tensor, "..."]]:
        """E||z||_0 per kind; for heads and channels in each layer."""
        return {kind: gate.expected().sum(-1) for kind, gate in self.gates.items()}

    def penalty(self, progress: float | int = 1.0) -> Float[Tensor, ""]:
        """sum of lambda gap + phi gap², gaps in shares of the source's parts.

        progress: the target moves from the source's shape (0) to its own (1), so that the model can follow.
        """
        total = torch.zeros(())
        for kind, found in self.open_parts().items():
            most = gate_shapes(self.source)[kind][-1]
            gap = (found - (most + progress * (self.wanted[kind] - most))) / most
            linear, square = self.lagrange[kind]
            total = total + (linear * gap + square * gap.square()).sum()
        return total

    def rounded(self) -> Gates:
        """Exactly the target: the parts with the largest log alpha at their typical value, all others 0."""
        found = {}
        for kind, gate in self.gates.items():
            rows = gate.log_alpha.detach()
            rows = rows.view(-1, rows.shape[-1])
            masks = torch.stack([keep_largest(row, self.wanted[kind]) for row in rows]).view(gate.log_alpha.shape)
            # a part that is kept by its rank although its gate is closed gets a small gate, not none
            found[kind] = torch.where(masks, gate.typical().detach().clamp(min=1e-3), 0.0)
        return Gates(**found)

    def multipliers(self) -> Iterator[nn.Parameter]:
        """lambda and phi: to be updated against the gradient's sign (`maximize=True`)."""
        yield from self.lagrange.parameters()

    def log_alphas(self) -> Iterator[nn.Parameter]:
        """What the gates learn."""
        yield from self.gates.parameters()
