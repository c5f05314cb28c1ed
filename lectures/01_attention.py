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
# # 01 · Attention
# *Who looks at whom, and how many matmuls is that?*
#
# **You need** matrix products, softmax, a first look at PyTorch.
#
# **You will be able to** write attention with heads, masks and positions; count the matmuls and FLOPs of a transformer block exactly; find a bug that crashes nothing. Lab 01 checks all three.
#
# **Time** 50 min, 60 s of CPU.
#
# <details><summary>From memory, before you start</summary>
#
# 1. How many multiplications and additions are in a product of an $(a, b)$ by a $(b, c)$ matrix?
# 2. What does softmax do to a row if you add the same number to all its entries?
#
# *Answers: about $2abc$ together; nothing.*
# </details>
#
# ## 1. A model that loads, answers, and is broken
# A colleague wrote a loader for SmolLM2, a language model of 135 million weights. It runs, all shapes fit, and asked for the capital of France it says Paris. But one line of the loader is missing.
#
# **Predict before you run.** The *perplexity* of a model is the number of equally likely next tokens it hesitates between: the lower, the better. A good loader gives 21 on a 1981 message to Congress. How much does the forgotten line cost? Write a number down. A wrong one costs nothing and teaches more.
# %%
import inspect

import torch

from course.viz import attention_maps, decoding_steps, growth, lookup, matmul_bars, show
from refimpl import attention as attn
from refimpl import cost_model, transformer
from refimpl import language_modelling as lang
from refimpl.meter import Meter
from refimpl.models import capture_qkv, corpus, generate, load_smollm2, perplexity

