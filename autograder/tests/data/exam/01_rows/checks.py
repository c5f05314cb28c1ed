"""A small lab that keeps every rule of `prove`; the tests break one at a time."""

import math

import torch

from autograder import Case, Forbids, MemorySlope, PoisonOutside, question


def spoil(case):
    x, width = case.args
    x = x.clone()
    x[..., 0] = math.nan  # the last window does not reach that far back
    return case.replace(x, width), lambda result: result[..., -1]


@question("window_sums", oracle="reference:window_sums")
class WindowSums:
    """`window_sums` looks back over a window, and no further."""

    mechanism = (PoisonOutside(spoil, "what lies before the window"), MemorySlope(sizes=(2048, 4096)))
    equivalent = {"window_sums:23a5f6:off-by-one": "the next line writes that element anyway"}

    def cases(self, rng):
        yield Case("a row", torch.randn(8, generator=rng), 3)
        yield Case("a matrix", torch.randn(3, 9, generator=rng), 4)

    def grow(self, rng, n):
        return Case("grown", torch.randn(n, generator=rng), 3)


@question("row_shares", oracle="reference:row_shares")
class RowShares:
    """`row_shares` divides each row by its sum."""

    mechanism = (Forbids("normalize", "softmax"),)
    library = "lambda x: torch.nn.functional.normalize(x, p=1.0, dim=-1)"

    def cases(self, rng):
        yield Case("a matrix", torch.rand(3, 5, generator=rng) + 0.1)
        yield Case("three axes", torch.rand(2, 4, 3, generator=rng) + 0.1)


@question("tile_count", oracle="reference:tile_count")
class TileCount:
    """`tile_count` counts the last, short tile too."""

    def cases(self, rng):
        yield Case("fits", 64, 16)
        yield Case("one more", 65, 16)
        yield Case("any", int(torch.randint(100, 900, (), generator=rng)), 7)


@question("root_of", oracle=None)
class RootOf:
    """`root_of` finds either root."""

    def cases(self, rng):
        yield Case("two", 2.0)
        yield Case("nine", 9.0)

    def judge(self, got, case):
        if not isinstance(got, float) or abs(got * got - case.args[0]) > 1e-6:
            yield "squared, it is not the number"
