"""Plausible wrong answers to lab 02, each with the sentence a student who made it should read."""

import torch

from autograder import mistake

# ----------------------------------------------------------------------------------------------- block_flops


def parts(projections, attention, output, ffn):
    return {"projections": projections, "attention": attention, "output": output, "ffn": ffn}


@mistake(
    "block_flops",
    says="Every part is half of ours. A multiplication and an addition are two FLOPs, so (rows, inner) times "
    "(inner, cols) costs twice rows · inner · cols. Lecture, section 2.",
)
def one_flop_per_pair(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    q, kv, T = heads * dim, kv_heads * dim, tokens
    return parts(T * model * (q + 2 * kv), 2 * T * (cached + T) * q, T * q * model, 3 * T * model * ffn)


@mistake(
    "block_flops",
    says="Your projections make K and V as wide as Q. SmolLM2 has 9 query heads and 3 key heads (GQA): how many "
    "columns does W_K have?",
)
def keys_as_wide_as_queries(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    q, T = heads * dim, tokens
    return parts(6 * T * model * q, 4 * T * (cached + T) * q, 2 * T * q * model, 6 * T * model * ffn)


@mistake(
    "block_flops",
    says="Only `ffn` differs, by 2/3: you counted two matrices. A gated feed-forward network (SwiGLU) has three: gate "
    "and up, and down.",
)
def two_ffn_matrices(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    q, kv, T = heads * dim, kv_heads * dim, tokens
    return parts(2 * T * model * (q + 2 * kv), 4 * T * (cached + T) * q, 2 * T * q * model, 4 * T * model * ffn)


@mistake(
    "block_flops",
    says="Only `attention` differs, by one half. It has two products: queries with keys, and weights with values.",
)
def one_product_in_attention(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    q, kv, T = heads * dim, kv_heads * dim, tokens
    return parts(2 * T * model * (q + 2 * kv), 2 * T * (cached + T) * q, 2 * T * q * model, 6 * T * model * ffn)


@mistake(
    "block_flops",
    says="`attention` agrees only where nothing is cached. A new token looks at the old keys too: how many pairs of "
    "query and key are there?",
)
def cached_keys_forgotten(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    q, kv, T = heads * dim, kv_heads * dim, tokens
    return parts(2 * T * model * (q + 2 * kv), 4 * T * T * q, 2 * T * q * model, 6 * T * model * ffn)


@mistake(
    "block_flops",
    says="Everything but the attention products grew with the cache: you projected the cached tokens again. Their keys "
    "and values are there; only the new tokens pass through the matrices.",
)
def cached_tokens_computed_again(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    q, kv, T = heads * dim, kv_heads * dim, tokens + cached
    return parts(2 * T * model * (q + 2 * kv), 4 * tokens * T * q, 2 * T * q * model, 6 * T * model * ffn)


@mistake(
    "block_flops",
    says="`attention` is too small by heads / kv_heads. Sharing keys saves memory, not products: every query head "
    "still multiplies with the keys it reads.",
)
def shared_heads_multiply_once(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    q, kv, T = heads * dim, kv_heads * dim, tokens
    return parts(2 * T * model * (q + 2 * kv), 4 * T * (cached + T) * kv, 2 * T * q * model, 6 * T * model * ffn)


@mistake(
    "block_flops",
    says="Right for SmolLM2 by luck: there heads · dim equals model. In the case 'heads that do not fill the model' it "
    "does not, and `output` is a (heads · dim, model) matrix.",
)
def output_is_square(tokens, *, cached, model, heads, kv_heads, dim, ffn):
    q, kv, T = heads * dim, kv_heads * dim, tokens
    return parts(2 * T * model * (q + 2 * kv), 4 * T * (cached + T) * q, 2 * T * model * model, 6 * T * model * ffn)


# ----------------------------------------------------------------------------------------------- param_count


@mistake(
    "param_count",
    says="You are short by (2 · layers + 1) · model: the norms. RMSNorm has one weight per feature.",
)
def no_norms(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    block = 2 * model * (heads + kv_heads) * dim + 3 * model * ffn
    return layers * block + vocab * model * (1 if tied else 2)


@mistake(
    "param_count",
    says="You are short by exactly `model`: the last norm, between the last block and the head.",
)
def no_final_norm(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    block = 2 * model * (heads + kv_heads) * dim + 3 * model * ffn + 2 * model
    return layers * block + vocab * model * (1 if tied else 2)


@mistake(
    "param_count",
    says="Right only where the head is untied: you counted the embedding matrix twice. A tied head is the embedding.",
)
def head_always_counted(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    block = 2 * model * (heads + kv_heads) * dim + 3 * model * ffn + 2 * model
    return layers * block + model + 2 * vocab * model


@mistake(
    "param_count",
    says="Right only where the head is tied. Untied, it is a second (vocab, model) matrix.",
)
def head_never_counted(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    block = 2 * model * (heads + kv_heads) * dim + 3 * model * ffn + 2 * model
    return layers * block + model + vocab * model


@mistake(
    "param_count",
    says="Your W_K and W_V have a column for every query head; they have kv_heads · dim columns. The case with as many "
    "key heads as query heads is right.",
)
def keys_for_every_head(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    block = 4 * model * heads * dim + 3 * model * ffn + 2 * model
    return layers * block + model + vocab * model * (1 if tied else 2)


@mistake(
    "param_count",
    says="You are short by layers · model · ffn: the feed-forward network is gated and has three matrices.",
)
def ffn_without_gate(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    block = 2 * model * (heads + kv_heads) * dim + 2 * model * ffn + 2 * model
    return layers * block + model + vocab * model * (1 if tied else 2)


@mistake(
    "param_count",
    says="That is the rule 12 · layers · model², plus embeddings. It holds for GPT-2 (ffn = 4 · model, no shared "
    "heads) to a percent; asked is this model to the last weight.",
)
def rule_of_twelve(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    return 12 * layers * model * model + vocab * model * (1 if tied else 2)


@mistake(
    "param_count",
    says="Right wherever heads · dim equals model. W_Q is (model, heads · dim) and W_O the other way round; neither "
    "must be square.",
)
def square_q_and_o(*, layers, model, heads, kv_heads, dim, ffn, vocab, tied):
    block = 2 * model * model + 2 * model * kv_heads * dim + 3 * model * ffn + 2 * model
    return layers * block + model + vocab * model * (1 if tied else 2)


# ------------------------------------------------------------------------------------------- predict_seconds


def longest(times):
    regime = max(times, key=times.get)
    return times[regime], regime


@mistake(
    "predict_seconds",
    says="You added the times. Arithmetic runs while the next bytes are under way, so the longest one alone is waited "
    "for. Your regimes are right.",
)
def times_added(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    times = {"compute": flops / flop_per_s, "memory": nbytes / bytes_per_s, "overhead": overhead}
    return sum(times.values()), longest(times)[1]


@mistake(
    "predict_seconds",
    says="You took the shortest of the times. Which of two workers who start together decides when both are done?",
)
def shortest_time(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    times = {"compute": flops / flop_per_s, "memory": nbytes / bytes_per_s, "overhead": overhead}
    regime = min(times, key=times.get)
    return times[regime], regime


@mistake(
    "predict_seconds",
    says="Your seconds agree; `compute` and `memory` are exchanged. The regime is named after what is waited for: a "
    "copy does no arithmetic and is bound by memory.",
)
def regimes_exchanged(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    other = {"compute": "memory", "memory": "compute", "overhead": "overhead"}
    times = {"compute": flops / flop_per_s, "memory": nbytes / bytes_per_s, "overhead": overhead}
    seconds, regime = longest(times)
    return seconds, other[regime]


@mistake(
    "predict_seconds",
    says="Large pieces of work agree, tiny ones do not: the overhead of starting an operation is missing. Ten "
    "additions do not take a picosecond.",
)
def no_overhead(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    return longest({"compute": flops / flop_per_s, "memory": nbytes / bytes_per_s})


@mistake(
    "predict_seconds",
    says="Your regimes are right, and every time is too long by `overhead`. The next operation is prepared while this "
    "one runs, so in this model overhead too is only waited for where it is the longest.",
)
def overhead_on_top(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    times = {"compute": flops / flop_per_s, "memory": nbytes / bytes_per_s}
    return longest(times)[0] + overhead, longest(times | {"overhead": overhead})[1]


@mistake(
    "predict_seconds",
    says="Your seconds agree. The regime does not, where both are below the overhead: you decided by intensity against "
    "the ridge alone. Name the time that is the longest.",
)
def regime_by_ridge_alone(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    regime = "compute" if flops / nbytes >= flop_per_s / bytes_per_s else "memory"
    return max(flops / flop_per_s, nbytes / bytes_per_s, overhead), regime


@mistake(
    "predict_seconds",
    says="Your times are rates: you multiplied, or divided the rate by the work. Seconds are FLOP divided by FLOP per "
    "second.",
)
def rate_over_work(flops, nbytes, *, flop_per_s, bytes_per_s, overhead):
    return longest({"compute": flop_per_s / max(flops, 1), "memory": bytes_per_s / nbytes, "overhead": overhead})


# ------------------------------------------------------------------------------------------ rows_to_saturate


@mistake(
    "rows_to_saturate",
    says="You counted the bytes of the weights only. That is the rule of thumb rows = ridge · itemsize / 2, and too "
    "few: the rows themselves, and the product, are moved too.",
)
def weights_only(inner, cols, *, itemsize, ridge):
    return -(-ridge * itemsize // 2)


@mistake(
    "rows_to_saturate",
    says="The product (rows, cols) is missing among the bytes: it is written. Your answer is right only if nobody "
    "wants the result.",
)
def product_not_written(inner, cols, *, itemsize, ridge):
    gain = 2 * inner * cols - ridge * itemsize * inner
    return -(-ridge * itemsize * inner * cols // gain) if gain > 0 else None


@mistake(
    "rows_to_saturate",
    says="The rows themselves, (rows, inner), are missing among the bytes: they are read.",
)
def rows_not_read(inner, cols, *, itemsize, ridge):
    gain = 2 * inner * cols - ridge * itemsize * cols
    return -(-ridge * itemsize * inner * cols // gain) if gain > 0 else None


@mistake(
    "rows_to_saturate",
    says="You rounded down, so the last row is missing: with your number the intensity is still below the ridge. "
    "The case that divides without rest is right.",
)
def rounded_down(inner, cols, *, itemsize, ridge):
    gain = 2 * inner * cols - ridge * itemsize * (inner + cols)
    return ridge * itemsize * inner * cols // gain if gain > 0 else None


@mistake(
    "rows_to_saturate",
    says="One row too many where the division leaves no rest: 'at least the ridge' includes the ridge itself.",
)
def beyond_the_ridge(inner, cols, *, itemsize, ridge):
    gain = 2 * inner * cols - ridge * itemsize * (inner + cols)
    return ridge * itemsize * inner * cols // gain + 1 if gain > 0 else None


@mistake(
    "rows_to_saturate",
    says="Where no batch suffices you return a number of rows that is negative, or fail with a division by zero. "
    "What does intensity approach when rows go to infinity?",
)
def never_none(inner, cols, *, itemsize, ridge):
    gain = 2 * inner * cols - ridge * itemsize * (inner + cols)
    return -(-ridge * itemsize * inner * cols // gain)


@mistake(
    "rows_to_saturate",
    says="You compared FLOPs with elements: `itemsize` does not enter. The ridge is in FLOP per byte.",
)
def elements_for_bytes(inner, cols, *, itemsize, ridge):
    gain = 2 * inner * cols - ridge * (inner + cols)
    return -(-ridge * inner * cols // gain) if gain > 0 else None


@mistake(
    "rows_to_saturate",
    says="About twice too many rows: each multiplication comes with an addition, two FLOPs.",
)
def half_the_flops(inner, cols, *, itemsize, ridge):
    gain = inner * cols - ridge * itemsize * (inner + cols)
    return -(-ridge * itemsize * inner * cols // gain) if gain > 0 else None


# ----------------------------------------------------------------------------------------------- which_claim


def audited(printed, weights, states, activations):
    counted = {"weights": weights, "states": states, "activations": activations}
    wrong = [name for name, gb in printed.items() if abs(gb * 1e9 - counted[name]) > 0.05 * counted[name]]
    return counted, wrong


@mistake(
    "which_claim",
    says="Your `activations` follow the printed formula, 12 · d · B · N · L, so the lecture agrees with itself. "
    "Look at the measurement above the question: what is left over quadruples when N doubles.",
)
def as_printed(printed, *, params, layers, model, heads, batch, tokens):
    return audited(printed, 2 * params, 16 * params, 24 * model * batch * tokens * layers)


@mistake(
    "which_claim",
    says="Your missing term has no heads in it. Each head has a score matrix of its own: how many N × N matrices does "
    "one sequence make in one layer?",
)
def one_matrix_for_all_heads(printed, *, params, layers, model, heads, batch, tokens):
    return audited(printed, 2 * params, 16 * params, 2 * (12 * model + tokens) * batch * tokens * layers)


@mistake(
    "which_claim",
    says="Your missing term counts the score matrix twice. S and P exist both, but the measurement says that one of "
    "them is kept: softmax needs only its result for its gradient.",
)
def scores_kept_twice(printed, *, params, layers, model, heads, batch, tokens):
    kept = 12 * model + 2 * heads * tokens
    return audited(printed, 2 * params, 16 * params, 2 * kept * batch * tokens * layers)


@mistake(
    "which_claim",
    says="Your missing term is there once, not once per layer. Each layer keeps its own scores until its backward.",
)
def scores_of_one_layer(printed, *, params, layers, model, heads, batch, tokens):
    kept = 12 * model * layers + heads * tokens
    return audited(printed, 2 * params, 16 * params, 2 * kept * batch * tokens)


@mistake(
    "which_claim",
    says="`activations` are half of ours: you returned elements. In fp16 an element has two bytes.",
)
def activations_in_elements(printed, *, params, layers, model, heads, batch, tokens):
    kept = 12 * model + heads * tokens
    return audited(printed, 2 * params, 16 * params, kept * batch * tokens * layers)


@mistake(
    "which_claim",
    says="Your `states` are 12 bytes per parameter. Adam's share alone is 12 (fp32 copy of the weights, momentum, "
    "variance); the fp16 weights and gradients come on top.",
)
def states_are_adam_alone(printed, *, params, layers, model, heads, batch, tokens):
    kept = 12 * model + heads * tokens
    return audited(printed, 2 * params, 12 * params, 2 * kept * batch * tokens * layers)


@mistake(
    "which_claim",
    says="The numbers agree, the verdict does not: you name what can be right. Return the names that are off by more "
    "than 5 %.",
)
def names_what_is_right(printed, *, params, layers, model, heads, batch, tokens):
    kept = 12 * model + heads * tokens
    counted, wrong = audited(printed, 2 * params, 16 * params, 2 * kept * batch * tokens * layers)
    return counted, [name for name in printed if name not in wrong]


@mistake(
    "which_claim",
    says="The numbers agree. You accept no rounding: 60 printed for 60.4 is not a slip. Name what is off by more than "
    "5 % of the computed number.",
)
def no_rounding_allowed(printed, *, params, layers, model, heads, batch, tokens):
    kept = 12 * model + heads * tokens
    counted, _ = audited(printed, 2 * params, 16 * params, 2 * kept * batch * tokens * layers)
    return counted, [name for name, gb in printed.items() if gb * 1e9 != counted[name]]


@mistake(
    "which_claim",
    says="The numbers agree; you compared with GiB. The lecture's GB are 10^9 bytes: 2 · 1.5 billion is printed as 3.",
)
def compared_in_gib(printed, *, params, layers, model, heads, batch, tokens):
    kept = 12 * model + heads * tokens
    counted, _ = audited(printed, 2 * params, 16 * params, 2 * kept * batch * tokens * layers)
    return counted, [name for name, gb in printed.items() if abs(gb * 2**30 - counted[name]) > 0.05 * counted[name]]


# --------------------------------------------------------------------------------------------- largest_batch


def planned(capacity, states, sequence):
    left = capacity - states
    batch = max(left // sequence, 0)
    return batch, left - batch * sequence


@mistake(
    "largest_batch",
    says="The gradients are missing: with 2 bytes for each weight you have 2 more for each gradient, then the "
    "optimizer's.",
)
def gradients_forgotten(capacity, *, params, optimizer, layers, model, heads, tokens):
    return planned(capacity, (2 + optimizer) * params, 2 * (12 * model + heads * tokens) * tokens * layers)


@mistake(
    "largest_batch",
    says="You planned with the printed 12 · d · B · N · L. This batch runs out of memory: the score matrices are not "
    "in it. Question 5.",
)
def scores_forgotten(capacity, *, params, optimizer, layers, model, heads, tokens):
    return planned(capacity, (4 + optimizer) * params, 2 * 12 * model * tokens * layers)


@mistake(
    "largest_batch",
    says="You used 16 bytes per parameter whatever the optimizer. Its share is the argument: 12 for Adam, 4 for SGD.",
)
def always_adam(capacity, *, params, optimizer, layers, model, heads, tokens):
    return planned(capacity, 16 * params, 2 * (12 * model + heads * tokens) * tokens * layers)


@mistake(
    "largest_batch",
    says="Your batch is right where something fits. Where the states alone do not, you return a negative batch: the "
    "floor of a negative quotient. Nobody trains on minus two texts.",
)
def negative_batch(capacity, *, params, optimizer, layers, model, heads, tokens):
    left = capacity - (4 + optimizer) * params
    sequence = 2 * (12 * model + heads * tokens) * tokens * layers
    return left // sequence, left - (left // sequence) * sequence


@mistake(
    "largest_batch",
    says="Your batch is right; the bytes left are those before the batch was loaded. Subtract its activations too.",
)
def left_before_the_batch(capacity, *, params, optimizer, layers, model, heads, tokens):
    left = capacity - (4 + optimizer) * params
    return planned(capacity, (4 + optimizer) * params, 2 * (12 * model + heads * tokens) * tokens * layers)[0], left


@mistake(
    "largest_batch",
    says="Your batch is right. Where the states do not fit you report 0 bytes left: say how many are missing, as a "
    "negative number. It is what the next card must have more.",
)
def missing_bytes_hidden(capacity, *, params, optimizer, layers, model, heads, tokens):
    batch, left = planned(capacity, (4 + optimizer) * params, 2 * (12 * model + heads * tokens) * tokens * layers)
    return batch, max(left, 0)


@mistake(
    "largest_batch",
    says="One text too many: you rounded up. What does not fit whole does not fit; your bytes left are negative.",
)
def rounded_up(capacity, *, params, optimizer, layers, model, heads, tokens):
    left = capacity - (4 + optimizer) * params
    sequence = 2 * (12 * model + heads * tokens) * tokens * layers
    batch = max(-(-left // sequence), 0)
    return batch, left - batch * sequence


@mistake(
    "largest_batch",
    says="You counted elements of activations as bytes: twice as many texts as fit. fp16 has two bytes.",
)
def elements_as_bytes(capacity, *, params, optimizer, layers, model, heads, tokens):
    return planned(capacity, (4 + optimizer) * params, (12 * model + heads * tokens) * tokens * layers)


# --------------------------------------------------------------------------------------------- fit_power_law


def line(u, y):
    du = u - u.mean()
    slope = (du * y).sum() / (du * du).sum()
    return slope, y.mean() - slope * u.mean()


def law(alpha, x_c, x):
    return {"alpha": alpha, "x_c": x_c, "low": x.min(), "high": x.max()}


@mistake(
    "fit_power_law",
    says="Right where the floor is 0. Elsewhere you fitted the loss itself: only what lies above the floor follows the "
    "power law, and a floor left in makes alpha too small.",
)
def floor_left_in(x, loss, *, floor):
    slope, intercept = line(x.log(), loss.log())
    return law(-slope, torch.exp(intercept / -slope), x)


@mistake(
    "fit_power_law",
    says="Your alpha has the wrong sign: it is the slope of the line, and the loss falls. In (x_c / x)^alpha a falling "
    "loss has a positive alpha.",
)
def slope_returned(x, loss, *, floor):
    slope, intercept = line(x.log(), (loss - floor).log())
    return law(slope, torch.exp(intercept / -slope), x)


@mistake(
    "fit_power_law",
    says="Your alpha is right; your x_c is exp(intercept), that is x_c^alpha. At x = x_c the loss lies exactly 1 above "
    "the floor: where does the line cross log 1?",
)
def scale_for_x_c(x, loss, *, floor):
    slope, intercept = line(x.log(), (loss - floor).log())
    return law(-slope, intercept.exp(), x)


@mistake(
    "fit_power_law",
    says="You drew the line through the smallest and the largest run. Every run carries noise; least squares lets all "
    "of them vote.",
)
def two_runs_only(x, loss, *, floor):
    first, last = x.argmin(), x.argmax()
    u, y = x.log(), (loss - floor).log()
    slope = (y[last] - y[first]) / (u[last] - u[first])
    return law(-slope, torch.exp((y[first] - slope * u[first]) / -slope), x)


@mistake(
    "fit_power_law",
    says="Your alpha is right. You took logarithms to base 10 and `exp` to come back: the two must have the same base.",
)
def two_bases(x, loss, *, floor):
    slope, intercept = line(x.log10(), (loss - floor).log10())
    return law(-slope, torch.exp(intercept / -slope), x)


@mistake(
    "fit_power_law",
    says="Your line runs through x and log(loss - floor): that is an exponential law. A power law is straight when "
    "both axes are logarithmic.",
)
def one_axis_only(x, loss, *, floor):
    slope, intercept = line(x, (loss - floor).log())
    return law(-slope, torch.exp(intercept / -slope), x)


@mistake(
    "fit_power_law",
    says="`alpha` and `x_c` agree. `low` and `high` are the first and the last run as listed; runs come in any order, "
    "and the law was seen between the smallest and the largest.",
)
def range_as_listed(x, loss, *, floor):
    slope, intercept = line(x.log(), (loss - floor).log())
    return law(-slope, torch.exp(intercept / -slope), x) | {"low": x[0], "high": x[-1]}


@mistake(
    "fit_power_law",
    says="You fitted the line the other way round, log x against log loss. With noise, least squares in the other "
    "direction is another line: errors are in the loss, x is known.",
)
def axes_exchanged(x, loss, *, floor):
    slope, _ = line((loss - floor).log(), x.log())
    u, y = x.log(), (loss - floor).log()
    return law(-1 / slope, torch.exp(u.mean() - slope * y.mean()), x)


@mistake(
    "fit_power_law",
    says="`alpha`, `low` and `high` agree; `x_c` is off by a sign inside the exponential: it comes out as 1 / x_c.",
)
def x_c_upside_down(x, loss, *, floor):
    slope, intercept = line(x.log(), (loss - floor).log())
    return law(-slope, torch.exp(intercept / slope), x)
