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
# # 04 · FlashAttention
# *Why is more arithmetic faster?*
#
# **You need** unit 02 (FLOPs, bytes, roofline) and unit 03: the running state $(m, \ell, o)$ and its change of unit.
#
# **You will be able to** count the bytes that attention moves, write the tiled forward and backward, tell a skipped tile from a masked one, and say which number of a famous table is wrong. Lab 04 checks all four.
#
# **Time** 50 min, 90 s of CPU.
#
# <details><summary>From memory, before you start</summary>
#
# 1. Unit 03: two workers each hold $(m, \ell, o)$. What must happen before the two $o$ may be added?
# 2. Unit 02: a kernel does 20 FLOP per byte on a card whose ridge is at 200. What bounds it?
#
# *Answers: both are converted to the unit of the larger maximum. Memory bandwidth.*
# </details>
#
# ## 1. Forty gigabytes for one layer
# The popular story: attention is slow because it does N² arithmetic, so a faster one must do less. The slides' own table contradicts it. FlashAttention does **more** arithmetic, 75.2 against 66.6 GFLOP, and takes 7.3 ms instead of 41.7. So the time was spent on something else.
#
# Let us make it hurt. SmolLM2 reads 8,192 tokens; we take `q`, `k`, `v` of two heads of layer 0. The result has 4 MiB. **Predict**: how much memory does the textbook formula need on the way?
# %%
import inspect
import math
import statistics
import time

import torch

from course.viz import against, byte_bars, count_tiles, roofline, show, tile_maps
from refimpl.attention import naive_attention
from refimpl.flash_attention import eager, forward_kernel, kernel, simulator
from refimpl.models import load_smollm2, sample_qkv

torch.set_num_threads(1)
mark = load_smollm2().mark  # "toy weights" where SmolLM2 is missing: the text describes SmolLM2
q, k, v = (x[:, :2].contiguous() for x in sample_qkv(8192, layer=0))  # two query heads and two K/V heads
my_guess = 100  # MiB
# %% [markdown]
# The next cell asks the operating system how far the process grew during one call (Linux only; elsewhere it says NaN).
# %% tags=["hide-output"]
import ctypes
from pathlib import Path


def peak_extra_mib(run):
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return math.nan
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed memory back first
    reset.write_text("5")  # forget the old high-water mark
    before = int(status.read_text().split("VmRSS:")[1].split()[0])
    run()
    return (int(status.read_text().split("VmHWM:")[1].split()[0]) - before) / 1024


naive_mib = peak_extra_mib(lambda: naive_attention(q, k, v, causal=True))
scores_mib = 2 * 8192**2 * 4 / 2**20
print(f"your guess {my_guess}, measured {naive_mib:.0f} MiB; one score matrix for two heads has {scores_mib:.0f} MiB")
# %% [markdown]
# A gigabyte for 4 MiB of result: two score matrices are alive at once, and they quadruple when N doubles. Memory is only half of the pain. Each of these tensors is also **written** to slow memory and **read** back.
#
# On a GPU the slow memory is HBM: large, and far from the arithmetic. Beside each multiprocessor lies SRAM: fast, and tiny. Standard attention (the slides call it Algorithm 0) is a chain of kernels, and a kernel forgets everything when it ends. **Predict**: in training, forward and backward, how often does an N × N tensor cross between HBM and chip? Mask and dropout included; a dropout mask of one byte per score counts half in fp16.
# %%
my_guess = 6
# %% tags=["hide-output"]
shape = simulator.GPT2_MEDIUM  # the table's shape: N 1024, d 64, 16 heads, batch 64
heads, square = shape["heads"] * shape["batch"], shape["n"] ** 2
linear = {}  # GB moved as N × d, per algorithm; the rest is N × N
for p in simulator.pass_table():
    crossings = p.elements // (square / 2) / 2 if p.algorithm == "standard" else 0  # in halves: the byte mask
    linear[p.algorithm] = linear.get(p.algorithm, 0) + (p.elements - crossings * square) * heads * 2 / 1e9
    print(f"{p.algorithm:10} {p.phase:8} {p.name:27} {crossings:4} N×N   {p.elements * heads * 2 / 1e9:5.2f} GB")
