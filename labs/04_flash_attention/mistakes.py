"""Plausible wrong answers of lab 04, each with the text a student sees who made it.

One tiled loop with named defects serves several mistakes: the defects are the point, the loop is not.
A mistake in the Triton kernel is written in NumPy, as the interpreter computes: its numbers are the same.
"""

from functools import partial

import numpy as np
import torch

from autograder import mistake

# ---------------------------------------------------------------- question 1


@mistake(
    "algorithm0",
    says="""Your writes are short by one N × N: `P` is what kernel 3 reads, so kernel 2 must have written it. Fusing
        softmax into the matmul would save it, and is the idea of this unit. Hint 2""",
)
def p_never_written(n, dim):
    return 2 * n * n + 3 * n * dim, n * n + n * dim


@mistake(
    "algorithm0",
    says="""Your reads are short by one N × N: you read only one of `S` and `P` back. Each kernel forgets everything
        when it ends. Hint 1""",
)
def read_back_once(n, dim):
    return n * n + 3 * n * dim, 2 * n * n + n * dim


@mistake(
    "algorithm0",
    says="""Both numbers are right, in the wrong order: the question asks for (reads, writes).""",
)
def swapped(n, dim):
    return 2 * n * n + n * dim, 2 * n * n + 3 * n * dim


@mistake(
    "algorithm0",
    says="""You are off by exactly 2 everywhere: those are bytes of fp16. Asked are elements; bytes come later, when
        the format is known.""",
)
def in_bytes(n, dim):
    return 2 * (2 * n * n + 3 * n * dim), 2 * (2 * n * n + n * dim)


@mistake(
    "algorithm0",
    says="""The N × N part is right; your N × d part is short. `V` is read by kernel 3 and `O` is written by it.
        Hint 3""",
)
def forgot_kernel_three_rows(n, dim):
    return 2 * n * n + 2 * n * dim, 2 * n * n


@mistake(
    "algorithm0",
    says="""You read a `K` and a `V` row for every pair of query and key. The question reads each input once per
        kernel: caches and tiles inside a matmul take care of that.""",
)
def k_per_query(n, dim):
    return 2 * n * n + n * dim + 2 * n * n * dim, 2 * n * n + n * dim


# ---------------------------------------------------------------- question 2