good, broken = load_smollm2(), load_smollm2()
for block in broken.model.layers:  # what a loader without that line leaves behind; section 8 explains it
    for proj in (block.self_attn.q_proj, block.self_attn.k_proj):
        w = proj.weight.unflatten(0, (-1, 2, good.config.dim // 2))
        proj.weight.data = w.transpose(1, 2).flatten(0, 2).contiguous()
my_guess = 25
# %% tags=["hide-output"]
text = corpus("prose")
ids = good.ids(text, 1024)
ppl = {name: perplexity(lm.model, ids) for name, lm in {"good": good, "broken": broken}.items()}
for name, lm in {"good": good, "broken": broken}.items():
    short = generate(lm.model, lm.ids("The capital of France is"), 2)[0, 5:].tolist()
    long = generate(lm.model, ids[:, :60], 24)[0, 60:].tolist()
    print(f"{name}: France{lm.tokenizer.decode(short)!r}, perplexity {ppl[name]:.1f}\n  {lm.tokenizer.decode(long)!r}")
weights = sum(w.numel() for w in good.model.parameters())
print(f"your guess {my_guess}, measured {ppl['broken']:.1f}; {weights:,} weights {good.mark}")
# %% [markdown]
# Ten times worse, and no error anywhere. Short questions still work; on a real text the broken model ends the sentence and falls silent. No exception, no NaN, no wrong shape: only a number that is too high, if somebody looks at it. To find this bug you need to know who looks at whom.
#
# ## 2. From text to a loss, in three cells
# A model reads numbers. Cut text into **characters** and nothing is unknown, but sequences are long. Cut it into **words** and a new word is lost. **Subwords** keep frequent words whole and build the rest from pieces. Byte-pair encoding learns the pieces: join the most frequent neighbours, again and again.
# %%
sentence = "This is tokenizing"
seen_words = {"This", "is", "a", "token", "and", "another"}
merges = lang.learn_merges("This is a token and this is organizing the token while realizing This is a sizing " * 3, 16)
print("characters  ", len(lang.character_tokens(sentence)), lang.character_tokens(sentence)[:8], "...")
print("words       ", lang.word_tokens(sentence, seen_words))
print("our subwords", lang.subword_tokens(sentence, merges))
print("SmolLM2     ", [good.tokenizer.decode([i]) for i in good.ids(sentence)[0].tolist()])
read = len(good.tokenizer.decode(ids[0].tolist()))
print(f"the message: {read / 1024:.1f} characters per token, vocabulary {good.config.vocab:,}")
# %% [markdown]
# The word list lost "tokenizing"; the subwords, learned from other words, did not. It falls into "token" and "izing", as the lecture slide has it. A token of SmolLM2 stands for five or six characters of prose, so the text is that much shorter; remember it when section 6 squares the length. Then training is one game: predict the next token. The loss is the mean of $-\log p(\text{next})$, and perplexity is its exponential. After that, *instruction tuning* plays the same game, but counts only the **response**.
#
# **Predict.** Is the loss on the response higher or lower than on everything?
# %%
asked = "Instruction: Fill out the form.\nInput: Name: ___ Age: ___ Sex: ___\nOutput:"
form = good.ids(asked + " Name: John Doe Age: 25 Sex: Male")
is_response = (torch.arange(form.shape[1]) >= good.ids(asked).shape[1])[None]
my_guess = "higher"
# %% tags=["hide-output"]
logits = good.model(form)
everything = lang.next_token_loss(logits, form).item()
response = lang.response_only_loss(logits, form, is_response).item()
by_hand = torch.stack([-logits[0, t].log_softmax(-1)[form[0, t + 1]] for t in range(form.shape[1] - 1)])
print(f"all {form.shape[1] - 1} targets: loss {everything:.3f}, by hand {by_hand.mean():.3f}")
print(f"your guess {my_guess}; {is_response.sum()} response tokens only: {response:.3f}")
# %% [markdown]
# Lower here: the input announces what the response must contain. Instructions are surprising, and nobody wants the model to learn to write them. The mask shifts by one, because the logits at position $t$ are judged by token $t+1$.
#
# Third, a *reward model* learns from pairs: no text is right or wrong, but one is better than another. A person prefers text $w$ to text $l$, and Bradley and Terry's loss is $-\log\sigma(r_w - r_l)$. Only the difference counts, as the next cell shows.
# %%
for win, lose in [(0.0, 0.0), (2.0, 0.0), (102.0, 100.0), (0.0, 2.0)]:
    loss = lang.reward_loss(torch.tensor([win]), torch.tensor([lose])).item()
    print(f"reward of the winner {win:5.1f}, of the loser {lose:5.1f}: loss {loss:.3f}")
# %% [markdown]
# ## 3. A lookup table that answers in shares
# A lookup table returns the value whose key equals the query. Attention is the soft version: **every** value answers, with a share that depends on how well its key fits. The shares are a softmax of the scores, so they are positive and add up to 1.
#
# On paper: one query, three keys, scores $\ln 6$, $\ln 3$ and $\ln 1$. The values are 10, 20 and 100.
#
# **Predict.** A hard lookup returns 10, the value of the best key. What does the soft one return?
# %%
scores, values = torch.tensor([6.0, 3.0, 1.0]).log(), torch.tensor([10.0, 20.0, 100.0])
my_guess = 15.0
# %% tags=["hide-output"]
shares = scores.softmax(-1)
print(f"shares {shares.tolist()}, your guess {my_guess}, answer {(shares * values).sum():.0f}")
print(f"scores x 10: {((10 * scores).softmax(-1) * values).sum():.3f}; all equal: {values.mean():.2f}")


# %% [markdown]
# 6 + 6 + 10 = 22: the key that fits worst still speaks, with a tenth of the votes. Ten times larger scores make the table hard (10.01), equal scores make it a mean (43.33). The comparison with a table breaks here: a real table says "not found", and softmax always returns something, even when no key fits at all. Section 7 shows how a trained model helps itself.
#
# For many queries at once, queries, keys and values are the rows of three matrices, and one line says it all:
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d}}\right)V$$
#
# A score sums $d$ products, so it spreads like $\sqrt d$; the division keeps the table soft. Here are real queries and keys, from three of SmolLM2's **heads**: a head is one such table, and each layer has nine. The last word asks; each bar is the share of one key.
# %%
def weights_of(lm, ids):
    """Attention weights of a causal model on `ids`, (heads, q_len, k_len) per layer; and its q, k, v."""
    with capture_qkv(lm.model) as seen, torch.no_grad():
        lm.model.residual(ids)
    S = [q @ attn.repeat_kv(k, q.shape[1]).mT * q.shape[-1] ** -0.5 for q, k, _ in seen.values()]
    return [s.masked_fill(~attn.causal_mask(*s.shape[2:]), -torch.inf).softmax(-1)[0] for s in S], seen