standard, flash, fill = (simulator.table_bytes(name) / 1e9 for name in ("standard", "flash", "flash fill"))
alone = simulator.simulate_standard(1024, 64).bytes(2) * heads / 1e9
print(f"Algorithm 0 alone, forward, no mask: {alone:.1f} GB")
print(f"your guess {my_guess}, counted {(standard - linear['standard']) * 1e9 / (square * heads * 2):.0f}")
print(
    f"standard {standard:.2f} GB (printed 40.3); flash {flash:.2f}, with zero-fill {flash + fill:.2f} GB (printed 4.4)"
)
# %% [markdown]
# Eighteen crossings. The published bytes follow from counting passes: 40.3 GB to the digit, and 4.4 lies between our two ways to count FlashAttention. No profiler, no GPU. The next cell draws the same rows.
# %%
rows = {
    "standard": {"N × N tensors": standard - linear["standard"], "N × d tensors": linear["standard"]},
    "FlashAttention": {"N × d tensors": flash + fill},
}
fig = byte_bars(rows, {"N × N tensors": "foil", "N × d tensors": "hero"},
    claim="96 % of the traffic is a matrix that nobody asked for",
    sub="HBM traffic counted pass by pass. GPT-2 medium, N = 1,024, batch 64, fp16, training.")  # fmt: skip
square_gb = rows["standard"]["N × N tensors"]
show(fig, alt=f"Horizontal byte bars. Standard attention moves {standard:.1f} GB, of which {square_gb:.1f} are N by N tensors. "
     f"FlashAttention moves {flash + fill:.1f} GB, all N by d. The matrix is the traffic.")  # fmt: skip
# %% [markdown]
# > **Rule.** Per head, training with mask and dropout moves $18N^2$ elements; FlashAttention 30 to 35 $Nd$ (d = 64, 192 KiB of SRAM).
#
# ## 2. Two blocks of keys, on paper
# Softmax wants a whole row before it divides. Unit 03 removed that: keep a maximum $m$, a sum $\ell$, an undivided output $o$, and convert them when $m$ grows. So K and V may pass through SRAM in blocks.
#
# One query, four keys with weights $e^s$ = 1, 3 and then 8, 4; values 10, 20 and 30, 40. After the first block $m = \ln 3$, $\ell = 4/3$, $o = 70/3$. **Predict** on paper: by what factor do $\ell$ and $o$ shrink when the second block arrives, and what is the final output?
# %%
my_guess = (0.5, 25.0)
# %% tags=["hide-output"]
m, l, o = -torch.inf, torch.tensor(0.0), torch.tensor(0.0)
for weights, values in (([1.0, 3.0], [10.0, 20.0]), ([8.0, 4.0], [30.0, 40.0])):
    s, v_j = torch.tensor(weights).log(), torch.tensor(values)
    m_new = s.max().clamp_min(m)
    shrink, p = (m - m_new).exp(), (s - m_new).exp()
    l, o, m = l * shrink + p.sum(), o * shrink + p @ v_j, m_new
    print(f"e^m {m.exp():.0f}   shrink {shrink:.3f}   l {l:.3f}   o {o:.3f}   o / l {o / l:.3f}")
print(f"your guess {my_guess}; all at once {(1 * 10 + 3 * 20 + 8 * 30 + 4 * 40) / 16}")


