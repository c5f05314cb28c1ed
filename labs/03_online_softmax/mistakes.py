"""Plausible wrong answers to lab 03, each with the sentence a student who made it should read."""

import torch

from autograder import mistake

try:
    import triton
    import triton.language as tl
except ImportError:  # without Triton question 6 is not checked, so its mistakes only need to load
    from types import SimpleNamespace

    triton, tl = SimpleNamespace(jit=lambda kernel: kernel), SimpleNamespace(constexpr=int)


def guarded(m):
    return torch.where(m == -torch.inf, 0.0, m)


def shares(e):
    l = e.sum(dim=-1, keepdim=True)
    return e / torch.where(l == 0, 1.0, l)


# ---------------------------------------------------------------------------------------------- safe_softmax


@mistake(
    "safe_softmax",
    says="Nothing was subtracted before `exp`. Ordinary scores come out right; above 88.7 the exponential is inf, and "
    "far below 0 the whole row is 0. Hint 1.",
)
def nothing_subtracted(x):
    return shares(x.exp())


@mistake(
    "safe_softmax",
    says="You subtracted one maximum for the whole tensor. A row far below it underflows to 0 (case 'one row 400 above "
    "the others'). Which axis did the given line keep?",
)
def one_maximum_for_all(x):
    return shares((x - guarded(x.max())).exp())


@mistake(
    "safe_softmax",
    says="The columns add up to 1, the rows do not: `e` was summed over another axis than the last. See the shape "
    "of `l`.",
)
def summed_down_the_columns(x):
    e = (x - guarded(x.amax(dim=-1, keepdim=True))).exp()
    return e / e.sum(dim=0, keepdim=True).clamp_min(1e-30)


@mistake(
    "safe_softmax",
    says="All rows agree except those of -inf, where you return NaN. What is -inf - (-inf)? Look at `x - m` in "
    "such a row.",
)
def row_of_minus_inf_is_nan(x):
    e = (x - x.amax(dim=-1, keepdim=True)).exp()
    return e / e.sum(dim=-1, keepdim=True)


@mistake(
    "safe_softmax",
    says="A row of -inf became uniform: every key gets the same share. But such a query may look at no key at all. "
    "The row of probabilities must be 0, not 1/n.",
)
def row_of_minus_inf_is_uniform(x):
    m = x.amax(dim=-1, keepdim=True)
    return shares(torch.where(m == -torch.inf, 0.0, x - m).exp())


@mistake(
    "safe_softmax",
    says="You subtracted the largest absolute value. That also prevents overflow, but a row of large negative "
    "scores moves further down and underflows. Which exponent should be exactly 0?",
)
def largest_absolute_value(x):
    finite = torch.where(x == -torch.inf, 0.0, x)
    return shares((x - finite.abs().amax(dim=-1, keepdim=True)).exp())


@mistake(
    "safe_softmax",
    says="The exponentials are in units of e^m and the sum is not: `l` was added up from `exp(x)`. Numerator and "
    "denominator must shrink by the same factor.",
)
def sum_in_the_old_unit(x):
    e = (x - guarded(x.amax(dim=-1, keepdim=True))).exp()
    l = x.exp().sum(dim=-1, keepdim=True)
    return e / torch.where(l == 0, 1.0, l)


@mistake(
    "safe_softmax",
    says="You divided the scores by their maximum. Softmax ignores a shift, not a scale: a division changes how peaked "
    "the row is.",
)
def divided_by_the_maximum(x):
    return shares((x / guarded(x.amax(dim=-1, keepdim=True))).exp())


# --------------------------------------------------------------------------------------------- running_stats


@mistake(
    "running_stats",
    says="`m` is right. `l` adds blocks that were counted in different units: when a new maximum arrives, the old sum "
    "must be converted. Wherever the first block holds the maximum you are right by luck. Hint 1.",
)
def old_sum_not_converted(blocks):
    m, l = -torch.inf, 0.0
    for x in blocks:
        m = torch.maximum(torch.as_tensor(m), x.amax(dim=-1))
        l = l + (x - guarded(m)[..., None]).exp().sum(dim=-1)
    return m, l


