"""One question of every kind: a conversation, a served function, a program on several ranks, gradients."""

import torch

from autograder import Case, Counterfactual, Served, ServedCalls, StateBytes, Traffic, question

VOCABULARY = 7


def normal(rng, *shape):
    return torch.randn(*shape, generator=rng)


def other_past(case):
    """The same stream with other keys where a window of the case's size can no longer see them."""
    window, k, v = case.args
    k = k.clone()
    k[: len(k) - window] += 1.0
    return case.replace(window, k, v)


def same_end(before, after, case):
    if not torch.allclose(before["out"][-1], after["out"][-1]):
        yield "keys that had left the window were changed, and the result changed with them"


@question("RecentKeys", oracle="reference:RecentKeys")
class RecentKeysQuestion:
    """`RecentKeys` forgets all keys but the last `window`."""

    mechanism = (
        Counterfactual("Evicted", other_past, same_end),
        StateBytes(lambda n: 0, sizes=(512, 4096)),
    )
    equivalent = {"RecentKeys.attend:b0480a:minus-one": "the scores of one query have one axis"}

    def cases(self, rng):
        yield Case("window 3 of 8", 3, normal(rng, 8, 4), normal(rng, 8, 4))
        yield Case("window 2 of 5", 2, normal(rng, 5, 4), normal(rng, 5, 4))

    def converse(self, student, case):
        window, keys, values = case.args
        cache = student(window)
        kept = [cache.append(k, v) for k, v in zip(keys, values, strict=True)]
        return {"kept": kept, "out": [cache.attend(k) for k in keys[-2:]]}

    def grow(self, rng, n):
        return Case("growing", 3, normal(rng, n // 16, 4096), normal(rng, n // 16, 4096))


def served_model(rng):
    """A target that looks at the last token and the position, as a function of a list of tokens."""
    table = torch.randint(0, VOCABULARY, (VOCABULARY, 3), generator=rng)

    def target(tokens):
        return [int(table[token, place % 3]) for place, token in enumerate(tokens)]

    return Served("target", target), table[:, 0]


@question("speculate", oracle="reference:speculate")
class Speculate:
    """`speculate` asks the target about several drafted tokens at a time."""

    fresh = True
    equivalent = {"speculate:dc74fb:*": "any number of drafted tokens gives what the target alone would choose"}
    mechanism = (ServedCalls("target", at_most=lambda case, oracle: oracle, at_least=lambda case, oracle: 1),)

    def cases(self, rng):
        for name, count in (("12 tokens", 12), ("31 tokens", 31)):
            target, draft = served_model(rng)
            yield Case(name, target, draft, [1, 2], count)


@question("shard_sum", oracle="reference:shard_sum")
class ShardSum:
    """`shard_sum` leaves on every rank its own part of the sum, and moves no more than that needs."""

    ranks = 2
    mechanism = (Traffic(at_most=lambda case, oracle: oracle),)

    def cases(self, rng):
        yield Case("6 numbers", normal(rng, 2, 6))
        yield Case("2 numbers", normal(rng, 2, 2))

    def drive(self, answer, case):
        import torch.distributed as dist

        return answer(case.args[0][dist.get_rank()])


@question("gate", oracle="reference:gate")
class Gate:
    """`gate` can be trained: its gradients are those of the formula."""

    gradients = (0, 1)

    def cases(self, rng):
        yield Case("a matrix", normal(rng, 3, 4), normal(rng, 4, 4))
        yield Case("one row", normal(rng, 1, 2), normal(rng, 2, 2))