@mistake(
    "block_sizes",
    says="""You rounded down; Algorithm 1 in the paper rounds up. The lecture prints both. Compare the case where 4d
        does not divide M""",
)
def floored(sram_elements, dim):
    return min(sram_elements // (4 * dim), dim), sram_elements // (4 * dim)


@mistake(
    "block_sizes",
    says="""The two numbers are right, in the wrong order: (block_q, block_k) is (B_r, B_c).""",
)
def order_swapped(sram_elements, dim):
    block_k = -(-sram_elements // (4 * dim))
    return block_k, min(block_k, dim)


@mistake(
    "block_sizes",
    says="""`B_c` is right and `B_r` is not limited by d. With B_r = B_c = 384 the tile S alone has 147,456
        elements, more than the whole memory of case 1. Hint 2""",
)
def no_limit(sram_elements, dim):
    block_k = -(-sram_elements // (4 * dim))
    return block_k, block_k


@mistake(
    "block_sizes",
    says="""Your `B_c` is half as large as ours: you divided by the two bytes of fp16. M counts elements already.
        Hint 2""",
)
def bytes_again(sram_elements, dim):
    block_k = -(-sram_elements // (8 * dim))
    return min(block_k, dim), block_k


@mistake(
    "block_sizes",
    says="""Your `B_c` fills the memory with three blocks. Four rows of length d share it: Q, K, V and the output.
        Hint 1""",
)
def three_blocks(sram_elements, dim):
    block_k = -(-sram_elements // (3 * dim))
    return min(block_k, dim), block_k


@mistake(
    "block_sizes",
    says="""`B_c` is right; `B_r` is the larger of the two numbers and should be the smaller. Hint 3""",
)
def larger_of_two(sram_elements, dim):
    block_k = -(-sram_elements // (4 * dim))
    return max(block_k, dim), block_k


# ---------------------------------------------------------------- questions 3 and 4: one loop, many defects


def tiled(q, k, v, *, block_q, block_k, causal=False, defect=""):
    """Tiled attention with tile skipping and GQA, right unless `defect` names what goes wrong."""
    heads, q_len, dim = q.shape[1:]
    kv_heads, k_len = k.shape[1:3]
    group = heads // kv_heads
    head = torch.arange(heads)
    k, v = (x[:, head % kv_heads if defect == "heads_interleaved" else head // group] for x in (k, v))
    shift = 0 if defect == "top_left" else k_len - q_len
    shift += {"off_by_one": 1, "hides_itself": -1}.get(defect, 0)
    scale = {"no_scale": 1.0, "scaled_by_d": 1 / dim}.get(defect, dim**-0.5)
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[:-1])
    for i in range(0, q_len, block_q):
        q_i = q[:, :, i : i + block_q] * scale
        seen = torch.arange(i, i + q_i.shape[2]) + shift
        m = q_i.new_full(q_i.shape[:-1], 0.0 if defect == "m_from_zero" else -torch.inf)
        l, o = torch.zeros_like(m), torch.zeros_like(q_i)
        for j in range(*tile_range(k_len, block_k, int(seen[-1]), int(seen[0]), causal, defect)):
            k_j, v_j = k[:, :, j : j + block_k], v[:, :, j : j + block_k]
            s = hide(q_i @ k_j.transpose(-1, -2), j, seen, causal, block_k, defect)
            m, l, o = update(m, l, o, s, v_j, defect)
        safe = torch.where(l == 0, 1.0, l)
        if defect == "no_guard":
            safe = torch.where(l == 0, torch.nan, l)
        divided = o if defect in ("divided_every_step", "not_divided", "mean_of_tiles") else o / safe[..., None]
        out[:, :, i : i + block_q] = divided / -(-k_len // block_k) if defect == "mean_of_tiles" else divided
        lse[:, :, i : i + block_q] = finish(m, l, safe, defect)
    return out, lse


def tile_range(k_len, block_k, last_seen, first_seen, causal, defect):
    end = min(k_len, last_seen + 1) if causal else k_len
    if defect == "last_tile_lost":
        end = end // block_k * block_k or end
    if defect == "diagonal_tile_lost" and causal:
        end = min(end, max(1, first_seen // block_k * block_k))
    return 0, (k_len if defect == "masked_not_skipped" else end), block_k


def hide(s, j, seen, causal, block_k, defect):
    keys = torch.arange(j, j + s.shape[-1])
    if defect == "diagonal_not_masked":
        return s
    if defect == "only_the_square_diagonal" and not (j <= int(seen[0]) < j + block_k):
        return s
    hidden = {"masked_with_minus_ten": -10.0, "masked_with_zero": 0.0}.get(defect, -torch.inf)
    return s.masked_fill(keys > seen[:, None], hidden) if causal else s


def update(m, l, o, s, v, defect):
    """One step of online softmax, with the defects that live in it."""
    if defect == "no_maximum":
        p = s.exp()
        return torch.zeros_like(m), l + p.sum(-1), o + p @ v
    m_new = torch.maximum(m, s.amax(-1))
    unit = m_new if defect == "no_guard" else torch.where(m_new == -torch.inf, 0.0, m_new)
    p, shrink = (s - unit[..., None]).exp(), (m - unit).exp()
    if defect == "mean_of_tiles":
        return m_new, l * shrink + p.sum(-1), o + (p / p.sum(-1, keepdim=True)) @ v
    l_new = l * (1.0 if defect == "l_not_rescaled" else shrink) + p.sum(-1)
    if defect == "slide_line_11":  # e^(m - m_new) without the l it belongs to
        l_new = shrink + p.sum(-1)
    o_new = o * (1.0 if defect == "o_not_rescaled" else shrink[..., None]) + p @ v
    if defect == "slide_line_12":  # diag(l) e^(m - m_new) without the O it belongs to
        o_new = (l * shrink)[..., None] + p @ v
    if defect == "divided_every_step":
        o_new = o_new / l_new[..., None]
    return m_new, l_new, o_new


def finish(m, l, safe, defect):
    """The lse of finished rows."""
    if defect == "lse_without_m":
        return safe.log()
    if defect == "lse_is_m_plus_l":
        return m + l
    if defect == "lse_is_minus_m":
        return safe.log() - m
    return m + safe.log()


FORWARD = {
    "o_not_rescaled": """Your lse agrees with ours and your output does not: `o` is what you get when new terms
        join old ones counted in an older unit. Everything that sums past tiles is rescaled. Hint 1""",
    "l_not_rescaled": """Your lse is too large and the output too small, wherever a later tile brought a new
        maximum: `l` was kept in the old unit. Same cure as for `o`. Hint 3""",
    "slide_line_11": """This is line 11 as one of the lecture's slides prints it: `l` itself is missing after
        $e^{m - m^{new}}$. A sum of weights became a single factor. Other copies on the slides are right;
        compare them""",
    "slide_line_12": r"""This is line 12 as some of the lecture's slides print it: `O` is missing after
        $\mathrm{diag}(\ell)e^{m - m^{new}}$, so past values are replaced by past weights. Your lse is right.
        Compare the copies""",
    "m_from_zero": """All cases agree but the one with scores near -200: there `l` is 0 and you divide by it. Your
        running maximum started at 0, which no score reached. Hint 2""",
    "no_maximum": """You are right for small scores and inf or NaN for large ones: no maximum is subtracted before
        `exp`. fp32 overflows above 88.7. See lab 03, question 1""",
    "no_scale": r"""Your scores are $\sqrt d$ times ours: the factor `dim ** -0.5` is missing, in lse and output
        alike.""",
    "scaled_by_d": r"""Your scores are too flat: you divided by d, not by its square root. A dot product of d
        random terms grows like $\sqrt d$.""",
    "last_tile_lost": """Right when tiles fit, wrong otherwise: keys after the last whole tile are never read.
        Round the number of tiles up. Hint 2""",
    "mean_of_tiles": """Your output is the plain mean of what each tile alone would answer. A tile's say is the
        mass it holds, `l` in a common unit. See lab 03, Ben's averages""",
    "divided_every_step": """Your lse is right. The output is divided by `l` in every tile, so early tiles are
        divided again and again. FlashAttention divides once, after the last tile (Algorithm 1 multiplies the
        old `l` back in first). Hint 3""",
    "not_divided": """Your lse is right and each output row is `l` times ours: divide `o` by `l` after the last
        tile.""",
    "lse_without_m": """Your output agrees. Your lse is `log l`: `l` is counted in units of $e^m$, so `m` must be
        added.""",
    "lse_is_m_plus_l": """Your output agrees. Your lse adds `l` itself: take its logarithm first. Hint 3""",
    "lse_is_minus_m": """Your output agrees. In your lse the maximum has the wrong sign: multiplying by $e^m$ adds
        `m`.""",
}

CAUSAL = {
    "off_by_one": """Each query also sees the key right after it: your limit is one too high. In training this
        model would read the answer. Check `<` against `<=` for query 0""",
    "hides_itself": """No query sees its own key: your limit is one too low. Query 0 of a square case must see key
        0.""",
    "top_left": """Square cases agree; unequal lengths do not. You aligned the diagonal at the first key, as
        SDPA's `is_causal` does. Here the last query sees all keys: shift by $N_k - N_q$. Hint 2""",
    "diagonal_tile_lost": """You skip too much: tiles that the diagonal crosses still hold visible keys. Skip a
        tile only if its first key is beyond the tile's **last** query. Hint 1""",
    "diagonal_not_masked": """You end the loop at the diagonal and mask nothing inside: queries see up to a tile of
        future keys. Skipping is for whole tiles; a tile that the diagonal crosses is loaded **and** masked. Hint 3""",
    "only_the_square_diagonal": """Right when query and key tiles have one size. Otherwise a query tile meets the
        diagonal in several key tiles, and you mask only one of them. Hint 3""",
    "masked_with_minus_ten": """Nearly right: hidden keys keep a little weight, $e^{-10 - m}$, because you mask
        with a finite number. It shows where real scores are low. Use `-inf`""",
    "masked_with_zero": """Hidden keys get the score 0, which is an ordinary score with weight $e^{0 - m}$. Only
        `-inf` has weight 0.""",
    "no_guard": """All agrees but the queries that see **no** key: NaN there. What is `-inf - (-inf)`? And 0 / 0?
        You met both in lab 03. Hint 3""",
    "heads_interleaved": """Right without GQA. With it, your query head h reads K/V head `h % kv_heads`; groups
        are neighbours: `h // (heads // kv_heads)`. `repeat` interleaves, `repeat_interleave` groups. Hint 2""",
    "causal_o_not_rescaled": """Your lse agrees; `o` mixes units. It is question 3's line. Take it over from
        there.""",
}


def register(question_name, loop, texts, prefix=""):
    """Make each row (name: text) of `texts` a mistake: `loop` with the defect of that name."""
    for name, says in texts.items():
        wrong = partial(loop, defect=name.removeprefix(prefix))
        wrong.__name__ = name
        globals()[name] = mistake(question_name, says=says)(wrong)


register("flash_forward", tiled, FORWARD)
register("flash_causal", tiled, CAUSAL, "causal_")


@mistake(
    "flash_causal",
    fails="PoisonOutside",
    says="""Every number agrees. But NaN in tiles above the diagonal reaches you: you load them and mask afterwards,
        and 0 × NaN is NaN. End the loop before them; half of all tiles are free. Hint 1""",
)
def masked_not_skipped(q, k, v, *, causal, block_q, block_k):
    return tiled(q, k, v, block_q=block_q, block_k=block_k, causal=causal, defect="masked_not_skipped")


@mistake(
    "flash_causal",
    fails="MemorySlope",
    says="""Every number agrees. But your peak memory grows with N²: you cut the keys at the diagonal and take the
        rest in one piece. Walk over it in tiles, as in question 3.""",
)
def causal_whole_rows(q, k, v, *, causal, block_q, block_k):
    k_len, parts = k.shape[2], []
    for i in range(0, q.shape[2], block_q):
        q_i = q[:, :, i : i + block_q]
        end = max(0, min(k_len, k_len - q.shape[2] + i + q_i.shape[2])) if causal else k_len
        k_i, v_i = k[:, :, :end], v[:, :, :end]  # the last query of the tile still sees the last key
        parts.append(tiled(q_i, k_i, v_i, block_q=block_q, block_k=1 << 30, causal=causal))
    out, lse = zip(*parts, strict=True)
    return torch.cat(out, 2), torch.cat(lse, 2)


@mistake(
    "flash_forward",
    fails="MemorySlope",
    says="""Every number agrees. But your peak memory grows with N²: whole rows of scores exist for all queries of a
        tile. At N = 8,192 and 32 heads the full matrix has 8.6 GB in fp32. Cut the keys, not only the queries.
        Hint 1""",
)
def full_matrix(q, k, v, *, block_q, block_k):
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    m = s.amax(-1, keepdim=True)
    p = (s - m).exp()
    return p @ v / p.sum(-1, keepdim=True), (m + p.sum(-1, keepdim=True).log())[..., 0]


@mistake(
    "flash_forward",
    fails="this question",
    says="""A library function made these numbers: `softmax` or `logsumexp` over whole rows. The tile loop is the
        question. Hint 1""",
)
def library_softmax(q, k, v, *, block_q, block_k):
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return s.softmax(-1) @ v, s.logsumexp(-1)


# ---------------------------------------------------------------- question 6


def launch(q, k, v, *, causal, block_q, block_k, defect=""):
    """`flash_triton` program by program, in NumPy; `q`, `k`, `v` may end in NaN, which a load without a mask reads."""
    batch, heads, n, dim = q.shape
    out, lse = torch.zeros(batch, heads, n, dim), torch.zeros(batch, heads, n)
    room = -(-n // block_k) * block_k
    for b in range(batch):
        for h in range(heads):
            from_head = (0, 0) if defect == "head_zero" else (b, h)
            k_bh, v_bh = (behind_the_end(x[from_head], room) for x in (k, v))
            if defect != "load_without_mask":
                k_bh, v_bh = (np.where(np.arange(room)[:, None] < n, x, np.float32(0)) for x in (k_bh, v_bh))
            for first in range(0, n, block_q):
                q_i = q[b, h, first : first + block_q].numpy()
                o, rows_lse = program(q_i, k_bh, v_bh, n, first, causal, block_q, block_k, defect)
                out[b, h, first : first + block_q] = torch.from_numpy(o)
                lse[b, h, first : first + block_q] = torch.from_numpy(rows_lse)
    return out, lse


def behind_the_end(x, room):
    """`x` (n, dim) with the rows that follow it in memory: the checker leaves NaN there."""
    return torch.as_strided(x, (room, x.shape[1]), x.stride()).numpy()


def program(q, k, v, n, first, causal, block_q, block_k, defect):
    """One program: one tile of queries of one head."""
    rows = first + np.arange(len(q))
    m = np.full(len(q), 0.0 if defect == "m_from_zero" else -np.inf, np.float32)
    l, o = np.zeros_like(m), np.zeros_like(q)
    causal = causal and defect != "never_causal"
    end = min(n, first + block_q) if causal and defect != "masked_not_skipped" else n
    for start in range(0, end, block_k):
        keys = start + np.arange(block_k)
        s = q @ k[keys].T * np.float32(1.0 if defect == "no_scale" else q.shape[1] ** -0.5)
        if defect != "padding_counts":
            s = np.where(keys < n, s, np.float32(-np.inf))
        if causal and defect != "diagonal_not_masked":
            seen = rows + {"off_by_one": 1, "hides_itself": -1}.get(defect, 0)
            s = np.where(keys <= seen[:, None], s, np.float32(-np.inf))
        with np.errstate(all="ignore"):
            m, l, o = step(m, l, o, s, v[keys], defect)
    with np.errstate(all="ignore"):
        lse = {"lse_without_m": np.log(l), "lse_in_log2": (m + np.log(l)) / np.float32(np.log(2))}
        return o / l[:, None], lse.get(defect, m + np.log(l))


def step(m, l, o, s, v, defect):
    m_new = np.zeros_like(m) if defect == "no_maximum" else np.maximum(m, s.max(1))
    p, shrink = np.exp(s - m_new[:, None]), np.exp(m - m_new)
    if defect == "no_maximum":
        shrink = np.ones_like(m)
    l = l * (1 if defect == "l_not_rescaled" else shrink) + p.sum(1)
    o = o * (1 if defect == "o_not_rescaled" else shrink[:, None]) + p @ v
    return m_new, l, o


KERNEL = {
    "kernel_o_not_rescaled": """Your lse agrees; the accumulator is not multiplied by `shrink[:, None]` before the
        next product is added. A GPU shows the same wrong numbers. Hint 3""",
    "kernel_l_not_rescaled": """Your lse is too large after every new maximum: `l` stays in the old unit.""",
    "kernel_no_scale": r"""Your scores are $\sqrt d$ times ours: the argument `scale` is not used.""",
    "kernel_no_maximum": """Right for small scores, inf or NaN for large: no maximum is subtracted before
        `tl.exp`.""",
    "kernel_m_from_zero": """Right but for scores near -200: `m` was made with `tl.zeros`. Use `tl.full(…,
        -float("inf"), …)`.""",
    "kernel_off_by_one": """Causal cases let each query see the next key: compare `keys <= rows`, not `keys <=
        rows + 1`.""",
    "kernel_hides_itself": """Causal cases hide each query's own key (`<` for `<=`), so query 0 sees nothing and
        becomes NaN.""",
    "kernel_lse_in_log2": r"""Your output agrees; your lse is in units of $\log_2$. Fast kernels use `exp2` inside
        and keep that unit; here the natural logarithm is stored. Multiply by $\ln 2$.""",
    "kernel_lse_without_m": """Your output agrees; your lse lacks `m`: store `m + tl.log(l)`.""",
    "kernel_padding_counts": """Right when tiles fit, and in causal cases. Else your padding keys keep the score 0
        (their K rows were loaded as 0) and take weight from the real ones: the lse is too large. `other=0.0`
        protects the load, not the softmax; set those columns to `-inf`. Hint 2""",
    "kernel_load_without_mask": """NaN wherever the last tile is short: a load without its mask read the NaN
        behind the last row. On a GPU it would read a neighbour's memory, silently. Give each `tl.load` a mask
        and `other=0.0`. Hint 2""",
    "kernel_head_zero": """Only the first head is right: the addresses of K and V lack `head * stride_head`, so
        every program reads the keys of head 0. Hint 2""",
    "kernel_diagonal_not_masked": """Right without the causal mask. With it you end the loop early and mask nothing:
        queries see up to a tile of future keys. Set `keys > rows` to `-inf` too. Hint 2""",
    "kernel_never_causal": """Right without the causal mask; with it, every query sees everything: `CAUSAL` is not
        used.""",
}


register("flash_triton", launch, KERNEL, "kernel_")


@mistake(
    "flash_triton",
    says="""The first rows of every head but the first are wrong where the last tile is short: a `tl.store` without its
        mask wrote the rows behind the end, and there the next head begins. Mask both stores by `rows < n`. Hint 3""",
)
def kernel_store_without_mask(q, k, v, *, causal, block_q, block_k):
    out, lse = launch(q, k, v, causal=causal, block_q=block_q, block_k=block_k)
    n, behind = q.shape[2], -q.shape[2] % block_q
    if n > block_q:  # a row behind the end has q = 0: the mean of all values. It lands after the next head's own rows
        out.flatten(0, 1)[1:, :behind] = v.flatten(0, 1)[:-1].mean(1, keepdim=True)
        lse.flatten(0, 1)[1:, :behind] = float(np.log(n))
    return out, lse


@mistake(
    "flash_triton",
    fails="PoisonOutside",
    says="""Every number agrees. But NaN in tiles above the diagonal reaches you: the loop runs to the end and
        masks what it loaded. When causal, stop at the tile's last query: half of the work is free, and 0 ×
        NaN is NaN. Hint 2""",
)
def kernel_masked_not_skipped(q, k, v, *, causal, block_q, block_k):
    return launch(q, k, v, causal=causal, block_q=block_q, block_k=block_k, defect="masked_not_skipped")


@mistake(
    "flash_triton",
    fails="this question",
    says="""The numbers were made by PyTorch, not by your kernel: the checker saw `exp` or a matmul of tensors
        outside Triton. Write the loop inside `flash_kernel`. Hint 1""",
)
def kernel_in_pytorch(q, k, v, *, causal, block_q, block_k):
    return tiled(q, k, v, block_q=block_q, block_k=block_k, causal=causal)


# ---------------------------------------------------------------- question 5


def backward(q, k, v, out, lse, d_out, *, block_q, block_k, defect=""):
    """Tiled backward, right unless `defect` names what goes wrong."""
    scale, delta = q.shape[-1] ** -0.5, (d_out * out).sum(-1)
    if defect == "no_delta":
        delta = torch.zeros_like(delta)
    if defect == "delta_from_out":
        delta = (out * out).sum(-1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for j in range(0, k.shape[2], block_k):
        cols = slice(j, j + block_k)
        for i in range(0, q.shape[2], block_q):
            rows = slice(i, i + block_q)
            s = (1.0 if defect == "no_scale_in_p" else scale) * q[:, :, rows] @ k[:, :, cols].transpose(-1, -2)
            p = (s - lse[:, :, rows, None]).exp()
            if defect == "softmax_per_tile":
                p = s.softmax(-1)
            if defect == "base_two":
                p = torch.exp2(s - lse[:, :, rows, None])
            dp = d_out[:, :, rows] @ v[:, :, cols].transpose(-1, -2)
            centre = (p * dp).sum(-1) if defect == "delta_per_tile" else delta[:, :, rows]
            ds = p * (dp - centre[..., None])
            ds_scaled = ds if defect == "no_scale_in_ds" else ds * scale
            weights = ds if defect == "dv_from_ds" else p
            dv[:, :, cols] += weights.transpose(-1, -2) @ d_out[:, :, rows]
            dk[:, :, cols] += ds_scaled.transpose(-1, -2) @ q[:, :, rows]
            if defect == "dq_overwritten":
                dq[:, :, rows] = ds_scaled @ k[:, :, cols]
            else:
                dq[:, :, rows] += ds_scaled @ k[:, :, cols]
    return dq, dk, dv


BACKWARD = {
    "no_delta": """`dv` agrees; `dq`, `dk` do not: `D` is missing. Raising one weight of a softmax row lowers the
        others, and `D` is that. Without it, adding a constant to V would change dq. Hint 2""",
    "delta_from_out": """`dv` agrees. Your `D` is the row sum of `out * out`; it must be `d_out * out`.""",
    "delta_per_tile": """Right with a single key tile, wrong with several: your `D` sums P ∘ dP over this tile
        only. The sum runs over **all** keys, and `(d_out * out).sum(-1)` has it before the loop starts. Hint
        2""",
    "softmax_per_tile": """Your weights sum to 1 inside each tile. They must sum to 1 over all keys: subtract the
        saved `lse`, do not normalise again. Hint 3""",
    "base_two": r"""Your `P` is $2^{s - lse}$. Fast kernels do that after folding $\log_2 e$ into s and lse; here
        both are natural.""",
    "no_scale_in_ds": r"""`dv` agrees; `dq` and `dk` are $\sqrt d$ times ours: s was scaled on the way there, so
        its gradient is scaled on the way back. Hint 1""",
    "no_scale_in_p": r"""Everything is off: `P` recomputed without $1/\sqrt d$ is not the P of the forward pass.
        The saved lse fits only the same scores.""",
    "dv_from_ds": r"""`dq` and `dk` agree; `dv` is built from dS. Values are weighted by P: $\mathrm{d}V = P^\top
        \mathrm{d}O$.""",
    "dq_overwritten": """`dk` and `dv` agree; `dq` is that of the last key tile alone. Every key tile adds to it.
        In a GPU kernel this is why dq gets a loop, or a kernel, of its own.""",
}


register("flash_backward", backward, BACKWARD)


@mistake(
    "flash_backward",
    fails="MemorySlope",
    says="""Every number agrees, but your peak memory grows with N²: P or dS exists as a whole. Recompute it inside
        the loop over both tiles. Hint 3""",
)
def whole_p(q, k, v, out, lse, d_out, *, block_q, block_k):
    return backward(q, k, v, out, lse, d_out, block_q=1 << 30, block_k=1 << 30)


@mistake(
    "flash_backward",
    says="""Right whenever K and V are all the keys. Where they are a part (case "a part of the keys"), you ran the
        forward again and normalised over the part. Use `out` and `lse` as handed over. Hint 3""",
)
def forward_again(q, k, v, out, lse, d_out, *, block_q, block_k):
    out, lse = tiled(q, k, v, block_q=block_q, block_k=block_k)
    return backward(q, k, v, out, lse, d_out, block_q=block_q, block_k=block_k)


# ---------------------------------------------------------------- question 7


def count(n, dim, heads, batch, standard, flash, row="gflops"):
    product = 2 * n * n * dim * heads * batch
    return {"standard": int(standard * product), "flash": int(flash * product), "row": row}


@mistake(
    "which_row",
    says="""Both counts are half of ours: a multiply and an add are two FLOPs. The A100's 312 TFLOP/s count both.""",
)
def multiply_add_is_one(n, dim, heads, batch):
    return count(n, dim, heads, batch, 3, 3.5)


@mistake(
    "which_row",
    says="""You counted the forward pass alone. The table says forward and backward; the backward has four products
        more.""",
)
def forward_only(n, dim, heads, batch):
    return count(n, dim, heads, batch, 2, 2)


@mistake(
    "which_row",
    says="""Both columns are equal: FlashAttention's backward computes S again, one product more. That is the
        recomputation the slide says is reduced.""",
)
def no_recomputation(n, dim, heads, batch):
    return count(n, dim, heads, batch, 6, 6)


@mistake(
    "which_row",
    says="""`flash` holds two extra products; one is enough. The backward needs P, so S again, and not O: that was
        saved.""",
)
def whole_forward_again(n, dim, heads, batch):
    return count(n, dim, heads, batch, 6, 8)


@mistake(
    "which_row",
    says="""One head of one sequence: multiply by heads and batch. Before, the printed row looks almost possible.""",
)
def one_head(n, dim, heads, batch):
    return count(n, dim, 1, 1, 6, 7)


@mistake(
    "which_row",
    says="""Your counts agree. But bytes / time in that row is 0.97 and 0.60 TB/s, below the card's 1.56: it can be
        right. Try FLOPs / time.""",
)
def blames_bytes(n, dim, heads, batch):
    return count(n, dim, heads, batch, 6, 7, row="gigabytes")


@mistake(
    "which_row",
    says="""Your counts agree. But with them the printed times mean 20 and 132 TFLOP/s, below the card's 312: the
        times can be right.""",
)
def blames_time(n, dim, heads, batch):
    return count(n, dim, heads, batch, 6, 7, row="milliseconds")