@mistake(
    "running_stats",
    says="`m` is right. Your conversion factor is at least 1, so the old sum grows when the unit grows. Counted in a "
    "larger unit, the same amount is a smaller number: check the sign of the exponent.",
)
def conversion_upside_down(blocks):
    m, l = -torch.inf, 0.0
    for x in blocks:
        m_new = torch.maximum(torch.as_tensor(m), x.amax(dim=-1))
        l = torch.where(l == 0, 0.0, l * (guarded(m_new) - m).exp()) if torch.is_tensor(l) else 0.0
        l, m = l + (x - guarded(m_new)[..., None]).exp().sum(dim=-1), m_new
    return m, l


@mistake(
    "running_stats",
    says="Each block is counted in units of its own maximum, and these sums are added as they are. Every block "
    "must use the same unit, the new maximum.",
)
def every_block_in_its_own_unit(blocks):
    m, l = -torch.inf, 0.0
    for x in blocks:
        m_block = x.amax(dim=-1)
        m_new = torch.maximum(torch.as_tensor(m), m_block)
        l = l * (m - guarded(m_new)).exp() if torch.is_tensor(m) else 0.0
        l, m = l + (x - guarded(m_block)[..., None]).exp().sum(dim=-1), m_new
    return m, l


@mistake(
    "running_stats",
    says="You always convert to the maximum of the newest block. That is right while the blocks rise (case 'rising"
    " by 6 per block') and returns the last maximum, not the largest, when they fall.",
)
def newest_maximum(blocks):
    m, l = None, 0.0
    for x in blocks:
        m_new = x.amax(dim=-1)
        l = torch.where(l > 0, l * (m - guarded(m_new)).exp(), 0.0) if m is not None else 0.0
        l, m = l + (x - guarded(m_new)[..., None]).exp().sum(dim=-1), m_new
    return m, l


@mistake(
    "running_stats",
    says="Your maximum never falls below 0: it started there. Rows whose scores are all negative get m = 0, and far "
    "below 0 their sum underflows. What is the maximum of no scores?",
)
def maximum_starts_at_zero(blocks):
    m, l = 0.0, 0.0
    for x in blocks:
        m_new = torch.maximum(torch.as_tensor(m), x.amax(dim=-1))
        l = l * (m - m_new).exp() + (x - m_new[..., None]).exp().sum(dim=-1)
        m = m_new
    return m, l


@mistake(
    "running_stats",
    says="All correct except rows that have seen no finite score yet: there -inf - (-inf) gives NaN, and a NaN never "
    "leaves a running sum. Which unit can such a row use instead?",
)
def empty_row_is_nan(blocks):
    m, l = None, 0.0
    for x in blocks:
        m_new = x.amax(dim=-1) if m is None else torch.maximum(m, x.amax(dim=-1))
        l = (l * (m - m_new).exp() if m is not None else 0.0) + (x - m_new[..., None]).exp().sum(dim=-1)
        m = m_new
    return m, l


@mistake(
    "running_stats",
    says="`l` agrees, `m` does not: you returned 0 for rows without a finite score. The stand-in 0 is only for the "
    "subtraction; the maximum itself stays -inf, or the next block merges with a score that nobody had.",
)
def stand_in_returned_as_maximum(blocks):
    m, l = None, 0.0
    for x in blocks:
        m_new = x.amax(dim=-1) if m is None else torch.maximum(m, x.amax(dim=-1))
        l = (l * (m - guarded(m_new)).exp() if m is not None else 0.0) + (x - guarded(m_new)[..., None]).exp().sum(
            dim=-1
        )
        m = m_new
    return guarded(m), l


@mistake(
    "running_stats",
    says="Your second loop over the blocks found nothing: the stream was already read. `m` is right and `l` is 0. Both "
    "numbers must grow in the same loop.",
)
def second_pass(blocks):
    m = None
    for x in blocks:
        m = x.amax(dim=-1) if m is None else torch.maximum(m, x.amax(dim=-1))
    l = torch.zeros_like(m)
    for x in blocks:
        l = l + (x - guarded(m)[..., None]).exp().sum(dim=-1)
    return m, l


