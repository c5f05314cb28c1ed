"""The oracles of the tiny lab."""


def spread(x):
    """Largest minus smallest element of the last axis."""
    return x.amax(-1) - x.amin(-1)


def stream_sum(blocks):
    """Sum over the last axis of blocks that arrive one by one."""
    total = None
    for block in blocks:
        part = block.flip(-1).double().sum(-1).to(block.dtype)
        total = part if total is None else total + part
    return total
