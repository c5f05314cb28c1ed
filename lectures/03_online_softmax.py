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
# # 03 · Online softmax
# *Can softmax forget the past and stay exact?*
#
# **You need** unit 01 (scores, softmax, the attention sink) and unit 02 (bytes and bandwidth).
#
# **You will be able to** repair a softmax that overflows, compute one from a stream whose past is gone, and merge results of workers that never saw each other's keys. Lab 03 checks all three.
#
# **Time** 45 min, 60 s of CPU.
#
# <details><summary>From memory, before you start</summary>
#
# 1. Unit 01: over which axis does the softmax of attention run, queries or keys?
# 2. Unit 02: a function reads a tensor three times and does little arithmetic. What bounds its speed?
#
# *Answers: over the keys, one distribution per query. Memory bandwidth: count the bytes, not the FLOPs.*
# </details>
#
# ## 1. The formula in the textbook does not run
# SmolLM2 reads 1,024 tokens of a 1981 message to Congress. At each position it answers with 49,152 logits, and the textbook turns such a row into probabilities in one line: exponentials, divided by their sum. We run that line in float16, a format GPUs have kept such rows in for years.
#
# **Predict before you run.** float16 ends at 65,504. We take the last 256 rows. How many come out without a NaN? Write a number down. A wrong one costs nothing and teaches more.
# %%
import inspect
import math
import time
from importlib.util import find_spec
from pathlib import Path

import torch

from course.viz import FOIL, by_layer, cash_box, exactness, growth, row_maxima, running_max, show
from refimpl._triton import HAS_TRITON
from refimpl.models import load_smollm2, sample_qkv, sample_rows
from refimpl.online_softmax import eager, fused_softmax

logits, scores = sample_rows(1024)  # (256, 49152) next-token logits; (30, 9, 1024) scores of the last query
mark = load_smollm2().mark  # "toy weights" where SmolLM2 is missing: the text below describes SmolLM2
my_guess = 250
# %% tags=["hide-output"]
for dtype in (torch.float16, torch.bfloat16, torch.float32):
    p = eager.softmax_textbook(logits.to(dtype))
    clean = int((~p.isnan().any(-1)).sum())
    print(f"{dtype}: exp is inf above {math.log(torch.finfo(dtype).max):.2f}, rows without NaN: {clean} of {len(p)}")
print(
    f"your guess {my_guess}; largest logit of a row: median {logits.amax(-1).median():.1f}, highest {logits.max():.1f}"
)
limits = {"float16": math.log(65504), "float32 and bfloat16": math.log(torch.finfo(torch.float32).max)}
lost = int((logits.amax(-1) > limits["float16"]).sum())
fig = row_maxima(
    logits.amax(-1), limits, mark=mark, claim="Real logits live beyond the end of float16's exponential",
    sub="SmolLM2, last 256 of 1,024 positions in a 1981 message: the largest of 49,152 logits.",
)  # fmt: skip
show(fig, alt=f"Histogram of the largest logit of 256 rows, from {logits.amax(-1).min():.0f} to {logits.max():.0f}. "
     f"{lost} of 256 rows lie right of 11.1, where exp overflows in float16; none right of 88.7, the limit of float32.")  # fmt: skip
