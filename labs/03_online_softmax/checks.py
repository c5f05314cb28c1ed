"""What each question of lab 03 is checked on: cases drawn from a seed, and how an answer is run."""

import torch

from autograder import Case, Forbids, MemorySlope, Tolerance, question


def normal(rng, *shape, scale=1.0, shift=0.0):
    """Normal numbers of this spread around `shift`. Logits spread by about 3, so "x20" is a scale of 60."""
    return torch.randn(*shape, generator=rng) * scale + shift


def with_empty_rows(x, *rows):
    """x, with these rows (counted over all leading axes) set to -inf: queries that may look at nothing."""
    x = x.clone()
    x.reshape(-1, x.shape[-1])[list(rows)] = -torch.inf
    return x


def state(rng, keys, *, q=5, dim=8, scale=1.0, shift=0.0, empty=()):
    """What a worker holds after `keys` random keys: (m, l, o), undivided. Queries in `empty` saw no key."""
    scores, values = normal(rng, 2, 2, q, keys, scale=scale, shift=shift), normal(rng, 2, 2, keys, dim)
    if keys == 0:
        return torch.full((2, 2, q), -torch.inf), torch.zeros(2, 2, q), torch.zeros(2, 2, q, dim)
    scores[:, :, list(empty)] = -torch.inf
    m = scores.amax(-1)
    p = (scores - torch.where(m == -torch.inf, 0.0, m)[..., None]).exp()
    return m, p.sum(-1), p @ values


def stream(rng, sizes, *, q=5, dim=16, dim_v=16, scale=1.0, shifts=None):
    """(k, v) blocks of these sizes. `shifts` moves the keys of a block along one direction, so that its scores move."""
    shifts = [0.0] * len(sizes) if shifts is None else shifts
    return [
        (normal(rng, 2, 2, n, dim, scale=scale, shift=shift), normal(rng, 2, 2, n, dim_v))
        for n, shift in zip(sizes, shifts, strict=True)
    ]


# Mutants of the oracle that no case can tell from it, with the reason (`prove --mutate`).
ANY_STAND_IN = "exp(-inf - anything finite) is 0, so the stand-in for the unit of an empty row may be any number"
ZERO_OVER_ANYTHING = "the numerator of such a row is 0, so any divisor but 0 gives 0"
NO_MASK = "the question has no mask: every query sees a key in every block, so the guard is never needed"
BROADCAST = "a start value of another shape broadcasts to the same rows in the first step"


@question("safe_softmax", oracle="refimpl.online_softmax:softmax_three_pass")
class SafeSoftmax:
    """`safe_softmax` turns rows of scores into probabilities, and no score is too large for it."""

    mechanism = [Forbids("softmax", "logsumexp")]
    library = "lambda x: torch.softmax(x, dim=-1)"
    equivalent = {"pivot:2d7cbd:constant": ANY_STAND_IN, "nonzero:57d024:constant": ZERO_OVER_ANYTHING}

    def cases(self, rng):
        yield Case("ordinary scores", normal(rng, 9, 37))
        yield Case("logits x20", normal(rng, 9, 501, scale=60.0), weight=3)
        yield Case("every score below -200", normal(rng, 8, 33, shift=-200.0), weight=2)
        yield Case("one row 400 above the others", torch.cat([normal(rng, 8, 33), normal(rng, 1, 33, shift=400.0)]))
        yield Case("some keys masked", normal(rng, 8, 33).masked_fill(normal(rng, 8, 33) > 0, -torch.inf))
        yield Case("rows of -inf", with_empty_rows(normal(rng, 9, 33), 0, 4))
        yield Case("four axes", normal(rng, 2, 3, 5, 17))
        yield Case("a single score per row", normal(rng, 2, 3, 5, 1))


