"""Row 23, quantization basics: the 2-bit table, a picture in 16 colours, error against bits, and what error hides.

The picture is made in code. Errors against bits are measured on MiniLM, whose weights are float32; perplexity on
SmolLM2-135M, whose weights came from 5 bits per weight (Q4_1), so that 4 bits are their second rounding.
Sources: S1, "Quantization", "Palettization".
"""

import importlib.util
import time

import numpy as np
import torch

from refimpl.experiments.harness import Claim
from refimpl.experiments.row_13 import perplexity, ratio
from refimpl.experiments.row_24 import losses, windows
from refimpl.models import load_minilm, load_smollm2
from refimpl.quantization import (
    kmeans_1d,
    palettize,
    palettize_picture,
    quantize,
    quantize_q4_1,
    replaced_linears,
    rounded,
    sqnr_db,
    twos_complement,
)
from refimpl.quantization.swap import linears
from refimpl.shapes import Float, Tensor

TITLE = "quantization basics: two bits, sixteen colours, error against bits"
TABLE = {"01": 1, "00": 0, "11": -1, "10": -2}  # as printed
BITS = [2, 3, 4, 5, 6, 8]
METHODS = {
    "symmetric, tensor": lambda w, bits: quantize(w, bits, group="tensor"),
    "symmetric, row": lambda w, bits: quantize(w, bits),
    "symmetric, 64": lambda w, bits: quantize(w, bits, group=64),
    "asymmetric, 64": lambda w, bits: quantize(w, bits, group=64, symmetric=False),
    "k-means, tensor": lambda w, bits: palettize(w, 2**bits),
    "k-means, row": lambda w, bits: palettize(w, 2**bits, group="row"),
}
FOUR_BITS = ["symmetric, tensor", "symmetric, row", "symmetric, 64", "k-means, tensor", "k-means, row"]


def picture(height: int = 48, width: int = 64) -> Float[Tensor, "height width 3"]:
    """A sunset in code: sky from blue to orange, a sun, a sea with its reflection; channels in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    sky = torch.stack((0.2 + 0.8 * y, 0.3 + 0.3 * y, 0.7 - 0.5 * y), dim=-1)
    sea = torch.stack((0.1 + 0.3 * (1 - y), 0.2 + 0.2 * (1 - y), 0.5 - 0.2 * (1 - y)), dim=-1)
    scene = torch.where((y < 0.6)[..., None], sky, sea)
    sun = torch.exp(-((x**2 + (2 * (y - 0.5)) ** 2) * 12))[..., None]
    glitter = ((y > 0.6) * torch.exp(-20 * x**2) * (0.5 + 0.5 * torch.sin(60 * y)))[..., None]
    return (scene + sun * torch.tensor([0.8, 0.7, 0.3]) + glitter * torch.tensor([0.5, 0.3, 0.1])).clamp(0, 1)


def colours() -> list[dict]:
    """Decibels of k-means palettes, and of the middles of equal steps per channel where these make as many."""
    original, rows = picture(), []
    for count in (2, 4, 8, 16, 32, 64):
        indices, palette = palettize_picture(original, count)
        row = {"colours": count, "k-means": sqnr_db(original, palette[indices])}
        steps = round(count ** (1 / 3))
        if steps**3 == count:
            row["equal steps"] = sqnr_db(original, ((original * steps).floor().clamp(max=steps - 1) + 0.5) / steps)
        rows.append(row)
    return rows


def errors() -> dict:
    """Decibels by method and bits, mean over MiniLM's linear layers of one block; and their stored bits."""
    lm = load_minilm()
    weights = [m.weight.detach() for name, m in linears(lm.model).items() if ".0." in f".{name}."]
    table = {"mark": lm.mark, "bits": BITS, "matrices": len(weights), "rows": []}
    for name, method in METHODS.items():
        made = [[method(w, bits) for w in weights] for bits in BITS]
        db = [sum(sqnr_db(w, q.dequantize()) for w, q in zip(weights, row, strict=True)) / len(row) for row in made]
        total = sum(w.numel() for w in weights)
        table["rows"].append({"method": name, "db": db, "stored": [8 * sum(q.nbytes for q in r) / total for r in made]})
    return table | {"q4_1": q4_1(weights[0])}


def q4_1(w: Tensor) -> dict:
    """Our bytes against the package gguf's."""
    if importlib.util.find_spec("gguf") is None:
        return {"unavailable": "needs the package gguf: pip install gguf"}
    import gguf

    ours, theirs = quantize_q4_1(w.numpy()), gguf.quantize(w.numpy(), gguf.GGMLQuantizationType.Q4_1)
    return {"bytes": ours.nbytes, "different": int(np.sum(ours != theirs)), "bits": 8 * ours.nbytes / w.numel()}


def palette_seconds() -> float:
    """CPU seconds to 16 colours for a normal matrix of the size of SmolLM2's feed-forward matrices."""
    w = torch.randn(576, 1536, generator=torch.Generator().manual_seed(0))
    kmeans_1d(w[:1], 16)
    start = time.process_time()
    palettize(w)
    return time.process_time() - start