line = good.ids("The zebra ate a green apple. The monkey ate a green")
P, seen = weights_of(good, line)
rows = {f"layer {i}, head {h}": P[i][h, -1] for i, h in [(16, 0), (18, 6), (18, 8)]}
fig = lookup([good.tokenizer.decode([i]).strip() for i in line[0].tolist()], rows, mark=good.mark,
    claim="Three heads ask the same sentence three different questions",
    sub="SmolLM2: share of each key for one query, the last token (red). Blue: the largest share.")  # fmt: skip
show(fig, alt="Three bar charts over the tokens of a sentence, one per head. Layer 16, head 0 gives {:.2f} to the token before the "
     "query; layer 18, head 6 gives {:.2f} to 'apple', which followed 'green' last time; layer 18, head 8 gives {:.2f} to the first."
     .format(*(r.max().item() for r in rows.values())))  # fmt: skip
# %% [markdown]
# One head reads the word before. One finds what followed "green" last time and proposes *apple*: an **induction head**, copying from the past. One stares at the first word, which explains nothing. Keep that one in mind. Nobody programmed these habits: they are what 30 layers of 9 tables found useful while predicting the next token.
#
# ## 4. The code, in three bites
# `refimpl` departs from the formula in two ways. A **mask** sets forbidden scores to $-\infty$, so their share is 0; a *causal* mask forbids every later key. And a query that may look at no key gets 0, where softmax alone would give NaN.
# %%
print(inspect.getsource(attn.naive_attention).split('"""')[2])
print(inspect.getsource(attn.causal_mask).split('"""')[2])
q, k, v = (x.double() for x in seen[18])
own = attn.naive_attention(q, k, v, causal=True)
S = q @ attn.repeat_kv(k, q.shape[1]).mT / q.shape[-1] ** 0.5  # the formula, letter by letter
hidden = ~attn.causal_mask(*S.shape[2:])
by_hand = S.masked_fill(hidden, -torch.inf).softmax(-1) @ attn.repeat_kv(v, q.shape[1])
fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
off = [f"{(own - other).abs().max():.1e}" for other in (by_hand, fused)]
print(f"in fp64, difference from the formula {off[0]}, from PyTorch's kernel {off[1]}")
# %% [markdown]
# What fails if we delete `masked_fill(~seen, 0.0)`? Nothing in training on full texts; elsewhere every padded row. One more trap: with fewer queries than keys, `causal_mask` puts the last query at the last key, as decoding needs. PyTorch's `is_causal` puts the first query at the first key. Equal lengths hide the difference.
#
# **Heads.** One table per layer is little. Give each of $h$ heads its own projections, $q_i = xW^Q_i$ and so on, let each look something up, put the results side by side and mix them with $W^O$. Real code multiplies by all $W^Q_i$ at once; the formula multiplies one by one. `refimpl` has both.
# %%
print(inspect.getsource(transformer.MultiHeadAttention._heads_in_turn))
config = transformer.TransformerConfig(vocab=64, model=64, heads=8, layers=2)
torch.manual_seed(0)
layer, x = transformer.MultiHeadAttention(config).double(), torch.randn(1, 6, 64).double()
at_once = layer(x)
with transformer.head_by_head(layer):
    print(f"one by one against all at once: {(layer(x) - at_once).abs().max():.1e}")
# %% [markdown]
# **Positions.** Look at the formula again. Nowhere does it say which key comes first.
#
# **Predict.** We reverse the order of six tokens and run multi-head attention without a mask. How many of the six outputs change, if we follow each token to its new place? Then we add **positions**: sines and cosines of different speeds, one clock per pair of features.
# %%
my_guess = {"without positions": 6, "with positions": 6}
pe = attn.sinusoidal_positions(6, 64).double()


# %% tags=["hide-output"]
def moved(before, after):
    return int(((before - after.flip(1)).abs().amax(-1) > 1e-6).sum())


