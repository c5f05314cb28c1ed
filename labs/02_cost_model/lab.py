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
# # Lab 02 · A calculator for cost
# *How long must this take, before you run it?*
#
# At the end you hold a calculator: seven functions that say what a transformer costs in FLOPs, bytes, seconds and memory, exactly where counting can be exact. You aim it at SmolLM2, and at the numbers that the slides print for one model, one of which does not follow.
#
# **Time** 115 min, 20 s of CPU. **You need** lecture 02. Only arithmetic and one straight line: no GPU, no training.
#
# | question | points | minutes | difficulty |
# |---|---|---|---|
# | 1 `block_flops` | 4 | 12 | ●○○ |
# | 2 `param_count` | 4 | 12 | ●○○ |
# | 3 `predict_seconds` | 4 | 10 | ●●○ |
# | 4 `rows_to_saturate` | 5 | 15 | ●●● |
# | 5 `which_claim` | 6 | 18 | ●●● |
# | 6 `largest_batch` | 4 | 12 | ●●○ |
# | 7 `fit_power_law` | 5 | 15 | ●●○ |
# | 8 `why` (written) | 4 | 10 | ●●○ |
#
# Counts are whole numbers and must agree to the last digit. Use `//` and `int`, not floats: beyond 2⁵³ a float drops units.
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("02_cost_model")
# %% tags=["setup"]
import torch

# %% [markdown]
# ## Warm-up: one product by hand (5 minutes, no points)
# A matrix (2, 3) times a matrix (3, 4), in fp16. **Predict** three numbers on paper: FLOPs (a multiplication and an addition are two), bytes (each factor read once, the product written once), FLOP per byte. Run the cell. Then change 2 to 2,000 and predict the intensity again: which of the three matrices dominates now?
# %%
rows, inner, cols, itemsize = 2, 3, 4, 2
flops = 2 * rows * inner * cols  # every element of the product: `inner` multiplications, `inner` additions
elements = rows * inner + inner * cols + rows * cols  # two factors and the product
print(f"{flops} FLOPs, {elements * itemsize} bytes, {flops / (elements * itemsize):.2f} FLOP per byte")