# %% [markdown]
# Hardly any. The model is healthy: it gives its favourite word a logit above 20, and the exponential leaves float16 at 11.09. float32 and bfloat16 share a wider range. Say it plainly: **in those two formats nothing overflows here**. So the bug passes on a laptop and surfaces on other hardware, or with a model whose logits are a few times larger.
#
# The repair is old. Subtract the row maximum $m$ first. Numerator and denominator both shrink by $e^m$, and no exponent is positive. The next cell runs it in float16, on all rows.
# %%
repaired = eager.softmax_three_pass(logits.half())
off = (repaired.double() - logits.half().double().softmax(-1)).abs().max()
print(
    f"float16, maximum subtracted: {int((~repaired.isnan().any(-1)).sum())} of 256 rows without NaN, largest error {off:.1e}"
)
# %% [markdown]
# But look at the order of events. You may not add the first term before you have seen the last one, because the last one may be the maximum. One pass finds $m$, one adds, one divides. In attention that means keeping a whole row of scores between the passes, or fetching every key again.
#
# > **Rule.** Softmax with the maximum subtracted never overflows. It reads each score three times.
#
# ## 2. A cash box that changes its currency
# Can one pass do? Start adding with the largest score seen *so far*. When a larger one arrives, the sum you hold is not wrong. It is in the wrong **unit**, like a cash box after a change of currency. Convert it once and go on.
#
# Let us do it on paper, in base 2. The scores 1, 3, 2, 4 arrive one by one, and we want $2^1+2^3+2^2+2^4$. After the first three, the box holds 1.75 units of $2^3$, which is 14.
#
# **Predict.** Now the 4 arrives. What number stands in the box?
# %%
my_guess = 2.75
# %% tags=["hide-output"]
fig = cash_box(
    [1, 3, 2, 4], claim="A larger score does not spoil the sum; it changes the unit",
    sub="Adding 2¹ + 2³ + 2² + 2⁴ in one pass. Blue: held before. Hatched: the score that arrives.",
)  # fmt: skip
show(fig, alt="Four stacked bars, the sum after each score in its own unit: 1 in units of 2^1, 1.25 and 1.75 in units of "
     "2^3, 1.875 in units of 2^4. Each new maximum shrinks what was held before; 1.875 times 16 is 30.")  # fmt: skip
print(
    f"your guess {my_guess}; 1.75 / 2 + 1 = {1.75 / 2 + 1} units of 16, and {2**1 + 2**3 + 2**2 + 2**4} / 16 = {30 / 16}"
)


# %% [markdown]
# The box holds 1.875. The 1.75 were counted in units of $2^3$; in units of $2^4$ they are half as many. Nothing was looked at twice, and nothing was lost: the scores 1, 3 and 2 are gone, and their sum is still exact.
#
# The picture has one place where it breaks. A real box forgets cents when the new currency is large enough, and so does ours: a sum that shrinks by $e^{-104}$ is 0 in float32. That costs nothing here, because next to the new term it would have been rounded away anyway.
#
# ## 3. The line
# In words: take the larger of the old maximum and the new score; convert the old sum to the new unit; add the new term in that unit.
#
# $$m' = \max(m, z), \qquad \ell' = \ell\,e^{m-m'} + e^{z-m'}$$
#
# The next cell has the same letters. It feeds 4,096 logits of a real row through `step`, one at a time.
# %%
def step(m, l, z):
    m_new = torch.maximum(m, z)
    return m_new, l * (m - m_new).exp() + (z - m_new).exp()


m, l = torch.tensor(-math.inf), torch.tensor(0.0)
for z in logits[-1, :4096]:
    m, l = step(m, l, z)