# %% [markdown]
# Three eighths: the past was counted in thirds and is now counted in eighths. The quotient $o/\ell$ is right after **every** block, for the keys seen so far. Nothing was approximated.
#
# ## 3. The line
# For a tile of queries $Q$ and the $j$-th tile of keys, with $S = QK_j^\top/\sqrt d$, the state moves like this:
#
# $$m' = \max(m, \mathrm{rowmax}\,S), \quad P = e^{S - m'}, \quad \ell' = \ell\,e^{m - m'} + \mathrm{rowsum}\,P, \quad O' = O\,e^{m - m'} + P V_j$$
#
# The paper's Algorithm 1 divides by $\ell'$ in each step and multiplies back in the next; version 2, FlashAttention-2, divides once, at the end. The slides print Algorithm 1 several times, not always like this. One copy of line 11 has $e^{m-m'}$ where $\ell\,e^{m-m'}$ belongs; copies of line 12 have $\ell\,e^{m-m'}$ and no $O$. A third mistake is everyone's own: no conversion at all. **Predict** from unit 03, where late layers find their maximum at key 0: which of the three is right for most queries of layer 22?
# %%
def last_state(Q, K, V, slip=None, tile=128):
    m, l, O = Q.new_full(Q.shape[:-1], -torch.inf), torch.zeros(Q.shape[:-1]), torch.zeros_like(Q)
    for K_j, V_j in zip(K.split(tile, 2), V.split(tile, 2)):
        S = Q @ K_j.mT / math.sqrt(Q.shape[-1])
        m_new = torch.maximum(m, S.amax(-1))
        P, shrink = (S - m_new[..., None]).exp(), (m - m_new).exp()
        keep = torch.ones_like(m) if slip == "no conversion" else shrink
        O = ((l * shrink)[..., None] if slip == "line 12" else O * keep[..., None]) + P @ V_j
        l = (shrink if slip == "line 11" else l * keep) + P.sum(-1)
        m = m_new
    return O / l[..., None]


my_guess = "none"
# %% tags=["hide-output"]
right = {}
for layer in (0, 22):
    Q, K, V = sample_qkv(1024, layer=layer)
    Q, K, V = Q[:, :, 128:], K.repeat_interleave(3, 1), V.repeat_interleave(3, 1)  # 3 query heads per K/V head
    exact = naive_attention(Q.double(), K.double(), V.double())
    for slip in (None, "line 11", "line 12", "no conversion"):
        right[layer, slip] = ((last_state(Q, K, V, slip) - exact).abs().amax(-1) < 1e-3).float().mean()
        print(f"layer {layer:2}   {slip or 'the line above':14}   right for {right[layer, slip]:4.0%} of the queries")
print(f"your guess: {my_guess}")
# %% [markdown]
# The slides' slips are wrong everywhere. The third hides: where the sink sits in the first tile, $m$ never grows again and there is nothing to convert. In layer 22 it is right for half of all queries, in layer 0 for one in nine. Test on early layers, or on scores that rise.
#
# Two limits of the line need no theory: one tile that holds all keys, and tiles of one key.
# %%
for tile in (1024, 1):
    print(f"tiles of {tile:4}: largest error {(last_state(Q, K, V, tile=tile) - exact).abs().max():.0e}")


# %% [markdown]
# > **Rule.** Everything that sums over past tiles is multiplied by $e^{m-m'}$; the division by $\ell$ comes once, at the end. Exact for every tile size.
#
# ## 4. The code in three bites
# `refimpl` follows FlashAttention-2. Algorithm 1 has the K/V loop outside and carries $O, \ell, m$ to HBM and back once per K/V tile. Version 2 swaps the loops, since each query tile is then finished by one program that never writes a half-done $O$. First bite: the line of section 3 done in place, then the two loops around it.
# %%
def code(f):  # its source without the docstring
    head, _, rest = inspect.getsource(getattr(f, "fn", f)).partition('"""')
    return head.rstrip() + rest.partition('"""')[2].rstrip()


