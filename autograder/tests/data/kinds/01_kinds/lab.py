# %% [markdown]
# # Lab 01 · Kinds
# *One question of every kind.*
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("01_kinds")
# %% tags=["setup"]
import torch
import torch.distributed as dist


# %% question="RecentKeys"
class RecentKeys:
    """Attends to the last `window` keys and keeps no other."""

    def __init__(self, window):
        # BEGIN SOLUTION
        self.window, self.k, self.v = window, torch.empty(0), torch.empty(0)
        # END SOLUTION

    def append(self, k, v):
        """Take in one key and value; how many are kept."""
        # BEGIN SOLUTION
        if len(self.k) == 0:
            self.k, self.v = k[None], v[None]
        else:
            self.k = torch.cat([self.k[-self.window + 1 :], k[None]])
            self.v = torch.cat([self.v[-self.window + 1 :], v[None]])
        return len(self.k)
        # END SOLUTION

    def attend(self, q):
        """The query's mix of the values kept."""
        # BEGIN SOLUTION
        return torch.softmax(self.k @ q, 0) @ self.v
        # END SOLUTION


# %% question="speculate"
def speculate(target, draft, prompt, count):
    """`count` tokens after the prompt, as the target alone would choose them."""
    # BEGIN SOLUTION
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        known = len(tokens)
        ahead = min(4, len(prompt) + count - known)
        for _ in range(ahead):
            tokens.append(int(draft[tokens[-1]]))
        chosen = target(tokens)
        right = 0
        while right < ahead and tokens[known + right] == chosen[known + right - 1]:
            right += 1
        tokens = [*tokens[: known + right], int(chosen[known + right - 1])]
    return tokens[len(prompt) :][:count]
    # END SOLUTION


# %% question="shard_sum"
def shard_sum(x):
    """This rank's part of the sum of all ranks' x, (n * size,) -> (size,)."""
    # BEGIN SOLUTION
    part = x.new_empty(len(x) // dist.get_world_size())
    dist.reduce_scatter(part, list(x.split(len(part))))
    return part
    # END SOLUTION


# %% question="gate"
def gate(x, w):
    """sigmoid(x w) x."""
    # BEGIN SOLUTION
    return torch.sigmoid(x @ w) * x
    # END SOLUTION