print(f"one pass {m + l.log():.6f}, fp64 {logits[-1, :4096].double().logsumexp(0):.6f}")
# %% [markdown]
# We compare $m + \log \ell$, the logarithm of the full sum, because the sum itself would overflow. It has a name, **lse**, and it will follow us to unit 16. The last digits differ: 4,096 additions in a row were rounded in float32.
#
# > **Rule.** A sum of exponentials is two numbers, an amount and a unit. Never add two amounts before their units agree.
#
#
# Now the limit cases. If all scores are equal, the unit never changes and `l` counts them. If the scores rise, every step converts. **Predict the third**: a causal mask sets a score to $-\infty$. What does `l` become if the *first* score of a row is masked?
# %%
my_guess = 0.0
# %% tags=["hide-output"]
m, l = torch.tensor(-math.inf), torch.tensor(0.0)
m, l = step(m, l, torch.tensor(-math.inf))
print(f"your guess {my_guess}, measured l = {l}")
m, l = step(m, l, torch.tensor(1.0))
print(f"after one more key, a visible one: l = {l}")
# %% [markdown]
# NaN, and it never leaves, because every later sum is NaN times something. The culprit is $-\infty-(-\infty)$: there is no unit yet. `refimpl` subtracts `pivot(m)`, which is $m$, or 0 where $m$ is $-\infty$. Then the masked term is $e^{-\infty}=0$, and the first visible key sets the first real unit.
#
# ## 4. From step to merge
# Nothing in the argument needed $z$ to be a single number. Give `step` a second finished piece instead, with its own maximum, sum and weighted values $o$, and convert *both* to the larger unit:
#
# $$m=\max(m_a,m_b),\quad \ell=\ell_a e^{m_a-m}+\ell_b e^{m_b-m},\quad o=o_a e^{m_a-m}+o_b e^{m_b-m}$$
#
# That line is the whole course's workhorse. A piece is a tile in unit 04, a share of the cache in unit 07, a GPU in unit 16. Here is the course's own version. It departs from our toy in one way: blocks of keys instead of single keys, because a matrix product needs many columns to be fast.
# %%
print(inspect.getsource(eager.block_state), inspect.getsource(eager.merge), inspect.getsource(eager.pivot), sep="\n")
# %% [markdown]
# `block_state` is the repaired softmax of section 1, stopped before the division. `merge` is the equation, letter by letter. `o` stays **undivided**: whoever divides early has to multiply again at the next merge.
#
# **Predict.** We take the last query of layer 0, cut its 1,024 keys in two at every possible place, and merge the two states. The scores are multiplied by 20 first, to be unkind. In fp64, how far is the worst of the 1,023 outputs from attention over the uncut keys: $10^{-6}$, $10^{-10}$ or $10^{-15}$ of its size?
# %%
my_guess = 1e-10
q, k, v = sample_qkv(1024, layer=0)
k, v = k.repeat_interleave(3, dim=1), v.repeat_interleave(3, dim=1)  # 3 query heads share a key head
s = 20 * (q[:, :, -1:] @ k.mT / 8).double()  # (1, 9, 1, 1024): 9 heads, one query


def state_of(first, last):
    return eager.block_state(s[..., first:last], v[..., first:last, :].double())


# %% tags=["hide-output"]
want = s.softmax(-1) @ v.double()
parts = [eager.merge(state_of(0, cut), state_of(cut, 1024)) for cut in range(1, 1024)]
cuts = [((eager.finish(part)[0] - want).abs().max() / want.abs().max()).item() for part in parts]
a, b, c = state_of(0, 100), state_of(100, 777), state_of(777, 1024)
left, right = eager.merge(eager.merge(a, b), c), eager.merge(a, eager.merge(b, c))
off = (eager.finish(left)[0] - eager.finish(right)[0]).abs().max() / want.abs().max()
print(f"your guess {my_guess:.0e}, worst of {len(cuts):,} cuts: {max(cuts):.1e}, scores up to {s.max():.0f}")
print(f"(a + b) + c against a + (b + c): {off:.1e}")
# %% [markdown]
# That is fp64's own rounding, no more. The merge does not care where you cut, nor in which order you join: it is **associative** and commutative, so a tree of workers gives the answer of one. The next figure adds the other half of the claim, every scale, in float32.
# %%
factors = [1, 2, 4, 8, 16, 32, 64, 128]
errors = {"textbook": eager.softmax_textbook, "one pass, then divide": eager.softmax_two_pass}
for name, f in errors.items():
    off = [(f(logits[:32] * k) - (logits[:32].double() * k).softmax(-1)).abs().max().item() for k in factors]
    errors[name] = (factors, off)
worst = max(errors["one pass, then divide"][1])
fig = exactness(errors, cuts, mark=mark, claim="Exact at every scale, and wherever the row is cut",
    sub="Left: 32 rows of logits, against fp64. Right: 9 heads, scores ×20, merged from two pieces.")  # fmt: skip
show(fig, alt=f"Two panels. Left: error against the factor on the logits; the textbook form ends in NaN from factor 4 on, "
     f"one pass errs by at most {worst:.1e} up to 128. Right: relative error of 1,023 cuts in fp64, at most {max(cuts):.1e}.")  # fmt: skip