print(code(eager.attend_), code(eager.flash_forward), sep="\n\n")
q1, k1, v1 = sample_qkv(1024, layer=22)  # 9 query heads, 3 K/V heads
exact = naive_attention(q1.double(), k1.double(), v1.double(), causal=True)
out, lse = eager.flash_forward(q1, k1, v1, causal=True)
print(
    f"SmolLM2, causal, grouped heads: largest error {(out - exact).abs().max():.0e}; lse {tuple(lse.shape)} is all it keeps"
)
# %% [markdown]
# Second bite: which tiles are visited. `col_tiles` ends the loop at the diagonal, `mask_` works only on tiles that the diagonal crosses. Masking would give the same numbers. So how can we tell? Put NaN into K and V from key 512 on. **Predict**: of 1,024 causal queries, how many come out clean, from the naive formula and from tiles of 128?
# %%
print(code(eager.Tiles.col_tiles), "\n", code(eager.Tiles.mask_), sep="\n")
my_guess = (512, 512)
# %% tags=["hide-output"]
k_bad, v_bad = k1.clone(), v1.clone()
k_bad[:, :, 512:], v_bad[:, :, 512:] = math.nan, math.nan
results = (
    naive_attention(q1, k_bad, v_bad, causal=True),
    eager.flash_forward(q1, k_bad, v_bad, causal=True, block_q=128, block_k=128)[0],
)
clean = [int((~x.isnan().any(-1)).all(1).sum()) for x in results]
print(f"your guess {my_guess}; clean queries: naive {clean[0]}, tiled {clean[1]} of 1,024")
# %% [markdown]
# The naive formula loads everything, and a weight of 0 times NaN is NaN: no query survives. The tiled one never touches the second half for the first 512 queries. Lab 04 checks your causal code in this way, and it is why a **skipped** tile is free and a **masked** one is not.
#
# Third bite: the same loop as a GPU kernel. Compare it line by line with the first bite. New are the addresses, and masks for what lies past the end. Grouped heads cost one division in the launch: `head // GROUP` picks the K/V head, and nothing is repeated.
# %%
print(code(forward_kernel._attend))
if kernel.HAS_TRITON:  # Triton's wheels exist for Linux
    ours = kernel.flash_attention(*(t[:, :, :200] for t in (q1, k1, v1)), causal=True)
    print(
        f"kernel, N = 200: largest error {(ours - exact[:, :, :200]).abs().max():.0e}",
        "(interpreter)" * kernel.INTERPRET,
    )
# %% [markdown]
# Which case fails if we delete the line with `pivot`? A query that has seen no key: $-\infty - (-\infty)$ is NaN. Padding makes such rows in every batch.
#
# Without a GPU the interpreter tells whether the numbers are right, not whether the kernel fits the machine. The compiler can: it runs here, and counts registers per thread, spills (registers that went to slow memory), shared memory, and tensor-core instructions (`HMMA` on an A100, `HGMMA` on an H100).
# %%
from refimpl import aot

table = aot.report("flash_attention") if kernel.HAS_TRITON else []
print("arch   kernel        tile     warps  registers  spills  shared KiB  tensor-core instructions")
for r in (r for r in table if r["tensor_core"]):
    print(
        f"sm_{r['arch']:<4}{r['kernel']:14}{r['tile']:9}{r['num_warps']:5}{r['registers']:11}{r['spills']:8}"
        f"{r['shared_bytes'] / 1024:12.0f}{r['tensor_core']:12}"
    )
print(f"{len(table)} kernels compiled, {sum(r['spills'] > 0 for r in table)} spill")
# %% [markdown]
# The largest tiles stop just short of 255 registers, the limit per thread: the accumulator $O$ lives there for the whole loop. Shared memory still has room (the H100 gives a program 227 KiB). So registers set the size of these tiles, a limit that the paper's $M$ does not know.
#
# ## 5. The picture
# A tile shape is a trade. The longer side decides how much is computed beyond the causal triangle; the number of query tiles decides how often K and V are read. **Predict**: three shapes of equal area, 64 × 64, 128 × 32 and 32 × 128. Which wastes least, and which moves least?
# %%
my_guess = "64 x 64 wastes least and moves least"
n, maps = 512, {}
# %% tags=["hide-output"]
for blocks in ((64, 64), (128, 32), (32, 128)):
    counts, moved = count_tiles(n, *blocks), simulator.simulate_flash2(n, 64, *blocks, causal=True)
    maps[blocks] = f"{counts.waste:.0%} wasted, {moved.bytes(2) / 1e3:,.0f} kB"
fig = tile_maps(n, maps, claim="Tall tiles move less, square tiles waste less",
    sub="Causal, N = 512, one head, d = 64, fp16; titles: B_r × B_c. Hatched: loaded, then masked.")  # fmt: skip
counted = "; ".join(f"{a} by {b}: {text}" for (a, b), text in maps.items())
show(fig, alt=f"Three tile maps of a 512 by 512 causal score matrix. {counted}. Tiles above the diagonal are skipped.")
print(f"your guess: {my_guess}")
# %% [markdown]
# Square tiles waste half as much; tall ones fetch K and V for twice as many queries at a time. The next cell steps through N = 1,024, one tile at a time. Set $B_r$ to 256, then to 512: bytes fall until the tiles no longer fit. Then swap the loops.
# %%
from course.viz.widgets import FlashTiles

