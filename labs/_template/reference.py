"""The oracle of the template's question.

A real lab names one in refimpl, such as oracle="refimpl.attention:naive_attention", and deletes this file.
"""

from torch import Tensor


def center(x: Tensor) -> Tensor:
    """x minus the mean of its last axis, (..., n) -> (..., n)."""
    return x - x.mean(dim=-1, keepdim=True)
