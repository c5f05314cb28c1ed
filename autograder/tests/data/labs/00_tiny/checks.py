"""Two small questions that use every part of a question: weights, kwargs, drive, and the mechanisms."""

import torch

from autograder import Case, Forbids, MemorySlope, ReadOnce, question


@question("spread", oracle="reference:spread")
class Spread:
    """`spread` is the largest minus the smallest element of each row."""

    def cases(self, rng):
        yield Case("a matrix", torch.randn(3, 5, generator=rng))
        yield Case("one column", torch.randn(3, 1, generator=rng) + 7, weight=1)
        yield Case("a transposed view", torch.randn(6, 4, generator=rng).T, weight=2)

    mechanism = (Forbids("aminmax"),)


@question("stream_sum", oracle="reference:stream_sum")
class StreamSum:
    """`stream_sum` adds up blocks that can be read once."""

    def cases(self, rng):
        yield Case("even blocks", list(torch.randn(4, 3, 8, generator=rng).unbind()))
        yield Case("one block", [torch.randn(2, 5, generator=rng)])
        yield Case("odd blocks", [torch.randn(2, n, generator=rng) for n in (1, 7, 2)])

    def drive(self, answer, case):
        return {"sum": answer(*case.args), "kind": "total"}

    def grow(self, rng, n):
        return Case("growing", list(torch.randn(n // 64, 64, 64, generator=rng).unbind()))

    mechanism = (ReadOnce(0), MemorySlope(order=1, sizes=(512, 1024, 2048)))
