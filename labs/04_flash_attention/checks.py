"""What the answers of lab 04 must do: cases, oracles and the limits on the way."""

import math

import torch

from autograder import Case, Forbids, MemorySlope, PoisonOutside, question

NO_LIBRARY = Forbids("softmax", "logsumexp", "scaled_dot_product")

# Why some mutants of an oracle compute the same on a question's cases: the oracles do more than the questions ask.
ANY_TILES = "exact for every tile size: that is the unit's point"
EMPTY_TILE = "adds an empty tile behind the last one"
OVER_MASKED = "also masks tiles in which nothing is hidden"
KEYS_FOR_ALL = "every query sees a key here, so nothing is -inf or 0"
OWN_HEADS = "no K/V head is shared here, so any grouping pairs the right ones"
WHOLE = "nothing is causal here"
FIRST_STEP = "the first tile multiplies the start of l and O by exp(-inf) = 0"
OWN_COPY = "writes over a tile of q that was read already; every case is a private copy"
ONE_COLUMN = "that axis has length 1"
FOR_ALL = {
    "flash_forward:*:dropped-call": OWN_COPY,
    "flash_forward:*:other-function*": FIRST_STEP,
    "flash_forward:*:minus-one": ONE_COLUMN,
    "Tiles.row_tiles:*:off-by-one": EMPTY_TILE,
    "Tiles.__init__:*:logic*": ANY_TILES,
    "pivot:*:constant": "a row without a key stays without weight, whatever finite number is subtracted",
    "nonzero:*:constant": "0 divided by anything is 0",
}
PLAIN = {
    "attend_:*:dropped-call": KEYS_FOR_ALL,
    "pivot:*:dropped-sign": KEYS_FOR_ALL,
    "nonzero:*:plus-one": KEYS_FOR_ALL,
    "nonzero:*:minus-one": KEYS_FOR_ALL,
    "Tiles.group:*:dropped-sign": OWN_HEADS,
    "Tiles.__init__:*:minus-one#3": OWN_HEADS,
    "Tiles.__init__:*:swapped": WHOLE,
}
MASKS = {
    "Tiles.mask_:*:comparison": OVER_MASKED,
    "Tiles.mask_:*:operator": OVER_MASKED,
    "Tiles.mask_:*:dropped-right": OVER_MASKED,
    "Tiles.mask_:*:minus-one": OVER_MASKED,
    "Tiles.mask_:*:dropped-left": OVER_MASKED,
}


def rows(rng, *shape, size=1.0, mean=0.0):
    return torch.randn(*shape, generator=rng) * size + mean


def qkv(rng, *, q_len, k_len=None, batch=1, heads=2, kv_heads=None, dim=16, size=1.0):
    k_len, kv_heads = k_len or q_len, kv_heads or heads
    q = rows(rng, batch, heads, q_len, dim, size=size)
    return q, rows(rng, batch, kv_heads, k_len, dim, size=size), rows(rng, batch, kv_heads, k_len, dim)


def far_below_zero(rng, q_len, k_len, dim=16):
    """Queries and keys whose scores all lie near -200: an honest running maximum does not mind."""
    q, k, v = qkv(rng, q_len=q_len, k_len=k_len, dim=dim)
    away = math.sqrt(200 / dim**0.5)
    return q * 0.3 + away, k * 0.3 - away, v


