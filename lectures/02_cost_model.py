# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # 02 · What it costs
# *How long must this take, before you run it?*
#
# **You need** unit 01: the blocks of a transformer and their matmuls.
#
# **You will be able to** count FLOPs, bytes and weights of a model exactly, say which of three limits sets the time of an operation, and plan a training run: does it fit, and will more compute help? Lab 02 checks all three.
#
# **Time** 50 min, 90 s of CPU.
#
# <details><summary>From memory, before you start</summary>
#
# 1. Unit 01: how many matmuls has an encoder block with $h$ heads?
# 2. Unit 01: which tensor of attention has a size that does not depend on $d$?
#
# *Answers: 3h + 2h + 1 + 2. The scores, h · N² elements per sequence.*
# </details>
#
# ## 1. A prediction that is wrong by a factor of forty
# The popular story: a model's time is its FLOPs divided by the machine's FLOP/s. It needs two FLOPs per weight and token (we count that below), and SmolLM2 has 134.5 million weights. We load it, on one thread.
# %%
import inspect
import math
import time

import torch

from course.viz import against, byte_bars, floors, machine_roof, power_law, show
from refimpl import cost_model, memory_model, roofline
from refimpl.cost_model import Cost, ModelShape, forward, matmul, parameters, total
from refimpl.meter import Meter, saved_for_backward
from refimpl.models import KVCache, corpus, load_smollm2, replace_attention
from refimpl.transformer import EncoderBlock, TransformerConfig

torch.set_num_threads(1)
lm = load_smollm2()
mark = lm.mark  # "toy weights" where SmolLM2 is missing: the text describes SmolLM2
shape, weights = ModelShape.of(lm.config), sum(p.numel() for p in lm.model.parameters())
print(f"{lm.source}: {weights:,} weights, {4 * weights / 1e9:.2f} GB in float32")


# %% [markdown]
# Now the machine, live. Its peak FLOP/s come from a large matmul, its peak bytes/s from copying an array far larger than any cache.
# %%
def clock(call, budget=0.2):
    """Seconds of this process, whatever else the machine does: the best of at least three calls."""
    best, tries, end = math.inf, 0, time.perf_counter() + budget
    while tries < 3 or time.perf_counter() < end:
        start = time.process_time()
        call()
        best, tries = min(best, time.process_time() - start), tries + 1
    return best


square, big, copy = torch.rand(1024, 1024), torch.ones(2**26), torch.ones(2**26)
here = roofline.Machine("this CPU", flop_per_s=2 * 1024**3 / clock(lambda: square @ square, 1),
                        bytes_per_s=2 * big.nbytes / clock(lambda: copy.copy_(big), 1), dtype="float32", threads=1)  # fmt: skip
story = {n: 1e3 * 2 * weights * n / here.flop_per_s for n in (256, 1)}
print(f"this machine, float32: {here.flop_per_s / 1e9:.0f} GFLOP/s, {here.bytes_per_s / 1e9:.1f} GB/s")
print(f"the story says: 256 tokens {story[256]:.0f} ms, one token {story[1]:.1f} ms")
# %% [markdown]
# **Predict before you run.** SmolLM2 reads 256 tokens of a speech, then one more, with the keys and values of the first 256 in a cache. The story's two numbers stand above. What will the clock say for the single token? Write down milliseconds; a wrong guess costs nothing and teaches more.
# %%
my_guess = 1.5
ids, cache = lm.ids(corpus("prose"), 320), KVCache(lm.model, 320)


def read(tokens, after=256):
    """One pass over `tokens` tokens behind `after` cached ones."""
    cache.length = after
    with torch.no_grad():
        return lm.model(ids[:, after : after + tokens], cache)


read(256, after=0)  # fills the cache
# %% tags=["hide-output"]
took = {256: 1e3 * clock(lambda: read(256, after=0), budget=3), 1: 1e3 * clock(lambda: read(1), budget=2)}
for n in (256, 1):
    print(f"{n:3} tokens: the story {story[n]:6.1f} ms, the clock {took[n]:6.1f} ms, {took[n] / story[n]:.1f} times")
