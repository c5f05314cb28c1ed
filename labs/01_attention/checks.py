"""What each question of lab 01 is checked on: cases drawn from a seed, and how an answer is run."""

import torch

from autograder import Case, Forbids, question


def normal(rng, *shape, scale=1.0):
    """Normal numbers of this spread."""
    return torch.randn(*shape, generator=rng) * scale


def integers(rng, high, *shape):
    """Whole numbers from 0 to high - 1."""
    return torch.randint(high, shape, generator=rng)


def qkv(rng, q_len, k_len, *, heads=3, dim=8, scale=1.0):
    """q, k, v of a batch of two."""
    return normal(rng, 2, heads, q_len, dim, scale=scale), *(normal(rng, 2, heads, k_len, dim) for _ in range(2))


def some_pairs(rng, *shape):
    """A random mask in which every query may look at its first key at least."""
    mask = torch.rand(*shape, generator=rng) > 0.5
    mask[..., 0] = True
    return mask


# Mutants of the oracle that no case can tell from it, with the reason (`prove --mutate`).
ONE_AXIS = "a vector has one axis, so every name of it is the same"
FOUR_AXES = "tensors have four axes here, so axis 2 is axis -2"
ONE_COPY = "without shared key heads there is one copy, and a copy is the original"
MASK_OF_PAIRS = "the mask of the causal flag alone is a matrix, so axis 1 is its last"
ONE_TEXT = "one text at a time, so the first is the last"


@question("soft_lookup", oracle="reference:soft_lookup")
class SoftLookup:
    """`soft_lookup` gives every key a share and mixes the values accordingly."""

    mechanism = [Forbids("scaled_dot_product")]
    library = (
        "lambda q, K, V: (torch.softmax(K @ q / q.shape[-1] ** 0.5, -1), "
        "torch.nn.functional.scaled_dot_product_attention(q[None, None], K[None], V[None])[0, 0])"
    )
    equivalent = {"soft_lookup:7f83f1:minus-one": ONE_AXIS}

    def cases(self, rng):
        yield Case("5 keys of width 8", normal(rng, 8), normal(rng, 5, 8), normal(rng, 5, 8))
        yield Case("values wider than keys", normal(rng, 8), normal(rng, 7, 8), normal(rng, 7, 20))
        yield Case("a single key", normal(rng, 8), normal(rng, 1, 8), normal(rng, 1, 3))
        yield Case("40 keys of width 3", normal(rng, 3), normal(rng, 40, 3), normal(rng, 40, 2))
        yield Case("all keys equal", normal(rng, 8), normal(rng, 1, 8).repeat(6, 1), normal(rng, 6, 4))
        yield Case(
            "scores in the hundreds", normal(rng, 16, scale=60.0), normal(rng, 9, 16, scale=10.0), normal(rng, 9, 5)
        )


@question("attention", oracle="refimpl.attention:naive_attention")
class Attention:
    """`attention` lets every query look at the keys it may see, at nothing else, and never returns NaN."""

    mechanism = [Forbids("scaled_dot_product")]
    library = (
        "lambda q, k, v, *, causal=False, mask=None: torch.nn.functional.scaled_dot_product_attention(q, k, v, "
        "attn_mask=(torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2]) if causal else "
        "torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)) & (torch.tensor(True) if mask is None else mask))"
    )

    equivalent = {
        "naive_attention:5bca1f:dropped-sign": FOUR_AXES,
        "repeat_kv:288350:never": ONE_COPY,
        "repeat_kv:288350:comparison": ONE_COPY,
    }

    def cases(self, rng):
        yield Case("9 queries, 9 keys", *qkv(rng, 9, 9))
        yield Case("5 queries, 13 keys", *qkv(rng, 5, 13, dim=16))
        yield Case("causal", *qkv(rng, 9, 9), causal=True)
        yield Case("causal, 3 queries at the end of 11 keys", *qkv(rng, 3, 11), causal=True, weight=2)
        yield Case("causal, 8 queries but only 5 keys", *qkv(rng, 8, 5), causal=True)
        yield Case("a mask for all heads", *qkv(rng, 7, 10), mask=some_pairs(rng, 7, 10))
        yield Case("a mask per text", *qkv(rng, 7, 10), mask=some_pairs(rng, 2, 1, 7, 10))
        yield Case("padding: a mask of keys", *qkv(rng, 6, 6), mask=some_pairs(rng, 2, 1, 1, 6))
        yield Case("causal and a mask", *qkv(rng, 9, 9), causal=True, mask=some_pairs(rng, 9, 9))
        empty = some_pairs(rng, 7, 10)
        empty[[0, 4]] = False
        yield Case("two queries may look at nothing", *qkv(rng, 7, 10), mask=empty)
        blind = some_pairs(rng, 2, 3, 7, 10)
        blind[0, 1, 4] = False
        yield Case("one query of one head may look at nothing", *qkv(rng, 7, 10), mask=blind)
        yield Case("scores in the hundreds", *qkv(rng, 6, 8, scale=200.0), causal=True)


