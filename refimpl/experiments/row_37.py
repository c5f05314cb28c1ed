"""Row 37, FPDT (S2): memory of one block, chunks on the host, the double buffer, and the chunk that hides the bus.

Bytes and peaks are counted and foretold. Times are this machine's: compute is real, the bus is imitated by waiting.
"""

import time

import torch
import torch.distributed as dist

from refimpl.experiments.harness import Claim
from refimpl.experiments.sequence_parallel import inputs, largest_error, on_this_rank, whole
from refimpl.flash_attention import flash_backward, flash_forward
from refimpl.meter import Meter
from refimpl.parallel import launch
from refimpl.parallel.fpdt import (
    Cost,
    balance_chunk,
    choose_chunk,
    fpdt_attention,
    fpdt_positions,
    measure_chunks,
    predicted,
)
from refimpl.parallel.stage import Stage

TITLE = "FPDT: peak (q + 2 kv) / u, transfers, double buffer, and the chunk whose compute hides its transfer"
SEQ, HEADS, DIM = 256, 4, 8
CHUNKS = [1, 2, 4, 8, 16]
BLOCK_TOKENS = 4096  # for the memory of one block, where a tile of scores is small beside a tensor
TIMED = {"seq": 4096, "heads": 4, "dim": 64}
SIZES = [64, 128, 256, 512, 1024, 2048]
BUS = 4e8  # bytes per second, so slow that the compute of one core has something to hide
EXACT = 1e-12
# The headline of S2: a 6.7B model (32 heads of 128) on 4 A100, 2M tokens in chunks of 64K, float16
HEADLINE = {"seq": 2**21, "chunk": 2**16, "ranks": 4, "heads": 32, "dim": 128}
A100_FLOPS, PCIE4_BYTES = 312e12, 32e9  # per second: the data sheet's dense float16, and 16 lanes in one direction


def run(seq=SEQ, block=BLOCK_TOKENS, timed=None, sizes=SIZES, start=launch) -> dict:
    """`start(fn, n, …)` runs fn on n ranks: real processes, or threads in a test."""
    timed = timed or TIMED
    return {
        "block": one_block(block),
        "chunks": [chunked(seq, u, buffers) for buffers in (2, 1) for u in CHUNKS],
        "two_ranks": two_ranks(seq, start),
        "overlap": [overlapped(u, **timed) for u in CHUNKS[1:]],
        "bus_bytes_per_s": BUS,
        "chunk_size": chunk_size(sizes, timed["heads"], timed["dim"]),
        "headline": headline(),
    }


def one_block(tokens: int, dim: int = 64) -> dict:
    """Bytes of what a block makes, as multiples of one hidden tensor (tokens x dim); attention is tiled."""
    with Meter() as projection:
        x = torch.randn(1, 1, tokens, dim)
        before = projection.alive_bytes
        q, k, v = (x @ torch.eye(dim) for _ in range(3))
        made = projection.alive_bytes - before
    del q, k, v
    with Meter() as attention:
        q, k, v, d_out = (torch.randn(1, 1, tokens, dim) for _ in range(4))
        out, lse = flash_forward(q, k, v, block_q=64, block_k=64)
        flash_backward(q, k, v, out, lse, d_out, block_q=64, block_k=64)
    return {
        "tokens": tokens, "tensor_bytes": x.nbytes, "qkv": made / x.nbytes, "backward": attention.peak_bytes / x.nbytes
    }  # fmt: skip