# %% [markdown]
# > **Rule.** Two numbers and a vector per query, $(m, \ell, o)$, replace any number of keys. The result is exact up to rounding, for every cut and every order.
#
# Attention over a stream is now a loop: a state per block, merged, and one division at the end. Which line fails if you delete `nonzero` in `finish`? Decide before you read on.
# %%
print(
    inspect.getsource(eager.finish), inspect.getsource(eager.streaming_attention).split('"""')[2], sep="\n# the loop:"
)
blocks = zip(k.split(100, dim=2), v.split(100, dim=2), strict=True)  # ten blocks of 100 and one of 24
out, lse = eager.streaming_attention(q, blocks)
want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
print(f"9 heads, 1,024 queries, float32: largest difference from attention in fp64 {(out - want).abs().max():.1e}")
# %% [markdown]
# A query that saw no key holds $\ell = 0$, and $0/0$ is NaN. With `nonzero` it gets an output of 0 and an lse of $-\infty$, a worker that says "count me out". Everything else would run without it, until a padded tile comes along in unit 04.
#
# ## 5. How often does the currency change?
# In random order the $k$-th score is a new maximum with probability $1/k$, so 1,024 keys give $1+\frac12+\dots+\frac1{1024}\approx 7.5$ new maxima. Real keys are not in random order.
#
# **Predict.** For one query of SmolLM2, do you expect more or fewer than 7.5 in layer 0? In layer 22?
# %%
my_guess = {"layer 0, head 4": 7.5, "layer 22, head 0": 7.5}
# %% tags=["hide-output"]
changes = 1 + (scores.cummax(-1).values.diff(dim=-1) > 0).sum(-1)  # (30, 9): new maxima per layer and head
early, late = changes[0, 4].item(), changes[22, 0].item()
fig = running_max({"layer 0, head 4": scores[0, 4], "layer 22, head 0": scores[22, 0]}, mark=mark,
    claim="The attention sink hands online softmax its maximum at once",
    sub="One query (token 1,023) against all keys. Line: running maximum. Ring: a new maximum.")  # fmt: skip
show(fig, alt=f"Two scatter plots of 1,024 attention scores by key position, with the running maximum as a step line. "
     f"Layer 0, head 4: {early} new maxima, spread over the whole row. Layer 22, head 0: {late}, at key 0; the line is "
     "flat ever after.")  # fmt: skip
print(f"your guesses {my_guess}, measured {early} and {late}")
# %% [markdown]
# Layer 0 likes recent keys, so new maxima keep coming. In layer 22 the first key is the **sink** you met in unit 01. It outscores everything, and the unit never changes again. The next cell is the same figure, key by key: the ring button jumps to the next new maximum. Which of its made-up streams changes the unit most often?
# %%
from course.viz.widgets import OnlineSoftmaxStepper

OnlineSoftmaxStepper({"layer 0, head 4": scores[0, 4], "layer 22, head 0": scores[22, 0]})
# %% [markdown]
# Rising scores do: every key converts. Back to the model. Was layer 22 one lucky head? Here are all 270.
# %%
harmonic = sum(1 / k for k in range(1, 1025))
once = (changes[12:] == 1).float().mean()
unit, lazy = scores[..., 0], torch.ones(30, 9)
for i in range(1, 1024):  # convert only when the unit is too small by more than a factor of 256
    small = scores[..., i] > unit + math.log(256)
    unit, lazy = torch.where(small, scores[..., i], unit), lazy + small
fig = by_layer(changes, label="new maxima in 1,024 keys", expected=("random\norder", harmonic), mark=mark,
    claim="From layer 12 on, most heads find their maximum at key 0",
    sub="SmolLM2, last query of 1,024 tokens. Dot: one head. Line: mean of the layer's 9 heads.")  # fmt: skip
show(fig, alt=f"New maxima by layer, one dot per head. Layer 0 averages {changes[0].float().mean():.0f}, layers 12 to 29 "
     f"{changes[12:].float().mean():.1f}; {once:.0%} of the late heads have exactly one. Random order would give 7.5.")  # fmt: skip
