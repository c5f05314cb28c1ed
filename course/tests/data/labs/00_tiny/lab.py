# %% [markdown]
# # Lab 00 · Tiny
# *What is twice a number?*
#
# **Time** 15 min. **You need** nothing.
#
# | Question | Points | Minutes | Difficulty |
# |---|---|---|---|
# | 1 `double` | 2 | 5 | ●○○ |
# | 2 `why` | 1.5 | 5 | ●●● |
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("00_tiny")


# %% [markdown]
# ## Question 1. Double it (2 points, 5 minutes, ●○○)
# Return twice `x`, for any number of axes.
# %% question="double"
def double(x):
    """Twice x, same shape."""
    # BEGIN SOLUTION
    twice = x + x  # one addition
    return twice.contiguous()
    # END SOLUTION


# %% check="double"
lab.check("double")
# %% [markdown] hints="double"
# <details><summary>Hint 1: the idea</summary>
#
# Which operation makes a number as large again?
# <details><summary>Hint 2: the shapes</summary>
#
# Nothing changes shape.
# <details><summary>Hint 3: nearly code</summary>
#
# Add the tensor to itself.
# </details></details></details>
# %% [markdown]
# Try it on a number of your own.
# %%
value = 21
print(value)
# %% [markdown] written="why"
# ## Question 2. Why not multiply? (1.5 points, 5 minutes, ●●●)
# *Ada: "Multiplying by two is slower."* Is she right?
#
# ### BEGIN SOLUTION
# No: both read and write every element once, and that is what costs.
# ### END SOLUTION
