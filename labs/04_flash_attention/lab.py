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
# # Lab 04 · FlashAttention
# *Why is more arithmetic faster?*
#
# **Time** 120 min, 20 s of CPU. **You need** lecture 04, the running maximum of lab 03. At the end you hold a tiled forward, its backward, and the same thing as a Triton kernel; you plug it into SmolLM2, and you know which number of a famous table is wrong.
#
# | Question | Points | Minutes | Difficulty |
# |---|---|---|---|
# | `algorithm0` | 3 | 8 | ●○○ |
# | `block_sizes` | 2 | 5 | ●○○ |
# | `flash_forward` | 8 | 22 | ●●○ |
# | `flash_causal` | 6 | 20 | ●●● |
# | `flash_backward` | 7 | 22 | ●●● |
# | `flash_triton` | 6 | 20 | ●●● |
# | `which_row` | 3 | 8 | ●●○ |
# | `why` (read by a person) | 4 | 10 | ●●○ |
#
# `lab.check("…")` runs the same comparison as the final grade. Hints cost nothing.
# %% tags=["setup"]
from autograder import open_lab

lab = open_lab("04_flash_attention")
# %% [markdown]
# Triton comes after `open_lab`: on a machine without a GPU, the line above switches its interpreter on. Where Triton does not exist (macOS, Windows), `flash_triton` is not graded here; everything else is.
# %% tags=["setup"]
import math
import warnings

import torch

warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # NumPy on -inf and NaN, in the interpreter
try:
    import triton
    import triton.language as tl
except ImportError:  # a stand-in, so that the cells below still run
    from types import SimpleNamespace

    triton, tl = SimpleNamespace(jit=lambda kernel: kernel), SimpleNamespace(constexpr=int)
# %% [markdown]
# ## Warm-up. Two blocks of keys by hand (not graded)
# One query, four keys in two blocks, scores 1, 3 and 5, 2. The cell reads one block, prints what it holds, reads the other. **Before you run it**: the first block leaves `m = 3`. By which factor must `l` and `o` shrink when the 5 arrives? Then swap the blocks. Which numbers change on the way, and which at the end?
# %% tags=["explore"]
scores = torch.tensor([[1.0, 3.0], [5.0, 2.0]])  # two blocks of two keys
values = torch.tensor([[10.0, 20.0], [30.0, 40.0]])  # one number per key
m, l, o = torch.tensor(-math.inf), torch.tensor(0.0), torch.tensor(0.0)
for s, v in zip(scores, values):
    m_new = torch.maximum(m, s.max())  # 1. the unit after this block
    shrink = (m - m_new).exp()  # 2. what a sum in the old unit is worth in the new one
    p = (s - m_new).exp()  # 3. this block's weights, in the new unit
    l, o, m = l * shrink + p.sum(), o * shrink + p @ v, m_new
    print(f"m {m:.0f}   l {l:.4f}   o {o:.3f}   factor on the past {shrink:.4f}")
print(f"tiled {o / l:.5f}   all at once {scores.flatten().softmax(0) @ values.flatten():.5f}")


# %% [markdown]
# ## Question 1. What Algorithm 0 moves (3 points, 8 minutes, ●○○)
# Standard attention runs as three kernels. Each reads its inputs from HBM and writes its result back: (1) $S = QK^\top$, (2) $P = \mathrm{softmax}(S)$, (3) $O = PV$. $Q, K, V, O$ are $N \times d$; $S, P$ are $N \times N$. Count the **elements** that one head moves forward. Each kernel reads each input once.
# %% question="algorithm0"
def algorithm0(n, dim):
    """Elements moved by Algorithm 0, one head, forward only. Returns (reads, writes), two integers."""
    # BEGIN SOLUTION
    scores, rows = n * n, n * dim
    reads = (rows + rows) + scores + (scores + rows)  # Q and K; S; P and V
    writes = scores + scores + rows  # S; P; O
    return reads, writes
    # END SOLUTION


# %% check="algorithm0"
lab.check("algorithm0")
# %% [markdown] hints="algorithm0"
# <details><summary>Hint 1: the idea</summary>
#
# A kernel forgets everything when it ends. What must the softmax kernel fetch, although the kernel before it just had it?
# <details><summary>Hint 2: the shapes</summary>
#
# Make a table of three rows (kernels) and two columns (reads, writes). Six matrices take part. Which of them appear twice?
# <details><summary>Hint 3: nearly code</summary>
#
# Kernel 1 reads two $N \times d$ and writes one $N \times N$. Kernel 2 reads and writes one $N \times N$ each. Kernel 3 reads one of each kind and writes one $N \times d$. Add the columns.
# </details></details></details>
# %% tags=["explore"]
reads, writes = algorithm0(1024, 64)
print(f"GPT-2 medium, 64 sequences of 16 heads, fp16: {(reads + writes) * 64 * 16 * 2 / 1e9:.1f} GB, forward alone")


