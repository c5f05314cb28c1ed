"""The lab that the red team attacks: questions about numbers, memory, a served model, and traffic between ranks."""

import torch

from autograder import Case, Forbids, MemorySlope, Served, ServedCalls, Traffic, question


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


@question("batch", oracle="reference:batch")
class Batch:
    """`batch` asks the served model about all tokens at once."""

    mechanism = (ServedCalls("model", at_most=lambda case, oracle: oracle),)

    def cases(self, rng):
        for count in (5, 9):
            table = torch.randint(100_000, 999_999, (97,), generator=rng).tolist()
            tokens = torch.randint(0, 97, (count,), generator=rng).tolist()
            model = Served("model", lambda asked, table=table: [table[int(token)] for token in asked])
            yield Case(f"{count} tokens", model, tokens)


@question("shard_sum", oracle="reference:shard_sum")
class ShardSum:
    """`shard_sum` leaves on every rank its part of the sum, and moves no more than that needs."""

    ranks = 2
    mechanism = (Traffic(at_most=lambda case, oracle: oracle),)

    def cases(self, rng):
        yield Case("6 numbers", torch.randn(2, 6, generator=rng))

    def drive(self, answer, case):
        import torch.distributed as dist

        return answer(case.args[0][dist.get_rank()])
