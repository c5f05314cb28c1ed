# %% [markdown]
# # Lab 00 · Tiny
# *How far apart are the numbers of a row?*
#
# **Time** 10 min. **You need** nothing.
#
# | Question | Points | Minutes | Difficulty |
# |---|---|---|---|
# | 1 `spread` | 4 | 4 | ●○○ |
# | 2 `stream_sum` | 6 | 4 | ●●○ |
# | 3 `why` (written) | 2 | 2 | ●○○ |
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("00_tiny")
# %% tags=["setup"]
import torch


# %% [markdown]
# ## Question 1. Spread (4 points, 4 minutes, ●○○)
# The largest minus the smallest element of each row, <b>without</b> a library call that gives both.
# %% question="spread"
def spread(x):
    """Largest minus smallest element of the last axis, (..., n) -> (...)."""
    # BEGIN SOLUTION
    return x.max(dim=-1).values - x.min(dim=-1).values
    # END SOLUTION


# %% check="spread"
lab.check("spread")
# %% [markdown] hints="spread"
# <details><summary>Hint 1: the idea</summary>
#
# Two elements of a row decide.
# </details>
# %%
print("an explore cell", torch.ones(2))


# %% [markdown]
# ## Question 2. Sum of a stream (6 points, 4 minutes, ●●○)
# %% question="stream_sum"
def stream_sum(blocks):
    """Sum over the last axis of all blocks, each of which is seen once."""
    # BEGIN SOLUTION
    total = 0
    for block in blocks:
        total = total + block.sum(dim=-1)
    return total
    # END SOLUTION


# %% check="stream_sum"
lab.check("stream_sum")
# %% [markdown] hints="stream_sum"
# <details><summary>Hint 1: the idea</summary>
#
# Keep one number per row.
# </details>
# %% [markdown]
# ## Question 3. Why (2 points, 2 minutes, ●○○)
# %% [markdown] written="why"
# ### BEGIN SOLUTION
# Because two elements decide.
# ### END SOLUTION