@question("multi_head", oracle="reference:multi_head")
class MultiHead:
    """`multi_head` cuts, attends, joins and mixes, with shared key heads and with a context."""

    equivalent = {
        "naive_attention:5bca1f:dropped-sign": FOUR_AXES,
        "naive_attention:672317:dropped-sign#2": MASK_OF_PAIRS,
        "repeat_kv:288350:never": ONE_COPY,
    }

    def cases(self, rng):
        yield self.case(rng, "3 heads", 3, 3)
        yield self.case(rng, "one head", 1, 1)
        yield self.case(rng, "as many heads as tokens", 6, 6, seq=6)
        yield self.case(rng, "causal", 3, 3, causal=True)
        yield self.case(rng, "6 heads share 2 key heads", 6, 2, weight=2)
        yield self.case(rng, "4 heads share 1 key head", 4, 1, causal=True)
        yield self.case(rng, "cross-attention", 3, 3, source=9)
        yield self.case(rng, "cross-attention, shared key heads", 4, 2, source=9)
        yield self.case(rng, "causal, the context is longer", 3, 3, source=12, causal=True)
        yield self.case(rng, "causal, the context is shorter", 3, 3, source=4, causal=True)
        yield self.case(rng, "narrow output", 3, 3, out=5)

    def case(self, rng, name, heads, kv_heads, *, seq=7, source=None, out=24, weight=1, **flags):
        """Model width 24, heads of width 4; a context is 10 wide and `source` tokens long."""
        from_width = 24 if source is None else 10
        shapes = (24, 4 * heads), (from_width, 4 * kv_heads), (from_width, 4 * kv_heads), (4 * heads, out)
        weights = [normal(rng, a, b, scale=a**-0.5) for a, b in shapes]
        if source is not None:
            flags["context"] = normal(rng, 2, source, from_width)
        if kv_heads != heads:
            flags["kv_heads"] = kv_heads
        return Case(name, normal(rng, 2, seq, 24, scale=2.0), *weights, heads=heads, weight=weight, **flags)


@question("rope", oracle="refimpl.attention:rope")
class Rope:
    """`rope` turns each pair of features by its own angle, wherever the text starts."""

    def cases(self, rng):
        yield Case("5 tokens of width 8", normal(rng, 2, 3, 5, 8), torch.arange(5))
        yield Case("positions from 100 on", normal(rng, 2, 3, 5, 8), torch.arange(100, 105))
        yield Case("positions in any order", normal(rng, 4, 16), torch.tensor([7, 0, 3, 3]))
        yield Case("width 2", normal(rng, 6, 2), torch.arange(6))
        yield Case("width 64, base 100,000", normal(rng, 1, 2, 9, 64), torch.arange(3, 12), base=100_000.0)
        yield Case("float16, position 8,001", normal(rng, 1, 2, 3, 16).half(), torch.arange(8001, 8004))
        yield Case("float64", normal(rng, 2, 5, 8).double(), torch.arange(1000, 1005))


