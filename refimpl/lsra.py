"""Long-Short Range Attention (Lite Transformer): half of the features are convolved, the other half attend.

An attention layer spends heads on looking at the neighbours. A convolution does that with a handful of weights, so LSRA
cuts the features in two: one half goes through a short convolution, the other through attention, which is then free for
what is far away. The feed-forward network after it mixes the halves.
Source: Wu et al. 2020 (Lite Transformer); lightweight convolution: Wu et al. 2019, "Pay Less Attention".
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses
from torch import nn

from refimpl.attention import causal_mask
from refimpl.shapes import Bool, Float, Tensor
from refimpl.transformer import DecoderOnly, Mask, MultiHeadAttention, TransformerConfig

__all__ = [
    "LongShortRangeAttention",
    "light_convolution",
    "lite_decoder",
    "local_share",
    "mass_by_distance",
    "matched_ffn",
    "watch_maps",
]


def light_convolution(
    x: Float[Tensor, "batch seq channels"], weights: Float[Tensor, "heads kernel"], *, causal: bool
) -> Float[Tensor, "batch seq channels"]:
    """y_{i,c} = sum_t softmax(w_h)_t x_{i + t - before, c}: one short average per head, the same for its channels.

    Channel c belongs to head c // (channels / heads). before = kernel - 1 where causal, else (kernel - 1) / 2; zeros
    stand beyond the ends. heads * kernel weights; 2 kernel FLOPs per number.
    """
    heads, kernel = weights.shape
    if x.shape[-1] % heads or (not causal and kernel % 2 == 0):
        raise ValueError(
            f"light_convolution: {x.shape[-1]} channels must divide into {heads} heads, and a kernel that looks both "
            f"ways must be odd, given {kernel}"
        )
    before = kernel - 1 if causal else kernel // 2
    filters = weights.softmax(-1).repeat_interleave(x.shape[-1] // heads, dim=0)[:, None]  # (channels, 1, kernel)
    padded = F.pad(x.mT, (before, kernel - 1 - before))
    return F.conv1d(padded, filters, groups=x.shape[-1]).mT


class LongShortRangeAttention(nn.Module):
    """Concat(attention(x[: model / 2]), convolution(x[model / 2 :])); in place of `MultiHeadAttention`.

    The convolution's half: a gated linear unit in, `light_convolution`, a matrix out. Weights: model² for the attention
    half (4 matrices of half the width), 3/4 model² + heads / 2 * kernel for the other. `MultiHeadAttention`: 4 model².
    """

    def __init__(self, config: TransformerConfig, *, kernel: int):
        super().__init__()
        if config.model % 2 or config.heads % 2 or kernel < 1:
            raise ValueError(
                f"LongShortRangeAttention: model and heads must be even and kernel at least 1, given "
                f"model={config.model}, heads={config.heads}, kernel={kernel}"
            )
        half = config.model // 2
        self.attention = MultiHeadAttention(replace(config, model=half, heads=config.heads // 2))
        self.w_in = nn.Parameter(nn.init.xavier_uniform_(torch.empty(half, 2 * half)))  # values and gates
        self.w_taps = nn.Parameter(torch.zeros(config.heads // 2, kernel))  # a plain average at first
        self.w_out = nn.Parameter(nn.init.xavier_uniform_(torch.empty(half, half)))

    def forward(
        self, x: Float[Tensor, "batch seq model"], *, causal: bool = False, mask: Mask = None
    ) -> Float[Tensor, "batch seq model"]:
        """mask hides padding, as everywhere; the convolution reads zeros there."""
        far, near = x.chunk(2, dim=-1)
        return torch.cat((self.attention(far, causal=causal, mask=mask), self._convolve(near, causal, mask)), dim=-1)

    def _convolve(self, x, causal, mask):
        x = F.glu(x @ self.w_in, dim=-1)
        if mask is not None:
            if mask.shape[2] != 1:
                raise ValueError(
                    f"LongShortRangeAttention: a mask hides tokens, (batch, 1, 1, seq), given {mask.shape}"
                )
            x = x * mask[:, 0, 0, :, None]
        return light_convolution(x, self.w_taps, causal=causal) @ self.w_out


def matched_ffn(config: TransformerConfig, *, kernel: int) -> int:
    """The feed-forward width that gives an LSRA block as many weights as the block of `config`, to half a neuron.

    Attention has 4 model² weights, LSRA 1.75 model² + heads / 2 * kernel; a neuron has 2 model + 1.
    """
    saved = 4 * config.model**2 - (7 * config.model**2 // 4 + config.heads // 2 * kernel)
    return config.hidden + round(saved / (2 * config.model + 1))


def lite_decoder(config: TransformerConfig, *, kernels: Sequence[int]) -> DecoderOnly:
    """A decoder-only model with LSRA in each block; one kernel per layer (the paper widens them with depth)."""
    if len(kernels) != config.layers:
        raise ValueError(f"lite_decoder: one kernel per layer, given {list(kernels)} for {config.layers} layers")
    model = DecoderOnly(config)
    for block, kernel in zip(model.blocks, kernels, strict=True):
        block.attention = LongShortRangeAttention(config, kernel=kernel)
    return model


# --- what attention looks at -----------------------------------------------------------------------------------------


@contextmanager
def watch_maps(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the `with`, every attention layer leaves its map (batch, heads, q_len, k_len) in the list, in order."""
    layers = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    before, maps = [layer.attend for layer in layers], []

    def watch(q, k, v, *, causal=False, mask: Bool[Tensor, "..."] | None = None):
        S = (q * q.shape[-1] ** -0.5) @ k.mT
        if causal:
            S = S.masked_fill(~causal_mask(*S.shape[-2:], device=S.device), -torch.inf)
        P = (S if mask is None else S.masked_fill(~mask, -torch.inf)).softmax(-1)
        maps.append(P.detach())
        return P @ v

    try:
        for layer in layers:
            layer.attend = watch
        yield maps
    finally:
        for layer, attend in zip(layers, before, strict=True):
            layer.attend = attend


def mass_by_distance(maps: Float[Tensor, "batch heads seq seq"], *, start: int) -> Float[Tensor, "{start}"]:
    """Mean attention at 0, 1, … start - 1 tokens back, over texts, heads and the queries from `start` on."""
    seq = maps.shape[-1]
    rows = torch.arange(start, seq)[:, None]
    return maps[..., rows, rows - torch.arange(start)].mean((0, 1, 2))


def local_share(maps: Float[Tensor, "batch heads seq seq"], *, near: int, start: int) -> float:
    """Share of a query's attention on itself and the near - 1 tokens before it, mean over queries from `start` on."""
    return mass_by_distance(maps, start=start)[:near].sum().item()
