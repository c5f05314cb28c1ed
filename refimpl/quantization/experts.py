"""QMoE in small: the experts of a mixture in three values per row, which entropy coding takes below 2 bits.

    code in {-, 0, +},  values (min w, 0, max w) of the row

An expert's weights are many and each is used seldom, so they bear coarse codes best. Most become 0, and a sequence with
one very frequent symbol needs fewer than log2(3) = 1.58 bits each: the paper codes pairs from a dictionary; here the
entropy, the bound of any code that looks at one weight at a time, is computed.
Source: S1, "QMoE"; Frantar and Alistarh 2023, sections 3 and 4 (there with GPTQ's correction of the error, not here).
"""

from dataclasses import dataclass

import torch

from refimpl.shapes import Float, Integer, Tensor

__all__ = ["Ternary", "quantize_experts"]


@dataclass(frozen=True)
class Ternary:
    """Codes of all experts with the two values of each row."""

    codes: Integer[Tensor, "experts out in_features"]  # int8: -1, 0, 1
    low: Float[Tensor, "experts out 1"]
    high: Float[Tensor, "experts out 1"]

    def dequantize(self) -> Float[Tensor, "experts out in_features"]:
        return torch.where(self.codes > 0, self.high, torch.where(self.codes < 0, self.low, 0.0))

    @property
    def zeros(self) -> float:
        """Share of weights that became 0."""
        return (self.codes == 0).double().mean().item()

    @property
    def bits_per_weight(self) -> float:
        """Entropy of the codes, and 2 * 16 bits per row for its values."""
        share = torch.stack([(self.codes == c).double().mean() for c in (-1, 0, 1)])
        return (-torch.xlogy(share, share).sum() / torch.log(torch.tensor(2.0))).item() + 32 / self.codes.shape[-1]


def quantize_experts(w: Float[Tensor, "experts out in_features"]) -> Ternary:
    """The nearest of (min, 0, max) of its row for each weight: zeros as soon as a row has a few large weights."""
    low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
    codes = (w > high / 2).to(torch.int8) - (w < low / 2).to(torch.int8)
    return Ternary(codes, low, high)