@question("greedy", oracle="reference:greedy")
class Greedy:
    """`greedy` appends the likeliest token, reads the whole text again, and stops in time."""

    equivalent = {"greedy_decoding:c1d6c9:minus-one": ONE_TEXT, "greedy_decoding:c1d6c9:minus-one#3": ONE_AXIS}

    def cases(self, rng):
        yield self.case(rng, "5 new tokens", 3, 5)
        yield self.case(rng, "a prompt of one token", 1, 4)
        yield self.case(rng, "no new token", 4, 0)
        yield self.case(rng, "stop at the third of 9", 3, 9, stop_at=3, weight=2)
        yield self.case(rng, "stop at once", 3, 9, stop_at=1)
        yield self.case(rng, "stop that never comes", 3, 4, stop_at=99)
        yield self.case(rng, "the prompt holds the stop token", 3, 9, stop_at=4, in_prompt=True)

    def case(self, rng, name, prompt, new_tokens, *, stop_at=None, in_prompt=False, weight=1):
        """A small model as two matrices; `stop` is the token it chooses first in step `stop_at`, never before."""
        while True:
            table, out = normal(rng, 13, 6), normal(rng, 6, 13)
            ids = integers(rng, 13, 1, prompt)
            chosen = self.follow(table, out, ids, 12)
            if stop_at is None or stop_at > 12:
                stop = None if stop_at is None else next(i for i in range(14) if i not in chosen)
                break
            stop = chosen[stop_at - 1]
            if chosen.index(stop) == stop_at - 1 and (stop in ids) == in_prompt:
                break
        return Case(name, table, out, ids, new_tokens, stop, weight=weight)

    def follow(self, table, out, ids, steps):
        """The tokens this model chooses, one after the other."""
        chosen = []
        for _ in range(steps):
            speed = 1 + 0.7 * torch.arange(ids.shape[1])
            logits = (table[ids] * speed[:, None]).cumsum(1) @ out
            chosen.append(int(logits[0, -1].argmax()))
            ids = torch.cat((ids, torch.tensor([[chosen[-1]]])), dim=1)
        return chosen

    def drive(self, answer, case):
        table, out, ids, new_tokens, stop = case.args
        read = []  # what the model was shown, call by call

        class NextLogits:
            def __call__(self, ids):
                read.append(ids.tolist())
                speed = 1 + 0.7 * torch.arange(ids.shape[1], dtype=table.dtype)
                return (table[ids] * speed[:, None]).cumsum(1) @ out

            def __repr__(self):  # no address: who keeps results by the name of the model keeps those of another one
                return "next_logits"

        return answer(NextLogits(), ids, new_tokens, stop), read


@question("count_matmuls", oracle="reference:count_matmuls")
class CountMatmuls:
    """`count_matmuls` counts every product of a block and every multiplication and addition in them."""

    def cases(self, rng):
        yield Case("encoder, 8 heads", "encoder", 8, 512, 100)
        yield Case("decoder, 8 heads", "decoder", 8, 512, 100, 70)
        yield Case("encoder, one head", "encoder", 1, 64, 33)
        yield Case("decoder, one head", "decoder", 1, 64, 33, 33)
        yield Case("decoder, 12 heads, long source", "decoder", 12, 768, 10, 4096)
        yield Case("decoder, 16 heads, one token", "decoder", 16, 1024, 1, 50)
        sizes = [2 ** int(i) for i in integers(rng, 5, 3)]
        yield Case("drawn sizes, encoder", "encoder", sizes[0], 16 * sizes[0] * 3, 7 * sizes[1])
        yield Case("drawn sizes, decoder", "decoder", sizes[0], 16 * sizes[0] * 3, 7 * sizes[1], 5 * sizes[2])


@question("unpermute", oracle="refimpl.models.gguf:unpermute")
class Unpermute:
    """`unpermute` brings the rows of every head into the order that `rope` expects, and moves nothing else."""

    def cases(self, rng):
        yield Case("2 heads of 8 rows", normal(rng, 16, 5), 2)
        yield Case("one head of 6 rows", normal(rng, 6, 4), 1)
        yield Case("9 heads of 64 rows", normal(rng, 576, 3), 9)
        yield Case("3 heads of 10 rows, square", normal(rng, 30, 30), 3)
        yield Case("8 heads of 2 rows", normal(rng, 16, 7), 8)
