"""The oracles of the lab that is attacked. No answer's process may ever see this file."""

import torch


def softmax(x):
    """exp(x) over its sum along the last axis, shifted by the row's maximum."""
    shifted = (x - x.amax(-1, keepdim=True)).exp()
    return shifted / shifted.sum(-1, keepdim=True)


def total(blocks):
    """Sum of all blocks, element by element."""
    return torch.stack(list(blocks)).sum(0)
