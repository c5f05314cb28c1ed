"""SmolLM2's stand-in where its weights cannot be had: same layers, heads and vocabulary, narrow, random, seeded.

Every cell and test still runs and every shape is right. What it says about language is nothing, so figures made with it
carry the mark "toy weights" (`SmolLM.mark`).
"""

import torch

from refimpl.models.llama import Llama, LlamaConfig

__all__ = ["TOY", "toy_llama"]

# 6.9 M weights; the residual stream is 9 times narrower than SmolLM2-135M's, the attention tensors are equal in shape
TOY = LlamaConfig(
    layers=30, model=64, heads=9, kv_heads=3, dim=64, ffn=128,
    vocab=49_152, context=8_192, rope_base=100_000.0, norm_eps=1e-5,
)  # fmt: skip


def toy_llama(config: LlamaConfig = TOY, *, seed: int = 0) -> Llama:
    """A random Llama, equal for equal seeds on every machine.

    Embeddings have standard deviation 1, so tied logits have about sqrt(model) = 8: as large as real ones, which
    float16 does not survive. Matrices keep the size of their input (1 / sqrt(fan_in)); what is written back to the
    residual stream is smaller by sqrt(2 layers), as in GPT-2, so that it does not grow with depth.
    """
    rng = torch.Generator().manual_seed(seed)
    model = Llama(config).requires_grad_(False).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            continue  # norms stay at 1
        std = 1.0 if "embed" in name else weight.shape[1] ** -0.5
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= (2 * config.layers) ** 0.5
        weight.copy_(torch.randn(weight.shape, generator=rng) * std)
    return model
