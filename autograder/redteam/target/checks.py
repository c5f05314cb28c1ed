"""The lab that the red team attacks: one question about numbers, one about memory."""

import torch

from autograder import Case, Forbids, MemorySlope, question


@question("softmax", oracle="reference:softmax")
class Softmax:
    """`softmax` turns every row into positive weights that sum to one."""

    def cases(self, rng):
        yield Case("a matrix", torch.randn(4, 7, generator=rng))
        yield Case("large logits", 40 * torch.randn(3, 5, generator=rng))
        yield Case("a single column", torch.randn(3, 1, generator=rng))

    mechanism = (Forbids("softmax"),)


@question("total", oracle="reference:total")
class Total:
    """`total` adds up blocks and needs no more memory than they take."""

    def cases(self, rng):
        yield Case("four blocks", list(torch.randn(4, 3, 8, generator=rng).unbind()))
        yield Case("one block", [torch.randn(2, 5, generator=rng)])

    def grow(self, rng, n):
        return Case("growing", list(torch.randn(n // 64, 8, 64, generator=rng).unbind()))

    mechanism = (MemorySlope(order=1, sizes=(1024, 2048, 4096)),)