without, with_pe = moved(layer(x), layer(x.flip(1))), moved(layer(x + pe), layer(x.flip(1) + pe))
print(f"your guess {my_guess}; measured: without positions {without}, with positions {with_pe}")
# %% [markdown]
# None, then all. Without positions "dog bites man" and "man bites dog" are one text. SmolLM2 uses a later scheme, **RoPE**: it adds nothing, but rotates each pair of features of $q$ and $k$ by an angle proportional to the position. Then $q \cdot k$ depends on the distance of the two tokens only.
#
# **Blocks.** Each sublayer, attention or **feed-forward** (two matrices with a ReLU between, for each token alone), sits in $\mathrm{LayerNorm}(x + \mathrm{Sublayer}(x))$. SmolLM2 departs from this, as models have since GPT-2: it normalises *before* the sublayer. A decoder block has a third sublayer, **cross-attention**: its queries come from the decoder, its keys and values from the encoder's output $z$.
#
# Three shapes follow: encoder-only (BERT: classify, compare), decoder-only (GPT: write on), encoder-decoder (T5: translate). To see who looks at whom, we change the last of six input tokens and count the outputs that move.
# %%
print(inspect.getsource(transformer.add_and_norm).split('"""')[2])
print(inspect.getsource(transformer.DecoderBlock.forward).split('"""')[2])
torch.manual_seed(0)
models = {
    "encoder-only": transformer.EncoderOnly(config, classes=3).encode,
    "decoder-only": transformer.DecoderOnly(config),
}
translator, a = transformer.EncoderDecoder(config), torch.tensor([[7, 8, 9, 10, 11, 12]])
models["encoder-decoder"] = lambda source: translator(source, target=a)
b = torch.tensor([[7, 8, 9, 10, 11, 60]])
for name, model in models.items():
    print(f"{name:16} {int(((model(a) - model(b)).abs().amax(-1) > 1e-6).sum())} of 6 outputs move")
# %% [markdown]
# An encoder shows every token to every other. In a decoder only the last output moves, since no earlier query may look ahead. In an encoder-decoder all target positions see all of the source. Hence their uses: to classify, a model may see the whole text at once; to write, no token may see its own future, or training would be copying.
#
# **Greedy decoding** uses the last output alone: take the likeliest token, append it, read everything again. The slides expect *AI stands for → Artificial Intelligence*. SmolLM2 reads that as the start of a title, as the first line printed shows, and has to be told that it is an abbreviation.
# %%
prompt = good.ids("The abbreviation AI stands for")
steps = list(transformer.greedy_decoding(good.model, prompt, new_tokens=4))


def word(token):
    return good.tokenizer.decode([int(token)]).replace("\n", "⏎").strip() or "␣"


print(good.tokenizer.decode(generate(good.model, good.ids("AI stands for"), 8)[0].tolist()))
best = [[(word(i), s.probabilities[i].item()) for i in s.probabilities.topk(4).indices] for s in steps]
print(good.tokenizer.decode(steps[-1].ids[0].tolist()), "| tokens read in all:", sum(s.ids.shape[1] - 1 for s in steps))
shown = [(word(s.ids[0, -2]), candidates) for s, candidates in zip(steps, best)]
fig = decoding_steps(shown, mark=good.mark, claim="Greedy decoding: read everything, keep one token, start again",
    sub="SmolLM2 after 'The abbreviation AI stands for': the four likeliest tokens of each step.")  # fmt: skip
show(fig, alt="Four panels, one per decoding step, each with bars for the four likeliest tokens. The chosen ones: "
     + ", ".join(f"{c[0][0]} {c[0][1]:.2f}" for _, c in shown) + ". Each step rereads all tokens before it.")  # fmt: skip
# %% [markdown]
# Four new tokens cost 26 reads, and the tenth would read all before it again. Unit 07 repairs that with a cache.
#
# > **Rule.** A query sees every key its mask allows, weighs it by $q \cdot k/\sqrt d$, and knows order only if positions say so.
#
# ## 5. How many matmuls is that?
# A slide counts for $h$ heads. Per encoder block: $3h$ projections, $2h$ in attention, 1 after the concatenation, 2 in the feed-forward network. Per decoder block it says "10k for the attention mechanisms, 1 for feed forward network", where its $k$ is our $h$.
#
# **Predict.** With 8 heads the slide gives 43 for the encoder block and 81 for the decoder block. What will a counter that watches every matmul say?
# %%
my_guess = {"encoder": 43, "decoder": 81}
heads, z = [1, 2, 4, 8], torch.randn(1, 5, 64)


def count(block, *inputs):
    with Meter() as meter, transformer.head_by_head(block), torch.no_grad():
        block(*inputs)
    return len(meter.matmuls), meter.flops


