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
# # Lab 01 · Attention
# *Who looks at whom, and how many matmuls is that?*
#
# At the end you hold attention with masks, heads and positions, written by you and running inside SmolLM2. You can count its matmuls and FLOPs to the last digit, and you have repaired a model that never crashed.
#
# **Time** 105 min. **You need** lecture 01. Tensors have the axes `(batch, heads, seq, dim)`.
#
# | question | points | minutes | difficulty |
# |---|---|---|---|
# | 1 `soft_lookup` | 3 | 8 | ●○○ |
# | 2 `attention` | 6 | 15 | ●●○ |
# | 3 `multi_head` | 6 | 15 | ●●○ |
# | 4 `rope` | 4 | 12 | ●●○ |
# | 5 `greedy` | 4 | 12 | ●●○ |
# | 6 `count_matmuls` | 5 | 12 | ●●○ |
# | 7 `unpermute` | 3 | 10 | ●●● |
# | 8 `why` (written) | 4 | 10 | ●●○ |
#
# Everything is graded on a CPU. `lab.check("…")` runs the comparison that the final grade runs, with other numbers. Hints cost nothing.
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("01_attention")
# %% tags=["setup"]
import torch

# %% [markdown]
# ## Warm-up: a table with three rows (5 minutes, no points)
# The query fits the keys with scores $\ln 6$, $\ln 3$ and $\ln 1$; the values are 10, 20 and 100. **Predict** the answer on paper. Then run the cell. Then add $\ln 2$ to **all** scores and predict again.
# %%
scores = torch.tensor([6.0, 3.0, 1.0]).log()  # how well each key fits
values = torch.tensor([10.0, 20.0, 100.0])  # what each key stands for
weights = scores.exp()  # 6, 3 and 1: positive, larger for a better fit
shares = weights / weights.sum()  # of the whole: they add up to 1
print(f"shares {[round(s, 2) for s in shares.tolist()]}, answer {(shares * values).sum():.1f}")


# %% [markdown]
# ## Question 1. One query (3 points, 8 minutes, ●○○)
# A table holds `n` keys and `n` values. For one query, the first two of three steps are missing: the `scores`, one per key, and the `shares`. A score is the dot product of query and key, divided by the square root of their width.
#
# `q` is `(dim,)`, `K` is `(n, dim)`, `V` is `(n, dim_v)`. Two lines are enough. You may use `torch.softmax`, here and in all questions; `scaled_dot_product_attention` you may not, here and in question 2.
# %% question="soft_lookup"
def soft_lookup(q, K, V):
    """The answer of a soft table to one query: shares (n,) of the keys, and the answer (dim_v,)."""
    # Step 1: scores (n,), how well each key fits the query
    # Step 2: shares (n,), positive and adding up to 1
    # BEGIN SOLUTION
    scores = K @ q / q.shape[-1] ** 0.5
    shares = torch.softmax(scores, dim=-1)
    # END SOLUTION
    # Step 3: every value speaks with its share
    return shares, shares @ V


# %% check="soft_lookup"
lab.check("soft_lookup")


# %% [markdown] hints="soft_lookup"
# <details><summary>Hint 1: the idea</summary>
#
# In the warm-up the scores were given. Now each must be computed from two vectors. Which single number says how much two vectors point the same way?
# <details><summary>Hint 2: the shapes</summary>
#
# A matrix `(n, dim)` times a vector `(dim,)` gives `(n,)`, one number per row of the matrix. The width to divide by is that of `q`, not the number of keys.
# <details><summary>Hint 3: nearly code</summary>
#
# `scores` is the product of `K` and `q`, over the square root of the last size of `q`. `shares` is torch's softmax of the scores over their only axis.
# </details></details></details>
# %% [markdown]
# ## Question 2. Many queries, some of them restricted (6 points, 15 minutes, ●●○)
# Write the formula for whole tensors: `q` is `(batch, heads, q_len, dim)`, `k` and `v` are `(batch, heads, k_len, dim)`. Two things may restrict who looks at whom, alone or together:
#
# - `mask`: boolean, `True` = may look; it broadcasts to `(batch, heads, q_len, k_len)`.
# - `causal=True`: no query sees a later key. Where lengths differ, the **last** query sits at the **last** key, as in decoding: with 2 queries and 5 keys, the first query sees four keys, the second all five.
#
# A query that may look at no key returns zeros. Nine lines are enough.
# %% question="attention"
def attention(q, k, v, *, causal=False, mask=None):
    """softmax(q k^T / sqrt(dim)) v with forbidden pairs left out. Returns (batch, heads, q_len, dim)."""
    # BEGIN SOLUTION
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if causal:
        q_len, k_len = scores.shape[-2:]
        allowed = allowed.tril(k_len - q_len)  # moves the diagonal so that it ends in the last corner
    if mask is not None:
        allowed = allowed & mask
    shares = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
    return shares.masked_fill(~allowed, 0.0) @ v  # a row of -inf alone is NaN: such a query looks at nothing
    # END SOLUTION


