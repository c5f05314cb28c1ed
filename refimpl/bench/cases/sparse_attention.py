"""A sliding window at N = 8192 on one CPU thread: chunks of keys against PyTorch's SDPA, causal and with a mask.

SDPA with a mask computes every pair and hides most of them; the window computes W + 127 per query. Two peers more:
FlexAttention, compiled, where there is a C++ compiler, and BigBird's tiles against SDPA with BigBird's mask.
"""

import shutil
import statistics

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from refimpl.bench.measure import in_fresh_process, interleaved, median_ratio, peak_growth
from refimpl.meter import Meter
from refimpl.sparse_attention import (
    bigbird_blocks,
    block_layout,
    block_sparse_attention,
    by_blocks,
    dense_mask,
    sliding_window,
    sliding_window_attention,
)

TITLE = "sliding-window and block-sparse attention against PyTorch's SDPA, full and masked, and FlexAttention"
SHAPE = {"batch": 1, "heads": 2, "seq": 8192, "dim": 64}
WINDOW, BLOCK = 512, 64
BIGBIRD = {"window": 3, "random": 3, "first": 2}
FASTER_THAN_CAUSAL, FASTER_THAN_MASK = 2.0, 4.0  # times SDPA's time, at 8192 tokens
ITEM = 4  # bytes of a float32


def inputs(batch: int, heads: int, seq: int, dim: int, device: str = "cpu", dtype=torch.float32) -> list[torch.Tensor]:
    """q, k, v from a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, seq, dim, generator=draw).to(device, dtype) for _ in range(3)]


def bigbird(seq: int, block: int = BLOCK):
    """BigBird between blocks, in both directions, as a pattern."""
    return by_blocks(bigbird_blocks(-(-seq // block), **BIGBIRD), block)


def contenders(case: str, seq: int) -> dict:
    """Name -> function of q, k, v. Masks and layouts are made here, once, as a model would."""
    if case == "window":
        mask = dense_mask(sliding_window(WINDOW, causal=True), seq)
        ours = {"window": lambda q, k, v: sliding_window_attention(q, k, v, window=WINDOW, causal=True)}
    else:
        mask, layout = dense_mask(bigbird(seq), seq), block_layout(bigbird(seq), seq, block=BLOCK)
        ours = {"block-sparse": lambda q, k, v: block_sparse_attention(q, k, v, layout)}
    return ours | {
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=case == "window"),
        "sdpa + mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
    }


def compiled_flex(seq: int, device="cpu", mod=None, block: int = 128):
    """FlexAttention over the window, compiled: a function of q, k, v. Half a minute of C++ on a CPU."""
    mod = mod or (lambda b, h, i, j: (j <= i) & (i - j < WINDOW))
    block_mask = create_block_mask(mod, None, None, seq, seq, device=device, BLOCK_SIZE=block)
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=block_mask)


def extra_bytes(case: str, name: str, shape: dict) -> int:
    """Peak memory growth of one forward, to be called in a fresh process; the mask of SDPA is counted, too."""
    torch.set_num_threads(1)
    contenders(case, 32)[name](*inputs(1, 1, 32, shape["dim"]))  # libraries that load on first use
    qkv = inputs(**shape)
    if name != "sdpa + mask":
        attend = contenders(case, shape["seq"])[name]
        return peak_growth(lambda: attend(*qkv))
    return peak_growth(lambda: contenders(case, shape["seq"])[name](*qkv))


def counted(seq: int, window: int, heads: int, dim: int) -> Meter:
    """FLOPs and peak bytes of the window's forward, counted."""
    qkv = inputs(1, heads, seq, dim)
    with Meter() as meter:
        sliding_window_attention(*qkv, window=window, causal=True)
    return meter


def run(runs: int = 5) -> list[dict]:
    """Both patterns and their peers; about a minute, and one more where FlexAttention is compiled."""
    return [*rows_of("window", SHAPE, runs), *rows_of("bigbird", SHAPE, runs), *memory_rows(SHAPE)]


def rows_of(case: str, shape: dict, runs: int) -> list[dict]:
    """Each contender: seconds, extra memory, matmul FLOPs, and its time under those of both forms of SDPA."""
    qkv, seq = inputs(**shape), shape["seq"]
    ways, missing = contenders(case, seq), None
    if case == "window":
        missing = why_no_flex()
        ways |= {} if missing else {"flex_attention": compiled_flex(seq)}
    seconds = interleaved({name: lambda attend=attend: attend(*qkv) for name, attend in ways.items()}, runs)
    rows = []
    for name, times in seconds.items():
        row = {"case": case, "implementation": name, "tokens": seq, "seconds": round(statistics.median(times), 4)}
        row |= {"sdpa_over_time": round(median_ratio(seconds["sdpa"], times), 2)}
        row |= {"sdpa_mask_over_time": round(median_ratio(seconds["sdpa + mask"], times), 2)}
        row |= {"flops": flops(case, name, shape)}
        if name != "flex_attention":  # a fresh process would compile again, and count that
            grown = in_fresh_process(__name__, "extra_bytes", case=case, name=name, shape=shape)
            row |= {"extra_mib": round(max(grown, 0) / 2**20, 1)}  # freed memory may be used again
        rows.append(row)
    if missing:
        rows.append({"case": case, "implementation": "flex_attention", "tokens": seq, "unavailable": missing})
    return rows


