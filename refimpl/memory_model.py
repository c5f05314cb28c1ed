"""What has to be in memory: model states, activations kept for the backward pass, KV cache; and whether it fits.

Bytes, unless a name says elements. Sizes come as a `ModelShape` of `refimpl.cost_model`. `refimpl.meter` measures the
same on running code, and tests hold the two equal.
Source: Rajbhandari et al. 2020 (ZeRO), section 3.
"""

from collections.abc import Mapping
from typing import NamedTuple

from refimpl.cost_model import ModelShape, parameters

__all__ = [
    "OPTIMIZERS",
    "Fit",
    "activation_elements",
    "does_it_fit",
    "inference_memory",
    "kv_cache_bytes",
    "saved_per_token",
    "training_memory",
    "working_set_elements",
]

# bytes per parameter of an optimizer in mixed precision; Adam's sum is the K = 12 of 2Ψ + 2Ψ + KΨ
OPTIMIZERS = {
    "adam": {"master weights": 4, "momentum": 4, "variance": 4},
    "sgd with momentum": {"master weights": 4, "momentum": 4},
    "sgd": {"master weights": 4},
}


def training_memory(parameter_count: int, *, optimizer: str = "adam") -> dict[str, int]:
    """Bytes of the model states: 2Ψ weights, 2Ψ gradients (both 16 bit), KΨ optimizer states (32 bit)."""
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"training_memory: optimizer={optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
    each = {"weights": 2, "gradients": 2} | OPTIMIZERS[optimizer]
    return {name: size * parameter_count for name, size in each.items()}


def activation_elements(shape: ModelShape, *, batch: int, tokens: int, score_matrix: bool = False) -> int:
    """Elements kept for the backward pass: 12 d B N L as published, and with `score_matrix` the missing h B N² L.

    Source: Rajbhandari et al. 2020, footnote 3. `saved_per_token` says which twelve.
    """
    per_token = 12 * shape.model + (shape.heads * tokens if score_matrix else 0)
    return per_token * batch * tokens * shape.layers


def saved_per_token(shape: ModelShape, tokens: int) -> dict[str, int]:
    """What autograd keeps of one post-norm block, in elements per token: 12 d where ffn = 4 d, h N, and 4.

    Each product keeps both factors, ReLU its result, softmax its result, LayerNorm its input and two statistics.
    """
    d, q, kv = shape.model, shape.q_width, shape.kv_width
    return {
        "x, input of the projections": d,
        "q, k, v": q + 2 * kv,
        "P, the softmax of the scores": shape.heads * tokens,
        "heads side by side": q,
        "input of the first norm": d,
        "input of the feed-forward network": d,
        "hidden layer": shape.hidden,
        "input of the second norm": d,
        "mean and deviation of both norms": 4,
    }


def kv_cache_bytes(shape: ModelShape, *, tokens: int, batch: int = 1, itemsize: int = 2) -> int:
    """2 L kv_heads dim N B itemsize: keys and values of all tokens read so far."""
    return 2 * shape.layers * shape.kv_width * tokens * batch * itemsize


def working_set_elements(shape: ModelShape, *, batch: int, tokens: int, score_matrix: bool = True) -> int:
    """Most elements alive at once in a forward pass that keeps nothing for a backward: the "few copies" of x.

    While attention runs, 6 d per token (x, q, k, v, a copy of v, the output) and S and P; in the feed-forward network
    x, its copy, the hidden layer before and after ReLU. Not in it: logits. For kv_heads = heads, dim = model / heads.
    """
    attention = 6 * shape.model + (2 * shape.heads * tokens if score_matrix else 0)
    return batch * tokens * max(attention, 2 * shape.model + 2 * shape.hidden)


def inference_memory(
    shape: ModelShape, *, batch: int, tokens: int, itemsize: int = 2, score_matrix: bool = False
) -> dict[str, int]:
    """Bytes to answer `batch` texts of `tokens` tokens: weights, KV cache, activations of the layer at work."""
    alive = working_set_elements(shape, batch=batch, tokens=tokens, score_matrix=score_matrix)
    return {
        "weights": sum(parameters(shape).values()) * itemsize,
        "kv cache": kv_cache_bytes(shape, tokens=tokens, batch=batch, itemsize=itemsize),
        "activations": alive * itemsize,
    }


class Fit(NamedTuple):
    """The answer to "does it fit?" in bytes."""

    needed: int
    capacity: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.capacity

    @property
    def left(self) -> int:
        """Bytes to spare; negative where they are missing."""
        return self.capacity - self.needed


def does_it_fit(memory: Mapping[str, int], capacity_bytes: int) -> Fit:
    """Sum the named parts and compare. A real device also loses some to buffers and fragmentation: leave a margin."""
    return Fit(sum(memory.values()), capacity_bytes)