print(f"your guess for one token: {my_guess} ms; its share of peak: {story[1] / took[1]:.0%}")
# %% [markdown]
# For 256 tokens the story is nearly right; for one token it is hopeless. The arithmetic is finished in a millisecond or two, and then the machine waits. For what? Half a gigabyte of weights comes through the memory bus, to be used for a single row. So time has at least two prices, and we count both before we run anything.
#
# ## 2. Two numbers you can count on paper
# A matrix (2, 3) times a matrix (3, 4). Each of the 8 results needs 3 multiplications and 3 additions: 48 FLOPs. Both factors are read and the product is written: 6 + 12 + 8 = 26 elements, 104 bytes in float32. Their quotient is the **arithmetic intensity**: 0.46 FLOP per byte. The first lines of the next cell let a meter watch PyTorch do it.
#
# **Predict.** Now a real one: $r$ tokens, each a row of 576, pass through a (576, 1536) matrix of SmolLM2 in float32. What is the intensity for $r = 1$, and for $r = 512$?
# %%
with Meter() as meter:
    torch.ones(2, 3) @ torch.ones(3, 4)
seen = meter.matmuls[0]
print(f"the meter saw {seen.flops} FLOPs and {seen.bytes} bytes; the formula {matmul(2, 3, 4, itemsize=4)}")
my_guess = {1: 2, 512: 1000}
# %% tags=["hide-output"]
for r in (1, 8, 64, 512, 4096):
    print(f"r = {r:4}: {matmul(r, 576, 1536, itemsize=4).intensity:6.1f} FLOP per byte")
limit = 576 * 1536 / (576 + 1536) / 2
print(f"your guess {my_guess}; r without end: {limit:.1f}")


# %% [markdown]
# One row: half a FLOP per byte, since every weight of 4 bytes is fetched for one multiplication and one addition. More rows reuse the weights, until the rows themselves outweigh them: 209 is the end for this matrix.
#
# ## 3. The line
# In words: the work takes as long as its arithmetic or its traffic, whichever is longer, because the two overlap. With $F$ FLOPs, $B$ bytes, peak $\pi$ in FLOP/s and bandwidth $\beta$ in bytes/s:
#
# $$t \ge \max\left(\frac{F}{\pi}, \frac{B}{\beta}\right)$$
#
# Both are equal where $F/B = \pi/\beta$, the machine's **ridge**. Left of it memory sets the time, right of it arithmetic. The cell has the same letters.
# %%
def least_time(F, B, π, β):
    return max(F / π, B / β)


work = {n: total(forward(shape, batch=1, tokens=n, cached=256 * (n == 1), itemsize=4, fused=True)) for n in (256, 1)}
for n, c in work.items():
    t = 1e3 * least_time(c.flops, c.bytes, here.flop_per_s, here.bytes_per_s)
    print(
        f"{n:3} tokens: {c.flops / 1e9:6.2f} GFLOP, {c.bytes / 1e9:.2f} GB, {c.intensity:5.1f} FLOP/B, so at least "
        f"{t:5.1f} ms ({here.limit(c)}); the clock said {took[n]:5.1f}"
    )
print(f"ridge of this machine: {here.ridge:.0f} FLOP/B; a datasheet A100 in float16: {roofline.A100_DATASHEET.ridge:.0f}")  # fmt: skip
# %% [markdown]
# Forty times wrong has become a small factor, for both. Limit cases: $F = 0$, a copy, costs its bytes. $B = 0$ would be free data. And an operation with almost nothing of either? The line says it takes no time at all.
#
# **Predict.** We scale a vector of ten numbers, in place, and one of 1,000: how many times longer do the thousand take?
# %%
my_guess = 100


def each(call, repeats):
    """Seconds of one call among many: the clock is too coarse for a single short one."""
    return clock(lambda: [call() for _ in range(repeats)]) / repeats


