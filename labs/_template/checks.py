"""What the answers of this lab must do: cases drawn from a seed, the oracle by name, limits on the way."""

import torch

from autograder import Case, question


@question("center", oracle="reference:center")
class Center:
    """`center` removes from every row its own mean, and nothing else."""

    def cases(self, rng):
        # Inputs only, and each for a reason: a mistake in mistakes.py that no case catches is a hole.
        yield Case("a matrix", torch.randn(3, 5, generator=rng) + 2)
        yield Case("a square, where the wrong axis fits too", torch.randn(4, 4, generator=rng) + 2)
        yield Case("more axes", torch.randn(2, 3, 4, generator=rng) + 2)
        yield Case("a transposed view", (torch.randn(6, 3, generator=rng) + 2).T)
