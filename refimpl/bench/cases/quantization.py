"""Quantized products on one CPU thread, and palettization: int8 against float32, a codebook against plain Lloyd.

"product" multiplies codes that exist already; "layer" is what a model calls: scales, rounding, product, scales, and the
outliers in 16 bits. The difference is the price of quantizing activations. FLOPs count multiplications and additions.
Where bitsandbytes or torchao is installed, the same work by the library stands beside ours.
"""

import copy
import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention

from refimpl.bench.measure import interleaved, median_ratio
from refimpl.quantization import Int8Product, int8_linear, int8_matmul, palettize, quantize, quantize_nf4
from refimpl.quantization.int8 import THRESHOLD

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
    return [*products(runs), *libraries(runs), *palettes(runs)]


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


Pairs = dict[str, tuple[Callable[[], object], Callable[[], object]]]  # what -> ours, the library's


def libraries(runs: int) -> list[dict]:
    """Ours against each installed library, and a line that says how to get the others."""
    rows = []
    with torch.no_grad():
        for name, pairs in LIBRARIES.items():
            if importlib.util.find_spec(name) is None:
                rows.append({"case": "library", "peer": name, "unavailable": f"{name}: pip install '.[peers]'"})
                continue
            for case, (ours, theirs) in pairs(*inputs()).items():
                seconds = interleaved({"ours": ours, "theirs": theirs}, runs)
                medians = {key: round(statistics.median(times), 5) for key, times in seconds.items()}
                speed = round(median_ratio(seconds["theirs"], seconds["ours"]), 2)
                row = {"seconds": medians["ours"], "peer_seconds": medians["theirs"], "speed_over_peer": speed}
                rows.append({"case": case, "peer": name, **row})
    return rows


def of_bitsandbytes(x: torch.Tensor, w: torch.Tensor) -> Pairs:
    """LLM.int8() from its codes and as a layer with outliers (in bfloat16, its own choice on a CPU), NF4 both ways."""
    import bitsandbytes.functional as bnb
    from bitsandbytes.nn import Linear8bitLt

    x8, w8, w4 = quantize(x, 8), quantize(w, 8), quantize_nf4(w)
    packed, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    layer = Linear8bitLt(FEATURES, OUT, bias=False, has_fp16_weights=False, threshold=THRESHOLD)
    layer.load_state_dict({"weight": w})
    layer, half = layer.to("cpu"), x.to(torch.bfloat16)
    return {
        "int8 product": (lambda: int8_matmul(x8.codes, w8.codes), lambda: bnb.int8_linear_matmul(x8.codes, w8.codes)),
        "int8 layer, outliers": (lambda: int8_linear(half, w8), lambda: layer(half)),
        "NF4 from float32": (
            lambda: quantize_nf4(w),
            lambda: bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True),
        ),
        "NF4 to float32": (lambda: w4.dequantize(), lambda: bnb.dequantize_4bit(packed, state)),
    }


def of_torchao(x: torch.Tensor, w: torch.Tensor) -> Pairs:
    """Its dynamic int8 layer: a scale per token and per output channel, no outliers apart."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    linear = torch.nn.Linear(FEATURES, OUT, bias=False)
    linear.weight.copy_(w)
    theirs, w8, how = copy.deepcopy(linear), quantize(w, 8), Int8Product(threshold=None)
    quantize_(theirs, Int8DynamicActivationInt8WeightConfig())
    return {"int8 layer": (lambda: int8_linear(x, w8, how), lambda: theirs(x))}


LIBRARIES = {"bitsandbytes": of_bitsandbytes, "torchao": of_torchao}


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
        if importlib.util.find_spec("bitsandbytes"):
            calls["nf4, bitsandbytes"] = bitsandbytes_nf4(x, half)
        for name, call in calls.items():
            seconds, _ = measure(call, device, repeats)
            tflops = 2 * tokens * features**2 / seconds / 1e12
            rows.append({"implementation": name, "tokens": tokens, "seconds": seconds, "tflops": tflops})
    return rows


def bitsandbytes_nf4(x: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    """Its product with weights that it has packed."""
    import bitsandbytes

    packed, state = bitsandbytes.functional.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    return lambda: bitsandbytes.matmul_4bit(x, packed.t(), quant_state=state)


def problems(rows: list[dict]) -> list[str]:
    """Where a bound is missed, in words; without integer units there is none for the product."""
    found = []
    for row in rows:
        if row["case"] == "int8 product" and row.get("integer_units") and row["speed_over_peer"] < LEAST_OF_FLOAT32:
            found.append(f"int8 product: {row['speed_over_peer']} times float32's speed, {LEAST_OF_FLOAT32} asked")
        if row["case"] == "palette" and row["seconds"] > LONGEST:
            found.append(f"palette of {MATRIX[0]} x {MATRIX[1]}: {row['seconds']} s, at most {LONGEST} allowed")
    return found
