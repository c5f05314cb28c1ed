"""Known wrong answers of the tiny lab."""

import torch

from autograder import mistake


@mistake("spread", says="You returned the standard deviation. The spread looks at two elements only.")
def deviation(x):
    return x.std(-1, correction=0)


@mistake("spread", says="You looked at the whole tensor. Each row has a spread of its own.")
def over_everything(x):
    return x.amax() - x.amin()


@mistake("spread", says="Your rows of one column are shifted by one. A single element has no spread.")
def never_zero(x):
    return x.amax(-1) - x.amin(-1) if x.shape[-1] > 1 else torch.ones(x.shape[:-1])


@mistake("stream_sum", says="You kept the last block only.")
def last_block(blocks):
    for block in blocks:
        total = block.sum(-1)
    return total


@mistake("stream_sum", says="You read the blocks twice, and the second pass found nothing.")
def counted_first(blocks):
    count = sum(1 for _ in blocks)
    return sum((block.sum(-1) for block in blocks), torch.zeros(())) / count


@mistake("stream_sum", fails="n^2", says="The sum is right, but you kept a square of what you had read.")
def quadratic(blocks):
    kept = torch.cat(list(blocks), -1)
    n = kept.shape[-1]
    square = kept[:1, :].expand(n, n).clone()
    return kept.sum(-1) + 0 * square.sum()
