# %% [markdown]
# # 00 · Tiny lecture
# *How far does one line go?*
#
# **You need** nothing. **You will be able to** read a number. **Time** 5 min, 1 s of CPU.
#
# ## A number
# The next cell computes one.
# %%
import matplotlib.pyplot as plt

from course.viz import show, use_style

my_guess = 3
# %% tags=["hide-output"]
print(1 + 1, my_guess)
max(6, 7)
# %% [markdown]
# ## A picture
# One line from 0 to 2.
# %%
use_style()
fig, ax = plt.subplots()
ax.plot([0, 1], [0, 2])
show(fig, alt="A line from 0 at the left to 2 at the right: it rises.")