# %% tags=["hide-output"]
counted = {"encoder": [], "decoder": []}
for h in heads:
    sizes = transformer.TransformerConfig(vocab=8, model=64, heads=h, layers=1)
    counted["encoder"].append(count(transformer.EncoderBlock(sizes), x.float())[0])
    counted["decoder"].append(count(transformer.DecoderBlock(sizes), x.float(), z)[0])
rows = {f"{kind}, h = 8": cost_model.block_matmuls(8, decoder=kind == "decoder") for kind in counted}
assert [found[-1] for found in counted.values()] == [sum(row.values()) for row in rows.values()]
for kind, seen_counts in counted.items():
    slope = (seen_counts[-1] - seen_counts[0]) // 7
    print(f"{kind}: {dict(zip(heads, seen_counts))} = {slope}h + {seen_counts[0] - slope}; your guess {my_guess[kind]}")
fig = matmul_bars(rows, printed={"decoder, h = 8": 10 * 8 + 1}, claim="The slide loses three matmuls of every decoder block",
    sub="Matmuls of one block with 8 heads, each head multiplied on its own. Red: the slide's total.")  # fmt: skip
show(fig, alt=f"Two stacked bars. Encoder block: 24 projections, 16 in attention, 1 output, 2 feed-forward, {counted['encoder'][-1]} in all. "
     f"Decoder block: 48, 32, 2 and 2, {counted['decoder'][-1]} in all; the slide's total of 81 is 3 short.")  # fmt: skip
# %% [markdown]
# The encoder is right: $5h + 3$. The decoder block needs $10h + 4$. The slide drops the output projection of *both* attentions and one matmul of the feed-forward network, which its own encoder count has. No single $h$ shows which term is wrong; the line through several does.
#
# > **Rule.** Encoder block $3h + 2h + 1 + 2$ matmuls, decoder block $10h + 2 + 2$, one head at a time.
#
# But a count of matmuls is no cost. Multiply all heads at once and the encoder block needs 8, whatever $h$ is, for the same work. The count is the number of pieces. For the work itself, count **FLOPs**: multiplications and additions.
#
# ## 6. The wall, predicted, then measured
# With $N$ tokens of width $d$ (now the model's, not a head's) and a feed-forward network of width $4d$, projections, output and feed-forward take $24Nd^2$ FLOPs. The two products with $N^2$ pairs take $4N^2d$. The score matrix holds $hN^2$ numbers.
#
# **Predict.** "Attention is quadratic, so twice the text costs four times as much." For $d = 64$, by what factor do the FLOPs of a block really rise from 512 to 1,024 tokens?
# %%
my_guess = 4.0
sizes, d, h = [256, 512, 1024, 2048], 64, 8
block = transformer.EncoderBlock(config)
# %% tags=["hide-output"]
flops, largest, message = [], [], []
for N in sizes:
    with Meter() as meter, torch.no_grad():
        block(torch.randn(1, N, d))
    assert meter.flops == 24 * N * d**2 + 4 * N**2 * d and meter.largest_bytes == 4 * h * N**2  # exactly
    flops.append(meter.flops)
    largest.append(meter.largest_bytes / 2**20)
    message.append(4 * N * d / 2**20)
print(f"your guess {my_guess}; N 512 to 1,024: FLOPs x {flops[2] / flops[1]:.2f}, scores x {largest[2] / largest[1]}")
fig = growth(sizes, {"score matrix": largest, "block's message": message}, label="bytes in float32", unit="MiB",
    claim="Twice the text, four times the score matrix, exactly",
    sub="One encoder block, 8 heads, width 64. Red: largest tensor. Blue: what goes to the next block.")  # fmt: skip
show(fig, alt=f"Log-log plot of MiB against tokens N. The score matrix rises with slope 2 from {largest[0]:.0f} to {largest[-1]:.0f} MiB; "
     f"the message to the next block with slope 1 to {message[-1]:.1f} MiB. Doubling N quadruples the first.")  # fmt: skip