def four_bits() -> dict:
    """All linear layers of SmolLM2 in 4 bits: decibels and losses."""
    lm = load_smollm2()
    ids, rows = windows(lm, 1), []
    full = losses(lm.model, ids)
    for name in FOUR_BITS:
        seen = []

        def approximate(w, method=METHODS[name], seen=seen):
            back = method(w, 4).dequantize()
            seen.append(sqnr_db(w, back))
            return back

        with replaced_linears(lm.model, rounded(approximate)):
            rows.append(
                {"method": name, "losses": losses(lm.model, ids), "db": sum(seen) / len(seen), "worst_db": min(seen)}
            )
    return {"mark": lm.mark, "tokens": ids.numel(), "full": full, "rows": rows}


def run() -> dict:
    table = {code: twos_complement(code) for code in TABLE}
    return {
        "table": table, "picture": colours(), "errors": errors(), "palette_seconds": palette_seconds(),
        "four_bits": four_bits(),
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    return [
        _table(result),
        _picture(result),
        _decibels(result),
        _groups(result),
        _hidden(result),
        _q4_1(result),
        _fast(result),
    ]


def _table(result) -> Claim:
    right = sum(result["table"][code] == value for code, value in TABLE.items())
    return Claim(
        "two bits as printed", "S1, Quantization", 4, right, right == 4, "Two's complement: " + str(result["table"])
    )


def _picture(result) -> Claim:
    rows = {row["colours"]: row for row in result["picture"]}
    both = [row for row in rows.values() if "equal steps" in row]
    text = ", ".join(f"{r['colours']}: {r['k-means']:.1f} against {r['equal steps']:.1f}" for r in both)
    return Claim(
        "a picture bears 16 colours: a palette from the data needs few", "S1, Palettization", "16 colours",
        f"{rows[16]['k-means']:.1f} dB with 16", all(r["k-means"] > r["equal steps"] for r in both),
        f"k-means against as many colours in equal steps per channel, dB: {text}. 48 x 64 pixels, made in code.",
    )  # fmt: skip


def _db(result, method, bits=4) -> float:
    row = next(r for r in result["errors"]["rows"] if r["method"] == method)
    return row["db"][result["errors"]["bits"].index(bits)]


def _decibels(result) -> Claim:
    gains = [(_db(result, m, 8) - _db(result, m, 4)) / 4 for m in ("symmetric, row", "symmetric, 64", "asymmetric, 64")]
    return Claim(
        "each bit adds 6.02 dB", "20 log10(2), from step / 2", 6.02, round(sum(gains) / len(gains), 2),
        all(5.5 < gain < 6.6 for gain in gains),
        "Mean of 4 to 8 bits, uniform per row and per 64. Symmetric codes leave one value unused.",
    )  # fmt: skip


def _groups(result) -> Claim:
    found = [_db(result, f"symmetric, {group}") for group in ("tensor", "row", "64")]
    return Claim(
        "smaller groups, smaller error", "step = max / levels", "tensor < row < 64",
        " < ".join(f"{x:.1f}" for x in found) + " dB", found == sorted(found),
        f"4 bits, {result['errors']['matrices']} matrices of MiniLM's first block; k-means "
        f"{_db(result, 'k-means, tensor'):.1f} per tensor and {_db(result, 'k-means, row'):.1f} per row.",
    )  # fmt: skip


def _hidden(result) -> Claim:
    rows = {row["method"]: row for row in result["four_bits"]["rows"]}
    text = ", ".join(f"{name} {row['db']:.1f} dB {perplexity(row['losses']):,.1f}" for name, row in rows.items())
    times, error = ratio(rows["k-means, tensor"]["losses"], rows["symmetric, row"]["losses"])
    closer = rows["k-means, tensor"]["db"] > rows["symmetric, row"]["db"]
    return Claim(
        "less squared error is not a better model: 16 colours per tensor lose the few large weights",
        "measured, no claim",
        "-", f"perplexity times {times:,.1f} ± {error:,.1f} of 4 bits per row", closer and times - 2 * error > 1,
        f"Mean dB over 210 matrices and perplexity (full {perplexity(result['four_bits']['full']):.1f}): {text}. "
        f"{result['four_bits']['tokens']} tokens.",
    )  # fmt: skip


def _q4_1(result) -> Claim:
    found = result["errors"]["q4_1"]
    if "unavailable" in found:
        return Claim("Q4_1 by hand is gguf's", "llama.cpp", 0, "not run", False, found["unavailable"])
    note = f"{found['bytes']:,} bytes compared; {found['bits']:g} bits per weight."
    return Claim(
        "Q4_1 by hand is gguf's: bytes that differ", "llama.cpp", 0, found["different"], not found["different"], note
    )


def _fast(result) -> Claim:
    seconds = result["palette_seconds"]
    note = "CPU seconds, one thread; one sort, then a step costs 15 searches."
    return Claim(
        "16 colours for 576 x 1536 weights in less than a second", "goal", "< 1", round(seconds, 3), seconds < 1, note
    )
