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


@mistake("batch", fails="calls", says="You asked about one token at a time. The model takes a whole list.")
def one_by_one(model, tokens):
    return [model([token])[0] for token in tokens]


@mistake("shard_sum", fails="bytes", says="You moved the whole sum to every rank, and each keeps half of it.")
def everything_everywhere(x):
    import torch.distributed as dist

    whole = x.clone()
    dist.all_reduce(whole)
    return whole.chunk(dist.get_world_size())[dist.get_rank()]