# %% [markdown]
# The score matrix quadruples to the byte. The FLOPs rise 3.14 times, and the cell asserts both formulas exactly: at 512 tokens, 24 · 64 parts of the work are linear and 4 · 512 are not. What one block, or one GPU, sends to the next grows only with $N$. So where is the wall? The two kinds of work are equal at $24Nd^2 = 4N^2d$, that is at $N = 6d$.
#
# This is the hole in the story that attention is the expensive part. SmolLM2, whose layer has other matrices, gets there at 3,072 tokens. At 1,024 tokens a quarter of its FLOPs are pairs. The best sparse pattern in the world could save no more than that quarter.
# %%
c = good.config
per_token = 2 * c.model * (2 * c.heads * c.dim + 2 * c.kv_heads * c.dim + 3 * c.ffn)  # projections, output, SwiGLU
per_pair = 4 * c.heads * c.dim
share = per_pair * 1024 / (per_pair * 1024 + per_token)
print(f"SmolLM2: equal at N = {per_token / per_pair:,.0f}; at 1,024 tokens, pairs take {share:.0%} of a layer's FLOPs")
shape = cost_model.ModelShape.of(c)
for N in (1024, 8192):
    scores_mb = cost_model.score_elements(shape, batch=1, tokens=N) * 2 / 1e6
    sent = cost_model.message_bytes(shape, batch=1, tokens=N)["pipeline"] / 1e6
    print(f"N = {N:,}: scores of one layer {scores_mb:,.0f} MB in bfloat16, message to the next stage {sent:.1f} MB")
# %% [markdown]
# > **Rule.** FLOPs feel the square beyond $N = 6d$ (plain block, no causal skipping); memory feels it beyond $N = 4d/h$, long before.
#
# ## 7. Who looks at whom
# We watch all 270 heads read 768 tokens, and take the queries from 256 on. A query that spread its attention evenly would give token 0 about 0.2 %.
#
# **Predict.** What share do the nine heads of layer 20 give to the very first token, on average?
# %%
my_guess = 0.02
habits = {"local: the token before": (16, 0), "induction: what came next": (18, 6), "sink: the first token": (18, 8)}
twice = torch.cat([ids[:, :40], ids[:, :40]], dim=1)  # 40 tokens, then the same again
# %% tags=["hide-output"]
P, seen = weights_of(good, ids[:, :768])
sink = torch.stack([p[:, 256:, 0].mean(-1) for p in P])  # (layers, heads)
says = torch.stack([v[0].norm(dim=-1) for _, _, v in seen.values()])  # (layers, kv heads, keys): length of v
quiet = (says[12:29, :, 0] / says[12:29].median(-1).values).mean()
early, late = sink[:12].mean(1), sink[12:].mean(1)
M, _ = weights_of(good, twice)
maps = {f"{title}\nlayer {i}, head {h}": M[i][h] for title, (i, h) in habits.items()}
fig = attention_maps(maps, sink=sink, mark=good.mark, claim="From layer 12 on, the first token is the most-read token",
    sub="SmolLM2. Maps: 40 tokens read twice, dark = heavy. Strip: 768 tokens, queries from 256 on.")  # fmt: skip
show(fig, alt=f"Three attention maps of 80 tokens (a diagonal, a shifted diagonal, a first column) over a bar chart of the weight on "
     f"token 0 by layer: at most {early.max():.2f} up to layer 11, then {late.min():.2f} to {late.max():.2f}.")  # fmt: skip
print(f"your guess {my_guess}; layer 20: {sink[20].mean():.2f}; layers 0-11 at most {early.max():.2f}")
print(f"{(sink > 0.3).float().mean():.0%} of heads above 0.3; its value is {quiet:.2f} times as long as the median one")
# %% [markdown]
# Half of what layer 20 reads is the first token. And that token **says almost nothing**: its value vector is about a fifth as long as the others. That is how a softmax, which must spend its whole mass, says "not found": it puts the mass where the value is small. The first token serves because every query can see it. It is called the **attention sink**; unit 03 computes faster thanks to it, unit 07 must not evict it.
#
# One warning: a map shows where a layer looks, not what the model would say without it.
#
# > **Rule.** A heavy weight is no message. Multiply it by the length of the value before you call a token important.
#
# ## 8. Find the bug
# RoPE rotates the feature pairs $(i, i + 32)$ of each head. The file stores the rows of $W^Q$ and $W^K$ for pairs $(2i, 2i+1)$. The broken loader did not reorder them. Now fast clocks turn slow features.
#
# **Predict.** A unit test feeds **one** token to both models and compares all 49,152 logits. What is the largest difference?
# %%
my_guess = 1.0
# %% tags=["hide-output"]
with torch.no_grad():
    for n in (1, 2, 4, 16):
        off = (good.model(ids[:, :n], last=1) - broken.model(ids[:, :n], last=1)).abs().max()
        print(f"{n:2} tokens: largest difference of the last logits {off:.2f} (your guess for 1: {my_guess})")