@question("running_stats", oracle="reference:running_stats")
class RunningStats:
    """`running_stats` finds the maximum and the sum of a row whose blocks can be read once."""

    returns = ("m", "l")
    mechanism = [Forbids("softmax", "logsumexp")]
    library = (
        "lambda blocks: (lambda x: (x.amax(-1), (x.logsumexp(-1) - x.amax(-1)).exp()))"
        "(torch.cat([block.clone() for block in blocks], -1))"
    )
    equivalent = {
        "pivot:2d7cbd:constant": ANY_STAND_IN,
        "running_stats:659e7c:off-by-one": BROADCAST,
        "running_stats:659e7c:minus-one": BROADCAST,
        "running_stats:1e5881:off-by-one": BROADCAST,
        "running_stats:1e5881:minus-one": BROADCAST,
        "running_stats:3f03b0:plus-one": "where the judge cuts the rows makes no difference; that is the unit's point",
        "running_stats:3f03b0:minus-one": "where the judge cuts the rows makes no difference; that is the unit's point",
        "running_stats:1e5881:other-function": "the first step multiplies the start of l by exp(-inf) = 0",
    }

    def drive(self, answer, case):
        def stream():
            for block in case.args[0]:
                block = block.clone()
                yield block
                block.fill_(torch.nan)  # gone: whoever kept it now holds NaN

        return answer(stream())

    def cases(self, rng):
        yield Case("blocks of 5, 7 and 3", [normal(rng, 9, n) for n in (5, 7, 3)])
        yield Case("one block", [normal(rng, 8, 31)])
        yield Case("rising by 6 per block", [normal(rng, 9, 11, shift=6.0 * i) for i in range(4)])
        yield Case("falling by 6 per block", [normal(rng, 9, 11, shift=-6.0 * i) for i in range(4)])
        yield Case("logits x20", [normal(rng, 2, 12, 65, scale=60.0) for _ in range(5)])
        yield Case("blocks 200 apart", [normal(rng, 8, 7, shift=s) for s in (0.0, 200.0, -200.0)])
        yield Case("every score below -200", [normal(rng, 8, 7, shift=-200.0) for _ in range(3)])
        yield Case("first block -inf in two rows", [with_empty_rows(normal(rng, 9, 6), 1, 7), normal(rng, 9, 9)])
        yield Case("a row of -inf", [with_empty_rows(normal(rng, 9, 6), 2) for _ in range(3)])


@question("merge", oracle="refimpl.online_softmax:merge")
class Merge:
    """`merge` joins two partial results without touching a key again."""

    returns = ("m", "l", "o")
    mechanism = [Forbids("softmax", "logsumexp", "logaddexp")]
    library = (
        "lambda a, b: (lambda m: (m, (torch.logaddexp(a[0] + a[1].log(), b[0] + b[1].log()) - m).exp(), "
        "a[2] * (a[0] - m).exp()[..., None] + b[2] * (b[0] - m).exp()[..., None]))(torch.maximum(a[0], b[0]))"
    )
    equivalent = {"pivot:2d7cbd:constant": ANY_STAND_IN}

    def cases(self, rng):
        yield Case("odd sizes", state(rng, 7), state(rng, 13))
        yield Case("left larger", state(rng, 7, shift=6.0), state(rng, 13))
        yield Case("right larger", state(rng, 7, shift=-6.0), state(rng, 13))
        yield Case("logits x20", state(rng, 7, scale=60.0), state(rng, 13, scale=60.0))
        yield Case("200 apart", state(rng, 7, shift=200.0), state(rng, 13))
        yield Case("left empty for two queries", state(rng, 7, empty=(0, 3)), state(rng, 13))
        yield Case("both empty for one query", state(rng, 7, empty=(2,)), state(rng, 13, empty=(2,)))
        yield Case("no key on the right", state(rng, 7), state(rng, 0))


