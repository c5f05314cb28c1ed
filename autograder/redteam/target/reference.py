"""The oracles of the lab that is attacked. No answer's process may ever see this file."""

import torch
import torch.distributed as dist


def softmax(x):
    """exp(x) over its sum along the last axis, shifted by the row's maximum."""
    shifted = (x - x.amax(-1, keepdim=True)).exp()
    return shifted / shifted.sum(-1, keepdim=True)


def total(blocks):
    """Sum of all blocks, element by element."""
    return torch.stack(list(blocks)).sum(0)


def batch(model, tokens):
    """What the model says to each token, in one call."""
    return model(tokens)


def shard_sum(x):
    """This rank's part of the sum of all ranks' x, (n * size,) -> (size,)."""
    part = torch.empty(x.numel() // dist.get_world_size(), dtype=x.dtype)
    dist.reduce_scatter(part, list(x.chunk(dist.get_world_size())))
    return part