# %% check="attention"
lab.check("attention")


# %% [markdown] hints="attention"
# <details><summary>Hint 1: the idea</summary>
#
# A forbidden key must get a share of exactly 0, and the shares of the others must still add up to 1. Which score has the exponential 0? And what does softmax make of a row in which every score is that one?
# <details><summary>Hint 2: the shapes and steps</summary>
#
# Scores are `(batch, heads, q_len, k_len)`: swap the last two axes of `k`. Then one boolean tensor `allowed` that joins both restrictions with "and". For the causal part, `torch.tril` keeps a lower triangle, and its second argument moves the diagonal to the right. By how much, so that the last row is all true? At the end, treat rows where nothing was allowed.
# <details><summary>Hint 3: nearly code</summary>
#
# Fill the scores with minus infinity wherever `allowed` is false, take the softmax over the last axis, fill its result with 0 at the same places, and multiply by `v`. The diagonal moves by the number of keys minus the number of queries.
# </details></details></details>
# %% [markdown]
# ## Question 3. Many heads (6 points, 15 minutes, ●●○)
# `x` is `(batch, seq, model)`. Project it to queries, keys and values, cut each into heads of equal width, let every head attend on its own, put the outputs side by side in the order of the heads, and mix them with `w_o`. You may call your `attention`.
#
# Weights are applied as `x @ w`. `w_q` has `heads * dim` columns. `w_k` and `w_v` have `kv_heads * dim`: with fewer key heads than query heads, **neighbouring** query heads share one. With 6 heads and 2 key heads, heads 0, 1, 2 read key head 0. `kv_heads=None` means as many as `heads`. With `context` `(batch, k_len, source)`, keys and values come from there: cross-attention. `causal` is that of question 2. Ten lines are enough.
# %% question="multi_head"
def multi_head(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    """Concat(head_1 … head_h) w_o; keys and values from `context`, or from x. Returns (batch, seq, columns of w_o)."""
    # BEGIN SOLUTION
    context = x if context is None else context
    kv_heads = heads if kv_heads is None else kv_heads
    q = (x @ w_q).unflatten(-1, (heads, -1)).transpose(1, 2)  # (batch, heads, seq, dim)
    k = (context @ w_k).unflatten(-1, (kv_heads, -1)).transpose(1, 2)
    v = (context @ w_v).unflatten(-1, (kv_heads, -1)).transpose(1, 2)
    k, v = (y.repeat_interleave(heads // kv_heads, dim=1) for y in (k, v))
    out = attention(q, k, v, causal=causal)
    return out.transpose(1, 2).flatten(2) @ w_o  # heads side by side again
    # END SOLUTION


# %% check="multi_head"
lab.check("multi_head")


# %% [markdown] hints="multi_head"
# <details><summary>Hint 1: the idea</summary>
#
# The columns of `x @ w_q` belong to head 0 first, then to head 1, and so on. Cutting an axis in two is one thing, moving the new axis to its place is another. Which of the two does a single `reshape` to `(batch, heads, seq, dim)` do wrong?
# <details><summary>Hint 2: the steps</summary>
#
# Projection `(batch, seq, heads * dim)`, cut the last axis into `(heads, dim)`, swap the axes of `seq` and `heads`. The same for keys and values with `kv_heads`, then copy each key head for its neighbours. After attention, go back: swap, join the last two axes, multiply by `w_o`. Which of the four projections read `context`?
# <details><summary>Hint 3: nearly code</summary>
#
# `unflatten(-1, (heads, -1))` cuts, `transpose(1, 2)` swaps, `flatten(2)` joins. `repeat_interleave` on axis 1 copies neighbours, `heads // kv_heads` times; `repeat` would give the order 0, 1, 0, 1.
# </details></details></details>
# %% [markdown]
# ## Question 4. Positions as rotations (4 points, 12 minutes, ●●○)
# RoPE turns queries and keys by an angle that grows with their position. Feature $i$ of the first half forms a pair with feature $i + \texttt{dim}/2$. At position $p$, pair $i$ turns by the angle
#
# $$\theta_i = p \cdot \texttt{base}^{-2i/\texttt{dim}}, \qquad (a, b) \to (a\cos\theta_i - b\sin\theta_i,\; b\cos\theta_i + a\sin\theta_i)$$
#
# `x` is `(..., seq, dim)` with an even `dim`; `positions` is `(seq,)` and need not start at 0, since a cache holds the tokens before. The result has the shape and dtype of `x`. Angles are computed in at least `float32`: in `float16`, position 2,049 does not exist. Six lines are enough.
# %% question="rope"
def rope(x, positions, *, base=10_000.0):
    """x with every feature pair (i, i + dim/2) of the token at position p turned by p * base ** (-2i/dim)."""
    # BEGIN SOLUTION
    exact = torch.promote_types(x.dtype, torch.float32)
    exponents = torch.arange(0, x.shape[-1], 2, dtype=exact) / x.shape[-1]
    angles = positions[:, None].to(exact) * base**-exponents  # (seq, dim / 2)
    a, b = x.chunk(2, dim=-1)
    turned = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
    return torch.cat(turned, dim=-1).to(x.dtype)
    # END SOLUTION


# %% check="rope"
lab.check("rope")


# %% [markdown] hints="rope"
# <details><summary>Hint 1: the idea</summary>
#
# Each pair is the hand of a clock, and there are `dim / 2` clocks per token. The clock of pair 0 turns by one radian per position. How many angles do you need in all, and of which two things is each a product?
# <details><summary>Hint 2: the shapes</summary>
#
# Angles are `(seq, dim / 2)`: positions as a column, speeds as a row. The two halves of `x` are `(..., seq, dim / 2)` each, so sine and cosine broadcast onto them. Two results, joined along the last axis. What dtype has `positions`, and what dtype does `x` want back?
# <details><summary>Hint 3: nearly code</summary>
#
# The exponents are 0, 2, 4, … below `dim`, over `dim`; a speed is `base` to the power of minus the exponent. Cut `x` with `chunk(2, dim=-1)`, combine as in the formula, join with `cat`, and convert at the very end.
# </details></details></details>
# %% [markdown]
# ## Question 5. Greedy decoding, step by step (4 points, 12 minutes, ●●○)
# `next_logits` is a model: token ids `(1, seq)` in, logits `(1, seq, vocab)` out, where row $t$ scores the token **after** token $t$. Append the likeliest next token to `ids`, `(1, seq)`, and begin again, with the longer text. Stop after `new_tokens` of them, or as soon as you have appended the token `stop`.
#
# Return all ids, prompt included, `(1, longer)`. Call the model once per new token, on the whole text so far: there is no cache yet, and the checker keeps a list of what the model read. Six lines are enough.
# %% question="greedy"
def greedy(next_logits, ids, new_tokens, stop=None):
    """ids (1, seq) followed by up to `new_tokens` likeliest tokens, the last of them `stop` if it was chosen."""
    # BEGIN SOLUTION
    for _ in range(new_tokens):
        chosen = next_logits(ids)[:, -1].argmax(dim=-1, keepdim=True)  # (1, 1)
        ids = torch.cat((ids, chosen), dim=1)
        if chosen.item() == stop:
            break
    return ids
    # END SOLUTION


# %% check="greedy"
lab.check("greedy")


# %% [markdown] hints="greedy"
# <details><summary>Hint 1: the idea</summary>
#
# The model gives one row of logits per token of the text. All but one of these rows predict tokens that you already have. Which row predicts a new one?
# <details><summary>Hint 2: the shapes</summary>
#
# From `(1, seq, vocab)` take one row, `(1, vocab)`, and its largest place, `(1, 1)` if the axis is kept. That can be joined to `ids` along axis 1. Should the stop token itself be part of the result?
# <details><summary>Hint 3: nearly code</summary>
#
# A loop over `range(new_tokens)`: logits, the last row, `argmax` over the vocabulary with `keepdim`, `cat`. After joining, compare the chosen id with `stop` and leave the loop if they agree. Return `ids`.
# </details></details></details>
# %% [markdown]
# ## Question 6. How many matmuls, how many FLOPs? (5 points, 12 minutes, ●●○)
# Count one block of the original transformer, with every head multiplied **on its own**, for a text of `tokens`. `kind` is `"encoder"` or `"decoder"`. The decoder block has two attentions, one over its own tokens and one over `source` tokens of the encoder, both with the same `heads`. A head is `model // heads` wide; the feed-forward network is `4 * model` wide inside.
#
# Return two integers: the number of matmuls, and the FLOPs in all of them. A product of an $(a, b)$ by a $(b, c)$ matrix has $2abc$. A causal mask saves nothing here: masked scores are computed and thrown away. A slide says $10h + 1$ for the decoder block; trust your own count. Twelve lines are enough.
# %% question="count_matmuls"
def count_matmuls(kind, heads, model, tokens, source=0):
    """(matmuls, FLOPs) of one "encoder" or "decoder" block, head by head, without skipping masked pairs."""
    # BEGIN SOLUTION
    dim, hidden = model // heads, 4 * model

    def products(q_len, k_len):
        """(rows, inner, columns) of every product of one multi-head attention."""
        project = [(q_len, model, dim), (k_len, model, dim), (k_len, model, dim)]
        attend = [(q_len, dim, k_len), (q_len, k_len, dim)]
        return heads * (project + attend) + [(q_len, model, model)]

    every = products(tokens, tokens) + (products(tokens, source) if kind == "decoder" else [])
    every += [(tokens, model, hidden), (tokens, hidden, model)]
    return len(every), sum(2 * a * b * c for a, b, c in every)
    # END SOLUTION


# %% check="count_matmuls"
lab.check("count_matmuls")


# %% [markdown] hints="count_matmuls"
# <details><summary>Hint 1: the idea</summary>
#
# Write down the shapes of every product of one encoder block with a single head: there are eight. Which of them exist once per head, and which once per block? In the decoder block, which happen twice?
# <details><summary>Hint 2: the shapes</summary>
#
# Per head three projections from `model` to `dim` columns, then queries times keys, then shares times values. Once per attention: `model` by `model`. Once per block: two products of the feed-forward network. In cross-attention the queries have `tokens` rows and the keys and values `source` rows. Which of its projections read the longer side?
# <details><summary>Hint 3: nearly code</summary>
#
# Make a list of triples `(rows, inner, columns)`. A helper with two lengths returns those of one attention; call it once for an encoder block, and for a decoder block again with `source` as the second length. Add the two feed-forward triples. Then the length of the list, and the sum of twice the product of each triple.
# </details></details></details>
# %% [markdown]
# The next cell asks a counter that watches real code. It should agree with yours for any sizes you try. Then double `heads`: this is your evidence for question 8.
# %%
from refimpl.meter import Meter
from refimpl.transformer import DecoderBlock, EncoderBlock, TransformerConfig, head_by_head


def watched(kind, heads, model, tokens, source):
    """(matmuls, FLOPs) that a real block does, and the bytes of its largest tensor."""
    config = TransformerConfig(vocab=1, model=model, heads=heads, layers=1)
    block, x, z = (EncoderBlock if kind == "encoder" else DecoderBlock)(config), *torch.randn(2, 1, 1, model).unbind()
    inputs = (x.expand(1, tokens, model), z.expand(1, source, model))[: 1 if kind == "encoder" else 2]
    with Meter() as meter, head_by_head(block), torch.no_grad():
        block(*inputs)
    return len(meter.matmuls), meter.flops


for heads in (4, 8):
    for kind in ("encoder", "decoder"):
        counted, seen = count_matmuls(kind, heads, 64, 96, 80), watched(kind, heads, 64, 96, 80)
        print(f"{kind}, {heads} heads: you counted {counted}, the meter saw {seen}")
    print(f"scores of one layer, {heads} heads of 96 tokens: {heads * 96 * 96:,} numbers")


# %% [markdown]
# ## Question 7. Find the bug (3 points, 10 minutes, ●●●)
# A file holds the rows of $W^Q$ and $W^K$ of SmolLM2 in an order of its own. Within each head of 64 rows, row $i$ and its partner $i + 32$ stand **side by side**: 0, 32, 1, 33, 2, 34, … Your `rope` expects them half a head apart. The cell builds the model as a loader gets it that ignores this.
# %%
from refimpl.models import corpus, load_smollm2, perplexity, replace_attention

lm = load_smollm2()
ids = lm.ids(corpus("prose"), 1024)
half = lm.config.dim // 2
side_by_side = torch.tensor([row for i in range(half) for row in (i, i + half)])
print("perplexity as it should be", round(perplexity(lm.model, ids), 1), lm.mark)
for block in lm.model.layers:
    for proj in (block.self_attn.q_proj, block.self_attn.k_proj):
        per_head = proj.weight.view(-1, lm.config.dim, lm.config.model)
        proj.weight.data = per_head[:, side_by_side].reshape(proj.weight.shape)
print("perplexity of the file's order", round(perplexity(lm.model, ids), 1))


# %% [markdown]
# Write the missing line of the loader. `w` is `(heads * dim, model)`, in the order of the file; `dim` is even and not always 64. Return the same rows in the order that `rope` expects, head by head. One line is enough; no index list is needed.
# %% question="unpermute"
def unpermute(w, heads):
    """The rows of w (heads * dim, model) with partners half a head apart, from an order where they stand side by side."""
    # BEGIN SOLUTION
    return w.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    # END SOLUTION


# %% check="unpermute"
lab.check("unpermute")


# %% [markdown] hints="unpermute"
# <details><summary>Hint 1: the idea</summary>
#
# Think of one head with six rows, 0 3 1 4 2 5. Write them as a table with two columns, row by row. In which direction must you read the table to get 0 1 2 3 4 5?
# <details><summary>Hint 2: the shapes</summary>
#
# Cut the first axis into `(heads, dim / 2, 2)`. Two of these three axes change places; the first one must stay, because no row leaves its head. Then join the three again. The columns of `w` are never touched.
# <details><summary>Hint 3: nearly code</summary>
#
# `unflatten` on axis 0 with `(heads, -1, 2)`, a `transpose` of axes 1 and 2, and a `flatten` from axis 0 to axis 2. The size written as -1 is `dim / 2`. With -1 and 2 exchanged you get the file's order again.
# </details></details></details>
# %% [markdown]
# ## On the real model (6 minutes, no points)
# Your `unpermute` repairs the broken model, and your `attention` replaces its fused kernel in all 30 layers. **Predict**: will the perplexity agree with the good loader's to one digit, to three, or exactly?
# %%
import time

with torch.no_grad():
    for block in lm.model.layers:
        attn = block.self_attn
        attn.q_proj.weight.copy_(unpermute(attn.q_proj.weight, lm.config.heads))
        attn.k_proj.weight.copy_(unpermute(attn.k_proj.weight, lm.config.kv_heads))


def mine(q, k, v, causal):
    shared = q.shape[1] // k.shape[1]
    return attention(q, k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1), causal=causal)


start = time.perf_counter()
fused = perplexity(lm.model, ids)
middle = time.perf_counter()
with replace_attention(lm.model, mine):
    own = perplexity(lm.model, ids)
    slower = (time.perf_counter() - middle) / (middle - start)
    with Meter() as meter, torch.no_grad():
        lm.model.residual(ids[:, :512])
    reply = greedy(lm.model, lm.ids("The capital of France is"), 3)
print(f"perplexity {own:.4f} with your attention, {fused:.4f} with PyTorch's; {slower:.2f} times the time")
print(f"largest tensor at 512 tokens {meter.largest_bytes / 2**20:.1f} MiB, shape {meter.largest_shape}")
print(lm.tokenizer.decode(reply[0].tolist()))
# %% [markdown] written="why"
# ## Question 8. Ben halves the heads (4 points, 10 minutes, ●●○, written)
# *Ben: "A block with $h$ heads needs $5h + 3$ matmuls. With 4 heads in place of 8, at the same model width, that is 23 against 43. So attention gets almost twice as cheap."*
#
# Is he right about the work? Does **anything** become cheaper, and in which setting would he be right? Use a number from your run of the counter. Write 80–120 words. One mark each: the claim, the mechanism, a number from your run, the limit.
#
# ### BEGIN SOLUTION
# No, the work stays the same. A head of a model half as many heads wide is twice as wide, so each of the fewer products does twice the FLOPs: heads times width is always the model width. In my run (width 64, 96 tokens) 4 and 8 heads give 23 and 43 matmuls and exactly the same FLOPs, 11,796,480. What does shrink is the score matrix, one of 96 by 96 per head: 36,864 numbers instead of 73,728. Ben would be right if the width of a head were fixed, so that fewer heads mean a narrower attention, or where the time goes into launching many small products and not into arithmetic.
# ### END SOLUTION
# %% [markdown]
# ## Your ledger row
# One row per lab, on the same model throughout. The last field is the sentence you should be able to defend.
# %%
lab.record(
    what="naive attention, all pairs, 512 tokens",
    memory=f"largest tensor {meter.largest_bytes / 2**20:.1f} MiB, grows with N²",
    flops=f"{meter.flops / 1e9:.0f} GFLOP",
    bytes="every score written and read",
    time=f"x{slower:.2f} of the fused kernel",
    quality=f"perplexity {own:.1f}",
    sentence="bought every pair of tokens compared directly, paid four times the scores for twice the text, not for long texts",
)
lab.status()
# %% [markdown]
# How many minutes did you need, and which question was unfair? Write it down while you remember: the table above is corrected from such notes.