B, _ = weights_of(broken, twice)
names = {"good": M, "broken": B}
fig = attention_maps({f"{w}: perplexity {ppl[w]:.1f}\nlayer 18, head 6": m[18][6] for w, m in names.items()}, mark=good.mark,
    claim="Rows in the wrong order: nothing crashes, the head is blind",
    sub="SmolLM2, 40 tokens read twice: the induction head with reordered rows and with rows as stored.")  # fmt: skip
stripe = {w: m[18][6][range(40, 79), range(1, 40)].mean().item() for w, m in names.items()}
print(f"mean weight on 'what came next': good {stripe['good']:.2f}, broken {stripe['broken']:.2f}")
show(fig, alt=f"Two attention maps of one head. Good loader: a clear shifted diagonal, weight {stripe['good']:.2f}, perplexity {ppl['good']:.1f}. "
     f"Broken loader: the diagonal is gone, weight {stripe['broken']:.2f}, perplexity {ppl['broken']:.1f}.")  # fmt: skip
# %% [markdown]
# Exactly zero. A token that looks at itself is at distance 0, where query and key turn by the same angle and the order of rows cancels. The error lives in distances. So the one-token test is blind to everything this unit is about. From two tokens on the logits are wrong by whole units. The induction head shows what is lost: its stripe is gone, and what is left is the sink.
#
# > **Rule.** Test attention where order matters: several tokens, unequal lengths, a repeated passage.
#
# ## 9. Since the paper
# The paper is *Attention Is All You Need* ([arXiv:1706.03762](https://arxiv.org/abs/1706.03762), 2017). Since then: norms moved before the sublayers ([2002.04745](https://arxiv.org/abs/2002.04745), 2020), RoPE replaced added positions ([2104.09864](https://arxiv.org/abs/2104.09864), 2021), several query heads share one key head ([2305.13245](https://arxiv.org/abs/2305.13245), 2023).
#
# *Read next*: [The Annotated Transformer](https://nlp.seas.harvard.edu/annotated-transformer/), for the paper line by line. Olsson et al., [2209.11895](https://arxiv.org/abs/2209.11895), on how induction heads appear in training. Xiao et al., [2309.17453](https://arxiv.org/abs/2309.17453), for what happens when a cache throws the sink away.
#
# ## 10. Who looks at whom, and how many matmuls is that?
# With the numbers of this run:
# %%
from IPython.display import Markdown

Markdown(f"""**We asked** who looks at whom, and how many matmuls that is. **We measured** that some heads read the token before,
some what came next last time, and {(sink > 0.3).float().mean():.0%} of all heads put more than 0.3 of their weight on the first token,
at most {early.max():.2f} per layer up to layer 11 and {late.min():.2f} to {late.max():.2f} after. An encoder block with 8 heads is
{counted["encoder"][-1]} matmuls, a decoder block {counted["decoder"][-1]}, not {10 * 8 + 1}. **Rule**: $24Nd^2 + 4N^2d$ FLOPs per block and
$hN^2$ scores (full attention, feed-forward width $4d$). **Bought** every pair of tokens, compared directly. **Paid** four times the
scores for twice the text. **Not for** texts below $N = 6d$: there the wall is elsewhere. **Next**: how long does that take, before you run it?""")
# %% [markdown]
# <details><summary>Three questions for tomorrow</summary>
#
# 1. Why does a transformer without positions give "dog bites man" and "man bites dog" the same token outputs? **Scores compare contents only; reordering the keys reorders the sum.**
# 2. A block has $d = 1{,}024$ and 16 heads. At which length do the $N^2$ products cost as much as all the rest? **At $6d = 6{,}144$ tokens; the number of heads does not matter.**
# 3. A test of your RoPE compares the outputs for a text of one token. What can it not see? **Everything that depends on distance.**
# </details>
#
# Now lab 01, where you write all of this; then unit 02, where FLOPs become seconds.
