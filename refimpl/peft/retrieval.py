"""Which module for this input? The one whose training examples look like it.

A module's key is the mean direction of its examples' embeddings; an input asks with its own embedding, and the cosine
decides. No gate is trained, so a new module joins with a handful of examples and nothing else changes.
Source: S1, "Modular Retrieval"; Zhao et al. 2024 (LoraRetriever), section 3.1, there with a trained encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses

from refimpl.shapes import Float, Int, Tensor

__all__ = ["ModuleIndex"]


@dataclass(frozen=True)
class ModuleIndex:
    """One key of length 1 per module."""

    names: tuple[str, ...]
    keys: Float[Tensor, "modules features"]

    @classmethod
    def of(cls, examples: Mapping[str, Float[Tensor, "_ features"]]) -> "ModuleIndex":
        """Embeddings of a few inputs per module; each counts by its direction alone."""
        if not examples or any(len(vectors) == 0 for vectors in examples.values()):
            raise ValueError("ModuleIndex.of: every module needs at least one example to be found by")
        keys = [F.normalize(vectors, dim=-1).mean(0) for vectors in examples.values()]
        return cls(tuple(examples), F.normalize(torch.stack(keys), dim=-1))

    def scores(self, query: Float[Tensor, "batch features"]) -> Float[Tensor, "batch modules"]:
        """Cosines between inputs and keys. 2 modules features FLOPs per input."""
        return F.normalize(query, dim=-1) @ self.keys.T

    def best(self, query: Float[Tensor, "batch features"], k: int = 1) -> Int[Tensor, "batch {k}"]:
        """The k modules nearest to each input, nearest first; of equals, the one that joined first."""
        if not 1 <= k <= len(self.names):
            raise ValueError(f"ModuleIndex.best: k lies between 1 and {len(self.names)} modules, given {k}")
        return self.scores(query).sort(dim=1, descending=True, stable=True).indices[:, :k]

    def weights(
        self, query: Float[Tensor, "batch features"], k: int = 1, *, temperature: float | int = 0.1
    ) -> Float[Tensor, "batch modules"]:
        """Softmax of the scores over each input's k best, zero elsewhere: rows for `composition.routed`."""
        scores, best = self.scores(query) / temperature, self.best(query, k)
        return torch.zeros_like(scores).scatter(1, best, scores.gather(1, best).softmax(1))
