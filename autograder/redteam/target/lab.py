# %% [markdown]
# # Lab 00 · Target
# The notebook that the red team hands in. No student sees it.
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("00_target")
# %% tags=["setup"]
import torch
import torch.distributed as dist


# %% [markdown]
# ## Question 1. Softmax (10 points, 2 minutes, ●○○)
# Each row becomes positive weights that sum to one.
# %% question="softmax"
def softmax(x):
    """Weights of the last axis, (..., n) -> (..., n)."""
    # BEGIN SOLUTION
    shifted = (x - x.amax(-1, keepdim=True)).exp()
    return shifted / shifted.sum(-1, keepdim=True)
    # END SOLUTION


# %% check="softmax"
lab.check("softmax")


# %% [markdown] hints="softmax"
# <details><summary>Hint 1: the idea</summary>
#
# Subtract the maximum first.
# </details>
# %% [markdown]
# ## Question 2. Total (10 points, 3 minutes, ●○○)
# The sum of all blocks, in no more memory than one of them takes.
# %% question="total"
def total(blocks):
    """Sum of the blocks, a list of (..., n) -> (..., n)."""
    # BEGIN SOLUTION
    result = torch.zeros_like(blocks[0])
    for block in blocks:
        result = result + block
    return result
    # END SOLUTION


# %% check="total"
lab.check("total")


# %% [markdown] hints="total"
# <details><summary>Hint 1: the idea</summary>
#
# One running sum is enough.
# </details>
# %% [markdown]
# ## Question 3. Batch (10 points, 2 minutes, ●○○)
# What the model says to each token, in as few calls as can be.
# %% question="batch"
def batch(model, tokens):
    """A list of answers, one for each token."""
    # BEGIN SOLUTION
    return model(tokens)
    # END SOLUTION


# %% check="batch"
lab.check("batch")


# %% [markdown] hints="batch"
# <details><summary>Hint 1: the idea</summary>
#
# The model takes a list.
# </details>
# %% [markdown]
# ## Question 4. Shard sum (10 points, 2 minutes, ●○○)
# Each rank holds numbers; each shall hold its own part of their sum.
# %% question="shard_sum"
def shard_sum(x):
    """This rank's part of the sum of all ranks' x, (n * size,) -> (size,)."""
    # BEGIN SOLUTION
    part = torch.empty(x.numel() // dist.get_world_size(), dtype=x.dtype)
    dist.reduce_scatter(part, list(x.chunk(dist.get_world_size())))
    return part
    # END SOLUTION


# %% check="shard_sum"
lab.check("shard_sum")
# %% [markdown] hints="shard_sum"
# <details><summary>Hint 1: the idea</summary>
#
# There is a collective that does just this.
# </details>