FlashTiles(n=1024, dim=64, block_q=128, block_k=128, sram_kib=192)
# %% [markdown]
# > **Rule.** Beyond the causal triangle you pay $N \cdot \max(B_r, B_c)/2$ pairs (one side dividing the other); for K and V you pay about $N^2 d / B_r$ elements.
#
# ## 6. Three predictions
# **Bytes against SRAM.** Algorithm 1 takes $B_c = \lceil M/4d \rceil$, $B_r = \min(B_c, d)$ for SRAM of $M$ elements, and the slides sum up $O(N^2d^2/M)$. (One of their copies rounds down.) So twice the SRAM, half the bytes. **Predict**: how small must SRAM be before FlashAttention moves **more** than the standard algorithm?
# %%
my_guess = 1  # KiB
sizes, N, d = [12, 24, 48, 96, 192, 384], 4096, 64  # KiB of fp16
# %% tags=["hide-output"]
M = [size * 1024 // 2 for size in sizes]
base = simulator.simulate_standard(N, d).bytes(2) / 1e6
one = [simulator.simulate_flash(N, d, m).bytes(2) / 1e6 for m in M]
two = [simulator.simulate_flash2(N, d, -(-m // (4 * d)), 64).bytes(2) / 1e6 for m in M]
assert [simulator.flash_formula(N, d, m).bytes(2) / 1e6 for m in M] == one  # counted tile by tile = closed form
lines = {"standard": (sizes, [base] * 6, "foil"), "Algorithm 1": (sizes, one, "alt"), "version 2": (sizes, two, "hero")}
fig = against({"MB through HBM, one head, forward": lines}, xlabel="SRAM (KiB)",
    claim="Twice the SRAM, half the bytes; below 24 KiB it loses",
    sub="Counted tile by tile: N = 4,096, d = 64, fp16, no mask; version 2 with the same block of keys.")  # fmt: skip
show(fig, alt=f"MB moved against SRAM from 12 to 384 KiB, log axes. Standard is flat at {base:.0f}. Algorithm 1 falls from {one[0]:.0f} "
     f"to {one[-1]:.1f}, version 2 from {two[0]:.0f} to {two[-1]:.1f}. At 12 KiB both lose.")  # fmt: skip
print(f"your guess {my_guess} KiB; at 192 KiB: standard / Algorithm 1 = {base / one[4]:.1f}")
# %% [markdown]
# With 12 KiB it moves twice as much as the standard way: tiles so small that everything is read again and again. Tiling is no virtue in itself. It pays when $M$ is well above $d^2$, here 4,096 elements or 8 KiB.
#
# **The row that cannot be.** Now the other half of the table. We count matmuls: two forward, four backward, and one more for FlashAttention, which computes S twice. **Predict**: 75.2 GFLOP in 7.3 ms are what share of an A100's peak of 312 TFLOP/s? (The table's card has 40 GB and a ridge near 200; unit 02's data sheet is for 80 GB and faster memory.)
# %%
my_guess = 0.4
# %% tags=["hide-output"]
peak, bandwidth = 312e12, 1.555e12  # A100 40 GB: fp16 tensor cores, HBM (NVIDIA data sheet)
flops = (simulator.table_flops(), simulator.table_flops(recompute=True))
gb, ms = (40.3, 4.4), (41.7, 7.3)  # as printed
for i, (name, printed) in enumerate((("standard", 66.6), ("flash", 75.2))):
    print(f"{name:9} counted {flops[i] / 1e9:.0f} GFLOP, printed {printed}: {flops[i] / 1e9 / printed:.1f} times. Arithmetic alone "
          f"{1e3 * flops[i] / peak:.1f} ms, traffic alone {1e12 * gb[i] / bandwidth:.1f} ms, published {ms[i]} ms")  # fmt: skip
print(
    f"printed row: {75.2e12 / 7.3 / peak:.0%} of peak, your guess {my_guess:.0%}; FLOPs rise {flops[1] / flops[0] - 1:.0%}"
)
# %% tags=["hide-output"]
dots = {"standard": (flops[0] / gb[0] / 1e9, 1e3 * flops[0] / ms[0], "ink"), "flash": (flops[1] / gb[1] / 1e9, 1e3 * flops[1] / ms[1], "hero"),
        "flash, as printed": (75.2 / 4.4, 75.2e12 / 7.3, "foil")}  # fmt: skip
fig = roofline(dots, flop_per_s=peak, bytes_per_s=bandwidth, claim="FlashAttention leaves the memory slope",
    sub="A100. Counted FLOPs over published bytes and times. Red: the printed 75.2 GFLOP.")  # fmt: skip
where = "; ".join(f"{name}: {x:.0f} FLOP per byte, {rate / 1e12:.0f} TFLOP/s" for name, (x, rate, _) in dots.items())
show(
    fig,
    alt=f"Roofline of an A100, ridge at {peak / bandwidth:.0f} FLOP per byte. {where}. Only counted flash lies past the ridge.",
)
# %% [markdown]
# Three percent. Bytes and times of the table fit the stated shape, FLOPs do not: the shape needs 12 times more, in both columns. With the counted FLOPs everything falls into place, and the question of this unit with it. FlashAttention adds about 0.4 ms of arithmetic and removes 23 ms of traffic. The slide's "reduce recomputation" has it backwards: it **recomputes**, to save the trip.
#
# **Here, on a CPU.** Bytes are a count; what does the clock say? Three ways, one thread, interleaved. **Predict**: at 8,192 tokens, causal, how many times slower than PyTorch's fused `scaled_dot_product_attention` (SDPA) is our eager loop?
# %%
my_guess = 10
ways = {
    "naive": (lambda *x: naive_attention(*x, causal=True), "foil"),
    "tiled": (lambda *x: eager.flash_forward(*x, causal=True), "hero"),
    "SDPA": (lambda *x: torch.nn.functional.scaled_dot_product_attention(*x, is_causal=True), "ink"),
}
lengths = [1024, 2048, 4096, 8192]


def milliseconds(run):
    start = time.process_time()  # this process alone, whatever else the machine does
    run()
    return 1e3 * (time.process_time() - start)


# %% tags=["hide-output"]
took, mib = {name: [] for name in ways}, {name: [] for name in ways}
for n in lengths:
    x = [t[:, :, :n] for t in (q, k, v)]
    rounds = [{name: milliseconds(lambda: run(*x)) for name, (run, _) in ways.items()} for _ in range(3)]
    for name, (run, _) in ways.items():
        took[name].append(statistics.median(r[name] for r in rounds))
        mib[name].append(max(0.5, peak_extra_mib(lambda: run(*x))))
ratio = took["tiled"][-1] / took["SDPA"][-1]
print(
    f"your guess {my_guess}; at 8,192: tiled / SDPA {ratio:.1f}, naive / tiled {took['naive'][-1] / took['tiled'][-1]:.1f}; "
    f"extra memory {mib['naive'][-1]:.0f} MiB naive, {mib['tiled'][-1]:.0f} tiled"
)
# %% tags=["hide-output"]
fig = against({label: {name: (lengths, data[name], ways[name][1]) for name in ways} for label, data in
    (("milliseconds", took), ("extra MiB", mib))}, xlabel="tokens", slopes=True, mark=mark,
    claim="Time grows with N² for all three, memory only for one",
    sub="SmolLM2, layer 0, 2 heads, causal, fp32, one CPU thread, median of 3 interleaved.")  # fmt: skip
ends = "; ".join(f"{name} {took[name][-1]:.0f} ms, {mib[name][-1]:.0f} MiB" for name in ways)
show(
    fig,
    alt=f"Two panels of lines against tokens, log axes. At 8,192: {ends}. Time is quadratic for all, memory only for naive.",
)
# %% [markdown]
# The tiled loop beats naive by far, in Python, on a machine that has no HBM. The hierarchy is the same one level down: a tile stays in the CPU's cache, a gigabyte does not. And the FLOPs halve, since skipped tiles cost nothing. Tile size has its optimum in the middle, as the next cell shows.
# %%
x = [t[:, :, :4096] for t in (q, k, v)]
for block in (32, 128, 512, 2048, 4096):
    took_ms = min(
        milliseconds(lambda: eager.flash_forward(*x, causal=True, block_q=block, block_k=block)) for _ in range(2)
    )
    print(f"{block:4} x {block:<4}  {took_ms:5.0f} ms   one tile of S: {2 * 4 * block**2 / 2**20:6.2f} MiB")
# %% [markdown]
# ## 7. Backward: the matrix for one number per query
# Training looks hopeless: the gradient needs $P$, all of it. Autograd would save it. But $P_{ij} = e^{S_{ij} - \mathrm{lse}_i}$ is a tile of scores and one saved number per query, so it is **recomputed**. The softmax gradient also wants a sum over a whole row, and that sum is at hand without any tile:
#
# $$\mathrm{d}S = P \circ (\mathrm{d}P - D), \qquad D = \mathrm{rowsum}(\mathrm{d}P \circ P) = \mathrm{rowsum}(\mathrm{d}O \circ O)$$
#
# **Predict**: what does autograd keep for the naive backward, as a multiple of what FlashAttention keeps, at N = 2,048?
# %%
my_guess = 4


def saved_mib(run):
    kept = {}  # each storage once, whatever views of it are saved

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = run()
    return sum(kept.values()) / 2**20, out


# %% tags=["hide-output"]
x = [t[:, :, :2048].contiguous().requires_grad_() for t in (q, k, v)]
(naive_kept, a), (flash_kept, b) = (
    saved_mib(lambda: f(*x, causal=True)) for f in (naive_attention, eager.flash_attention)
)
d_out = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
slow, fast = (torch.autograd.grad(o, x, d_out) for o in (a, b))
print(
    f"kept for backward: naive {naive_kept:.0f} MiB, flash {flash_kept:.1f} MiB: {naive_kept / flash_kept:.0f} times; your guess {my_guess}"
)
print("largest difference of dq, dk, dv:", *(f"{(s - f).abs().max():.0e}" for s, f in zip(slow, fast)))
p = (x[0] @ x[1].mT / 8).masked_fill(~torch.ones(2048, 2048).tril().bool(), -torch.inf).softmax(-1)
d = ((d_out @ x[2].mT) * p).sum(-1) - (d_out * b).sum(-1)
print(f"the two ways to write D differ by {d.abs().max():.0e}; FLOPs: {7 * 2} N²d against {6 * 2} N²d")
# %% [markdown]
# The naive way keeps a score matrix per head; ours keeps `q`, `k`, `v`, `out` and `lse`, all linear in N. The price is one more matmul: seven against six, 17 % more FLOPs. In a kernel the two gradients want opposite loops, since $\mathrm{d}Q$ sums over keys, $\mathrm{d}K$ and $\mathrm{d}V$ over queries. So `refimpl` launches two kernels and needs no atomics: the same input gives the same bits.
#
# > **Rule.** Save $O$ and lse, $N(d + 1)$ numbers per head, and the backward costs $10N^2d$ FLOPs in place of $8N^2d$ (not causal).
#
# ## 8. Where it loses
# **Short sequences.** Nothing quadratic, nothing to save. And version 2 is not simply better: with tiles of 128 × 128 it fetches K and V eight times for 1,024 queries. **Predict**: at N = 4,096, does it move fewer bytes than Algorithm 1 with its 192 KiB?
# %%
my_guess = "fewer"
# %% tags=["hide-output"]
for n in (64, 256, 1024, 4096):
    std = simulator.simulate_standard(n, 64).total
    old = std / simulator.simulate_flash(n, 64, simulator.A100_SRAM_ELEMENTS).total
    new = std / simulator.simulate_flash2(n, 64, 128, 128).total
    print(f"N {n:5}: standard moves {old:.1f} times what Algorithm 1 moves, {new:.1f} times version 2 with 128 x 128")
print(f"your guess: {my_guess}; on this CPU, tiled takes {ratio:.1f} times as long as SDPA")
# %% [markdown]
# More bytes, and yet the paper of version 2 reports about twice the speed. Our count stands at the door of SRAM and ignores the L2 cache behind it, where K and V wait. And once traffic no longer bounds, other things do: whether every multiprocessor has a tile, how long they wait for each other.
#
# **On the CPU** PyTorch's fused loop stays ahead: the same algorithm, without Python between tiles. **On Hopper** a readable kernel loses too. Published for the causal forward, d = 128, 8,192 tokens, H100: FlashAttention-2 333 TFLOP/s, a Triton kernel 369, cuDNN 529, FlashAttention-3 602 (read off the charts of [arXiv:2407.08608](https://arxiv.org/abs/2407.08608)). The last two hide loads and softmax behind matmuls, which plain Triton does not offer. No GPU ran this notebook, so it quotes no speed of ours.
#
# ## 9. Since the paper
# The slides have slips, and finding them teaches. The cell recomputes those of this unit.
# %%
lost = 1000 - 1000 // 64 * 64
print(
    f"bytes        40.3 GB: counted {standard:.2f}, off {standard / 40.3 - 1:+.1%}    4.4 GB: {flash:.2f} to {flash + fill:.2f}, off "
    f"{flash / 4.4 - 1:+.0%} to {(flash + fill) / 4.4 - 1:+.0%}"
)
print(f"GFLOP row    66.6 and 75.2: the stated shape needs {flops[0] / 1e9:.0f} and {flops[1] / 1e9:.0f}")
print(f"floor, ceil  N = 1,000, B_r = 64: with floor {1000 // 64} blocks, the last {lost} queries get no output")
print(
    f"B_c          M = 10,000, d = 48: floor {10000 // 192}, ceil {-(-10000 // 192)}; one slip costs a block, none the result"
)
print(
    f"lines 11, 12 copies that lose l or O: right for {max(right[0, 'line 11'], right[0, 'line 12']):.0%} of the queries of layer 0"
)
print(f"'reduce recomputation': FLOPs rise {flops[1] / flops[0] - 1:.0%}")
# %% [markdown]
# Version 2 ([2307.08691](https://arxiv.org/abs/2307.08691), 2023) swapped the loops and divides once. Version 3 (2024) overlaps loads, matmuls and softmax, and adds FP8. Version 4 ([2603.05451](https://arxiv.org/abs/2603.05451), 2026) found `exp` itself the limit on Blackwell and converts $O$ only after a large jump of $m$. The limit keeps moving; the line of section 3 stays.
#
# *Read next.* The first paper ([2205.14135](https://arxiv.org/abs/2205.14135), 2022), sections 2 and 3.2: the count you did here, as a theorem with a lower bound. The second, section 3: why the loop order matters, on three pages. [Triton's tutorial 06](https://triton-lang.org/main/getting-started/tutorials/06-fused-attention.html): this kernel, tuned.
#
# ## 10. Why is more arithmetic faster?
# The last cell answers with the numbers of this run.
# %%
from IPython.display import Markdown

Markdown(f"""**We asked** why more arithmetic is faster. **We measured** {standard:.1f} GB of traffic against {flash:.1f} for the same
result, and {flops[1] / flops[0] - 1:.0%} more FLOPs. On an A100 those cost {1e3 * (flops[1] - flops[0]) / peak:.1f} ms and the bytes saved are worth
{1e3 * (40.3e9 - 4.4e9) / bandwidth:.0f} ms: time is the larger of work / peak and bytes / bandwidth, and the second was the larger.
**Rule**: keep a tile on the chip, one lse per query in memory, recompute the rest (valid while SRAM is well above d²).
**Bought** memory linear in N, {naive_mib / mib["tiled"][-1]:.0f} times less here at 8,192 tokens; **paid** a seventh matmul; **not for** short
sequences, or cores that already wait for arithmetic. **Next**: with N² gone, what is the biggest tensor now?""")
# %% [markdown]
# <details><summary>Three questions for tomorrow</summary>
#
# 1. *This unit.* Why does `dq` overwritten instead of added pass a test with one key tile? **Every key tile adds its share; with one tile the sum has one term.**
# 2. *This unit.* A colleague masks tiles above the diagonal and reports exact results. Which test shows that nothing was skipped? **NaN in K and V there: 0 × NaN reaches the output.**
# 3. *Unit 03.* A worker sends its finished, divided output. What else must it send, so that others can merge it? **One number per query, lse = m + log ℓ.**
# </details>
#
# Now lab 04, where you write the tiles; then unit 05, on the largest tensor that is left.