@mistake(
    "running_stats",
    says="You collected the blocks first and worked on them afterwards. By then they are gone: the checker "
    "overwrites a block as soon as you ask for the next. Keep only what the next block needs.",
)
def collects_blocks(blocks):
    x = torch.cat(list(blocks), dim=-1)
    m = x.amax(dim=-1)
    return m, (x - guarded(m)[..., None]).exp().sum(dim=-1)


# ----------------------------------------------------------------------------------------------------- merge


@mistake(
    "merge",
    says="`m` and `l` agree with ours; `o` is what you get when the two weighted sums are added in different "
    "units. Hint 1.",
)
def o_not_rescaled(a, b):
    m = torch.maximum(a[0], b[0])
    ka, kb = (a[0] - guarded(m)).exp(), (b[0] - guarded(m)).exp()
    return m, ka * a[1] + kb * b[1], a[2] + b[2]


@mistake(
    "merge",
    says="`m` and `o` agree; `l` counts each side in its own unit. After dividing, every row comes out too small. "
    "The same cure as for `o`.",
)
def l_not_rescaled(a, b):
    m = torch.maximum(a[0], b[0])
    ka, kb = (a[0] - guarded(m)).exp(), (b[0] - guarded(m)).exp()
    return m, a[1] + b[1], ka[..., None] * a[2] + kb[..., None] * b[2]


@mistake(
    "merge",
    says="Right whenever `b` has the larger maximum, wrong otherwise (case 'left larger'). In a stream the new "
    "block often wins; two workers have no order.",
)
def newest_wins(a, b):
    m = torch.where(b[0] == -torch.inf, a[0], b[0])
    ka, kb = (a[0] - guarded(m)).exp(), (b[0] - guarded(m)).exp()
    return b[0], ka * a[1] + kb * b[1], ka[..., None] * a[2] + kb[..., None] * b[2]


@mistake(
    "merge",
    says="Your factors are at least 1: the side with the smaller maximum grew. Converting to a larger unit makes a"
    " number smaller. Try 200 apart: you get inf.",
)
def sign_flipped(a, b):
    m = torch.maximum(a[0], b[0])
    ka, kb = (m - a[0]).exp(), (m - b[0]).exp()
    return m, ka * a[1] + kb * b[1], ka[..., None] * a[2] + kb[..., None] * b[2]


@mistake(
    "merge",
    says="All correct except queries for which **neither** side has a key: there you return NaN. What is -inf - "
    "(-inf)? Unit 04 meets this in every padded tile.",
)
def no_guard(a, b):
    m = torch.maximum(a[0], b[0])
    ka, kb = (a[0] - m).exp(), (b[0] - m).exp()
    return m, ka * a[1] + kb * b[1], ka[..., None] * a[2] + kb[..., None] * b[2]


@mistake(
    "merge",
    says="Each side got the same say in `o`. A worker with one key then weighs as much as one with a thousand; `l`"
    " holds the weights you threw away.",
)
def averaged(a, b):
    m = torch.maximum(a[0], b[0])
    ka, kb = (a[0] - guarded(m)).exp(), (b[0] - guarded(m)).exp()
    return m, ka * a[1] + kb * b[1], (a[2] / a[1][..., None] + b[2] / b[1][..., None]) / 2


@mistake(
    "merge",
    says="The attention output is right, the state is not: `o` must stay undivided, or the next merge divides twice. "
    "Divide once, at the very end.",
)
def normalised_too_early(a, b):
    m = torch.maximum(a[0], b[0])
    ka, kb = (a[0] - guarded(m)).exp(), (b[0] - guarded(m)).exp()
    l = ka * a[1] + kb * b[1]
    o = ka[..., None] * a[2] + kb[..., None] * b[2]
    return m, l, o / torch.where(l == 0, 1.0, l)[..., None]


# --------------------------------------------------------------------------------------- streaming_attention


def joined(a, b):
    m = torch.maximum(a[0], b[0])
    ka, kb = (a[0] - m).exp(), (b[0] - m).exp()
    return m, ka * a[1] + kb * b[1], ka[..., None] * a[2] + kb[..., None] * b[2]


def block_of(q, k, v, scale=None):
    s = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    m = s.amax(dim=-1)
    p = (s - m[..., None]).exp()
    return m, p.sum(dim=-1), p @ v


