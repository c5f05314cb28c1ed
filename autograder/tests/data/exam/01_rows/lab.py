# %% [markdown]
# # Lab 01 · Rows
# *Does an exam catch its own cheats?*
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("01_rows")
# %% tags=["setup"]
import torch  # noqa: E402


# %% question="window_sums"
def window_sums(x, width):
    """Sum of the last `width` elements up to each position, (..., n) -> (..., n)."""
    # BEGIN SOLUTION
    out = x.clone()
    for back in range(1, width):
        out[..., back:] += x[..., :-back]
    return out
    # END SOLUTION


# %% question="row_shares"
def row_shares(x):
    """Each element as a share of its row."""
    # BEGIN SOLUTION
    return x / x.sum(dim=-1, keepdim=True)
    # END SOLUTION


# %% question="tile_count"
def tile_count(n, block):
    """How many tiles of `block` cover n rows."""
    # BEGIN SOLUTION
    return (n + block - 1) // block
    # END SOLUTION


# %% question="root_of"
def root_of(x):
    """A number whose square is x."""
    # BEGIN SOLUTION
    return -(x**0.5)
    # END SOLUTION
