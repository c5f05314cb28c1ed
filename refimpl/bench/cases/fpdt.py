"""FPDT's double buffer against fetching each chunk when it is asked for: causal attention over chunks on the host.

On a CPU the bus is imitated by waiting, so that what is compared is the order of things; on a GPU (`--device gpu`)
memory is pinned, the bus is real, and the chunk whose compute hides its transfer is measured as well.
"""

import statistics
import time

import torch

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.parallel.fpdt import forward_chunks, fpdt_attention, measure_chunks, predicted
from refimpl.parallel.stage import Stage

TITLE = "FPDT: two buffers against one, and the chunk that hides the bus"
SHAPE = {"seq": 4096, "heads": 4, "dim": 64}
ON_GPU = {"seq": 2**16, "heads": 8, "dim": 128}
CHUNKS = (2, 4, 8)
BUS = 4e8  # bytes per second: as row 37 has it
BUFFERS = {"single": 1, "double": 2}


def run(runs: int = 5) -> list[dict]:
    """Forward passes on one thread with an imitated bus; about half a minute."""
    return [row for chunks in CHUNKS for row in cpu_rows(chunks, runs, **SHAPE)]


def inputs(seq: int, heads: int, dim: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """q, k, v on the host."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, seq, dim, generator=draw).to(dtype) for _ in range(3)]


def cpu_rows(chunks: int, runs: int, seq: int, heads: int, dim: int) -> list[dict]:
    """One buffer and two, in turns: seconds, seconds of standing still per pass, and the peak on the device."""
    q, k, v = inputs(seq, heads, dim)
    stages = {name: Stage(buffers=buffers, bytes_per_s=BUS) for name, buffers in BUFFERS.items()}
    calls = {name: lambda s=stage: fpdt_attention(q, k, v, chunks=chunks, stage=s) for name, stage in stages.items()}
    seconds = interleaved(calls, runs, clock=time.perf_counter)
    return [
        {
            "case": f"{seq} tokens in {chunks} chunks",
            "buffers": name,
            "peer": "single",
            "seconds": round(statistics.median(seconds[name]), 4),
            "speed_over_peer": round(median_ratio(seconds["single"], seconds[name]), 2),
            "waited_seconds": round(stages[name].waited_s / (runs + 1), 4),
            "peak_bytes": stages[name].peak_bytes,
        }
        for name in BUFFERS
    ]


def gpu(device: str, repeats: int) -> list[dict]:
    """The real bus: one buffer against two, with the transfers alone beside them, and compute against transfer."""
    shape = ON_GPU if device == "cuda" else {"seq": 64, "heads": 2, "dim": 16}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    sizes = [shape["seq"] // n for n in (64, 32, 16, 8, 4)]
    timings = measure_chunks(
        sizes, heads=shape["heads"], kv_heads=shape["heads"], dim=shape["dim"], dtype=dtype, stage=Stage(device)
    )
    rows = [row for chunks in (4, 16) for row in gpu_rows(device, chunks, min(repeats, 5), shape, dtype)]
    return rows + [{"case": "chunk size", **timing._asdict()} for timing in timings]


def gpu_rows(device: str, chunks: int, repeats: int, shape: dict, dtype: torch.dtype) -> list[dict]:
    """Seconds from pinned chunks to pinned chunks, and the device's memory beside what the stage counts."""
    from refimpl.bench.gpu import measure

    tensors, size = inputs(**shape, dtype=dtype), shape["seq"] // chunks
    sizes = {"heads": shape["heads"], "kv_heads": shape["heads"], "dim": shape["dim"], "dtype": dtype}
    rows = []
    for name, buffers in BUFFERS.items():
        stage = Stage(device, buffers=buffers)
        cut = [[stage.on_host(chunk) for chunk in x.split(size, dim=2)] for x in tensors]
        seconds, memory = measure(lambda s=stage, cut=cut: forward_chunks(s, True, None, *cut), device, repeats)
        fetched, _ = predicted(shape["seq"], chunks, buffers=buffers, **sizes)
        rows.append({
            "case": f"{shape['seq']} tokens in {chunks} chunks", "buffers": name, "seconds": seconds,
            "bytes_in": fetched.bytes_in, "gb_in_per_s": fetched.bytes_in / seconds / 1e9,
            "peak_bytes": stage.peak_bytes, "extra_bytes": memory,
        })  # fmt: skip
    return rows


def problems(rows: list[dict]) -> list[str]:
    """Where two buffers stand still for longer than one."""
    waited = {(row["case"], row["buffers"]): row["waited_seconds"] for row in rows}
    return [
        f"{case}: two buffers wait {seconds} s, one {waited[case, 'single']} s"
        for (case, buffers), seconds in waited.items()
        if buffers == "double" and seconds >= waited[case, "single"]
    ]