# %% [markdown]
# ## Question 2. Tiles that fit (2 points, 5 minutes, ●○○)
# Algorithm 1 cuts $Q$ into blocks of $B_r$ rows, $K$ and $V$ into blocks of $B_c$ rows. On-chip memory holds $M$ **elements**, and four blocks ($Q_i, K_j, V_j, O_i$) of $B_c$ rows should fill it. The tile $S_{ij}$ must fit too, so $B_r$ is at most $d$. The slides print the division once rounded down and once rounded up. The paper rounds **up**.
# %% question="block_sizes"
def block_sizes(sram_elements, dim):
    """Block sizes of Algorithm 1. Returns (block_q, block_k), that is (B_r, B_c)."""
    # BEGIN SOLUTION
    block_k = -(-sram_elements // (4 * dim))
    return min(block_k, dim), block_k
    # END SOLUTION


# %% check="block_sizes"
lab.check("block_sizes")


# %% [markdown] hints="block_sizes"
# <details><summary>Hint 1: the idea</summary>
#
# How many rows of length $d$ fit into $M$ elements? A quarter of those for each of the four blocks.
# <details><summary>Hint 2: the shapes</summary>
#
# $M$ counts elements already. $B_c = \lceil M / 4d \rceil$. $B_r$ is the same number or $d$: which of the two, if $S_{ij}$ is not to outgrow a block?
# <details><summary>Hint 3: nearly code</summary>
#
# `-(-a // b)` divides integers and rounds up. Return the smaller of that and `dim` first, then that.
# </details></details></details>
# %% [markdown]
# ## Question 3. The tiled forward (8 points, 22 minutes, ●●○)
# Now the warm-up with matrices. For every tile of queries, walk over the tiles of keys, carry `m`, `l`, `o`, divide once at the end. Return the output and $\mathrm{lse} = \ln\sum_j e^{s_{ij}}$, one natural logarithm per query, with $s_{ij} = q_i \cdot k_j / \sqrt d$.
#
# Any length: the last tile may be shorter, and there may be more keys than queries. Scores may be huge or all far below zero. No `softmax`, no `logsumexp`, no library attention: the checker looks. It also measures peak memory while $N$ grows, so a full $N \times N$ tensor anywhere fails. Fifteen lines are enough.
# %% question="flash_forward"
def flash_forward(q, k, v, *, block_q, block_k):
    """Exact attention, one tile at a time.

    q (batch, heads, q_len, dim), k and v (batch, heads, k_len, dim).
    Returns out (batch, heads, q_len, dim) and lse (batch, heads, q_len).
    """
    # BEGIN SOLUTION
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1])
    for i in range(0, q.shape[2], block_q):
        q_i = q[:, :, i : i + block_q] * q.shape[-1] ** -0.5
        m = q_i.new_full(q_i.shape[:-1], -torch.inf)
        l, o = torch.zeros_like(m), torch.zeros_like(q_i)
        for j in range(0, k.shape[2], block_k):
            s = q_i @ k[:, :, j : j + block_k].transpose(-1, -2)
            m_new = torch.maximum(m, s.amax(-1))
            p, shrink = (s - m_new[..., None]).exp(), (m - m_new).exp()
            l = l * shrink + p.sum(-1)
            o = o * shrink[..., None] + p @ v[:, :, j : j + block_k]
            m = m_new
        out[:, :, i : i + block_q] = o / l[..., None]
        lse[:, :, i : i + block_q] = m + l.log()
    return out, lse
    # END SOLUTION


# %% check="flash_forward"
lab.check("flash_forward")


