"""Plausible wrong answers to lab 01, each with the sentence a student who made it should read."""

import torch

from autograder import mistake

# ------------------------------------------------------------------------------------------------ soft_lookup


def mix(scores, V):
    shares = torch.softmax(scores, dim=-1)
    return shares, shares @ V


@mistake(
    "soft_lookup",
    says="Your shares are too unequal: the scores were not divided. A dot product adds up `dim` terms, so it "
    "grows with the width. See the end of the question's first paragraph.",
)
def scores_not_divided(q, K, V):
    return mix(K @ q, V)


@mistake(
    "soft_lookup",
    says="Your shares are too equal: you divided by the width itself. Random dot products spread like its root.",
)
def divided_by_the_width(q, K, V):
    return mix(K @ q / q.shape[-1], V)


@mistake(
    "soft_lookup",
    says="You divided by the root of the number of keys. A longer table would then be softer; what should be "
    "cancelled is the number of terms in one dot product.",
)
def divided_by_the_number_of_keys(q, K, V):
    return mix(K @ q / K.shape[0] ** 0.5, V)


@mistake(
    "soft_lookup",
    says="You divided by the root of the width of the values. That is right where they happen to be as wide as "
    "the keys.",
)
def divided_by_the_width_of_values(q, K, V):
    return mix(K @ q / V.shape[-1] ** 0.5, V)


@mistake(
    "soft_lookup",
    says="One key takes all: this is the hard table. Right only where a single key is far ahead (case 'scores in "
    "the hundreds'). The soft one gives every key a say.",
)
def winner_takes_all(q, K, V):
    shares = torch.zeros(K.shape[0], dtype=V.dtype)
    shares[(K @ q).argmax()] = 1.0
    return shares, shares @ V


@mistake(
    "soft_lookup",
    says="Your shares do not add up to 1: each key was judged alone, by a sigmoid. A share depends on the other keys.",
)
def sigmoid_per_key(q, K, V):
    shares = torch.sigmoid(K @ q / q.shape[-1] ** 0.5)
    return shares, shares @ V


@mistake(
    "soft_lookup",
    says="You divided the scores by their sum, without exponentials. Negative scores then give negative shares.",
)
def scores_over_their_sum(q, K, V):
    scores = K @ q / q.shape[-1] ** 0.5
    return scores / scores.sum(), (scores / scores.sum()) @ V


@mistake(
    "soft_lookup",
    says="Ordinary scores come out right; in the hundreds `exp` is inf and your shares are NaN. torch's softmax "
    "guards against it, unit 03 shows how.",
)
def textbook_softmax(q, K, V):
    e = (K @ q / q.shape[-1] ** 0.5).exp()
    return e / e.sum(), (e / e.sum()) @ V


# -------------------------------------------------------------------------------------------------- attention


def scores_of(q, k):
    return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5


def both(s, causal, mask, shift=None):
    q_len, k_len = s.shape[-2:]
    allowed = torch.ones_like(s, dtype=torch.bool)
    if causal:
        allowed = allowed.tril(k_len - q_len if shift is None else shift)
    return allowed if mask is None else allowed & mask


def attend(s, allowed, v):
    return torch.softmax(s.masked_fill(~allowed, -torch.inf), dim=-1).masked_fill(~allowed, 0.0) @ v


@mistake(
    "attention",
    says="The scale is missing: your scores are larger than ours by the root of `dim`, and the best key gets too much.",
)
def scale_forgotten(q, k, v, *, causal=False, mask=None):
    s = q @ k.transpose(-2, -1)
    return attend(s, both(s, causal, mask), v)