print(
    f"one maximum only, layers 12-29: {once:.0%} of heads; mean over all 270 heads: {changes.float().mean():.2f} units"
)
print(f"random order: {harmonic:.2f}; converting late, beyond a factor of 256: {lazy.mean():.2f} units")
# %% [markdown]
# Most heads in the later half never convert, and the average head holds far fewer units than random order predicts. Layer 11 breaks the pattern and behaves like layer 0: the rule is the model's habit, not a law. A kernel may skip the multiplication when $m$ stands still. It may even keep an old unit for a while, as long as no term grows beyond what the format holds: that is the last number printed, and FlashAttention-4 does it. It must keep the test.
#
# > **Rule.** The conversion is paid per new maximum, not per key: 3.5 units for 1,024 keys on average here, and a single one if a sink comes first.
#
# ## 6. What does it buy?
# **Predict the memory.** One head, N queries against N keys. Naive attention holds N² scores; the stream holds N × 128. By what factor is the largest tensor smaller at N = 4,096?
# %%
my_guess = 8


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation returns, and how many elements go through exp."""

    largest, exps = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(t)]
        self.largest = max([self.largest, *(t.nbytes for t in made)])
        self.exps += out.numel() if func is torch.ops.aten.exp.default else 0
        return out


# %% tags=["hide-output"]
sizes, seen = [256, 512, 1024, 2048, 4096], {"all scores": [], "one block": []}
for n in sizes:
    x = torch.randn(1, 1, n, 64)
    with Watch() as naive:
        eager.softmax_three_pass(x @ x.mT / 8) @ x
    with Watch() as stream:
        eager.streaming_attention(x, zip(x.split(128, dim=2), x.split(128, dim=2), strict=True))
    seen["all scores"].append(naive.largest / 2**20)
    seen["one block"].append(stream.largest / 2**20)
factor = seen["all scores"][-1] / seen["one block"][-1]
print(f"your guess {my_guess}, measured {factor:.0f}, formula N / 128 = {4096 / 128:.0f}")
fig = growth(sizes, seen, label="largest tensor", unit="MiB", claim="All scores grow with N², one block of them with N",
    sub="One head, N queries and N keys, float32, blocks of 128 keys: largest tensor of any operation.")  # fmt: skip
show(fig, alt=f"Largest tensor in MiB against N, log axes. All scores: slope 2, {seen['all scores'][-1]:.0f} MiB at 4,096. "
     f"One block: slope 1, {seen['one block'][-1]:.0f} MiB. The stream needs {factor:.0f} times less.")  # fmt: skip
# %% [markdown]
# Exactly N/128, and the gap widens with every token. Where did N² go? All 4,096² scores are still computed, 128 per query at a time. The FLOPs stay; what must be *held* shrinks.
#
# Now accesses to memory, per score:
#
# | way | reads | writes | must be held |
# |---|---|---|---|
# | textbook | 2 | 1 | the row |
# | three passes | 3 | 1 | the row |
# | one pass, then divide | 2 | 1 | the row |
# | streaming attention | 1 | 0 | $m, \ell, o$ |
#
# The last row is why attention gains most: nobody asks for the probabilities, only for $o/\ell$, so no second look is needed.
#
# **Predict the time.** We normalise 256 rows of 49,152 logits on one CPU thread. By the table, one pass with a division should beat three passes by 4/3, or 1.33. Where does PyTorch's own `softmax` stand?
# %%
my_guess = "torch.softmax as fast as one pass, then divide"
ways = {
    "textbook (would overflow in float16)": (eager.softmax_textbook, 3),
    "three passes": (eager.softmax_three_pass, 4),
    "one pass, then divide": (eager.softmax_two_pass, 3),
    "torch.softmax": (lambda x: x.softmax(-1), None),
}


def milliseconds(f, *args):
    start = time.perf_counter()
    f(*args)
    return 1000 * (time.perf_counter() - start)


# %% tags=["hide-output"]
rounds = [{name: milliseconds(f, logits) for name, (f, _) in ways.items()} for _ in range(5)]  # interleaved
took = {name: sorted(r[name] for r in rounds)[2] for name in ways}
for name, (_, accesses) in ways.items():
    print(f"{name:38} {took[name]:6.0f} ms, accesses per element by the formula: {accesses or 'not ours to count'}")
gain, ahead = (took[a] / took["one pass, then divide"] for a in ("three passes", "torch.softmax"))
print(f"your guess: {my_guess}; one pass over three: {gain:.2f} (formula 1.33); torch over one pass: {1 / ahead:.2f}")
# %% [markdown]
# The gain is larger than the formula's. Each operation of eager PyTorch writes a temporary: 50 MB each for the three passes, while a block of 128 columns stays in the cache. And `torch.softmax` beats us clearly. It handles one row at a time, and a row of 192 KiB stays in the cache too, so its three passes cost one trip to memory.
#
# > **Rule.** Count trips to slow memory, not passes in the source code. Passes over data that stays on the chip are nearly free.
#
# ## 7. Where it loses
# This is the case against online softmax: **if the row fits on the chip, you do not need it.** The textbook's three passes then run over fast memory. So does the course's first GPU kernel, in Triton, a dialect of Python. One program loads one row, all of it, and reads HBM, the GPU's main memory, once.
# %%
source = Path(find_spec("refimpl.online_softmax.kernel").origin).read_text(encoding="utf-8")
print(source.split("@triton.jit")[1].split("def fused_softmax")[0])
if HAS_TRITON:
    x = logits[:8, :5000].contiguous().to("cuda" if torch.cuda.is_available() else "cpu")
    off = (fused_softmax(x).double() - x.double().softmax(-1)).abs().max()
    print(f"one program per row, 8 rows of {x.shape[1]:,}: largest difference from fp64 {off:.1e}")
else:
    print("not run here: Triton's wheels are for Linux")


# %% [markdown]
# Without a GPU this ran in Triton's interpreter, which is slow: read results there, never times. In the lab you write this kernel yourself. Online softmax wins where the row does **not** fit, or does not exist all at once: attention over long keys, a cache on several GPUs, a stream.
#
# > **Rule.** Row on the chip: one read and one write per element, no online softmax. Row elsewhere, or in parts: carry $(m,\ell,o)$.
#
# The second cost is arithmetic. Each step of section 3 takes two exponentials per score, where three passes could do with one. Working in blocks makes the extra ones rare. The next cell counts them.
# %%
for block in (1, 16, 128, 1024):
    with Watch() as watch:
        eager.running_stats(logits[:1, :4096], block)
    print(
        f"blocks of {block:4}: {watch.exps / 4096:.3f} exponentials per score, formula 1 + 1/block = {1 + 1 / block:.3f}"
    )
exact = logits.double().softmax(-1)
for name, f in {"textbook": eager.softmax_textbook, "maximum subtracted": eager.softmax_three_pass}.items():
    print(f"bfloat16, {name}: largest error {(f(logits.bfloat16()).double() - exact).abs().max():.3f}")
# %% [markdown]
# With blocks of 128 the conversion costs less than 1 % of the exponentials, plus one multiplication of $o$ per block.
#
# Third: no trick here buys **precision**. The last two lines run bfloat16, which survives here. It is about equally wrong either way, since the logits themselves were rounded. Subtracting the maximum cures overflow only.
#
# ## 8. Since the paper
# Milakov and Gimelshein published the one-pass normalizer in 2018 ([arXiv:1805.02867](https://arxiv.org/abs/1805.02867)) and measured up to 1.3×: the 4/3 of section 6. Rabe and Staats ([2112.05682](https://arxiv.org/abs/2112.05682), 2021) carried the output along: attention needs no N² memory. FlashAttention ([2205.14135](https://arxiv.org/abs/2205.14135), 2022) made that loop one kernel. FlashAttention-4 ([2603.05451](https://arxiv.org/abs/2603.05451), 2026) converts only when the unit is 256 times too small, and stays exact: the final division cancels any unit.
#
# **Slips on the slides.** One copy of FlashAttention's Algorithm 1 (unit 04) rounds the block count down and drops the last keys; its updates lack the factors $\ell_i$ and $O_i$. The last slide adds $e^{S-m}$ to an unconverted $\ell^{\mathrm{old}}$.
#
# **Predict.** Run that recurrence on SmolLM2. Where would you notice, in layer 0 or in layer 22?
# %%
my_guess = "both"
# %% tags=["hide-output"]
m, l = scores[..., 0], torch.ones(30, 9)
for i in range(1, 1024):
    m = torch.maximum(m, scores[..., i])
    l = l + (scores[..., i] - m).exp()  # the slide: l_old is not converted
ratio = (m + l.log() - scores.logsumexp(-1)).exp().clamp_min(1)
hidden = (ratio[12:] < 1.001).float().mean()
fig = by_layer(ratio, label="slide's sum / true sum", log=True, color=FOIL, mark=mark,
    claim="The slide's slip shows in early layers and hides in late ones",
    sub="SmolLM2, last query of 1,024 tokens, all 270 heads. Dot: one head. Line: mean of 9 heads.")  # fmt: skip
show(fig, alt=f"Ratio of the slide's sum to the true sum by layer, log axis. Layer 0 averages {ratio[0].mean():.0f}, "
     f"layer 22 {ratio[22].mean():.2f}. In layers 12 to 29, {hidden:.0%} of the heads are right to 0.1 %.")  # fmt: skip
print(
    f"your guess {my_guess!r}; layer 0, head 4: {ratio[0, 4]:.2f} times too large; layer 22, head 0: {ratio[22, 0]:.2f}"
)
# %% [markdown]
# The slip is invisible wherever the sink comes first, since a unit that never changes needs no conversion. A test on one late layer would pass it. Test on rising scores. (The stepper of section 5 makes this slip too, if you tick *forget the conversion*.)
#
# *Read next*: Milakov and Gimelshein, section 3, where the proof is an induction and the parallel form is our merge. Rabe and Staats, section 2, for attention without the matrix. A fix in a production kernel, [MSLK #242](https://github.com/meta-pytorch/MSLK/pull/242), where a skipped conversion left two units in one sum and images came out degraded.
#
# ## 9. Can softmax forget the past and stay exact?
# The last cell answers with the numbers of this run.
# %%
from IPython.display import Markdown

Markdown(f"""**We asked** whether softmax can forget the past and stay exact. **We measured** {max(cuts):.1e} as the worst
relative error of {len(cuts):,} cuts in fp64, and at N = 4,096 a largest tensor of {seen["one block"][-1]:.0f} MiB against
{seen["all scores"][-1]:.0f}. Layer 0, head 4 went through {early} units; {once:.0%} of the late heads kept the
unit of the first key. **Rule**: keep $(m, \\ell, o)$, convert both sides to the larger maximum, divide once at the end (valid for
any cut and any order). **Bought** memory that grows with N instead of N². **Paid** 1/block more exponentials and a
multiplication of $o$ per block. **Not for** rows that fit on the chip: there `torch.softmax` was
{took["one pass, then divide"] / took["torch.softmax"]:.1f} times as fast. **Next**: every query still fetches every key from slow memory. Who pays for that?""")
# %% [markdown]
# <details><summary>Three questions for tomorrow</summary>
#
# 1. *This unit.* The scores 5, 5, 5 have gone by, then comes $5+\ln 2$. What are $m$ and $\ell$ before and after? **5 and 3; then $5+\ln 2$ and $3/2+1=2.5$.**
# 2. *Unit 02.* Three passes against one pass and a division: which count predicts the time, FLOPs or bytes, and why? **Bytes: softmax does a handful of operations per element, so memory bounds it.**
# 3. *Unit 01.* Why does the first token of a text receive so much attention in late layers? **A softmax must spend its mass somewhere; token 0 is visible to every query and serves as the sink.**
# </details>
#
# Now lab 03, with your first kernel; then unit 04, where the blocks become tiles.