# %% tags=["hide-output"]
vectors = {n: torch.ones(n) for n in (10, 1_000, 100_000, 50_000_000)}
tiny = {n: each(lambda: x.mul_(1.0), max(1, 10**6 // n)) for n, x in vectors.items()}
for n, s in tiny.items():
    print(f"{n:10,} numbers: {1e6 * s:8.1f} µs, the line says {1e6 * here.seconds(Cost(n, 8 * n)):10.3f} µs")
overhead = tiny[10]
print(f"your guess {my_guess}; measured {tiny[1000] / tiny[10]:.1f}; overhead of one call: {1e6 * overhead:.1f} µs")
# %% [markdown]
# About the same. Python, dispatch and allocation cost a microsecond or so before the first number is touched: the third regime, **overhead**. So every operation stands on three floors, and the highest holds it up. We let one weight matrix take more and more rows and watch it move from floor to floor.
# %%
rows, W = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512], torch.randn(576, 1536)
ms = [1e3 * each(lambda: x @ W, 20) for x in (torch.randn(r, 576) for r in rows)]
costs = [matmul(r, 576, 1536, itemsize=4) for r in rows]
lines = {"overhead": ([1e3 * overhead] * 10, "alt"), "bytes / β": ([1e3 * c.bytes / here.bytes_per_s for c in costs], "foil"),
         "FLOPs / π": ([1e3 * c.flops / here.flop_per_s for c in costs], "hero")}  # fmt: skip
fig = floors(rows, ms, lines, xlabel="rows (tokens) in one matmul", ylabel="milliseconds",
    claim="One row waits for memory, many rows for arithmetic", sub="(rows, 576) times (576, 1536), float32, one thread; rings: best of many calls.")  # fmt: skip
show(fig, alt=f"Time of a matmul against its rows, 1 to 512, log axes. Measured {ms[0]:.2f} ms for one row and {ms[-1]:.1f} ms for 512. The memory floor is nearly flat "
     f"at {lines['bytes / β'][0][0]:.2f} ms, the arithmetic floor rises through it near the ridge of {here.ridge:.0f} FLOP per byte.")  # fmt: skip
# %% [markdown]
# The rings lie *below* the memory floor at the left. No law is broken: these 3.5 MB stay in the CPU's cache between two calls, and our $\beta$ is that of main memory. In the model 210 such matrices take turns, and none survives in the cache.
#
# > **Rule.** $t \ge \max(F/\pi, B/\beta, \text{overhead})$. Valid for data that comes from main memory; what lives in a cache may be faster.
#
# ## 4. The roof over this machine
# Divide the line by $F$ and it becomes a picture: the **roofline**. Attainable FLOP/s rise with intensity, up to the ridge, then stay flat. Here it is for the machine you sit at, with six operations of a transformer (the LM head is the matrix that makes the 49,152 logits).
# %%
hidden = torch.randn(512, 576)
head, q, ten = torch.randn(576, 49152), torch.randn(9, 1024, 64), torch.ones(10)
calls = {"scale 64 M": (lambda: big.mul_(1.0), Cost(2**26, 8 * 2**26), "foil"),
    "scale ten": (lambda: [ten.mul_(1.0) for _ in range(10**5)], Cost(10**6, 8 * 10**6), "alt"),
    "LM head, 1 row": (lambda: hidden[:1] @ head, matmul(1, 576, 49152, itemsize=4), "foil"),
    "LM head, 8 rows": (lambda: hidden[:8] @ head, matmul(8, 576, 49152, itemsize=4), "foil"),
    "scores, 9 heads": (lambda: q @ q.mT, matmul(1024, 64, 1024, batch=9, itemsize=4), "hero"),
    "LM head, 512 rows": (lambda: hidden @ head, matmul(512, 576, 49152, itemsize=4), "hero")}  # fmt: skip
dots = {name: (cost.intensity, cost.flops / clock(call), role) for name, (call, cost, role) in calls.items()}
fig = machine_roof(dots, flop_per_s=here.flop_per_s, bytes_per_s=here.bytes_per_s,
    claim="Under this machine's roof: memory left, arithmetic right", sub="float32, one thread. Lines: measured peaks. Red: memory. Blue: arithmetic. Green: overhead.")  # fmt: skip
show(fig, alt=f"Roofline of this machine, log axes: {here.bytes_per_s / 1e9:.0f} GB/s up to a ridge at {here.ridge:.0f} FLOP per byte, then {here.flop_per_s / 1e9:.0f} GFLOP/s. "
     f"The LM head reaches {dots['LM head, 1 row'][1] / 1e9:.0f} GFLOP/s with one row and {dots['LM head, 512 rows'][1] / 1e9:.0f} with 512; scaling ten numbers {dots['scale ten'][1] / 1e9:.2f}.")  # fmt: skip
# %% [markdown]
# Same matrix, one row or 512: only the intensity differs, and with it the speed. Nothing is wrong with the slow one. A red dot slightly above the slope is no miracle either: $\beta$ was measured on a copy, and reading alone can be faster.
#
# Can better hardware help? Many CPUs and all recent GPUs have units for 16-bit matmuls. **Predict**: how many times faster is bfloat16 for 512 rows of the FFN matrix, and how many times for one row?
# %%
my_guess = {512: 2, 1: 2}
# %% tags=["hide-output"]
half, speed = W.bfloat16(), {}
for r in (512, 1):
    x, y = torch.randn(r, 576), torch.randn(r, 576).bfloat16()
    speed[r] = [2 * r * 576 * 1536 / each(f, 20) / 1e9 for f in (lambda: x @ W, lambda: y @ half)]
    print(
        f"{r:3} rows: float32 {speed[r][0]:6.1f} GFLOP/s, bfloat16 {speed[r][1]:7.1f}, {speed[r][1] / speed[r][0]:.1f} times"
    )
print(f"your guess {my_guess}")
# %% [markdown]
# Where the CPU has matrix units (AMX), bfloat16 multiplies many rows several times faster. For one row it gains next to nothing, although the weights have half the bytes: PyTorch's path for one row does not stream them faster. A higher peak lifts the flat part of the roof; who stands under the slope gets nothing.
#
# So ask of every method in this course which price it lowers. Units 03 and 04 cut bytes, and even pay with FLOPs. Sparse attention cuts both. A quantized model has fewer bytes per weight, so it decodes faster, if the kernel reads them as they are. Experts cut FLOPs per weight, and a chip that waits for memory does not notice. A method that lowers a price nobody was waiting for buys nothing.
#
# ## 5. Every part of SmolLM2
# A model is a sum of matmuls. Two functions of `refimpl` are enough; the rest multiplies by layers. Which line would change if attention kept its scores in fast memory?
# %%
print(inspect.getsource(cost_model.matmul), inspect.getsource(cost_model._attention), sep="\n")


# %% [markdown]
# It is the `if not fused`: unit 04 removes those four trips. Does the formula tell the truth? The meter counts what PyTorch executes; the formula must agree to the last FLOP.
# %%
def scores_written(q, k, v, causal=True):  # naive attention, so that the meter can see its matmuls
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return (q @ k.mT / 8).softmax(-1) @ v


for n in (64, 256):
    parts = forward(shape, batch=1, tokens=n, itemsize=4)
    with torch.no_grad(), replace_attention(lm.model, scores_written), Meter() as meter:
        lm.model(ids[:, :n])
    assert meter.flops == total(parts).flops, "the formula is wrong"
    print(
        f"{n:4} tokens: counted {meter.flops:,} FLOPs in {len(meter.matmuls)} matmuls, formula {total(parts).flops:,}"
    )
matrices = sum(parameters(shape).values())
print(f"per weight and token {total(parts).flops / matrices / n:.3f}; weights {matrices:,} in matrices, {weights - matrices:,} in norms")  # fmt: skip
# %% [markdown]
# Equal. And the "two FLOPs per weight and token" of section 1 is confirmed, with a little more for attention, which has no weights. Where do FLOPs and bytes go?
# %%
shares = {}
for row, unit, n, cached in (
    ("512 tokens, FLOPs", "flops", 512, 0),
    ("512 tokens, bytes", "bytes", 512, 0),
    ("1 token after 512, bytes", "bytes", 1, 512),
):
    parts = forward(shape, batch=1, tokens=n, cached=cached, itemsize=4)
    parts["q, k, v, o"] = parts.pop("projections") + parts.pop("output")
    shares[row] = {p: 100 * getattr(c, unit) / getattr(total(parts), unit) for p, c in parts.items()}
fig = byte_bars(shares, {"ffn": "hero", "lm head": "ink", "q, k, v, o": "alt", "attention": "amber"}, unit="%", mark=mark,
    claim="Attention has few of the FLOPs and half of the bytes", sub="SmolLM2, share of each part. Attention as in unit 01: scores written to memory and read back.")  # fmt: skip
few, many, one = (row["attention"] for row in shares.values())
show(fig, alt=f"Stacked bars of shares by part. For 512 tokens attention has {few:.0f} % of the FLOPs and {many:.0f} % of the bytes; for one token it has {one:.0f} % of the bytes, "
     f"and the feed-forward network {shares['1 token after 512, bytes']['ffn']:.0f} %.")  # fmt: skip
# %% [markdown]
# An eighth of the FLOPs, half of the bytes: attention is the part that this course attacks first. For one token the picture is a list of the weights.
#
# ## 6. What a longer text does
# The slides name three costs of length: compute, memory, and messages between workers. **Predict**: the text doubles, from 1,024 to 2,048 tokens. By which factor grow FLOPs, the score matrix, and the message that one pipeline stage sends to the next?
# %%
my_guess = {"FLOPs": 4, "scores": 4, "message": 4}
lengths = [128, 512, 2048, 8192, 32768]


def costs_of(n):
    return {
        "FLOPs": total(forward(shape, batch=1, tokens=n)).flops,
        "scores": 2 * cost_model.score_elements(shape, batch=1, tokens=n),
        "message": cost_model.message_bytes(shape, batch=1, tokens=n)["pipeline"],
    }


# %% tags=["hide-output"]
factors = {name: costs_of(2048)[name] / cost for name, cost in costs_of(1024).items()}
grown = {name: [costs_of(n)[name] / (1e9 if name == "FLOPs" else 2**20) for n in lengths] for name in factors}
with Meter() as meter:  # attention of one layer: what is the largest tensor?
    scores_written(torch.ones(1, 9, 1024, 64), torch.ones(1, 3, 1024, 64), torch.ones(1, 3, 1024, 64))
assert meter.largest_bytes == 4 * cost_model.score_elements(shape, batch=1, tokens=1024)
fig = against({"GFLOP, one pass": {"counted": (lengths, grown["FLOPs"], "hero")}, "MiB, fp16": {"scores, one layer": (lengths, grown["scores"], "foil"),
    "message": (lengths, grown["message"], "alt")}}, xlabel="tokens", slopes=True, claim="Scores grow with N², messages with N, FLOPs change from one to the other",
    sub="SmolLM2, counted. Exponents fitted to the upper half of each line.")  # fmt: skip
show(fig, alt=f"Two panels against 128 to 32,768 tokens, log axes. One layer's scores reach {grown['scores'][-1]:,.0f} MiB with slope 2, a message {grown['message'][-1]:.0f} MiB with slope 1. "
     f"FLOPs bend from slope 1 towards 2. Doubling 1,024 tokens multiplies FLOPs by {factors['FLOPs']:.2f}.")  # fmt: skip
print(f"your guess {my_guess}; from 1,024 to 2,048: FLOPs {factors['FLOPs']:.2f}, scores {factors['scores']:.0f}, message {factors['message']:.0f}")  # fmt: skip
# %% [markdown]
# "Quadratic" is where attention ends, not where it starts. Its FLOPs pass those of the weights only at thousands of tokens, but its score matrix is quadratic from the first. Messages are linear; gradients exchanged in data parallelism do not grow at all.
#
# > **Rule.** FLOPs of a pass: 2 per weight and token, plus $4N^2 h d_h$ per layer, where $d_h$ is the width of one head. Below $N \approx 6d$ (ungated blocks, ffn = 4d) the weights dominate.
#
# ## 7. Is the second token free?
# One pass fetches all weights, for one token or for eight. On a GPU, the slides say, checking eight guessed tokens in one pass therefore takes no longer than one. **Predict** for this CPU: how many times longer does a pass over 8 tokens take?
# %%
my_guess = 1.0
ks = [1, 2, 4, 8, 16, 32]
# %% tags=["hide-output"]
rounds = [[1e3 * clock(lambda: read(k), budget=0.1) for k in ks] for _ in range(3)]  # interleaved
pass_ms = [min(r[i] for r in rounds) for i in range(len(ks))]
bound = [1e3 * here.seconds(total(forward(shape, batch=1, tokens=k, cached=256, itemsize=4, fused=True))) for k in ks]
ratio = pass_ms[3] / pass_ms[0]
fig = against({"milliseconds per pass": {"measured": (ks, pass_ms, "hero"), "the line": (ks, bound, "ink"), "one by one": (ks, [k * pass_ms[0] for k in ks], "foil")}},
    xlabel="tokens in one pass", mark=mark, claim=f"Eight tokens in one pass: {ratio:.1f} times the time of one, not 1 and not 8",
    sub="SmolLM2 after 256 cached tokens, float32, one CPU thread, best of 3 interleaved rounds.")  # fmt: skip
show(fig, alt=f"Milliseconds of one pass against 1 to 32 tokens, log axes. Measured {pass_ms[0]:.0f} for one token, {pass_ms[3]:.0f} for eight, {pass_ms[-1]:.0f} for 32. "
     f"The line stays between {bound[0]:.0f} and {bound[-1]:.0f}; one by one would take {32 * pass_ms[0]:,.0f}.")  # fmt: skip
print(f"your guess {my_guess}; 8 tokens: {ratio:.1f} times, so {pass_ms[3] / 8:.0f} ms each instead of {pass_ms[0]:.0f}")  # fmt: skip
# %% [markdown]
# Not free here. The line would allow it, since up to the ridge the weights set the price. But few rows do not reach the line: the library's kernels are built for one row or for many. Unit 14 guesses tokens ahead and pays this measured price.
#
# > **Rule.** Rows share the fetch of the weights. Ideally, extra rows are free up to ridge · itemsize / 2; measure before you promise it.
#
# ## 8. Does it fit?
# Time is one price, memory the other. A GPT-2 of 1.5 billion parameters takes 3 GB in fp16. The slides ask: can it be trained on a card with 32 GB? With $\Psi$ parameters and $K = 12$, Adam in mixed precision keeps this many bytes:
#
# $$2\Psi + 2\Psi + K\Psi$$
#
# fp16 weights, fp16 gradients, and in fp32 a master copy, momentum and variance. Beyond these **states** come the activations kept for the backward pass: the paper prints $12\,d\,B\,N\,L$ elements ($B$ is now the batch, $L$ the number of layers). **Predict** the total for 32 texts of 1,024 tokens, in GB. `kept` asks autograd about the 12.
# %%
my_guess = 50
gpt2, sizes = cost_model.GPT2_XL, {"batch": 32, "tokens": 1024}


def kept(d, h, n):
    """Elements per token that autograd keeps of one running block."""
    block, x = EncoderBlock(TransformerConfig(1, d, h, 1)), torch.randn(1, n, d, requires_grad=True)
    with saved_for_backward(*block.parameters()) as saved:
        block(x)
    return saved.elements // n


# %% tags=["hide-output"]
states = memory_model.training_memory(1_500_000_000)
printed, whole = (2 * memory_model.activation_elements(gpt2, **sizes, score_matrix=s) for s in (False, True))
for d, h, n in ((64, 4, 64), (64, 4, 128), (64, 4, 256), (64, 8, 256)):
    print(
        f"d {d}, h {h}, N {n:3}: autograd keeps {kept(d, h, n):5,} per token, 12 d is {12 * d}, left over {kept(d, h, n) - 12 * d:5,} = h N + 4"
    )
    assert kept(d, h, n) == sum(memory_model.saved_per_token(ModelShape(1, d, h), n).values()) == 12 * d + h * n + 4
print("states:", ", ".join(f"{name} {size / 1e9:.0f}" for name, size in states.items()), f"= {sum(states.values()) / 1e9:.0f} GB")  # fmt: skip
print(f"7B example: {' + '.join(f'{s / 1e9:.0f}' for s in memory_model.training_memory(7_000_000_000).values())} GB")
print(f"activations as printed {printed / 1e9:.1f} GB, with scores {whole / 1e9:.1f}; your guess {my_guess}, total {(sum(states.values()) + whole) / 1e9:.0f} GB")  # fmt: skip
# %% [markdown]
# What is left over is $hN$ per token: the softmax of the scores, kept for the gradient. The printed formula leaves it out, although a later slide calls this matrix the biggest of all. That slide is right: at 1,024 tokens it weighs more than everything else together.
# %%
GB = {name: size / 1e9 for name, size in states.items()}
adam = sum(GB[name] for name in ("master weights", "momentum", "variance"))
base = {"weights": GB["weights"], "gradients": GB["gradients"], "Adam": adam}
bars = {"answer one text": {"weights": GB["weights"]}, "train, states": base, "train, as printed": base | {"activations": printed / 1e9},
        "train, with scores": base | {"activations": printed / 1e9, "scores": (whole - printed) / 1e9}}  # fmt: skip
for name, row in bars.items():
    fit = memory_model.does_it_fit({k: int(v * 1e9) for k, v in row.items()}, 32 * 10**9)
    print(f"{name:19} {fit.needed / 1e9:6.1f} GB: {'fits' if fit.fits else 'does not fit'}, {fit.left / 1e9:+.1f}")
fig = byte_bars(bars, {"weights": "ink", "gradients": "dots", "Adam": "amber", "activations": "hero", "scores": "foil"}, limit=("32 GB card", 32),
    claim="3 GB of weights, 165 GB to train them", sub="GPT-2, 1.5 billion parameters, Adam, 32 texts of 1,024 tokens. Black weights, grey gradients.")  # fmt: skip
show(fig, alt=f"Stacked bars in GB against a card of 32. Answering needs {GB['weights']:.0f}, training states {sum(base.values()):.0f}, with the printed activations {sum(base.values()) + printed / 1e9:.0f}, "
     f"with the score matrices {sum(bars['train, with scores'].values()):.0f}. Only the first two fit.")  # fmt: skip
# %% [markdown]
# So the slides' answer, no, is right, and for a larger reason than they give: of the 165 GB, 141 are activations, and 81 of those are scores. Answering holds one layer's activations at a time. Training holds all layers', because every gradient needs the input of its matmul. With a single text instead of 32 the card would do: activations shrink with the batch, states do not.
#
# The red part is what unit 04 removes. Unit 05 shrinks the blue one, units 10, 11 and 15 the hatched one.
#
# The same counting checks a published table: the sizes of OPT, of which the slides print layers and width. In blocks, $4d^2$ for attention and $8d^2$ for the feed-forward network: $12 L d^2$, plus embeddings.
# %%
off = {}
for name, opt in cost_model.OPT.items():
    count, claimed = sum(parameters(opt).values()), float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
    off[name] = count / claimed - 1
    print(f"OPT-{name:5} 12·{opt.layers}·{opt.model:,}² + embeddings = {count / 1e9:8.3f} billion, {off[name]:+.1%}")
assert max(map(abs, off.values())) < 0.03
# %% [markdown]
# ## 9. Will a bigger one be better?
# Memory and time say what a model costs. What it costs to **train** is 6 FLOPs per weight and token: two forward, and twice that backward, where each matmul has two gradients. **Scaling laws** say what you get for it: loss falls as a power of parameters, data and compute, $L(x) = L_\infty + (x_c/x)^\alpha$. The course has its own record: 36 tiny models, up to 197,000 weights in blocks, trained on presidential messages read as bytes. We fit the law without the run that used most compute. **Predict**: how far off is the forecast for it, in percent?
# %%
from refimpl.experiments import harness, row_38
from refimpl.scaling_law import KAPLAN, bootstrap

my_guess = 10
record = harness.load("38")
runs, made = [row_38.Run(**r) for r in record["result"]["runs"]], record["provenance"]
print(f"{len(runs)} runs of {made['date']}, {made['seconds']:.0f} s on {made['device']}: {record['command']}")
# %% tags=["hide-output"]
laws, data = row_38.laws(record["result"]), row_38.series(record["result"])
expected, measured = row_38.forecast(record["result"], "compute")
for name, law in laws.items():
    low, high = bootstrap(*data[name]).alpha
    print(
        f"{name:10} alpha {law.alpha:.2f} (90 %: {low:.2f} to {high:.2f}; Kaplan {KAPLAN[name]}), floor {law.floor:.2f}, seen from {law.low:.1e} to {law.high:.1e}"
    )
print(f"your guess {my_guess} %; forecast {expected:.3f}, measured {measured:.3f} nats: {abs(expected / measured - 1):.1%} off")  # fmt: skip
# %% [markdown]
# A few percent, one step ahead: this is how large runs are planned from small ones. Now live: your machine trains the smallest model of the grid again and puts a ring on the record.
# %%
start = time.perf_counter()
again = row_38.smallest()
then = next(r for r in runs if (r.size, r.tokens) == (again.size, again.tokens))
print(f"{again.parameters:,} weights, {again.tokens:,} bytes read: loss {again.loss:.3f}, on record {then.loss:.3f}; {time.perf_counter() - start:.1f} s")  # fmt: skip
largest = max(runs, key=lambda r: r.flops)
print(f"largest run: {largest.flops / 1e12:.2f} TFLOP counted, 6 N D says {cost_model.rule_of_six(largest.parameters, largest.tokens) / 1e12:.2f}: no head, no scores")  # fmt: skip
panels = {"compute (FLOPs)": {"x": data["compute"][0], "y": data["compute"][1], "others": [(r.flops, r.loss) for r in runs]},
          "parameters in blocks": {"x": data["parameters"][0], "y": data["parameters"][1], "others": [(r.parameters, r.loss) for r in runs]}}  # fmt: skip
named = {"compute (FLOPs)": laws["compute"], "parameters in blocks": laws["parameters"]}
fig = power_law(panels, named, ylabel="loss, nats per byte", live={"compute (FLOPs)": (again.flops, again.loss)},
    claim="A law where it was measured, a guess beyond", sub="36 tiny models. Blue: best for its compute; most data. Grey: the others. Ring: just now.")  # fmt: skip
show(fig, alt=f"Two panels of loss against compute and against parameters, log x axes. Best runs fall from {data['compute'][1][0]:.2f} to {data['compute'][1][-1]:.2f} nats over {laws['compute'].high / laws['compute'].low:,.0f} times "
     f"the compute and follow the fitted law; beyond the data it is dashed. The run made now ends at {again.loss:.2f}.")  # fmt: skip
# %% [markdown]
# Two limits. The intervals are wide: there is one seed per run, the third blue dot on the right stands clearly off the law, and with so few sizes a floor of zero and a small exponent fit hardly better than a real floor and a large one. And outside the range it was seen in, a law says nothing; `law.covers(x)` asks. Kaplan's fit spans models up to 1.5 billion weights, and counts tokens instead of bytes.
#
# ## 10. Where the line loses
# The line of section 3 is a **lower** bound, from peaks that no real mix of operations reaches. The next cell adds up one pass, part by part.
# %%
operations = 30 * 20  # about twenty per layer
for n in (256, 1):
    parts = forward(shape, batch=1, tokens=n, cached=256 * (n == 1), itemsize=4, fused=True)
    gap = took[n] / (1e3 * sum(here.seconds(c) for c in parts.values()))
    print(
        f"{n:3} tokens: clock / line = {gap:.2f}; overhead of {operations} operations {1e3 * operations * overhead:.1f} ms of {took[n]:.0f}"
    )
# %% [markdown]
# What is missing: norms, rotations and activations move bytes that we did not count; odd shapes miss their peak; calls have overhead. Expect the truth within a factor of two or three. Be suspicious of a time **below** the line: data sat in a cache, or the clock stopped before a GPU had finished.
#
# ## 11. Since the papers
# Williams, Waterman and Patterson drew the roofline in 2009. Kaplan et al. ([2001.08361](https://arxiv.org/abs/2001.08361), 2020) fitted the laws; Hoffmann et al. ([2203.15556](https://arxiv.org/abs/2203.15556), 2022) added the floor, and let data grow as fast as parameters. Rajbhandari et al. ([1910.02054](https://arxiv.org/abs/1910.02054), 2020) counted the states; Korthikanti et al. ([2205.05198](https://arxiv.org/abs/2205.05198), 2022) print activations with the score term.
#
# *Read next.* ZeRO, section 3: our memory table. Korthikanti, section 4: every tensor that backward needs. [How to scale your model](https://jax-ml.github.io/scaling-book/roofline/): the line for clusters.
#
# The last cell answers with the numbers of this run.
# %%
from IPython.display import Markdown

Markdown(f"""**We asked** how long it must take, before we run it. **We measured** {took[1]:.0f} ms for one token of SmolLM2, where FLOPs / peak
promised {story[1]:.1f} and the line {1e3 * here.seconds(work[1]):.0f}; for 256 tokens {took[256]:.0f} ms against {1e3 * here.seconds(work[256]):.0f}.
**Rule**: time is at least the larger of FLOPs / peak and bytes / bandwidth, plus overhead where both are tiny (valid for data from main memory, within
a factor of two or three). Memory to train is 16 bytes per parameter and 12 d + h N elements per token and layer: {(sum(states.values()) + whole) / 1e9:.0f} GB for a model of 3.
**Bought** a verdict before the run; **paid** an hour of counting; **not for** data in a cache, odd shapes, or laws beyond their range.
**Next**: the softmax reads each score three times. Must it?""")
# %% [markdown]
# <details><summary>Three questions for tomorrow</summary>
#
# 1. *This unit.* A chip with twice the FLOP/s and the same memory: what happens to the time of one decoded token? **Nothing: left of the ridge the bytes set the time.**
# 2. *This unit.* From which length on do GPT-2's scores (d = 1600, h = 25) weigh more than all other kept activations? **h N > 12 d: above 768 tokens.**
# 3. *Unit 01.* How many matmuls has a decoder block with h heads? **2 (3h + 2h + 1) + 2 = 10h + 4: two attentions.**
# </details>
#
# Now lab 02, your own calculator; then unit 03, which saves the softmax a pass.