@mistake(
    "attention",
    says="Right while there are as many queries as keys. Otherwise your triangle starts in the first corner: you "
    "placed the first query at the first key. Read the example with 2 queries and 5 keys again.",
)
def aligned_at_the_first_key(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return attend(s, both(s, causal, mask, shift=0), v)


@mistake(
    "attention",
    says="With `causal=True` your queries do not see their own position. A token may look at itself; the first "
    "one has nothing else.",
)
def may_not_see_itself(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return attend(s, both(s, causal, mask, shift=s.shape[-1] - s.shape[-2] - 1), v)


@mistake(
    "attention",
    says="With `causal=True` your queries see one token too many: each sees its successor. In training the model "
    "would read the answer off the input.",
)
def sees_the_next_token(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return attend(s, both(s, causal, mask, shift=s.shape[-1] - s.shape[-2] + 1), v)


@mistake(
    "attention",
    says="Without restrictions you are right. With a mask, you look exactly where you may not: True means 'may "
    "look' here. PyTorch's older modules use the opposite.",
)
def mask_upside_down(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return attend(s, both(s, causal, None if mask is None else ~mask), v)


@mistake(
    "attention",
    says="Forbidden scores were set to 0, and the exponential of 0 is 1: such keys still get a share. Which score "
    "has no share at all?",
)
def forbidden_scores_are_zero(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    allowed = both(s, causal, mask)
    return torch.softmax(s.masked_fill(~allowed, 0.0), dim=-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0) @ v


@mistake(
    "attention",
    says="Your shares do not add up to 1 where something is forbidden: you took the softmax over all keys and "
    "struck out shares afterwards. The allowed keys should divide everything among themselves.",
)
def struck_out_after_softmax(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return torch.softmax(s, dim=-1).masked_fill(~both(s, causal, mask), 0.0) @ v


@mistake(
    "attention",
    says="All correct except queries that may look at nothing: there softmax divides 0 by 0 and you return NaN. "
    "What does the question ask for in such a row?",
)
def empty_row_is_nan(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return torch.softmax(s.masked_fill(~both(s, causal, mask), -torch.inf), dim=-1) @ v


@mistake(
    "attention",
    says="All correct except queries that may look at nothing: a large negative number in place of minus infinity "
    "makes all forbidden keys equal, so such a query returns the mean of what it must not see.",
)
def empty_row_is_the_mean(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return torch.softmax(s.masked_fill(~both(s, causal, mask), -1e9), dim=-1) @ v


@mistake(
    "attention",
    says="Each restriction works alone. Together you use only the mask (case 'causal and a mask'): a pair must be "
    "allowed by both.",
)
def mask_replaces_causal(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return attend(s, both(s, causal and mask is None, mask), v)


@mistake(
    "attention",
    says="Each restriction works alone. Together you joined them with 'or', which allows more than either.",
)
def restrictions_joined_by_or(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    if causal and mask is not None:
        return attend(s, both(s, True, None) | mask, v)
    return attend(s, both(s, causal, mask), v)


@mistake(
    "attention",
    says="Your softmax runs over the queries: each column adds up to 1. A query distributes its attention over "
    "keys, and those are the last axis of the scores.",
)
def softmax_over_queries(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return torch.softmax(s.masked_fill(~both(s, causal, mask), -1e9), dim=-2) @ v


@mistake(
    "attention",
    says="Without restrictions you are right, and `causal` changes nothing in your answer.",
)
def causal_ignored(q, k, v, *, causal=False, mask=None):
    s = scores_of(q, k)
    return attend(s, both(s, False, mask), v)


# ------------------------------------------------------------------------------------------------- multi_head


def cut(y, heads):
    return y.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(out, w_o):
    return out.transpose(1, 2).flatten(2) @ w_o


def plain(q, k, v, causal, width=None):
    s = q @ k.transpose(-2, -1) / (width or q.shape[-1]) ** 0.5
    return attend(s, both(s, causal, None), v)


def shared(k, heads):
    return k.repeat_interleave(heads // k.shape[1], dim=1)


@mistake(
    "multi_head",
    says="One head is right, several are not: you reshaped to (batch, heads, seq, dim) in one step. That puts "
    "neighbouring tokens, not neighbouring columns, into a head. Cut first, then move the axis. Hint 1.",
)
def reshaped_in_one_step(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    q, k, v = (
        (y @ w).reshape(y.shape[0], h, y.shape[1], -1) for y, w, h in ((x, w_q, heads), (c, w_k, n), (c, w_v, n))
    )
    return joined(plain(q, shared(k, heads), shared(v, heads), causal), w_o)


@mistake(
    "multi_head",
    says="One head is right, several are not: head 0 got columns 0, h, 2h, … It owns the first `dim` columns. "
    "Which of the two new axes comes first?",
)
def columns_dealt_out(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    q, k, v = (
        (y @ w).unflatten(-1, (-1, h)).permute(0, 3, 1, 2) for y, w, h in ((x, w_q, heads), (c, w_k, n), (c, w_v, n))
    )
    return joined(plain(q, shared(k, heads), shared(v, heads), causal), w_o)


@mistake(
    "multi_head",
    says="Every head attends rightly, the way back is wrong: you joined (batch, heads, seq, dim) without moving "
    "the axes first, so a row mixes tokens.",
)
def joined_without_moving_back(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    out = plain(cut(x @ w_q, heads), shared(cut(c @ w_k, n), heads), shared(cut(c @ w_v, n), heads), causal)
    return out.reshape(x.shape[0], x.shape[1], -1) @ w_o


@mistake(
    "multi_head",
    says="Right while every query head has its own key head. Where they share, yours go 0, 1, 0, 1, …; the "
    "question says that neighbours share (case '6 heads share 2 key heads').",
)
def key_heads_in_turn(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    k, v = (cut(c @ w, n).repeat(1, heads // n, 1, 1) for w in (w_k, w_v))
    return joined(plain(cut(x @ w_q, heads), k, v, causal), w_o)


@mistake(
    "multi_head",
    says="You scaled by the root of the whole width of the queries. Each head takes dot products of its own `dim` "
    "features only.",
)
def scaled_by_the_model_width(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    q, k, v = cut(x @ w_q, heads), shared(cut(c @ w_k, n), heads), shared(cut(c @ w_v, n), heads)
    return joined(plain(q, k, v, causal, width=w_q.shape[1]), w_o)


@mistake(
    "multi_head",
    says="The heads never became heads: one wide attention ran over all columns. Several softmaxes, one per head, "
    "are the point; with one head you are right.",
)
def one_wide_head(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    k, v = (shared(cut(c @ w, n), heads).transpose(1, 2).flatten(2)[:, None] for w in (w_k, w_v))
    return joined(plain((x @ w_q)[:, None], k, v, causal), w_o)


@mistake(
    "multi_head",
    says="The output was averaged over the heads before `w_o`, not put side by side. `w_o` has a row for every "
    "feature of every head.",
)
def heads_averaged(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    out = plain(cut(x @ w_q, heads), shared(cut(c @ w_k, n), heads), shared(cut(c @ w_v, n), heads), causal)
    return joined(out.mean(1, keepdim=True).expand_as(out), w_o)


@mistake(
    "multi_head",
    says="`causal` was dropped on the way: pass it on to the attention of the heads.",
)
def causal_not_passed_on(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    out = plain(cut(x @ w_q, heads), shared(cut(c @ w_k, n), heads), shared(cut(c @ w_v, n), heads), False)
    return joined(out, w_o)


@mistake(
    "multi_head",
    says="Right while the text and its context are equally long. Otherwise your causal mask starts in the first "
    "corner, as PyTorch's `is_causal` does; question 2 puts the last query at the last key.",
)
def causal_from_the_first_key(x, w_q, w_k, w_v, w_o, *, heads, kv_heads=None, context=None, causal=False):
    c, n = x if context is None else context, kv_heads or heads
    q, k, v = cut(x @ w_q, heads), shared(cut(c @ w_k, n), heads), shared(cut(c @ w_v, n), heads)
    s = scores_of(q, k)
    return joined(attend(s, both(s, causal, None, shift=0), v), w_o)


# ------------------------------------------------------------------------------------------------------- rope


def turned(x, angles):
    a, b = x.chunk(2, dim=-1)
    c, s = angles.cos(), angles.sin()
    return torch.cat((a * c - b * s, b * c + a * s), dim=-1).to(x.dtype)


def speeds(x, base, step=2):
    dtype = torch.promote_types(x.dtype, torch.float32)
    return base ** -(torch.arange(0, x.shape[-1] // 2, dtype=dtype) * step / x.shape[-1])


@mistake(
    "rope",
    says="You turned pairs of neighbours, (0, 1), (2, 3), …, as the paper prints it. Here feature i belongs to "
    "feature i + dim/2. Right for width 2 only. Question 7 is about this very confusion.",
)
def neighbours_paired(x, positions, *, base=10_000.0):
    angles = positions[:, None] * speeds(x, base)
    a, b = x[..., 0::2], x[..., 1::2]
    out = torch.stack((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1)
    return out.flatten(-2).to(x.dtype)


@mistake(
    "rope",
    says="You turn the other way round. Distances would still come out right within your own model, and wrong "
    "with weights of anyone else: compare the two signs with the formula.",
)
def turned_backwards(x, positions, *, base=10_000.0):
    return turned(x, -positions[:, None] * speeds(x, base))


@mistake(
    "rope",
    says="Right while the text starts at 0. You counted the tokens yourself; use `positions`, which go on where "
    "the cache ended.",
)
def positions_ignored(x, positions, *, base=10_000.0):
    return turned(x, torch.arange(len(positions))[:, None] * speeds(x, base))


@mistake(
    "rope",
    says="Your clocks slow down half as fast as they should: pair i has the exponent 2i/dim, and yours is i/dim. "
    "The first pair is right.",
)
def exponent_without_the_two(x, positions, *, base=10_000.0):
    return turned(x, positions[:, None] * speeds(x, base, step=1))


@mistake(
    "rope",
    says="Your clocks speed up from pair to pair: the exponent lost its minus sign. The first pair is right.",
)
def clocks_speed_up(x, positions, *, base=10_000.0):
    return turned(x, positions[:, None] / speeds(x, base))


@mistake(
    "rope",
    says="The second half was computed from the first half after its turn. Both lines of the formula use the old "
    "a and the old b.",
)
def second_half_from_the_new_first(x, positions, *, base=10_000.0):
    angles = positions[:, None] * speeds(x, base)
    a, b = x.chunk(2, dim=-1)
    a = a * angles.cos() - b * angles.sin()
    return torch.cat((a, b * angles.cos() + a * angles.sin()), dim=-1).to(x.dtype)


@mistake(
    "rope",
    says="All right but float16: your angles were computed in the dtype of `x`, where 8,001 rounds to 8,000 and "
    "an angle of thousands of radians has no digits left.",
)
def angles_in_the_dtype_of_x(x, positions, *, base=10_000.0):
    angles = positions[:, None].to(x.dtype) * speeds(x, base).to(x.dtype)
    return turned(x, angles)


@mistake(
    "rope",
    says="`base` is an argument, and you used 10,000 whatever it says. SmolLM2 was trained with 100,000.",
)
def base_is_fixed(x, positions, *, base=10_000.0):
    return turned(x, positions[:, None] * speeds(x, 10_000.0))


# ----------------------------------------------------------------------------------------------------- greedy


@mistake(
    "greedy",
    says="You chose from the first row of logits, which predicts the second token of the prompt. Which row has "
    "seen the whole text?",
)
def first_row(next_logits, ids, new_tokens, stop=None):
    for _ in range(new_tokens):
        chosen = next_logits(ids)[:, 0].argmax(-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
        if chosen.item() == stop:
            break
    return ids


@mistake(
    "greedy",
    says="After the first step the model was shown the newest token alone. That is right with a KV cache (unit "
    "07), and here it forgets the text.",
)
def newest_token_only(next_logits, ids, new_tokens, stop=None):
    unread = ids
    for _ in range(new_tokens):
        unread = next_logits(unread)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, unread), dim=1)
        if unread.item() == stop:
            break
    return ids


@mistake(
    "greedy",
    says="Your result lacks the stop token: you left the loop before appending it. The reader of the result could "
    "not tell a finished text from one cut off.",
)
def stop_not_appended(next_logits, ids, new_tokens, stop=None):
    for _ in range(new_tokens):
        chosen = next_logits(ids)[:, -1].argmax(-1, keepdim=True)
        if chosen.item() == stop:
            break
        ids = torch.cat((ids, chosen), dim=1)
    return ids


@mistake(
    "greedy",
    says="You went on after the stop token. Every further token costs a full reading and is thrown away.",
)
def never_stops(next_logits, ids, new_tokens, stop=None):
    for _ in range(new_tokens):
        ids = torch.cat((ids, next_logits(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids


@mistake(
    "greedy",
    says="You returned the new tokens alone; the question asks for the prompt and what follows it.",
)
def prompt_left_out(next_logits, ids, new_tokens, stop=None):
    start = ids.shape[1]
    for _ in range(new_tokens):
        chosen = next_logits(ids)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
        if chosen.item() == stop:
            break
    return ids[:, start:]


@mistake(
    "greedy",
    says="Your text is one token too long, and the model read once too often. Is there a step before the loop, or "
    "one more turn in it?",
)
def one_token_too_many(next_logits, ids, new_tokens, stop=None):
    for _ in range(new_tokens + 1):
        chosen = next_logits(ids)[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
        if chosen.item() == stop:
            break
    return ids


@mistake(
    "greedy",
    says="You looked for the stop token in the whole text, and the prompt may hold it too (last case). Only the "
    "token just chosen counts.",
)
def stop_found_in_the_prompt(next_logits, ids, new_tokens, stop=None):
    for _ in range(new_tokens):
        if stop is not None and (ids == stop).any():
            break
        ids = torch.cat((ids, next_logits(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids


@mistake(
    "greedy",
    says="You asked the model once and appended the likeliest tokens of that one row. The second token must be "
    "chosen by a model that has read the first.",
)
def top_of_one_row(next_logits, ids, new_tokens, stop=None):
    if new_tokens == 0:
        return ids
    row = next_logits(ids)[0, -1].topk(new_tokens).indices.tolist()
    row = row[: row.index(stop) + 1] if stop in row else row
    return torch.cat((ids, torch.tensor([row])), dim=1)


# ---------------------------------------------------------------------------------------------- count_matmuls


def tally(kind, heads, model, tokens, source, *, hidden=4, outputs=1, wide=1, cross=None):
    dim = model // heads * wide

    def one(q_len, k_len):
        each = [(q_len, model, dim), (k_len, model, dim), (k_len, model, dim), (q_len, dim, k_len), (q_len, k_len, dim)]
        return heads * each + outputs * [(q_len, model, model)]

    products = one(tokens, tokens)
    if kind == "decoder":
        products += one(*(cross or (tokens, source)))
    products += [(tokens, model, hidden * model), (tokens, hidden * model, model)]
    return len(products), sum(2 * a * b * c for a, b, c in products)


@mistake(
    "count_matmuls",
    says="The encoder is right. For the decoder block you return the slide's 10h + 1: it drops three products "
    "that its own encoder count has. Which ones?",
)
def the_slide(kind, heads, model, tokens, source=0):
    matmuls, flops = tally(kind, heads, model, tokens, source)
    return (10 * heads + 1 if kind == "decoder" else matmuls), flops


@mistake(
    "count_matmuls",
    says="The matmuls are right, the FLOPs half of ours: you counted multiplications. Each comes with an addition.",
)
def multiplications_only(kind, heads, model, tokens, source=0):
    matmuls, flops = tally(kind, heads, model, tokens, source)
    return matmuls, flops // 2


@mistake(
    "count_matmuls",
    says="The encoder is right. In the decoder's second attention you let the tokens look at themselves again; "
    "its keys and values are `source` tokens.",
)
def source_ignored(kind, heads, model, tokens, source=0):
    return tally(kind, heads, model, tokens, source, cross=(tokens, tokens))


@mistake(
    "count_matmuls",
    says="Right where the source is as long as the text. In cross-attention you projected keys and values for "
    "every token of the text; they are made from the source.",
)
def source_not_projected(kind, heads, model, tokens, source=0):
    matmuls, flops = tally(kind, heads, model, tokens, source)
    return matmuls, flops + (4 * (tokens - source) * model**2 if kind == "decoder" else 0)


@mistake(
    "count_matmuls",
    says="The matmuls are right, the FLOPs are not: your feed-forward network is only `model` wide inside.",
)
def narrow_feed_forward(kind, heads, model, tokens, source=0):
    return tally(kind, heads, model, tokens, source, hidden=1)


@mistake(
    "count_matmuls",
    says="With one head you are right. You count an output projection per head; the heads are put side by side "
    "first, and mixed by one product.",
)
def output_per_head(kind, heads, model, tokens, source=0):
    return tally(kind, heads, model, tokens, source, outputs=heads)


@mistake(
    "count_matmuls",
    says="The matmuls are right, and with one head the FLOPs too. You made every head as wide as the model; the "
    "heads share the width.",
)
def every_head_full_width(kind, heads, model, tokens, source=0):
    return tally(kind, heads, model, tokens, source, wide=heads)


@mistake(
    "count_matmuls",
    says="The decoder's FLOPs are too low: you took half of the masked scores. They are computed, then thrown "
    "away; skipping them is an art of its own (unit 04).",
)
def causal_half(kind, heads, model, tokens, source=0):
    matmuls, flops = tally(kind, heads, model, tokens, source)
    return matmuls, flops - (2 * tokens * tokens * model if kind == "decoder" else 0)


@mistake(
    "count_matmuls",
    says="You counted the products of all heads at once, as efficient code runs them: 8 per encoder block. The "
    "question multiplies every head on its own; the FLOPs are the same.",
)
def heads_at_once(kind, heads, model, tokens, source=0):
    return (8 if kind == "encoder" else 14), tally(kind, heads, model, tokens, source)[1]


# -------------------------------------------------------------------------------------------------- unpermute


@mistake(
    "unpermute",
    says="You went the other way: applied to the right order, your line makes the file's order. The axes of size "
    "2 and dim/2 are exchanged in your first step.",
)
def the_way_back(w, heads):
    return w.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


@mistake(
    "unpermute",
    says="One head is right, several are not: rows left their head. The order changes within each head of `dim` rows.",
)
def across_heads(w, heads):
    return w.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)


@mistake(
    "unpermute",
    says="Nothing moved. Cutting an axis and joining it again changes no order; something between the two must.",
)
def cut_and_joined(w, heads):
    return w.unflatten(0, (heads, -1, 2)).flatten(0, 2)


@mistake(
    "unpermute",
    says="The two halves of each head are exchanged: the second member of every pair comes first.",
)
def halves_exchanged(w, heads):
    return w.unflatten(0, (heads, -1, 2)).flip(2).transpose(1, 2).flatten(0, 2)


@mistake(
    "unpermute",
    says="You exchanged heads and pairs: rows of different heads now alternate. The axis of the heads stays in front.",
)
def heads_moved(w, heads):
    return w.unflatten(0, (heads, -1, 2)).transpose(0, 1).flatten(0, 2)


@mistake(
    "unpermute",
    says="Rows come out in the right order, but also upside down within each half: you reversed the pairs.",
)
def pairs_reversed(w, heads):
    return w.unflatten(0, (heads, -1, 2)).flip(1).transpose(1, 2).flatten(0, 2)