def streamed(q, blocks, scale=None):
    state = None
    for k, v in blocks:
        new = block_of(q, k, v, scale)
        state = new if state is None else joined(state, new)
    return state


@mistake(
    "streaming_attention",
    says="Your scores are larger than ours by the square root of `dim`: the scale is missing. The output leans to the "
    "best key too much, and `lse` is too large.",
)
def scale_missing(q, blocks):
    m, l, o = streamed(q, blocks, scale=1.0)
    return o / l[..., None], m + l.log()


@mistake(
    "streaming_attention",
    says="Right while `dim_v` equals `dim`: you scaled with the width of the values. A score is a sum over the "
    "width of `q` and `k`.",
)
def scaled_by_value_width(q, blocks):
    state = None
    for k, v in blocks:
        new = block_of(q, k, v, v.shape[-1] ** -0.5)
        state = new if state is None else joined(state, new)
    m, l, o = state
    return o / l[..., None], m + l.log()


@mistake(
    "streaming_attention",
    says="The output is right. `lse` is `log l`, still in units of e^m: the unit was left out. What is the "
    "logarithm of l times e^m?",
)
def lse_without_the_maximum(q, blocks):
    _, l, o = streamed(q, blocks)
    return o / l[..., None], l.log()


@mistake(
    "streaming_attention",
    says="The output is right, `lse` is in base 2. Kernels often count that way; this course and PyTorch use the "
    "natural logarithm.",
)
def lse_in_base_two(q, blocks):
    m, l, o = streamed(q, blocks)
    return o / l[..., None], (m + l.log()) / torch.log(torch.tensor(2.0, dtype=m.dtype))


@mistake(
    "streaming_attention",
    says="`lse` is right, the output is not: the weighted sum `o` of earlier blocks kept its old unit when `l` "
    "changed to the new one. Both must be converted.",
)
def output_kept_the_old_unit(q, blocks):
    state = None
    for k, v in blocks:
        new = block_of(q, k, v)
        state = new if state is None else (*joined(state, new)[:2], state[2] + new[2])
    m, l, o = state
    return o / l[..., None], m + l.log()


@mistake(
    "streaming_attention",
    says="`lse` is right, and the output is the plain average of the outputs of the blocks. A block of one key "
    "weighs as much as a block of a hundred. Do not divide before the end.",
)
def blocks_averaged(q, blocks):
    state, outs = None, []
    for k, v in blocks:
        new = block_of(q, k, v)
        outs.append(new[2] / new[1][..., None])
        state = new if state is None else joined(state, new)
    return torch.stack(outs).mean(0), state[0] + state[1].log()


@mistake(
    "streaming_attention",
    says="You returned what the last block alone gives: the state was overwritten, not merged. With a single block"
    " that goes unnoticed.",
)
def last_block_only(q, blocks):
    for k, v in blocks:
        m, l, o = block_of(q, k, v)
    return o / l[..., None], m + l.log()


@mistake(
    "streaming_attention",
    says="`lse` is right, the output was never divided by `l`: each row is a weighted sum, not a weighted mean.",
)
def never_divided(q, blocks):
    m, l, o = streamed(q, blocks)
    return o, m + l.log()


@mistake(
    "streaming_attention",
    says="Your maximum never falls below 0, because it started there. Queries whose scores all lie far below 0 get an "
    "empty sum (case 'scores near -240'). What is the maximum before the first key?",
)
def maximum_from_zero(q, blocks):
    m, l, o = torch.zeros(()), 0.0, 0.0
    for k, v in blocks:
        s = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        m_new = torch.maximum(m, s.amax(dim=-1))
        p, old = (s - m_new[..., None]).exp(), (m - m_new).exp()
        m, l, o = m_new, l * old + p.sum(dim=-1), o * old[..., None] + p @ v
    return o / l[..., None], m + l.log()


@mistake(
    "streaming_attention",
    says="You kept the blocks and used them at the end. By then they are gone: the checker overwrites a block as "
    "soon as you ask for the next, as a kernel reuses its tile. Keep m, l and o, and nothing else.",
)
def collects_every_block(q, blocks):
    k, v = (torch.cat(parts, dim=-2) for parts in zip(*list(blocks), strict=True))
    m, l, o = block_of(q, k, v)
    return o / l[..., None], m + l.log()