def passes(seq: int, chunks: int, buffers: int = 2) -> dict:
    """On a rank, or alone: tokens, out, dq, dk, dv of them, and what the stage counted, forward and backward."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    stage, costs, at = Stage(buffers=buffers), [], fpdt_positions(seq, chunks, ranks, rank)

    def attend(q, k, v):
        out = fpdt_attention(q, k, v, seq=seq, chunks=chunks, stage=stage)
        costs.append(counted(stage))
        return out

    shards = [at, *on_this_rank(attend, at, *inputs(seq, HEADS, HEADS, dim=DIM))]
    return {"shards": shards, "costs": [*costs, counted(stage)]}


def counted(stage: Stage) -> dict:
    """What the stage counted since the last call."""
    cost = Cost(stage.bytes_in, stage.bytes_out, stage.peak_bytes)
    stage.reset()
    return cost._asdict()


def error(results: list[dict], seq: int) -> float:
    where, parts = [r["shards"][0] for r in results], [r["shards"][1:] for r in results]
    return largest_error(parts, where, whole(*inputs(seq, HEADS, HEADS, dim=DIM), True))


def chunked(seq: int, chunks: int, buffers: int) -> dict:
    """One process: counted beside predicted, and the largest error of output and gradients in float64."""
    result = passes(seq, chunks, buffers)
    sizes = {"heads": HEADS, "kv_heads": HEADS, "dim": DIM, "dtype": torch.float64, "batch": 2}
    foretold = [cost._asdict() for cost in predicted(seq, chunks, buffers=buffers, **sizes)]
    q_bytes = 2 * HEADS * seq * DIM * 8
    return {
        "chunks": chunks, "buffers": buffers, "q_bytes": q_bytes, "kv_bytes": 2 * q_bytes,
        "counted": result["costs"], "predicted": foretold, "largest_error": error([result], seq),
    }  # fmt: skip


def two_ranks(seq: int, start) -> dict:
    """The same through all-to-alls: each rank half of the heads, the peak of each."""
    results = start(passes, 2, seq, 4, backend="gloo", timeout=300)
    peaks = [r["costs"][0]["peak_bytes"] for r in results]
    return {"chunks": 4, "peak_bytes": peaks, "q_bytes": HEADS * seq * DIM * 8, "largest_error": error(results, seq)}


def overlapped(chunks: int, seq: int, heads: int, dim: int) -> dict:
    """Seconds of a forward pass over the imitated bus, and of standing still, with one buffer and with two."""
    q, k, v, _ = inputs(seq, heads, heads, batch=1, dim=dim, dtype=torch.float32)
    row = {"chunks": chunks, "tokens": seq}
    for name, buffers in (("single", 1), ("double", 2)):
        stage = Stage(buffers=buffers, bytes_per_s=BUS)
        start = time.perf_counter()
        fpdt_attention(q, k, v, chunks=chunks, stage=stage)
        row |= {f"{name}_s": round(time.perf_counter() - start, 4), f"{name}_waited_s": round(stage.waited_s, 4)}
    return row


def chunk_size(sizes: list[int], heads: int, dim: int) -> dict:
    """Compute and transfer of each size, measured, and the smallest one that is hidden."""
    timings = measure_chunks(sizes, heads=heads, kv_heads=heads, dim=dim, stage=Stage(bytes_per_s=BUS))
    rows = [{name: round(value, 6) for name, value in timing._asdict().items()} for timing in timings]
    rate = max(4 * t.chunk**2 * dim * heads / t.compute_s for t in timings)
    balance = balance_chunk(rate, BUS, heads=heads, kv_heads=heads, itemsize=4)
    hidden = any(t.compute_s >= t.transfer_s for t in timings)
    return {"timings": rows, "chosen": choose_chunk(timings) if hidden else None, "flops_per_s": rate,
            "balance": balance}  # fmt: skip


def headline() -> dict:
    """The sizes behind S2's headline: one attention layer on one of its GPUs, and the chunk by data sheets."""
    h = HEADLINE
    heads, chunks = h["heads"] // h["ranks"], h["seq"] // h["chunk"]
    sizes = {"heads": heads, "kv_heads": heads, "dim": h["dim"], "dtype": torch.float16}
    forward, backward = predicted(h["seq"], chunks, **sizes)
    balance = balance_chunk(A100_FLOPS, PCIE4_BYTES, heads=heads, kv_heads=heads, itemsize=2)
    tensor = h["seq"] * heads * h["dim"] * 2
    return {
        "chunks": chunks, "tensor_bytes": tensor, "forward": forward._asdict(), "backward": backward._asdict(),
        "balance_chunk": balance, "compute_over_transfer": h["chunk"] / balance,
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    return [*_block(result["block"]), _exact(result), _peak(result), _transfers(result), _waits(result),
            _choice(result), _headline(result)]  # fmt: skip


def _block(block) -> list[Claim]:
    note = f"{block['tokens']:,} tokens; multiples of one hidden tensor."
    tiles = " Beyond 8: two numbers per query, and tiles of scores."
    return [
        Claim("QKV projection needs 3x", "S2, Peak memory in one Transformer block", 3, block["qkv"],
              block["qkv"] == 3, note),
        Claim("attention's backward pass needs 8x", "S2, Peak memory in one Transformer block", 8,
              round(block["backward"], 2), 8 <= block["backward"] < 8.5, note + tiles),
    ]  # fmt: skip


def _exact(result) -> Claim:
    errors = [row["largest_error"] for row in (*result["chunks"], result["two_ranks"])]
    return Claim(
        "output and gradients are those of full attention", "Yao et al. 2024", f"<= {EXACT:g}", max(errors),
        max(errors) <= EXACT, "float64, causal, 1 to 16 chunks, one and two buffers; two ranks through all-to-alls.",
    )  # fmt: skip


def _double(result) -> list[dict]:
    return [row for row in result["chunks"] if row["buffers"] == 2]


def _peak(result) -> Claim:
    rows = [row for row in _double(result) if row["chunks"] > 1]
    exact = [row["counted"][0]["peak_bytes"] * row["chunks"] == row["q_bytes"] + 2 * row["kv_bytes"] for row in rows]
    both = result["two_ranks"]
    exact += [peak * both["chunks"] == 5 * both["q_bytes"] for peak in both["peak_bytes"]]
    last = rows[-1]
    return Claim(
        "with a double buffer the device holds (q + 2 kv) / u", "Yao et al. 2024",
        (last["q_bytes"] + 2 * last["kv_bytes"]) // last["chunks"], last["counted"][0]["peak_bytes"], all(exact),
        f"u = {last['chunks']}; exact for every u from 2 on, and on two ranks of half the heads each. "
        "One chunk of output in the making comes on top.",
    )  # fmt: skip


def _transfers(result) -> Claim:
    last = _double(result)[-1]
    formula = last["q_bytes"] + last["kv_bytes"] * (last["chunks"] + 1) // 2
    return Claim(
        "causal, q + kv (u + 1) / 2 bytes are fetched", "chunk j is seen by u - j chunks of queries", formula,
        last["counted"][0]["bytes_in"],
        all(row["counted"] == row["predicted"] for row in result["chunks"])
        and last["counted"][0]["bytes_in"] == formula,
        f"u = {last['chunks']}; forward and backward, in and out, all equal what was predicted, for every u.",
    )  # fmt: skip


def _waits(result) -> Claim:
    rows = result["overlap"]
    shares = [row["double_waited_s"] / row["single_waited_s"] for row in rows]
    best = min(rows, key=lambda row: row["double_s"])
    return Claim(
        "the next chunk is fetched while the device computes", "S2, Double buffer", "less waiting for every u",
        " ".join(f"{share:.2f}" for share in shares), max(shares) < 1,
        f"Waiting with two buffers over waiting with one, u = {', '.join(str(row['chunks']) for row in rows)}; bus "
        f"imitated at {BUS / 1e6:.0f} MB/s. Fastest at u = {best['chunks']}: {best['double_s']:.2f} s, "
        f"{best['single_s']:.2f} s with one buffer.",
    )  # fmt: skip


def _choice(result) -> Claim:
    found = result["chunk_size"]
    timings = found["timings"]
    hidden = [row["compute_s"] >= row["transfer_s"] for row in timings]
    return Claim(
        "there is a chunk from which compute hides the transfer", "S2, Find the proper point",
        f"about {found['balance']:.0f} tokens by the formula", found["chosen"] or "none",
        found["chosen"] is not None and hidden == sorted(hidden) and not hidden[0],
        "Compute over transfer: " + ", ".join(
            f"{row['chunk']}: {row['compute_s'] / row['transfer_s']:.2f}" for row in timings
        ) + f". Measured at {found['flops_per_s'] / 1e9:.0f} GFLOP/s and {BUS / 1e6:.0f} MB/s.",
    )  # fmt: skip


def _headline(result) -> Claim:
    found = result["headline"]
    return Claim(
        "64K tokens are the chunk whose transfer can just be hidden", "S2, Choose the best chunk size",
        HEADLINE["chunk"], round(found["balance_chunk"]), found["balance_chunk"] > HEADLINE["chunk"] / 2,
        "By data sheets (312 TFLOP/s, 32 GB/s) a transfer is hidden from the measured number on; at 64K compute takes "
        f"{found['compute_over_transfer']:.1f} times as long. So 64K is not the point of balance at full rates; slower "
        "buses shared by several GPUs and efficiency of compute move it, which needs the machine.",
    )  # fmt: skip
