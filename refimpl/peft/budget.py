"""What a method trains, and what training it keeps in memory: by formula, to be held against what is counted.

Formulas take a `LlamaConfig`; biases are counted where a method has them.
Source: S1, "Parameter-efficient Fine-tuning"; Hu et al. 2022, section 4.2.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from refimpl.models.llama import LlamaConfig
from refimpl.shapes import Tensor

__all__ = ["TrainingBytes", "gradient_bytes", "layer_shapes", "state_bytes", "trained_numbers", "training_bytes"]


def layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of the seven matrices of one block."""
    query, key = config.heads * config.dim, config.kv_heads * config.dim
    return {
        "q_proj": (query, config.model), "k_proj": (key, config.model), "v_proj": (key, config.model),
        "o_proj": (config.model, query), "gate_proj": (config.ffn, config.model), "up_proj": (config.ffn, config.model),
        "down_proj": (config.model, config.ffn),
    }  # fmt: skip


def trained_numbers(
    method: str, config: LlamaConfig, *, size: int = 8, targets: Sequence[str] = ("q_proj", "v_proj"), experts: int = 1
) -> int:
    """Numbers that a method trains; `size` is its rank, width or length, and nothing for (IA)³.

    LoRA      layers size sum(in + out)                      adapters  layers 2 (2 size model + size + model)
    experts   layers experts sum(in + size (in + out))       prefix    layers 2 kv_heads dim size
    (IA)³     layers (2 kv_heads dim + ffn)                  prompt    model size
    """
    shapes = [layer_shapes(config)[name] for name in targets]
    key, per_layer = config.kv_heads * config.dim, config.layers
    counts = {
        "lora": per_layer * size * sum(out + inner for out, inner in shapes),
        "experts": per_layer * experts * sum(inner + size * (out + inner) for out, inner in shapes),
        "adapters": per_layer * 2 * (2 * size * config.model + size + config.model),
        "prefix": per_layer * 2 * key * size,
        "prompt": size * config.model,
        "ia3": per_layer * (2 * key + config.ffn),
    }
    if method not in counts:
        raise ValueError(f"trained_numbers: method={method!r} is unknown; choose one of {', '.join(counts)}")
    return counts[method]


@dataclass(frozen=True)
class TrainingBytes:
    """What lies in memory between two steps, activations apart."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer


def training_bytes(frozen: int, trained: int, *, tensors: int, weight_bits: float | int = 32) -> TrainingBytes:
    """Frozen weights of `weight_bits`, trained ones in float32 with their gradients, Adam's two averages.

    tensors: trained tensors; for each of them PyTorch's Adam keeps a step count of 4 bytes.
    """
    return TrainingBytes(round(frozen * weight_bits / 8) + 4 * trained, 4 * trained, 8 * trained + 4 * tensors)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor that the optimizer holds, counted."""
    return sum(x.nbytes for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor))


def gradient_bytes(parameters: Iterable[Tensor]) -> int:
    """Bytes of the gradients that are there now, counted."""
    return sum(p.grad.nbytes for p in parameters if p.grad is not None)