@mistake(
    "streaming_attention",
    says="The numbers are right, but your memory grows with the square of the length: you copied the blocks and "
    "built the scores of all keys. Keep m, l and o from one block to the next, and nothing else.",
    fails="MemorySlope",
)
def copies_every_block(q, blocks):
    k, v = (torch.cat(parts, dim=-2) for parts in zip(*[(k.clone(), v.clone()) for k, v in blocks], strict=True))
    m, l, o = block_of(q, k, v)
    return o / l[..., None], m + l.log()


# -------------------------------------------------------------------------------------------------- break_it


@mistake(
    "break_it",
    says="Random scores again: all three versions are right on them. Which scores does a random test never draw?",
)
def random_scores(name):
    return torch.randn(64, generator=torch.Generator().manual_seed(0))


@mistake(
    "break_it",
    says="This breaks more than one version at once, so it does not say which line is wrong. Change one thing at a"
    " time.",
)
def everything_at_once(name):
    return torch.tensor([-200.0] * 4 + [-900.0] * 4)


@mistake("break_it", says="A score of -inf is not allowed here: a mask may excuse a version. Find finite scores.")
def hidden_behind_a_mask(name):
    return torch.full((8,), -torch.inf)


@mistake(
    "break_it",
    says="You made the scores large and positive. Version A starts its maximum at 0, so a large maximum hides its "
    "fault; go to the other side. And where does the unit of version B fall?",
)
def far_above_zero(name):
    return torch.full((8,), 200.0)


@mistake(
    "break_it",
    says="A single dropped block weighs about 4 times e^-9, far below 0.01. Version C drops *every* such block: "
    "how many fit into 4,096 scores?",
)
def one_dropped_block(name):
    return torch.tensor([9.0] + [0.0] * 7)


@mistake(
    "break_it",
    says="The scores rise. Version B converts to the newest maximum, and in a rising row that is the largest one: "
    "it is right there. Turn the row around.",
)
def rising_row(name):
    return torch.linspace(-200.0, 200.0, 64)


# --------------------------------------------------------------------------------------------- fused_softmax


def launch(kernel, x):
    rows, n = x.shape
    out = torch.zeros((rows, n), dtype=x.dtype, device=x.device)
    kernel[(rows,)](x, out, x.stride(0), x.stride(1), n, BLOCK=triton.next_power_of_2(n))
    return out


@triton.jit
def unmasked_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row_stride + cols * x_col_stride).to(tl.float32)
    m = tl.max(x, axis=0)
    e = tl.exp(x - tl.where(m == float("-inf"), 0.0, m))
    l = tl.sum(e, axis=0)
    tl.store(out_ptr + row * n + cols, e / tl.where(l == 0.0, 1.0, l), mask=cols < n)


@mistake(
    "fused_softmax",
    says="Right when `n` is a power of two. Otherwise your load reads beyond the row: the lanes past `n` hold somebody "
    "else's memory. Where is the mask of the load? Hint 2.",
)
def load_without_mask(x):
    return launch(unmasked_kernel, x)


@triton.jit
def zero_padding_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row_stride + cols * x_col_stride, mask=cols < n, other=0.0).to(tl.float32)
    m = tl.max(x, axis=0)
    e = tl.exp(x - tl.where(m == float("-inf"), 0.0, m))
    l = tl.sum(e, axis=0)
    tl.store(out_ptr + row * n + cols, e / tl.where(l == 0.0, 1.0, l), mask=cols < n)


@mistake(
    "fused_softmax",
    says="Each row adds up to less than 1: the padding was loaded as 0, and exp(0 - m) is not 0. `other=` must be the "
    "number that neither raises the maximum nor adds to the sum. Hint 1.",
)
def padding_is_zero(x):
    return launch(zero_padding_kernel, x)


@triton.jit
def packed_rows_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * n + cols, mask=cols < n, other=float("-inf")).to(tl.float32)
    m = tl.max(x, axis=0)
    e = tl.exp(x - tl.where(m == float("-inf"), 0.0, m))
    l = tl.sum(e, axis=0)
    tl.store(out_ptr + row * n + cols, e / tl.where(l == 0.0, 1.0, l), mask=cols < n)


