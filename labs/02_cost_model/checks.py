"""What each calculator of lab 02 is checked on. Whole numbers must agree exactly, times and fits to rounding."""

import torch

from autograder import Case, Tolerance, question

SMOLLM2 = {"layers": 30, "model": 576, "heads": 9, "kv_heads": 3, "dim": 64, "ffn": 1536, "vocab": 49_152}
GPT2_XL = {"params": 1_500_000_000, "layers": 48, "model": 1600, "heads": 25}


def whole(rng, low, high):
    """A whole number from low to high - 1."""
    return int(torch.randint(low, high, (), generator=rng))


def block(**changes):
    """The sizes of one block of SmolLM2."""
    names = ("model", "heads", "kv_heads", "dim", "ffn")
    return {name: SMOLLM2[name] for name in names} | changes


@question("block_flops", oracle="reference:block_flops")
class BlockFlops:
    """`block_flops` counts the FLOPs of every matmul in one block, exactly."""

    def cases(self, rng):
        yield Case("SmolLM2 reads 512 tokens", 512, cached=0, **block())
        yield Case("SmolLM2 writes one token after many", 1, cached=whole(rng, 100, 5000), **block())
        yield Case("as many key heads as query heads", 33, cached=0, **block(kv_heads=9))
        yield Case("8 tokens behind 1,000", 8, cached=1000, **block())
        yield Case("heads that do not fill the model", 17, cached=5, **block(model=640, dim=96, ffn=1000))
        odd = {name: whole(rng, 3, 200) for name in ("model", "dim", "ffn")}
        yield Case("any sizes", whole(rng, 2, 99), cached=whole(rng, 1, 99), heads=12, kv_heads=4, **odd)


@question("param_count", oracle="reference:param_count")
class ParamCount:
    """`param_count` is the number of weights in a checkpoint, to the last one."""

    def cases(self, rng):
        yield Case("SmolLM2-135M", **SMOLLM2, tied=True)
        tiny = {"layers": 3, "model": 8, "heads": 2, "kv_heads": 1, "dim": 4, "ffn": 5, "vocab": 11}
        yield Case("a tiny one, where every vector shows", **tiny, tied=True)
        yield Case("SmolLM2, its head untied", **SMOLLM2, tied=False)
        yield Case("one layer", **(SMOLLM2 | {"layers": 1}), tied=True)
        yield Case("as many key heads as query heads", **(SMOLLM2 | {"kv_heads": 9}), tied=True)
        yield Case("heads that do not fill the model", **(SMOLLM2 | {"dim": 80}), tied=False)
        odd = {name: whole(rng, 3, 200) for name in ("layers", "model", "dim", "ffn", "vocab")}
        yield Case("any sizes", heads=12, kv_heads=4, tied=False, **odd)


@question("predict_seconds", oracle="reference:predict_seconds")
class PredictSeconds:
    """`predict_seconds` gives the least time of a piece of work and names what sets it."""

    def cases(self, rng):
        machine = {"flop_per_s": 1e11, "bytes_per_s": 1e10, "overhead": 1e-5}
        factor = 1 + float(torch.rand((), generator=rng))
        yield Case("a large matmul", 2e9 * factor, 1e7, **machine)
        yield Case("one row times a matrix", 2e6 * factor, 4e6, **machine)
        yield Case("ten numbers added", 10.0 * factor, 120.0, **machine)
        yield Case("a copy", 0, 5e8 * factor, **machine)
        yield Case("right of the ridge, and tiny", 9e4 * factor, 1e3, **machine)
        yield Case("left of the ridge, and tiny", 1e2, 4e4 * factor, **machine)
        gpu = {"flop_per_s": 312e12, "bytes_per_s": 2.039e12, "overhead": 5e-6}
        yield Case("a GPU, just left of its ridge", 152e9 * factor, 1e9 * factor, **gpu)
        yield Case("a GPU, just right of its ridge", 154e9 * factor, 1e9 * factor, **gpu)
        yield Case("no overhead", 1e3 * factor, 1e3, flop_per_s=1e11, bytes_per_s=1e10, overhead=0.0)


@question("rows_to_saturate", oracle="reference:rows_to_saturate")
class RowsToSaturate:
    """`rows_to_saturate` finds the batch from which a weight matrix is no longer bound by memory, if there is one."""

    def cases(self, rng):
        yield Case("SmolLM2's feed-forward, ridge 10", 576, 1536, itemsize=4, ridge=10)
        yield Case("an A100, fp16, 4096 x 4096", 4096, 4096, itemsize=2, ridge=153)
        yield Case("divides without rest", 64, 64, itemsize=2, ridge=16)
        yield Case("wide to narrow", 11_008, whole(rng, 1000, 4000), itemsize=2, ridge=200)
        yield Case("narrow to wide", whole(rng, 1000, 4000), 11_008, itemsize=2, ridge=200)
        yield Case("no batch suffices", 64, whole(rng, 64, 200), itemsize=2, ridge=153)
        yield Case("exactly out of reach", 64, 64, itemsize=2, ridge=32)
        yield Case("just within reach", 2, 7, itemsize=1, ridge=3)
        yield Case("one byte per element", 1024, 1024, itemsize=1, ridge=whole(rng, 100, 400))


