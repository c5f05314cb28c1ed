"""Known wrong answers of the lab that is attacked."""

import torch

from autograder import mistake


@mistake("softmax", says="Your weights do not sum to one: divide by the sum of the exponentials.")
def not_normalised(x):
    return (x - x.amax(-1, keepdim=True)).exp()


@mistake("softmax", says="You normalised over the whole tensor. Each row is normalised by itself.")
def over_everything(x):
    return x.flatten().softmax(0).reshape(x.shape)


@mistake("total", says="You returned the last block only.")
def last_block(blocks):
    return blocks[-1]


@mistake("total", fails="n^2", says="The sum is right, but you kept a square of what you had read.")
def quadratic(blocks):
    n = 64 * len(blocks)
    return torch.stack(list(blocks)).sum(0) + 0 * torch.ones(n, n).sum()