@mistake(
    "fused_softmax",
    says="Row 0 is right, later rows drift: you placed row i at `i * n`. The rows of this matrix lie further "
    "apart; the launcher passes the distance.",
)
def rows_assumed_packed(x):
    return launch(packed_rows_kernel, x)


@triton.jit
def unit_columns_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row_stride + cols, mask=cols < n, other=float("-inf")).to(tl.float32)
    m = tl.max(x, axis=0)
    e = tl.exp(x - tl.where(m == float("-inf"), 0.0, m))
    l = tl.sum(e, axis=0)
    tl.store(out_ptr + row * n + cols, e / tl.where(l == 0.0, 1.0, l), mask=cols < n)


@mistake(
    "fused_softmax",
    says="All right except the transposed matrix: its neighbours in a row are not neighbours in memory. One stride"
    " that the launcher passes is never used.",
)
def columns_assumed_adjacent(x):
    return launch(unit_columns_kernel, x)


@triton.jit
def no_maximum_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row_stride + cols * x_col_stride, mask=cols < n, other=float("-inf")).to(tl.float32)
    e = tl.exp(x)
    l = tl.sum(e, axis=0)
    tl.store(out_ptr + row * n + cols, e / tl.where(l == 0.0, 1.0, l), mask=cols < n)


@mistake(
    "fused_softmax",
    says="Right for ordinary scores, 0 for a row far below 0, and beyond float32 for logits x20: the maximum was not "
    "subtracted before `tl.exp`.",
)
def kernel_without_maximum(x):
    return launch(no_maximum_kernel, x)


@triton.jit
def unguarded_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row_stride + cols * x_col_stride, mask=cols < n, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + row * n + cols, e / tl.sum(e, axis=0), mask=cols < n)


@mistake(
    "fused_softmax",
    says="All right except rows of -inf, which come out as NaN: there `x - m` is -inf - (-inf). The same guard as in "
    "question 1 is needed, with `tl.where`.",
)
def kernel_without_guard(x):
    return launch(unguarded_kernel, x)


@triton.jit
def base_two_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row_stride + cols * x_col_stride, mask=cols < n, other=float("-inf")).to(tl.float32)
    m = tl.max(x, axis=0)
    e = tl.exp2(x - tl.where(m == float("-inf"), 0.0, m))
    l = tl.sum(e, axis=0)
    tl.store(out_ptr + row * n + cols, e / tl.where(l == 0.0, 1.0, l), mask=cols < n)


@mistake(
    "fused_softmax",
    says="Rows add up to 1 but are too flat: these are powers of 2, not of e. `tl.exp2` needs the scores multiplied by "
    "log2(e) first.",
)
def powers_of_two(x):
    return launch(base_two_kernel, x)


@triton.jit
def half_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row_stride + cols * x_col_stride, mask=cols < n, other=float("-inf"))
    m = tl.max(x, axis=0)
    e = tl.exp(x - tl.where(m == float("-inf"), 0.0, m).to(x.dtype))
    l = tl.sum(e, axis=0)
    tl.store(out_ptr + row * n + cols, e / tl.where(l == 0.0, 1.0, l).to(x.dtype), mask=cols < n)


@mistake(
    "fused_softmax",
    says="Only the float16 matrix is off, and by little: exponentials and sum were rounded to float16 at every step. "
    "Convert the row to `tl.float32` right after the load; the store converts back.",
)
def arithmetic_in_half(x):
    return launch(half_kernel, x)


@triton.jit
def undivided_kernel(x_ptr, out_ptr, x_row_stride, x_col_stride, n, BLOCK: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_row_stride + cols * x_col_stride, mask=cols < n, other=float("-inf")).to(tl.float32)
    m = tl.max(x, axis=0)
    tl.store(out_ptr + row * n + cols, tl.exp(x - tl.where(m == float("-inf"), 0.0, m)), mask=cols < n)


@mistake(
    "fused_softmax",
    says="The largest entry of each row is exactly 1: the exponentials were stored, and never divided by their sum.",
)
def kernel_never_divides(x):
    return launch(undivided_kernel, x)