@question("which_claim", oracle="reference:which_claim")
class WhichClaim:
    """`which_claim` recomputes what is printed about training memory, and names what does not follow."""

    equivalent = {
        "which_claim:*:comparison": "no printed number is off by exactly 5 %",
        "which_claim:*:swapped": "a distance has no direction",
    }

    def cases(self, rng):
        slide = {"weights": 3.0, "states": 24.0, "activations": 60.0}
        yield Case("the lecture's GPT-2", slide, **GPT2_XL, batch=32, tokens=1024)
        full = {"weights": 3.0, "states": 24.0, "activations": 141.0}
        yield Case("as measured", full, **GPT2_XL, batch=32, tokens=1024)
        seven = {"params": 7_000_000_000, "layers": 32, "model": 4096, "heads": 32}
        printed = {"weights": 28.0, "states": 112.0}
        yield Case("7B, weights in fp32", printed, **seven, batch=1, tokens=whole(rng, 9, 99))
        yield Case("7B, off by 4 % and 7 %", {"states": 104.5, "weights": 14.5}, **seven, batch=1, tokens=64)
        yield Case("7B, master copy forgotten", {"weights": 14.0, "states": 84.0}, **seven, batch=2, tokens=256)
        yield Case(
            "GPT-2, short texts", {"activations": 59.0, "weights": 3.1}, **GPT2_XL, batch=512, tokens=whole(rng, 24, 27)
        )
        sizes = {name: whole(rng, 1, 60) for name in ("layers", "model", "heads", "batch", "tokens")}
        yield Case("any sizes", {"states": 1.0}, params=whole(rng, 10**6, 10**7), **sizes)


@question("largest_batch", oracle="reference:largest_batch")
class LargestBatch:
    """`largest_batch` plans a training run: how many sequences fit on the card, and what is left."""

    def cases(self, rng):
        gpt2 = {**GPT2_XL, "optimizer": 12}
        yield Case("GPT-2 on 32 GB", 32 * 10**9, **gpt2, tokens=1024)
        yield Case("GPT-2 on 80 GB", 80 * 10**9, **gpt2, tokens=1024)
        yield Case("GPT-2 on 24 GB and a little", 24 * 10**9 + whole(rng, 1, 10**9), **gpt2, tokens=1024)
        yield Case("GPT-2 on 16 GB", 16 * 10**9 + whole(rng, 1, 10**9), **gpt2, tokens=1024)
        yield Case("plain SGD, 80 GB", 80 * 10**9, **(gpt2 | {"optimizer": 4}), tokens=512)
        sequence = 2 * (12 * 1600 + 25 * 100) * 100 * 48
        yield Case("exactly 7 sequences", 24 * 10**9 + 7 * sequence, **gpt2, tokens=100)
        sizes = {name: whole(rng, 2, 60) for name in ("layers", "model", "heads", "tokens")}
        yield Case("any sizes", 10**9 + whole(rng, 0, 10**8), params=whole(rng, 10**6, 10**7), optimizer=8, **sizes)


@question("fit_power_law", oracle="reference:fit_power_law")
class FitPowerLaw:
    """`fit_power_law` is the straight line through log x and log(loss - floor), with the range it was seen to hold."""

    tolerance = Tolerance(rtol=1e-4, reason="x_c is exp(intercept / alpha): an error of alpha is multiplied by log x_c")

    def drive(self, answer, case):
        return {name: float(value) for name, value in answer(*case.args, **case.kwargs).items()}

    def cases(self, rng):
        yield self.case(rng, "loss against parameters", [3e4, 1e5, 4e5, 1.5e6, 6e6], floor=1.7)
        yield self.case(rng, "no floor", [1e3, 1e4, 1e5, 1e6], floor=0.0)
        yield self.case(rng, "runs in any order", [4e5, 3e4, 6e6, 1.5e6, 1e5], floor=1.7)
        yield self.case(rng, "a steep law", [10.0, 20.0, 50.0, 80.0], floor=0.5, alpha=0.6)
        yield self.case(rng, "close together, noisy", [1e6, 1.2e6, 1.5e6, 1.7e6, 3e6], floor=1.0, noise=0.05)

    def case(self, rng, name, x, *, floor, alpha=0.2, noise=0.02):
        """Losses of the law (x_c / x)^alpha above the floor, each off by a few percent, in fp64."""
        x = torch.tensor(x, dtype=torch.float64)
        off = (noise * torch.randn(len(x), generator=rng, dtype=torch.float64)).exp()
        return Case(name, x, floor + (3e7 / x) ** alpha * off, floor=floor)
