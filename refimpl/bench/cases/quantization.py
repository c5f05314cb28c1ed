"""Quantized products on one CPU thread, and palettization: int8 against float32, a codebook against plain Lloyd.

"product" multiplies codes that exist already; "layer" is what a model calls: scales, rounding, product, scales, and the
outliers in 16 bits. The difference is the price of quantizing activations. FLOPs count multiplications and additions.
"""

import statistics
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.quantization import Int8Product, int8_linear, int8_matmul, palettize, quantize, quantize_nf4

TITLE = "int8 and NF4 products against float32, and 16 colours for a matrix against plain Lloyd"
TOKENS, FEATURES, OUT = 512, 1024, 1024
LEAST_OF_FLOAT32 = 3.0  # speed of the product alone, where the processor has integer dot products
MATRIX, LONGEST = (576, 1536), 1.0  # seconds for 16 colours
LLOYD_STEPS = 3  # of the plain form: enough to time one


def has_integer_units() -> bool:
    """VNNI or AMX among the processor's flags."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return bool(flags & {"avx512_vnni", "avx_vnni", "amx_int8"})


def run(runs: int = 5) -> list[dict]:
    """Half a minute, most of it plain Lloyd."""
    return [*products(runs), *palettes(runs)]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """x (tokens, features) with three outlier features, w (out, features), from a fixed seed."""
    draw = torch.Generator().manual_seed(0)
    x, w = torch.randn(TOKENS, FEATURES, generator=draw), torch.randn(OUT, FEATURES, generator=draw)
    x[:, :3] *= 20
    return x, w


def products(runs: int) -> list[dict]:
    x, w = inputs()
    x8, w8, w4 = quantize(x, 8), quantize(w, 8), quantize_nf4(w)
    calls = {
        "float32": lambda: F.linear(x, w),
        "int8 product": lambda: int8_matmul(x8.codes, w8.codes),
        "int8 layer": lambda: int8_linear(x, w8, Int8Product(threshold=None)),
        "int8 layer, outliers": lambda: int8_linear(x, w8),
        "NF4 layer": lambda: F.linear(x, w4.dequantize()),
    }
    seconds = interleaved(calls, runs)
    weights = {"float32": w.nbytes, "NF4 layer": w4.nbytes}
    return [
        {
            "case": name, "peer": "float32", "seconds": round(statistics.median(times), 5),
            "speed_over_peer": round(median_ratio(seconds["float32"], times), 2),
            "flops": 2 * TOKENS * FEATURES * OUT, "bytes": weights.get(name, w8.nbytes),
            "integer_units": has_integer_units(),
        }
        for name, times in seconds.items()
    ]  # fmt: skip


def palettes(runs: int) -> list[dict]:
    """Sorted Lloyd to its end, and plain Lloyd for LLOYD_STEPS."""
    w = torch.randn(*MATRIX, generator=torch.Generator().manual_seed(0))
    seconds = interleaved({"palette": lambda: palettize(w), "plain": lambda: plain_lloyd(w.flatten())}, runs)
    ours, plain = (statistics.median(seconds[name]) for name in ("palette", "plain"))
    return [
        {
            "case": "palette", "peer": f"{LLOYD_STEPS} plain steps", "seconds": round(ours, 4),
            "peer_seconds": round(plain, 4), "bytes": w.nbytes,
        }
    ]  # fmt: skip


def plain_lloyd(x: torch.Tensor) -> torch.Tensor:
    """Every number against every colour."""
    centres = x[:: len(x) // 16][:16]
    for _ in range(LLOYD_STEPS):
        nearest = (x[:, None] - centres).abs().argmin(1)
        sums = torch.zeros(16).index_add_(0, nearest, x)
        centres = sums / torch.bincount(nearest, minlength=16).clamp(min=1)
    return centres


def gpu(device: str, repeats: int) -> list[dict]:
    """The Triton kernels against the library: int8 at many tokens, NF4 at 1 and at many."""
    from refimpl.bench.gpu import measure
    from refimpl.quantization.kernel import int8_scaled_matmul, nf4_matmul

    features, dtype = (4096, torch.bfloat16) if device == "cuda" else (64, torch.float32)
    rows, w = [], torch.randn(features, features, device=device)
    w8, w4, half = quantize(w, 8), quantize_nf4(w), w.to(dtype)
    for tokens in (1, 4096) if device == "cuda" else (1, 17):
        x = torch.randn(tokens, features, device=device, dtype=dtype)
        x8 = quantize(x.float(), 8)
        calls = {
            "library": lambda x=x: F.linear(x, half),
            "int8": lambda x8=x8: int8_scaled_matmul(x8.codes, w8.codes, x8.step, w8.step, dtype),
            "nf4": lambda x=x: nf4_matmul(x, w4),
        }
        for name, call in calls.items():
            seconds, _ = measure(call, device, repeats)
            tflops = 2 * tokens * features**2 / seconds / 1e12
            rows.append({"implementation": name, "tokens": tokens, "seconds": seconds, "tflops": tflops})
    return rows


def problems(rows: list[dict]) -> list[str]:
    """Where a bound is missed, in words; without integer units there is none for the product."""
    found = []
    for row in rows:
        if row["case"] == "int8 product" and row["integer_units"] and row["speed_over_peer"] < LEAST_OF_FLOAT32:
            found.append(f"int8 product: {row['speed_over_peer']} times float32's speed, {LEAST_OF_FLOAT32} asked")
        if row["case"] == "palette" and row["seconds"] > LONGEST:
            found.append(f"palette of {MATRIX[0]} x {MATRIX[1]}: {row['seconds']} s, at most {LONGEST} allowed")
    return found