@question("streaming_attention", oracle="refimpl.online_softmax:streaming_attention")
class StreamingAttention:
    """`streaming_attention` reads every key once and never holds the scores of all keys."""

    returns = ("out", "lse")
    mechanism = [Forbids("softmax", "logsumexp", "logaddexp", "scaled_dot_product"), MemorySlope(order=1)]
    library = (
        "lambda q, blocks: (lambda k, v: (torch.nn.functional.scaled_dot_product_attention(q, k, v), "
        "(q @ k.mT * q.shape[-1] ** -0.5).logsumexp(-1)))"
        "(*(torch.cat(parts, -2) for parts in zip(*[(k.clone(), v.clone()) for k, v in blocks])))"
    )
    equivalent = {
        "streaming_attention:622c9a:dropped-sign": "tensors have four axes here, so axis 2 is axis -2",
        "merge:8a7b85:dropped-call#2": NO_MASK,
        "merge:8a7b85:dropped-call#4": NO_MASK,
        "block_state:45fb14:dropped-call#2": NO_MASK,
        "pivot:2d7cbd:dropped-sign": NO_MASK,
        "pivot:2d7cbd:constant": NO_MASK,
        "finish:e64ce9:dropped-call": NO_MASK,
        "nonzero:57d024:plus-one": NO_MASK,
        "nonzero:57d024:minus-one": NO_MASK,
        "nonzero:57d024:constant": NO_MASK,
    }

    def cases(self, rng):
        yield Case("blocks of 5, 7 and 3", normal(rng, 2, 2, 5, 16), stream(rng, (5, 7, 3)))
        yield Case("one block", normal(rng, 2, 2, 5, 16), stream(rng, (31,)))
        yield Case("blocks of one key", normal(rng, 2, 2, 5, 16), stream(rng, (1, 1, 1)))
        yield Case("dim 16, dim_v 24", normal(rng, 2, 2, 5, 16), stream(rng, (9, 4, 9), dim_v=24))
        yield Case("queries x20", normal(rng, 2, 2, 5, 16, scale=20.0), stream(rng, (9, 13)))
        # q has mean 1, so a shift of 6 moves a score by about 6 * sqrt(16) = 24
        yield Case("rising blocks", normal(rng, 2, 2, 5, 16, shift=1.0), stream(rng, (9, 13), shifts=(0.0, 6.0)))
        yield Case("falling blocks", normal(rng, 2, 2, 5, 16, shift=1.0), stream(rng, (9, 13), shifts=(6.0, 0.0)))
        yield Case(
            "blocks 240 apart",
            normal(rng, 2, 2, 5, 16, scale=0.1, shift=1.0),
            stream(rng, (9, 5, 7), shifts=(0.0, 60.0, -60.0)),
        )
        yield Case(
            "scores near -240",
            normal(rng, 2, 2, 5, 16, scale=0.1, shift=1.0),
            stream(rng, (9, 5), shifts=(-60.0, -60.0)),
        )
        yield Case("blocks of 130 and 128", normal(rng, 2, 2, 77, 16), stream(rng, (130, 128, 1)))

    def drive(self, answer, case):
        def stream():
            for k, v in case.args[1]:
                k, v = k.clone(), v.clone()
                yield k, v
                k.fill_(torch.nan), v.fill_(torch.nan)  # gone: whoever kept them now holds NaN

        return answer(case.args[0], stream())

    def grow(self, rng, n):
        q, k, v = (normal(rng, 1, 1, n, 16) for _ in range(3))
        return Case(f"{n} tokens", q, list(zip(k.split(128, dim=2), v.split(128, dim=2), strict=True)))


@question("break_it", oracle=None)
class BreakIt:
    """`break_it` finds, for each version, scores on which it alone fails."""

    def cases(self, rng):
        for name in "ABC":
            yield Case(f"version {name}", name)

    def judge(self, got, case):
        """Runs the three versions on the student's scores; yields what is wrong with them."""
        if not isinstance(got, torch.Tensor):
            yield f"got {type(got).__name__}, expected a torch tensor of scores"
        elif got.ndim != 1 or got.dtype != torch.float32 or not 1 <= len(got) <= 4096:
            yield f"got {got.dtype} of shape {tuple(got.shape)}, expected float32 with one axis of 1 to 4,096 scores"
        elif not got.isfinite().all() or got.abs().max() > 1000:
            yield "every score must be finite and lie between -1,000 and 1,000"
        else:
            yield from self.compare(got, case.args[0])

    def compare(self, x, name):
        exact = x.double().softmax(-1)
        errors = {v: float((run(x) - exact).nan_to_num(nan=1.0).abs().max()) for v, run in VERSIONS.items()}
        if errors[name] <= 0.01:
            yield f"version {name} is right here: its largest error is {errors[name]:.1e}, and 0.01 is asked for"
        for other in VERSIONS:
            if other != name and errors[other] > 1e-4:
                yield f"version {other} fails here too (error {errors[other]:.1e}): the input must single out {name}"