def naive(q, k, v):
    """Output and natural-log lse with the whole score matrix: what a saved forward pass hands to the backward."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


@question("algorithm0", oracle="refimpl.flash_attention.simulator:simulate_standard")
class Algorithm0:
    """`algorithm0` counts every element that the three kernels read from HBM and write to it."""

    equivalent = {
        "_standard_step:*:dropped-right": "only dropout has a factor other than 1",
        "_standard_step:*:dropped-call": "a counter is added up like the traffic it counted",
        "tiles:*:off-by-one#5": EMPTY_TILE,
    }

    def cases(self, rng):
        odd = int(torch.randint(100, 900, (), generator=rng))
        yield Case("the slide's shape", 1024, 64)
        yield Case("n smaller than d", 48, 128)
        yield Case("any n", odd, 32)
        yield Case("129 rows", 129, 16)

    def drive(self, answer, case):
        traffic = answer(*case.args)
        reads, writes = (traffic.reads, traffic.writes) if hasattr(traffic, "reads") else traffic
        return {"reads": reads, "writes": writes}


@question("block_sizes", oracle="refimpl.flash_attention.simulator:block_sizes")
class BlockSizes:
    """`block_sizes` gives B_r and B_c of Algorithm 1, rounded up, in rows."""

    returns = ("B_r", "B_c")

    def cases(self, rng):
        yield Case("192 KiB of fp16, d = 64", 192 * 1024 // 2, 64)
        yield Case("does not divide", 10_000, 48)
        yield Case("small memory: B_r below d", 2_000, 64)
        yield Case("any memory", int(torch.randint(5_000, 90_000, (), generator=rng)) * 2 + 1, 80)


@question("flash_forward", oracle="refimpl.flash_attention.eager:flash_forward")
class FlashForward:
    """`flash_forward` is exact at any length and never holds a full N × N tensor."""

    returns = ("out", "lse")

    mechanism = (NO_LIBRARY, MemorySlope(order=1))
    equivalent = (
        FOR_ALL
        | PLAIN
        | {
            "Tiles.row_tiles:*:other-function": ANY_TILES,
            "Tiles.__init__:*:operator": WHOLE,
            "Tiles.__init__:*:dropped-right": WHOLE,
        }
    )
    library = (
        "lambda q, k, v, block_q, block_k: (torch.nn.functional.scaled_dot_product_attention(q, k, v), "
        "(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).logsumexp(-1))"
    )

    def cases(self, rng):
        yield Case("tiles fit", *qkv(rng, q_len=32), block_q=16, block_k=16)
        yield Case("short last tiles", *qkv(rng, q_len=37, batch=2), block_q=16, block_k=8)
        yield Case("more keys than queries", *qkv(rng, q_len=5, k_len=70, dim=8), block_q=4, block_k=32)
        yield Case("scores in the hundreds", *qkv(rng, q_len=33, size=6.0), block_q=8, block_k=16)
        yield Case("scores near -200", *far_below_zero(rng, 20, 41), block_q=16, block_k=16)
        yield Case("one query, one key", *qkv(rng, q_len=1), block_q=16, block_k=16)
        yield Case("one tile holds all", *qkv(rng, q_len=19), block_q=64, block_k=64)

    def grow(self, rng, n):
        # One tile of queries: then whole rows of scores are N × N as well, and a tile of keys is linear in N.
        return Case(f"N = {n}", *qkv(rng, q_len=n, heads=1), block_q=n, block_k=16)


def poison_future(case):
    """NaN in all keys and values from a tile edge on: query tiles that see none of them must not notice.

    Only in the plain case: whoever fails another one loses that case, not all of them.
    """
    if case.name != "causal":
        return None
    q, k, v = case.args
    cut = k.shape[2] // 2  # on the edge of a tile
    k, v = k.clone(), v.clone()
    k[:, :, cut:], v[:, :, cut:] = math.nan, math.nan

    def keep(output):
        out, lse = output
        return out[:, :, :cut], lse[:, :, :cut]

    return Case(case.name, q, k, v, **case.kwargs), keep


@question("flash_causal", oracle="refimpl.flash_attention.eager:flash_forward")
class FlashCausal:
    """`flash_causal` hides the future, skips the tiles that lie in it, and shares K/V heads between query heads."""

    returns = ("out", "lse")

    mechanism = (NO_LIBRARY, PoisonOutside(poison_future, "a tile of K or V beyond the diagonal"), MemorySlope(order=1))
    equivalent = FOR_ALL | MASKS
    library = (
        "lambda q, k, v, causal, block_q, block_k: "
        "(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True), q[..., 0])"
    )

    def cases(self, rng):
        yield Case("causal", *qkv(rng, q_len=64), causal=True, block_q=16, block_k=16)
        yield Case("short last tiles", *qkv(rng, q_len=37, batch=2), causal=True, block_q=16, block_k=8)
        yield Case("wide key tiles", *qkv(rng, q_len=70, dim=8), causal=True, block_q=8, block_k=32)
        yield Case("grouped heads", *qkv(rng, q_len=40, heads=6, kv_heads=2), causal=True, block_q=16, block_k=16)
        yield Case(
            "one K/V head, whole", *qkv(rng, q_len=33, heads=4, kv_heads=1), causal=False, block_q=16, block_k=16
        )
        yield Case("decoding: 3 queries, 50 keys", *qkv(rng, q_len=3, k_len=50), causal=True, block_q=16, block_k=16)
        yield Case("20 queries, 34 keys", *qkv(rng, q_len=20, k_len=34), causal=True, block_q=16, block_k=16)
        yield Case("queries that see no key", *qkv(rng, q_len=41, k_len=20), causal=True, block_q=16, block_k=16)
        yield Case("scores in the hundreds", *qkv(rng, q_len=33, size=6.0), causal=True, block_q=8, block_k=16)

    def grow(self, rng, n):
        return Case(f"N = {n}", *qkv(rng, q_len=n, heads=1), causal=True, block_q=n, block_k=16)


@question("flash_backward", oracle="refimpl.flash_attention.eager:flash_backward")
class FlashBackward:
    """`flash_backward` recomputes P tile by tile from the saved lse; memory stays linear in N."""

    returns = ("dq", "dk", "dv")

    mechanism = (NO_LIBRARY, MemorySlope(order=1))
    equivalent = {
        "flash_backward:*:dropped-call": KEYS_FOR_ALL,
        "pivot:*": KEYS_FOR_ALL,
        "Tiles.col_tiles:*:off-by-one": EMPTY_TILE,
        "Tiles.row_tiles:*:off-by-one": EMPTY_TILE,
        "Tiles.group:*:dropped-sign": OWN_HEADS,
        "Tiles.__init__:*:logic*": ANY_TILES,
        "Tiles.__init__:*:operator": WHOLE,
        "Tiles.__init__:*:swapped": WHOLE,
        "Tiles.__init__:*:dropped-right": WHOLE,
    }
    library = (
        "lambda q, k, v, out, lse, d_out, block_q, block_k: torch.autograd.grad("
        "torch.nn.functional.scaled_dot_product_attention("
        "*(x := tuple(t.detach().requires_grad_() for t in (q, k, v)))), x, d_out)"
    )

    def saved(self, rng, *, shard=None, **shape):
        """Inputs and what a forward pass saved; `shard` keeps that many keys of those the forward saw."""
        q, k, v = qkv(rng, **shape)
        out, lse = naive(q, k, v)
        return q, k[:, :, :shard].clone(), v[:, :, :shard].clone(), out, lse, rows(rng, *q.shape)

    def cases(self, rng):
        yield Case("tiles fit", *self.saved(rng, q_len=32), block_q=16, block_k=16)
        yield Case("short last tiles", *self.saved(rng, q_len=37, batch=2), block_q=16, block_k=8)
        yield Case("more keys than queries", *self.saved(rng, q_len=9, k_len=70, dim=8), block_q=4, block_k=32)
        yield Case("scores in the tens", *self.saved(rng, q_len=33, size=3.0), block_q=8, block_k=16)
        yield Case("a part of the keys", *self.saved(rng, q_len=24, k_len=48, shard=20), block_q=16, block_k=16)
        yield Case("one query, one key", *self.saved(rng, q_len=1), block_q=16, block_k=16)

    def grow(self, rng, n):
        q, k, v = qkv(rng, q_len=n, heads=1)
        # Any lse will do to measure memory; the honest one would cost the N x N matrix that we look for.
        lse = torch.full((1, 1, n), math.log(n) + 1.0)
        return Case(f"N = {n}", q, k, v, v.clone(), lse, rows(rng, *q.shape), block_q=n, block_k=16)


@question("flash_triton", oracle="refimpl.flash_attention.eager:flash_forward")
class FlashTriton:
    """`flash_kernel` agrees with exact attention at any length, and what lies behind the last row never leaks in."""

    returns = ("out", "lse")

    # The interpreter computes in NumPy: whoever multiplies or exponentiates in PyTorch is not running a kernel.
    mechanism = (
        Forbids("softmax", "logsumexp", "scaled_dot_product", "aten.exp.", "aten.mm", "aten.bmm", "aten.mul."),
        PoisonOutside(poison_future, "a tile of K or V beyond the diagonal"),
    )
    equivalent = (
        FOR_ALL
        | PLAIN
        | MASKS
        | {
            "Tiles.mask_:*:plus-one": "tiles start at multiples of 16 here, so none ends one key past the diagonal",
            "Tiles.mask_:*:operator#2": "as many queries as keys: the shift is 0",
            "Tiles.mask_:*:dropped-right#2": "as many queries as keys: the shift is 0",
            "Tiles.col_tiles:*": "as many queries as keys: the shift is 0",
        }
    )
    library = (
        "lambda q, k, v, causal, block_q, block_k: "
        "(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal), q[..., 0])"
    )

    def cases(self, rng):
        yield Case("tiles fit", *qkv(rng, q_len=32), causal=False, block_q=16, block_k=16)
        yield Case("short last tiles", *qkv(rng, q_len=37), causal=False, block_q=16, block_k=32)
        yield Case("causal", *qkv(rng, q_len=64, heads=1), causal=True, block_q=32, block_k=16)
        yield Case("causal, short last tiles", *qkv(rng, q_len=37, dim=32), causal=True, block_q=16, block_k=32)
        yield Case("scores in hundreds", *qkv(rng, q_len=33, heads=1, size=6.0), causal=True, block_q=16, block_k=16)
        yield Case("two sequences", *qkv(rng, q_len=20, batch=2), causal=False, block_q=16, block_k=16)
        yield Case("scores near -200", *far_below_zero(rng, 20, 20), causal=False, block_q=16, block_k=16)

    def drive(self, answer, case):
        def in_a_room_of_nan(x):
            batch, heads, n, dim = x.shape
            room = torch.full((batch, heads, n + 64, dim), float("nan"), dtype=x.dtype)
            room[:, :, :n] = x
            return room[:, :, :n]

        q, k, v = (in_a_room_of_nan(x) for x in case.args)
        out, lse = answer(q, k, v, **case.kwargs)
        return out, lse


@question("which_row", oracle=None)
class WhichRow:
    """`which_row` counts the matmul FLOPs behind the table and names the row they contradict."""

    def cases(self, rng):
        n = int(torch.randint(100, 5_000, (), generator=rng))
        yield Case("the table's shape", 1024, 64, 16, 64)
        yield Case("another shape", n, 128, 12, 3)

    def judge(self, got, case):
        n, dim, heads, batch = case.args
        matmul = 2 * n * n * dim * heads * batch
        want = {"standard": 6 * matmul, "flash": 7 * matmul, "row": "gflops"}
        if not isinstance(got, dict) or set(got) != set(want):
            yield f"expected a dict with the keys {sorted(want)}, got {got!r}"
            return
        for column in ("standard", "flash"):
            if type(got[column]) is not int:
                yield f"{column}: expected an int, got {type(got[column]).__name__}"
            elif got[column] != want[column]:
                yield f"{column}: {got[column]:,} is {got[column] / want[column]:.3g} times the count"
        if got["row"] != want["row"]:
            yield f"row: {got['row']!r} can be right. Divide FLOPs by time, and bytes by time, in both columns"
