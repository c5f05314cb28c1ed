# %% [markdown]
# # Lab 00 · A new lab
# *What does a row look like when you remove its mean?*
#
# **Time** 20 min, 5 s of CPU. **You need** PyTorch indexing. At the end you hold `center`, and you know which number of a row it throws away.
#
# | Question | Points | Minutes | Difficulty |
# |---|---|---|---|
# | 1 `center` | 4 | 8 | ●○○ |
# | 2 `why` (written) | 4 | 10 | ●●○ |
#
# `lab.check("…")` runs the same comparison as the final grade. Hints cost nothing.
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("_template")
# %% tags=["setup"]
import torch


# %% [markdown]
# ## Question 1. Center each row (4 points, 8 minutes, ●○○)
# Subtract from every row its own mean, so that each row of the result sums to zero. A row is what lies along the last axis; there may be any number of axes before it. Leave `x` as it is. One line is enough.
# %% question="center"
def center(x):
    """x minus the mean of its last axis; same shape as x, (..., n)."""
    # BEGIN SOLUTION
    return x - x.mean(dim=-1, keepdim=True)
    # END SOLUTION


# %% check="center"
lab.check("center")
# %% [markdown] hints="center"
# <details><summary>Hint 1: the idea</summary>
#
# One number per row leaves. Which number, added back to every element, would undo your work?
# <details><summary>Hint 2: the shapes</summary>
#
# `x` has shape `(..., n)`, its row means `(...)`. What must the second shape become before the two can be subtracted?
# <details><summary>Hint 3: nearly code</summary>
#
# `mean` takes the axis as `dim`, and `keepdim` leaves an axis of length 1 in its place.
# </details></details></details>
# %% [markdown]
# Your function on a row of five numbers. **Predict** the second row before you run the cell: it is the first one, 100 larger.
# %%
try:
    print(center(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [101.0, 102.0, 103.0, 104.0, 105.0]])))
except NotImplementedError as missing:
    print(f"first solve {missing}")
# %% [markdown]
# ## Question 2. Mia centers twice (4 points, 10 minutes, ●●○)
# *Mia: "I center the activations before and after the residual connection. Twice is safer: what the first pass misses, the second removes."*
#
# Is she right? Say what the second pass does to a row, give a number from your own run, and name a case in which it would do something. Write 80–120 words.
# %% [markdown] written="why"
# ### BEGIN SOLUTION
# No. After the first pass the mean of a row is zero, so the second subtracts zero. In our run the second pass changes the rows above by exactly 0. It does something only where rounding leaves a mean, or where the residual connection adds a row with a mean of its own in between.
# ### END SOLUTION
# %% [markdown]
# ## What you hold
# `lab.status()` shows your points. Which question was unfair, and how long did it take? Tell the staff; the next class will thank you.
# %%
lab.status()
