"""Five wrong answers to each question."""

import torch

from autograder import mistake


def windows(x, width):
    padded = torch.nn.functional.pad(x, (width - 1, 0))
    return padded.unfold(-1, width, 1)


@mistake("window_sums", says="The window is one too short.")
def one_too_short(x, width):
    return windows(x, width - 1).sum(-1)


@mistake("window_sums", says="The window is one too long.")
def one_too_long(x, width):
    return windows(x, width + 1).sum(-1)


@mistake("window_sums", says="You took the mean.")
def mean_of_window(x, width):
    return windows(x, width).mean(-1)


@mistake("window_sums", says="Right, but a square mask was made.", fails="MemorySlope")
def square_mask(x, width):
    i = torch.arange(x.shape[-1])
    keep = (i[:, None] - i >= 0) & (i[:, None] - i < width)
    return torch.where(keep, x[..., None, :], 0.0).sum(-1)


@mistake("window_sums", says="Right, but sums over the whole row were subtracted.", fails="PoisonOutside")
def difference_of_totals(x, width):
    total = torch.nn.functional.pad(x.cumsum(-1), (width, 0))
    return total[..., width:] - total[..., :-width]


@mistake("row_shares", says="You divided by the sum of everything.")
def share_of_all(x):
    return x / x.sum()


@mistake("row_shares", says="You divided by the largest element.")
def share_of_largest(x):
    return x / x.amax(-1, keepdim=True)


@mistake("row_shares", says="You divided columns.")
def share_of_column(x):
    return x / x.sum(-2, keepdim=True)


@mistake("row_shares", says="You subtracted.")
def subtracted(x):
    return x - x.sum(-1, keepdim=True)


@mistake("row_shares", says="You called the library.", fails="Forbids")
def library_softmax(x):
    return x.log().softmax(-1)


@mistake("tile_count", says="You rounded down.")
def rounded_down(n, block):
    return n // block


@mistake("tile_count", says="You added one always.")
def one_more(n, block):
    return n // block + 1


@mistake("tile_count", says="You returned a float.")
def a_float(n, block):
    return n / block


@mistake("tile_count", says="You counted the rows that are left.")
def remainder(n, block):
    return n % block


@mistake("tile_count", says="You swapped the two.")
def upside_down(n, block):
    return -(-block // n)


@mistake("root_of", says="You squared.")
def squared(x):
    return x * x


@mistake("root_of", says="You halved.")
def halved(x):
    return x / 2


@mistake("root_of", says="You took the third root.")
def third_root(x):
    return x ** (1 / 3)


@mistake("root_of", says="You took the inverse.")
def inverse(x):
    return 1 / x


@mistake("root_of", says="You returned text.")
def as_text(x):
    return str(x**0.5)