# %% [markdown]
# ## Question 1. FLOPs of a block (4 points, 12 minutes, ●○○)
# One block of a Llama reads `tokens` new tokens; `cached` older ones left their keys and values behind. Fill the four parts, FLOPs of matmuls only. `linear` is given: all new tokens through one weight matrix.
#
# The matrices: $W_Q$ is (model, heads · dim), $W_K$ and $W_V$ are (model, kv_heads · dim), $W_O$ leads back to model. Attention multiplies every query head with the keys it reads, then the weights with the values; count all pairs, masked or not. The feed-forward network is gated: gate and up are (model, ffn), down is (ffn, model). Six lines are enough.
# %% question="block_flops"
def block_flops(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    """FLOPs of one block: a dict of four whole numbers, "projections", "attention", "output", "ffn"."""

    def linear(inner, cols):
        return 2 * tokens * inner * cols  # (tokens, inner) @ (inner, cols)

    # Subgoals: 1. three projections; 2. pairs of query and key; 3. back to the residual stream; 4. three matrices
    # BEGIN SOLUTION
    pairs = tokens * (cached + tokens)
    return {
        "projections": linear(model, heads * dim) + 2 * linear(model, kv_heads * dim),
        "attention": 2 * 2 * pairs * heads * dim,
        "output": linear(heads * dim, model),
        "ffn": 3 * linear(model, ffn),
    }
    # END SOLUTION


# %% check="block_flops"
lab.check("block_flops")


# %% [markdown] hints="block_flops"
# <details><summary>Hint 1: the idea</summary>
#
# Three of the four parts pass each new token through weight matrices, whatever else was read before. Which part has no weights in it?
# <details><summary>Hint 2: the shapes</summary>
#
# Scores of one head: (tokens, dim) times (dim, cached + tokens). Output of one head: (tokens, cached + tokens) times (cached + tokens, dim). Both have the same FLOPs. Sharing key heads changes what is stored, not how many query heads multiply.
# <details><summary>Hint 3: nearly code</summary>
#
# `pairs` is tokens times (cached + tokens). Attention is 2 products · 2 FLOPs · pairs · heads · dim. Projections: `linear` once with heads · dim columns and twice with kv_heads · dim. Feed-forward: three times `linear(model, ffn)`.
# </details></details></details>
# %% [markdown]
# ## Question 2. Weights, to the last one (4 points, 12 minutes, ●○○)
# Count every parameter of a Llama: the embedding (vocab, model), per block the matrices of question 1 and **two** norms, one norm after the last block, and a head that is the embedding itself if `tied`. RMSNorm has one weight per feature. Nothing has a bias.
#
# The first case is SmolLM2-135M. The file on disk holds 134,515,008 weights. Four lines are enough.
# %% question="param_count"
def param_count(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    """The number of weights in a Llama checkpoint, a whole number."""
    # BEGIN SOLUTION
    attention = 2 * model * heads * dim + 2 * model * kv_heads * dim  # q and o, k and v
    block = attention + 3 * model * ffn + 2 * model
    embeddings = vocab * model * (1 if tied else 2)
    return layers * block + model + embeddings
    # END SOLUTION


# %% check="param_count"
lab.check("param_count")


# %% [markdown] hints="param_count"
# <details><summary>Hint 1: the idea</summary>
#
# Every `linear(inner, cols)` of question 1 has `inner * cols` weights. What else has weights but no matmul?
# <details><summary>Hint 2: the shapes</summary>
#
# Per block: $W_Q$ and $W_O$ have heads · dim · model each, $W_K$ and $W_V$ kv_heads · dim · model each, three matrices of model · ffn, two vectors of model. Outside: one or two (vocab, model), one vector.
# <details><summary>Hint 3: nearly code</summary>
#
# `layers * (2 * model * dim * (heads + kv_heads) + 3 * model * ffn + 2 * model)`, plus `model`, plus `vocab * model` once if tied and twice if not.
# </details></details></details>
# %% [markdown]
# ## Question 3. Seconds, and who is to blame (4 points, 10 minutes, ●●○)
# A machine does at most `flop_per_s`, moves at most `bytes_per_s`, and needs `overhead` seconds to start any operation. The three overlap: while one operation computes, its next bytes are under way and the next operation is prepared. Return the least time the work can take, and the regime: `"compute"`, `"memory"` or `"overhead"`, whichever sets that time. Four lines are enough.
# %% question="predict_seconds"
def predict_seconds(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    """Returns (seconds, regime) of an operation that does `flops` FLOPs and moves `nbytes` bytes."""
    # BEGIN SOLUTION
    times = {"compute": flops / flop_per_s, "memory": nbytes / bytes_per_s, "overhead": overhead}
    regime = max(times, key=times.get)
    return times[regime], regime
    # END SOLUTION


# %% check="predict_seconds"
lab.check("predict_seconds")


# %% [markdown] hints="predict_seconds"
# <details><summary>Hint 1: the idea</summary>
#
# Three workers start together and the work is done when the last of them is. Is the total a sum, a minimum or a maximum?
# <details><summary>Hint 2: the units</summary>
#
# FLOP divided by FLOP/s is seconds; bytes divided by bytes/s too; overhead is seconds already. Name the regime after the longest.
# <details><summary>Hint 3: nearly code</summary>
#
# Put the three times into a dict under their names. `max(times, key=times.get)` is the name of the longest.
# </details></details></details>
# %% [markdown]
# ## Question 4. How many rows until arithmetic is the limit? (5 points, 15 minutes, ●●●)
# One token uses each weight once: a matrix is fetched for two FLOPs per weight. Two tokens use it twice, for nearly the same bytes. So there is a smallest number of rows for which $(\text{rows}, \text{inner}) \times (\text{inner}, \text{cols})$ has an intensity of **at least** `ridge` FLOP per byte.
#
# Bytes as in the warm-up: both factors read once, the product written once, `itemsize` bytes per element. All arguments are whole numbers, and so is the answer. For small matrices no number of rows is enough: return `None`. No loop is needed; three lines are enough.
# %% question="rows_to_saturate"
def rows_to_saturate(inner, cols, *, itemsize, ridge):
    """Smallest number of rows with 2 rows inner cols >= ridge * bytes; None where there is none."""
    # BEGIN SOLUTION
    gain = 2 * inner * cols - ridge * itemsize * (inner + cols)  # FLOPs of a row beyond what its own bytes ask for
    weights = ridge * itemsize * inner * cols  # what the matrix asks for, once
    return -(-weights // gain) if gain > 0 else None
    # END SOLUTION


# %% check="rows_to_saturate"
lab.check("rows_to_saturate")


# %% [markdown] hints="rows_to_saturate"
# <details><summary>Hint 1: the idea</summary>
#
# Write "FLOPs ≥ ridge · bytes" with rows as the unknown. Which of the three matrices does not grow with rows?
# <details><summary>Hint 2: the algebra</summary>
#
# $2\,r\,i\,c \ge R\,s\,(r\,i + i\,c + r\,c)$. Collect $r$ on the left: $r\,(2ic - Rs(i + c)) \ge R\,s\,i\,c$. What if the bracket is 0 or negative?
# <details><summary>Hint 3: nearly code</summary>
#
# `gain = 2*inner*cols - ridge*itemsize*(inner+cols)`. If it is not positive, return None. Otherwise divide `ridge*itemsize*inner*cols` by it and round up: `-(-a // b)`.
# </details></details></details>
# %% [markdown]
# The next cell asks your function about SmolLM2's feed-forward matrix, for a CPU with a ridge near 10 and for an A100 (data sheet: 312 TFLOP/s, 2.04 TB/s). Serving software batches requests because of the second number.
# %%
try:
    print("a CPU, fp32:", rows_to_saturate(576, 1536, itemsize=4, ridge=10), "rows")
    print("an A100, fp16, 576 x 1536:", rows_to_saturate(576, 1536, itemsize=2, ridge=153), "rows")
    print("an A100, fp16, 8192 x 28672:", rows_to_saturate(8192, 28672, itemsize=2, ridge=153), "rows")
except NotImplementedError:
    print("answer question 4 first")
# %% [markdown]
# ## Question 5. The number that does not follow (6 points, 18 minutes, ●●●)
# The slides say about GPT-2 (1.5 billion parameters, 48 layers, model 1600, 25 heads), trained with Adam in mixed precision on 32 texts of 1,024 tokens: the **weights** take 3 GB (2 bytes each), the model **states** 24 GB (fp16 weights and gradients, three fp32 numbers for Adam), the **activations** kept for the backward pass 60 GB, from a published formula: 12 · model · batch · tokens · layers elements, in fp16. On a later slide, the $QK^\top$ matrix "has the biggest memory footprint".
#
# Can all four be true? The cell measures what autograd keeps of one block (post-norm, ReLU, ffn = 4 · model) and subtracts the formula.
# %%
from refimpl.meter import saved_for_backward
from refimpl.transformer import EncoderBlock, TransformerConfig

for heads, tokens in ((4, 64), (4, 128), (4, 256), (8, 128), (8, 256)):
    one = EncoderBlock(TransformerConfig(vocab=1, model=64, heads=heads, layers=1))
    x = torch.randn(1, tokens, 64, requires_grad=True)
    with saved_for_backward(*one.parameters()) as kept:
        one(x)
    print(
        f"{heads} heads, {tokens:3} tokens: kept {kept.elements:7,}, formula {12 * 64 * tokens:7,}, "
        f"left over {kept.elements - 12 * 64 * tokens:7,}"
    )


# %% [markdown]
# Four elements per token of what is left over are the statistics of two LayerNorms; forget them. Explain the rest with one term, and add it to the formula.
#
# `printed` maps some of the names `"weights"`, `"states"`, `"activations"` to printed GB (10⁹ bytes). Return two things: a dict with **all three** in bytes, computed; and the list of those names in `printed`, in their order, that are off by more than 5 % of the computed number. Eight lines are enough.
# %% question="which_claim"
def which_claim(printed, *, params, layers, model, heads, batch, tokens):
    """Returns ({"weights": int, "states": int, "activations": int}, [names that do not follow])."""
    # BEGIN SOLUTION
    per_token = 12 * model + heads * tokens  # one row of scores per head: the missing term
    counted = {
        "weights": 2 * params,
        "states": (2 + 2 + 12) * params,
        "activations": 2 * per_token * batch * tokens * layers,
    }
    wrong = [name for name, gb in printed.items() if abs(gb * 1e9 - counted[name]) > 0.05 * counted[name]]
    return counted, wrong
    # END SOLUTION


# %% check="which_claim"
lab.check("which_claim")


# %% [markdown] hints="which_claim"
# <details><summary>Hint 1: the idea</summary>
#
# Compare 64, 128 and 256 tokens with 4 heads: by what factor does the rest grow when tokens double? Then compare 4 and 8 heads. Which matrix of attention grows like that?
# <details><summary>Hint 2: the shapes</summary>
#
# Per layer and sequence, a head's softmax result is (tokens, tokens), and one such matrix is kept for the backward. Divide what is left over (less 4 per token) by heads · tokens². In fp16 an element is 2 bytes. States: 2 + 2 + 4 + 4 + 4 bytes per parameter.
# <details><summary>Hint 3: nearly code</summary>
#
# Elements kept per token and layer: 12 · model + heads · tokens. Times batch · tokens · layers, times 2 bytes. A name is wrong if the distance of `printed[name] * 1e9` from the computed bytes exceeds 5 % of the computed bytes.
# </details></details></details>
# %% [markdown]
# ## Question 6. Does it fit? (4 points, 12 minutes, ●●○)
# Plan a training run. A card has `capacity` bytes. States take 4 bytes per parameter for fp16 weights and gradients, and `optimizer` bytes more (12 for Adam). Activations are those of question 5, scores included. Return the largest whole `batch`, at least 0, and the bytes left beside it. If the states alone do not fit, the batch is 0 and the bytes left are **negative**: as many as are missing. Five lines are enough.
# %% question="largest_batch"
def largest_batch(capacity, *, params, optimizer, layers, model, heads, tokens):
    """Returns (batch, bytes left), two whole numbers."""
    # BEGIN SOLUTION
    left = capacity - (2 + 2 + optimizer) * params
    sequence = 2 * (12 * model + heads * tokens) * tokens * layers  # activations of one text
    batch = max(left // sequence, 0)
    return batch, left - batch * sequence
    # END SOLUTION


# %% check="largest_batch"
lab.check("largest_batch")


# %% [markdown] hints="largest_batch"
# <details><summary>Hint 1: the idea</summary>
#
# States are there whatever the batch; activations come once per text. What is left after the states, and how many texts does that hold?
# <details><summary>Hint 2: the steps</summary>
#
# `left` is capacity minus states. `sequence` is question 5's activations for batch 1. Integer division gives whole texts; for a negative `left` it gives a negative number, which is no batch.
# <details><summary>Hint 3: nearly code</summary>
#
# The batch is `left // sequence`, or 0 where that is negative. What remains is `left` less the activations of the whole batch; with batch 0 that is `left` itself, negative or not.
# </details></details></details>
# %% [markdown]
# GPT-2 of 3 GB again: how many texts of 1,024 tokens can a card train on at once? Without the score matrix the plan would promise more.
# %%
gpt2 = {"params": 1_500_000_000, "optimizer": 12, "layers": 48, "model": 1600, "heads": 25, "tokens": 1024}
try:
    for gb in (16, 24, 32, 80):
        batch, left = largest_batch(gb * 10**9, **gpt2)
        promised = max((gb * 10**9 - 16 * gpt2["params"]) // (2 * 12 * 1600 * 1024 * 48), 0)
        print(f"{gb} GB: batch {batch:2}, {left / 1e9:6.2f} GB left; the printed formula promises {promised}")
except NotImplementedError:
    print("answer question 6 first")


# %% [markdown]
# ## Question 7. A scaling law, with its range (5 points, 15 minutes, ●●○)
# Some runs differ in `x`, their number of parameters, and ended at a `loss`. A part of the loss, `floor`, no size removes. The rest may follow $\text{loss} = \text{floor} + (x_c / x)^\alpha$. Take logarithms of the rest and the law is a straight line. Fit that line by least squares, all runs alike, and return `alpha`, `x_c`, and the range in which the law was seen: `low`, the smallest `x`, and `high`, the largest.
#
# `x` and `loss` are 1-D tensors in fp64, in any order. No library fit is needed; `torch.linalg.lstsq` is allowed. Six lines are enough.
# %% question="fit_power_law"
def fit_power_law(x, loss, *, floor):
    """Least squares through (log x, log(loss - floor)). Returns {"alpha", "x_c", "low", "high"}, four numbers."""
    # BEGIN SOLUTION
    u, y = x.log(), (loss - floor).log()
    du = u - u.mean()
    slope = (du * y).sum() / (du * du).sum()
    intercept = y.mean() - slope * u.mean()  # log rest = intercept + slope log x = alpha (log x_c - log x)
    return {"alpha": -slope, "x_c": (intercept / -slope).exp(), "low": x.min(), "high": x.max()}
    # END SOLUTION


# %% check="fit_power_law"
lab.check("fit_power_law")


# %% [markdown] hints="fit_power_law"
# <details><summary>Hint 1: the idea</summary>
#
# $\log(\text{loss} - \text{floor}) = \alpha \log x_c - \alpha \log x$. Which part is the slope of a line, which its intercept?
# <details><summary>Hint 2: the steps</summary>
#
# With $u = \log x$, $y = \log(\text{loss} - \text{floor})$: slope is the sum of $(u - \bar u)\,y$ over the sum of $(u - \bar u)^2$; intercept is $\bar y - \text{slope} \cdot \bar u$. Then α is minus the slope. At which $u$ is the line 0?
# <details><summary>Hint 3: nearly code</summary>
#
# `x_c` is the exponential of intercept divided by alpha. `low` and `high` are `x.min()` and `x.max()`; the runs are not sorted.
# </details></details></details>
# %% [markdown]
# ## On the real model (8 minutes, no points)
# Now predict before you run. The cell measures this machine's two peaks, lets your functions predict SmolLM2's time for a pass over 256 tokens and for one token behind them, and then measures. **Predict**: which of the two will be closer to its prediction? These numbers are your evidence for question 8.
# %%
from refimpl.models import KVCache, load_smollm2
from refimpl.roofline import best_seconds, measure_machine

torch.set_num_threads(1)
lm, here = load_smollm2(), measure_machine(seconds=0.5)
c = lm.config
sizes = {name: getattr(c, name) for name in ("model", "heads", "kv_heads", "dim", "ffn")}
weight_bytes = 4 * sum(p.numel() for p in lm.model.parameters())
ids = torch.randint(c.vocab, (1, 257), generator=torch.Generator().manual_seed(0))
cache = KVCache(lm.model, 400)
with torch.no_grad():
    lm.model(ids[:, :256], cache)


def run(tokens):
    """One pass over the last `tokens` of 256 + 1, with what came before in the cache."""
    cache.length = 0 if tokens == 256 else 256
    with torch.no_grad():
        lm.model(ids[:, :256] if tokens == 256 else ids[:, 256:], cache)


try:
    for tokens, cached in ((256, 0), (1, 256)):
        work = c.layers * sum(block_flops(tokens, cached=cached, **sizes).values()) + 2 * tokens * c.model * c.vocab
        seconds, regime = predict_seconds(
            work, weight_bytes, flop_per_s=here.flop_per_s, bytes_per_s=here.bytes_per_s, overhead=0.0
        )
        took = best_seconds(lambda: run(tokens), budget=1.0)
        print(
            f"{lm.mark or 'SmolLM2'}, {tokens:3} tokens: {work / 1e9:6.2f} GFLOP, {work / weight_bytes:6.1f} FLOP/byte, at least "
            f"{1e3 * seconds:6.1f} ms ({regime}), measured {1e3 * took:6.1f} ms, {work / took / here.flop_per_s:.0%} of peak"
        )
except NotImplementedError:
    print("answer questions 1 and 3 first")
print(
    f"this machine, fp32, one thread: {here.flop_per_s / 1e9:.0f} GFLOP/s, {here.bytes_per_s / 1e9:.1f} GB/s, ridge {here.ridge:.0f}"
)
# %% [markdown] written="why"
# ## Question 8. Ben buys a faster chip (4 points, 10 minutes, ●●○, written)
# *Ben: "When our chatbot writes, it runs at a few percent of the chip's peak FLOP/s. There is a new chip with twice the FLOP/s and the same memory. It will write twice as fast."*
#
# Is he right? What sets the time of one written token, what does your own run show, and for which work would the new chip pay? Write 80–120 words. One mark each: the claim, the mechanism, a number from your run, the limit.
#
# ### BEGIN SOLUTION
# No. Writing one token passes one row through every weight matrix: each weight is fetched from memory for two FLOPs. The time is the larger of FLOPs / peak and bytes / bandwidth, and far left of the ridge the second decides, so a higher peak changes nothing; the few percent are the symptom, not waste that a faster chip removes. In my run one token does 0.5 FLOP per byte while the ridge lies near 10, and reaches a few percent of peak; 256 tokens at once reach most of it. The new chip pays for that: reading prompts, training, or many requests in one batch, beyond the rows that `rows_to_saturate` gives.
# ### END SOLUTION
# %% [markdown]
# ## Your ledger row
# One row per lab, on the same model throughout. The last field is the sentence you should be able to defend.
# %%
lab.record(
    what="SmolLM2, 1 token after 256 against 256 at once",
    memory="unchanged: nothing was made cheaper yet",
    flops="those of one token against those of 256",
    bytes=f"{weight_bytes / 1e9:.2f} GB of weights read either way",
    time=f"ridge at {here.ridge:.0f} FLOP/byte",
    quality="unchanged",
    sentence="bought a prediction before the run, paid an hour of counting, not for operations that live in the cache or wait for Python",
)
lab.status()
# %% [markdown]
# How many minutes did you need, and which question was unfair? Write it down while you remember: the table above is corrected from such notes.