@question("fused_softmax", oracle="refimpl.online_softmax:softmax_three_pass")
class FusedSoftmax:
    """`fused_softmax` runs one Triton program per row, reads inside the row only, and works in float32."""

    mechanism = [Forbids("softmax", "logsumexp", "aten.exp.", "aten.exp2.", "aten.div.", "aten.mul.", "aten.sum.")]
    library = "lambda x: torch.softmax(x.float(), dim=-1).to(x.dtype)"
    tolerance = Tolerance(factor=2, reason="float16 may cost the rounding of the result, not arithmetic in float16")
    equivalent = {
        "softmax_three_pass:557756:dropped-sign": "a matrix has two axes, so axis 1 is axis -1",
        "softmax_three_pass:c3af39:dropped-sign": "a matrix has two axes, so axis 1 is axis -1",
        "pivot:2d7cbd:constant": ANY_STAND_IN,
        "nonzero:57d024:constant": ZERO_OVER_ANYTHING,
    }

    def cases(self, rng):
        yield self.case(rng, "64 columns", 8, 64)
        yield self.case(rng, "37 columns, NaN behind them", 9, 37, outside=torch.nan)
        yield self.case(rng, "1 column", 8, 1, outside=torch.nan)
        yield self.case(rng, "every score below -200", 8, 37, shift=-200.0, outside=torch.nan)
        yield self.case(rng, "logits x20", 9, 501, scale=60.0, outside=torch.nan)
        yield self.case(rng, "rows of -inf", 9, 37, empty=(0, 5), outside=torch.nan)
        yield self.case(rng, "a transposed matrix", 9, 37, transposed=True, outside=torch.nan)
        yield self.case(rng, "float16, 501 columns", 8, 501, dtype=torch.float16, outside=torch.nan)

    def case(self, rng, name, rows, n, *, scale=2.0, shift=0.0, empty=(), transposed=False, outside=0.0, dtype=None):
        """A matrix inside a larger buffer: three columns and one row before it, enough of both behind it."""
        x = with_empty_rows(normal(rng, rows, n, scale=scale, shift=shift), *empty)
        buffer = torch.full((rows + 2, 3 + 2 * n + 32), outside)
        buffer[1 : rows + 1, 3 : 3 + n] = x
        return Case(name, (buffer.mT if transposed else buffer).contiguous().to(dtype), rows, n, transposed)

    def drive(self, answer, case):
        import warnings

        buffer, rows, n, transposed = case.args
        if torch.cuda.is_available():  # there the kernel is compiled, and reads GPU memory only
            buffer = buffer.cuda()
        with warnings.catch_warnings():  # numpy's, about NaN inside the interpreter: the report says it better
            warnings.simplefilter("ignore")
            out = answer((buffer.mT if transposed else buffer)[1 : rows + 1, 3 : 3 + n])
        return out.cpu() if isinstance(out, torch.Tensor) else out


def version_a(x):
    m, l = torch.tensor(0.0), torch.tensor(0.0)
    for part in x.split(4):
        m_new = torch.maximum(m, part.max())
        l = l * (m - m_new).exp() + (part - m_new).exp().sum()
        m = m_new
    return (x - m).exp() / l


def version_b(x):
    m, l = torch.tensor(-torch.inf), torch.tensor(0.0)
    for part in x.split(4):
        m_new = part.max()
        l = l * (m - m_new).exp() + (part - m_new).exp().sum()
        m = m_new
    return (x - m).exp() / l


def version_c(x):
    m, l = torch.tensor(-torch.inf), torch.tensor(0.0)
    for part in x.split(4):
        if part.max() < m - 8:
            continue
        m_new = torch.maximum(m, part.max())
        l = l * (m - m_new).exp() + (part - m_new).exp().sum()
        m = m_new
    return (x - m).exp() / l


VERSIONS = {"A": version_a, "B": version_b, "C": version_c}  # word for word the cell of question 5
