"""The oracles of the lab that examines `prove` itself."""


def window_sums(x, width):
    """Sum of the last `width` elements up to each position, (..., n) -> (..., n)."""
    total = x.cumsum(-1)
    before = total.clone()
    before[..., :width] = 0
    before[..., width:] = total[..., :-width]
    return total - before


def row_shares(x):
    """Each element as a share of its row."""
    return shares(x, x.sum(-1, keepdim=True))


def shares(x, total):
    return x / total


def tile_count(n, block):
    """How many tiles of `block` cover n rows."""
    return -(-n // block)