# %% [markdown] hints="flash_forward"
# <details><summary>Hint 1: the idea</summary>
#
# Run the warm-up loop once per tile of queries. Every past quantity is counted in units of $e^m$ of its day. Which quantities are past when a new tile arrives?
# <details><summary>Hint 2: the shapes</summary>
#
# Per query tile: `m`, `l` of shape `(batch, heads, rows)`, `o` of `(batch, heads, rows, dim)`. Per key tile: `s` and `p` of `(batch, heads, rows, cols)`. `m` starts at `-inf`, not at 0. Slicing past the end of a tensor is safe and gives the short last tile.
# <details><summary>Hint 3: nearly code</summary>
#
# `m_new` is the maximum of `m` and the row maximum of `s`. `p = exp(s - m_new)`, `shrink = exp(m - m_new)`. New `l` is `l * shrink` plus the row sum of `p`; new `o` is `o * shrink` plus `p @ v_tile`. After the last tile: `o / l`, and `m + log l`.
# </details></details></details>
# %% [markdown]
# ## Question 4. Causal, and fewer K/V heads (6 points, 20 minutes, ●●●)
# Two additions. With `causal=True`, query $i$ sees key $j$ only if $j \le i + (N_k - N_q)$: the **last** query sees all keys, as in decoding. A tile entirely above that diagonal is never touched. The checker fills such tiles of K and V with NaN: masking them after loading gives NaN, skipping them does not.
#
# With GQA, query head $h$ reads K/V head `h // (heads // kv_heads)`. If $N_q > N_k$, some queries see no key at all: output 0, `lse = -inf`.
# %% question="flash_causal"
def flash_causal(q, k, v, *, causal, block_q, block_k):
    """Tiled attention with causal tile skipping and grouped K/V heads.

    q (batch, heads, q_len, dim), k and v (batch, kv_heads, k_len, dim). Returns (out, lse) as in question 3.
    """
    # BEGIN SOLUTION
    q_len, dim, kv_heads, k_len = *q.shape[2:], *k.shape[1:3]
    shift, q = k_len - q_len, q.unflatten(1, (kv_heads, -1))  # (batch, kv_heads, group, q_len, dim)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1])
    for i in range(0, q_len, block_q):
        q_i = q[..., i : i + block_q, :] * dim**-0.5
        m = q_i.new_full(q_i.shape[:-1], -torch.inf)
        l, o = torch.zeros_like(m), torch.zeros_like(q_i)
        rows = torch.arange(i, min(i + block_q, q_len)) + shift  # the last key each query sees
        for j in range(0, min(k_len, int(rows[-1]) + 1) if causal else k_len, block_k):
            s = q_i @ k[:, :, None, j : j + block_k].transpose(-1, -2)
            if causal and j + block_k - 1 > rows[0]:  # the tile crosses the diagonal
                s = s.masked_fill(torch.arange(j, j + s.shape[-1]) > rows[:, None], -torch.inf)
            m_new = torch.maximum(m, s.amax(-1))
            unit = torch.where(m_new == -torch.inf, 0.0, m_new)  # a row with no key so far: -inf - (-inf) is NaN
            p, shrink = (s - unit[..., None]).exp(), (m - unit).exp()
            l = l * shrink + p.sum(-1)
            o = o * shrink[..., None] + p @ v[:, :, None, j : j + block_k]
            m = m_new
        out[..., i : i + block_q, :] = o / torch.where(l == 0, 1.0, l)[..., None]
        lse[..., i : i + block_q] = m + torch.where(l == 0, 1.0, l).log()
    return out.flatten(1, 2), lse.flatten(1, 2)
    # END SOLUTION


# %% check="flash_causal"
lab.check("flash_causal")