def why_no_flex() -> str | None:
    """What FlexAttention lacks here, or None."""
    return None if shutil.which("g++") or shutil.which("clang++") else "torch.compile needs a C++ compiler: no g++ here"


def flops(case: str, name: str, shape: dict) -> int:
    """Matmul FLOPs; SDPA skips what is causal, and nothing that a mask hides. FlexAttention: of the window's pairs."""
    seq, heads, dim = shape["seq"], shape["heads"], shape["dim"]
    full = 4 * seq * seq * dim * heads
    if name == "window":
        return counted(seq, WINDOW, heads, dim).flops
    if name == "block-sparse":
        return block_layout(bigbird(seq), seq, block=BLOCK).flops(dim) * heads
    if name == "flex_attention":
        return 4 * seq * WINDOW * dim * heads
    return full // 2 if (case, name) == ("window", "sdpa") else full


def memory_rows(shape: dict) -> list[dict]:
    """Counted peak bytes of the window as the length doubles, and as the window doubles, against N W numbers."""
    heads, dim, half = shape["heads"], shape["dim"], shape["seq"] // 2
    rows = []
    for seq, window in ((half, WINDOW), (2 * half, WINDOW), (half, 2 * WINDOW)):
        peak = counted(seq, window, heads, dim).peak_bytes
        bound = ITEM * heads * seq * window
        rows.append({"case": "memory", "implementation": "window", "tokens": seq, "window": window,
                     "counted_bytes": peak, "over_n_w": round(peak / bound, 3)})  # fmt: skip
    return rows


def problems(rows: list[dict]) -> list[str]:
    """Where the window misses its bounds, in words."""
    found = []
    for row in (r for r in rows if (r["case"], r["implementation"]) == ("window", "window")):
        for name, bound in (("sdpa", FASTER_THAN_CAUSAL), ("sdpa_mask", FASTER_THAN_MASK)):
            if (ratio := row[f"{name}_over_time"]) < bound:
                found.append(f"window: {ratio} times faster than {name.replace('_', ' + ')}, at least {bound} asked")
    memory = [r for r in rows if r["case"] == "memory"]
    for row in memory:
        if row["over_n_w"] > 1:
            found.append(f"window: {row['over_n_w']} N W bytes at {row['tokens']} tokens, window {row['window']}")
    for row in memory[1:]:
        if (growth := row["counted_bytes"] / memory[0]["counted_bytes"]) > 2:
            found.append(f"window: {growth:.2f} times the memory at {row['tokens']} tokens, window {row['window']}")
    return found


def gpu(device: str, repeats: int, *, seq: int = 16384, heads: int = 32, dim: int = 64, block: int = 128) -> list[dict]:
    """The Triton kernel over a window of 1/16 of the text and over BigBird, against FlexAttention, SDPA + mask, dense.

    `over_density` is the time over (tiles computed / all tiles) * the time of `flash_attention` without a mask.
    """
    from refimpl.bench.gpu import measure
    from refimpl.flash_attention.kernel import flash_attention
    from refimpl.sparse_attention.kernel import block_sparse_attention as kernel

    qkv = inputs(1, heads, seq, dim, device, torch.bfloat16 if device == "cuda" else torch.float32)
    dense, _ = measure(lambda: flash_attention(*qkv), device, repeats)
    rows = [{"pattern": "full", "implementation": "refimpl-flash", "seconds": dense}]
    for name, pattern in {"window": sliding_window(seq // 16, causal=True), "bigbird": bigbird(seq, block)}.items():
        layout = block_layout(pattern, seq, block=block).to(device)
        ways = {
            "refimpl-triton": lambda layout=layout: lambda: kernel(*qkv, layout),
            "flex_attention": lambda name=name: flex_call(qkv, name, block),
            "sdpa + mask": lambda pattern=pattern: masked_call(qkv, pattern),
        }
        rows += [gpu_row(name, way, make, layout, dense, device, repeats) for way, make in ways.items()]
    return rows


def gpu_row(pattern: str, name: str, make, layout, dense: float, device: str, repeats: int) -> dict:
    """Seconds, memory and time over density; or the reason why this peer did not run. `make` gives the call."""
    from refimpl.bench.gpu import measure

    row = {"pattern": pattern, "implementation": name, "tokens": layout.q_len, "tile_density": layout.tile_density}
    try:
        seconds, memory = measure(make(), device, repeats)
    except RuntimeError as error:
        return row | {"unavailable": str(error).splitlines()[0]}
    return row | {"seconds": seconds, "extra_bytes": memory, "over_density": seconds / (layout.tile_density * dense)}


def flex_call(qkv, name: str, block: int):
    """FlexAttention over the same pattern; compiled at its first call, which is the measurement's warm-up."""
    seq, device = qkv[0].shape[2], qkv[0].device
    keep = bigbird_blocks(-(-seq // block), **BIGBIRD).to(device)
    mods = {
        "window": lambda b, h, i, j: (j <= i) & (i - j < seq // 16),
        "bigbird": lambda b, h, i, j: keep[i // block, j // block],
    }
    attend = compiled_flex(seq, device, mods[name], block)
    return lambda: attend(*qkv)


def masked_call(qkv, pattern):
    """SDPA with the pattern written out."""
    mask = dense_mask(pattern, qkv[0].shape[2]).to(qkv[0].device)
    return lambda: F.scaled_dot_product_attention(*qkv, attn_mask=mask)