# %% [markdown] hints="flash_causal"
# <details><summary>Hint 1: the idea</summary>
#
# The last query of a tile sees the most keys. Where must the loop over key tiles end for that query? And which tiles, of those left, contain a pair that must be hidden?
# <details><summary>Hint 2: the shapes</summary>
#
# With `shift = k_len - q_len`, query `i` sees keys `0 … i + shift`. That gives the end of the loop, which may be 0 or less. For GQA, view `q` as `(batch, kv_heads, group, q_len, dim)` and give K and V an axis of length 1 there. What is `m - m_new` for a query that saw no key yet?
# <details><summary>Hint 3: nearly code</summary>
#
# Loop `j` up to `min(k_len, last_query + shift + 1)`. If the tile's last key exceeds `first_query + shift`, fill `s` with `-inf` where `key > query + shift`. Subtract `where(m_new == -inf, 0, m_new)` instead of `m_new`. At the end divide by `where(l == 0, 1, l)`; `m` is still `-inf` there, and so is the lse.
# </details></details></details>
# %% [markdown]
# ## Question 5. Backward, from one number per query (7 points, 22 minutes, ●●●)
# $P$ was never stored. It can be had again, tile by tile, from `lse`. With $\mathrm{d}O$ the gradient of the output, $\circ$ elementwise, and $s_{ij}$ as before:
#
# $$P_{ij} = e^{s_{ij} - \mathrm{lse}_i}, \quad D_i = \sum_c \mathrm{d}O_{ic} O_{ic}, \quad \mathrm{d}S = P \circ (\mathrm{d}O\,V^\top - D)$$
#
# Derive $\mathrm{d}Q$, $\mathrm{d}K$, $\mathrm{d}V$ and accumulate them over tiles. Not causal, one K/V head per query head. Two limits: memory linear in $N$, and `lse`, `out` are to be **used**. In one case K and V are a part of the keys, while `out` and `lse` come from all of them (unit 16 lives on this).
# %% question="flash_backward"
def flash_backward(q, k, v, out, lse, d_out, *, block_q, block_k):
    """Gradients (dq, dk, dv) of attention, tile by tile, from the saved out and lse.

    q, out, d_out (batch, heads, q_len, dim), k and v (batch, heads, k_len, dim), lse (batch, heads, q_len).
    """
    # BEGIN SOLUTION
    scale, delta = q.shape[-1] ** -0.5, (d_out * out).sum(-1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for j in range(0, k.shape[2], block_k):
        cols = slice(j, j + block_k)
        for i in range(0, q.shape[2], block_q):
            rows = slice(i, i + block_q)
            s = scale * q[:, :, rows] @ k[:, :, cols].transpose(-1, -2)
            p = (s - lse[:, :, rows, None]).exp()
            ds = p * (d_out[:, :, rows] @ v[:, :, cols].transpose(-1, -2) - delta[:, :, rows, None]) * scale
            dv[:, :, cols] += p.transpose(-1, -2) @ d_out[:, :, rows]
            dk[:, :, cols] += ds.transpose(-1, -2) @ q[:, :, rows]
            dq[:, :, rows] += ds @ k[:, :, cols]
    return dq, dk, dv
    # END SOLUTION


# %% check="flash_backward"
lab.check("flash_backward")


# %% [markdown] hints="flash_backward"
# <details><summary>Hint 1: the idea</summary>
#
# $O = PV$ and $S = QK^\top/\sqrt d$ are matmuls. Each has two gradients, and each gradient is one more matmul. Where does $1/\sqrt d$ come back?
# <details><summary>Hint 2: the shapes</summary>
#
# `p`, `ds`: `(batch, heads, rows, cols)`. `dv` and `dk` have `cols` rows and sum over queries, so a transpose is needed. `dq` has `rows` rows and sums over keys. `D` comes from `out` and `d_out`, before any loop.
# <details><summary>Hint 3: nearly code</summary>
#
# Start three zero tensors. Per pair of tiles: `p = exp(scale * q_i @ k_jᵀ - lse_i)`; add `pᵀ @ do_i` to `dv_j`; `ds = p * (do_i @ v_jᵀ - D_i) * scale`; add `dsᵀ @ q_i` to `dk_j` and `ds @ k_j` to `dq_i`.
# </details></details></details>
# %% [markdown]
# ## Question 6. The same loop as a GPU kernel (6 points, 20 minutes, ●●●)
# One program handles one tile of queries of one head. The addresses and the load of `q` are given; write the loop, the two stores, and nothing else. Blocks are whole powers of two here, so the last tile reaches past the end. Behind the end lie **NaN** (the checker puts them there), so every load needs a mask and an `other=`, and a key beyond `k_len` needs the score `-inf`. Pass `input_precision="ieee"` to `tl.dot`: the default rounds fp32 on a GPU. Queries and keys have equal length. Causal tiles beyond the diagonal are skipped, as in question 4.
# %% tags=["setup"]
def flash_triton(q, k, v, *, causal, block_q, block_k):
    """Launch `flash_kernel`. q, k, v (batch, heads, n, dim); dim 16 to 128. Returns out and lse."""
    (batch, heads, n, dim), home = q.shape, q.device
    q, k, v = (x.to("cuda") if torch.cuda.is_available() else x for x in (q, k, v))
    spare = block_q * dim  # a store that forgets its mask must not crash the process
    out, lse = q.new_zeros(batch * heads * n * dim + spare), q.new_zeros(batch * heads * n + spare)
    grid = (-(-n // block_q), batch * heads)
    flash_kernel[grid](
        q, k, v, out, lse, q.stride(1), n, dim**-0.5, CAUSAL=causal, DIM=dim, BLOCK_Q=block_q, BLOCK_K=block_k
    )
    return out[:-spare].view(q.shape).to(home), lse[:-spare].view(q.shape[:-1]).to(home)


# %% [markdown]
# That launcher is given: it starts `cdiv(n, block_q)` × `batch * heads` programs. In the interpreter, a plain `print(s)` inside the kernel works.
# %% question="flash_triton"
@triton.jit
def flash_kernel(
    q_ptr, k_ptr, v_ptr,  # in   (batch * heads, n, DIM) each, rows contiguous
    out_ptr, lse_ptr,  # out  (batch * heads, n, DIM) and (batch * heads, n)
    stride_head, n, scale,  # elements from one head of q, k, v to the next; length; 1 / sqrt(DIM)
    CAUSAL: tl.constexpr, DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    head, first = tl.program_id(1), tl.program_id(0) * BLOCK_Q
    rows, cols, dims = first + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_K), tl.arange(0, DIM)
    q = tl.load(q_ptr + head * stride_head + rows[:, None] * DIM + dims, mask=rows[:, None] < n, other=0.0)
    # BEGIN SOLUTION
    m = tl.full([BLOCK_Q], -float("inf"), tl.float32)
    l, o = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q, DIM], tl.float32)
    end = tl.minimum(n, first + BLOCK_Q) if CAUSAL else n
    for start in range(0, end, BLOCK_K):
        keys = start + cols
        tile = head * stride_head + keys[:, None] * DIM + dims
        k = tl.load(k_ptr + tile, mask=keys[:, None] < n, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        s = tl.where(keys[None, :] < n, s, -float("inf"))
        if CAUSAL:
            s = tl.where(keys[None, :] <= rows[:, None], s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1))  # key 0 is visible to every query: m_new is finite
        p, shrink = tl.exp(s - m_new[:, None]), tl.exp(m - m_new)
        v = tl.load(v_ptr + tile, mask=keys[:, None] < n, other=0.0)
        l = l * shrink + tl.sum(p, 1)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    tl.store(out_ptr + (head * n + rows[:, None]) * DIM + dims, o / l[:, None], mask=rows[:, None] < n)
    tl.store(lse_ptr + head * n + rows, m + tl.log(l), mask=rows < n)
    # END SOLUTION


# %% check="flash_triton"
lab.check("flash_triton")


# %% [markdown] hints="flash_triton"
# <details><summary>Hint 1: the idea</summary>
#
# It is question 3's inner loop. `tl.load` replaces slicing, `tl.dot` replaces `@`, and what slicing did for the short last tile, a mask must do now.
# <details><summary>Hint 2: the shapes</summary>
#
# The tile's keys are `cols`, moved by where the tile starts. A K or V tile lies at `head * stride_head + keys[:, None] * DIM + dims`, with mask `keys[:, None] < n`. `s` is `[BLOCK_Q, BLOCK_K]`; its forbidden columns are those with `keys >= n` and, if causal, `keys > rows`. When causal, at which key may the loop end?
# <details><summary>Hint 3: nearly code</summary>
#
# Start with `tl.full([BLOCK_Q], -float("inf"), tl.float32)` and two `tl.zeros`. In the loop: load k, multiply `q` by `tl.trans(k)` with `tl.dot`, scale, two `tl.where`, then question 3 line by line with `tl.maximum`, `tl.max(s, 1)`, `tl.exp`, `tl.sum(p, 1)`. Store `o / l` at `(head * n + rows[:, None]) * DIM + dims`, the lse at `head * n + rows`, both masked by `rows < n`.
# </details></details></details>
# %% [markdown]
# ## Question 7. Break the table (3 points, 8 minutes, ●●○)
# The slides print this table. Its source is the FlashAttention paper (arXiv:2205.14135, figure 2): GPT-2 medium, forward and backward, $N = 1024$, $d = 64$, 16 heads, batch 64, one A100 (fp16 peak 312 TFLOP/s, HBM 1.56 TB/s).
#
# | | Standard | FlashAttention |
# |---|---|---|
# | `gflops` | 66.6 | 75.2 |
# | `gigabytes` | 40.3 | 4.4 |
# | `milliseconds` | 41.7 | 7.3 |
#
# One row cannot follow from that shape. Count the FLOPs of the **matmuls** (multiply and add are 2), no mask. Standard: $QK^\top$ and $PV$ forward; $\mathrm{d}V, \mathrm{d}P, \mathrm{d}Q, \mathrm{d}K$ backward. FlashAttention: the same and what the backward must compute again.
# %% question="which_row"
def which_row(n, dim, heads, batch):
    """FLOPs forward and backward, all heads and sequences, and the table's impossible row.

    Returns {"standard": int, "flash": int, "row": "gflops" or "gigabytes" or "milliseconds"}.
    """
    # BEGIN SOLUTION
    matmul = 2 * n * n * dim * heads * batch  # one product with an N x N matrix on one side
    return {"standard": 6 * matmul, "flash": 7 * matmul, "row": "gflops"}
    # END SOLUTION


# %% check="which_row"
lab.check("which_row")
# %% [markdown] hints="which_row"
# <details><summary>Hint 1: the idea</summary>
#
# Divide two cells of the last column: how many FLOP per second would that GPU have done? And how many bytes per second? Compare both with what the card can do.
# <details><summary>Hint 2: the shapes</summary>
#
# Every matmul here has sizes $N$, $N$ and $d$ in some order, so each costs $2N^2d$ per head. How many are there? The backward of question 5 has one more than the standard backward.
# <details><summary>Hint 3: nearly code</summary>
#
# `2 * n * n * dim * heads * batch` times 2 + 4, and times 2 + 4 + 1. Put $N = 1024$ in and compare with the printed row.
# </details></details></details>
# %% [markdown]
# ## On the real model
# The queries, keys and values below come out of SmolLM2 while it reads a presidential message (9 query heads, 3 K/V heads). The cell compares your causal attention with PyTorch's, and counts the bytes of both ways for the nine query heads. **Predict** first: at 1,024 tokens, how many times your bytes does the standard way move?
# %% tags=["explore"]
from time import process_time

from refimpl.flash_attention.simulator import simulate_flash2
from refimpl.models import sample_qkv

for n in (256, 512, 1024):
    q, k, v = sample_qkv(n, layer=22)
    began = process_time()
    mine, _ = flash_causal(q, k, v, causal=True, block_q=128, block_k=256)
    seconds = process_time() - began
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    moved, standard = simulate_flash2(n, 64, 128, 256, causal=True).total, sum(algorithm0(n, 64))
    print(
        f"N {n:4}: off by {(mine - wanted).abs().max():.0e}, {1e3 * seconds:.0f} ms, moves {moved * 9 * 2 / 1e6:.1f} MB "
        f"in fp16 against {standard * 9 * 2 / 1e6:.1f}: {standard / moved:.1f} times"
    )
# %% [markdown] written="why"
# ## Question 8. Why (4 points, 10 minutes, ●●○)
# *Ben: "FlashAttention is faster because it saves work: the lecture's slide says it reduces recomputation, and the N × N matrix is never computed."* 80 to 150 words: is he right? What makes it faster, and how do you know (use a number of your own run)? When would it not be faster? Marks: claim, mechanism, evidence, limit, one each.
#
# ### BEGIN SOLUTION
# No. Every score is computed, in training even twice: 7 matmuls against 6, so FLOPs rise by 17 %, from 0.82 to 0.96 TFLOP at the table's shape. It is faster because standard attention waits for memory. It writes S and P to HBM and reads them back, 9.1 GB in the forward pass alone by my count, while a tile on the chip is used and dropped. Time is the larger of FLOPs / peak and bytes / bandwidth, and the second was the larger. On SmolLM2 at 1,024 tokens my tiles move 14 MB per layer against 80. Where arithmetic is already the limit, the extra matmul costs time. For short N, or SRAM so small that K and V are read again and again, there is nothing to gain.
# ### END SOLUTION
# %% [markdown]
# ## Close the lab
# Your ledger row, the same model as in every lab. Put a sentence that you would defend in place of the dots: until then nothing is recorded. Write down your minutes, too, and the question that was unfair.
# %% tags=["explore"]
lab.record(
    what=f"tiled causal attention, layer 22, {n:,} tokens",
    memory="one tile of scores, and one lse per query for the backward pass",
    flops=f"x{7 / 6:.2f} in training: seven matmuls for six",
    bytes=f"{moved * 9 * 2 / 1e6:.1f} MB against {standard * 9 * 2 / 1e6:.1f}",
    time=f"{1e3 * seconds:.0f} ms on this machine",
    quality="exact up to rounding",
    sentence="bought …, paid …, not for …",
)
# %% tags=["explore"]
lab.status()
