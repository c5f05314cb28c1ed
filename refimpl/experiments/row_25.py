"""Row 25, QLoRA: the NF4 values by five steps, what 4-bit types cost a real model, double quantization, training.

SmolLM2-135M with all 210 linear layers in 4 bits, block 64, read on 1,024 tokens of prose. Its weights came from a file
of 5 bits per weight (Q4_1), so this is their second rounding; relative errors are also given for MiniLM, whose weights
are float32. Training: factors of rank 8 beside W_q and W_v of every layer, Adam with a paged state, on code.
Sources: S1, "QLoRA"; Dettmers et al. 2023.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses
from torch import nn

from refimpl.experiments.harness import Claim
from refimpl.experiments.row_13 import perplexity, ratio
from refimpl.experiments.row_24 import losses, windows
from refimpl.models import SmolLM, corpus, load_minilm, load_smollm2
from refimpl.quantization import (
    NF4,
    PagedAdamW,
    QLoRALinear,
    normal_float,
    quantize_nf4,
    replaced_linears,
    rounded,
    unpack,
)
from refimpl.quantization.nf4 import ENDS, PRINTED_ENDS
from refimpl.quantization.swap import linears
from refimpl.shapes import Tensor

TITLE = "QLoRA: NF4 by the five steps, 4-bit types on a real model, double quantization, training beside 4 bits"
E2M1 = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TYPES = {
    "NF4": NF4,
    "NF4, ends as printed": tuple(normal_float(PRINTED_ENDS).tolist()),
    "FP4": (*(-x / 6 for x in reversed(E2M1)), 0.0, 0.0, *(x / 6 for x in E2M1)),
    "INT4": (*(i / 7 for i in range(-7, 8)), 1.0),
}
SEEDS, STEPS, TOKENS, LR, ROOM = 3, 8, 96, 2e-3, 2**20


def codebook() -> dict:
    """Largest deviation of the five steps' values from the published ones."""
    published = torch.tensor(NF4, dtype=torch.float64)
    off = {name: (normal_float(ends) - published).abs() for name, ends in (("exact", ENDS), ("printed", PRINTED_ENDS))}
    return {"ends": ENDS, "values": normal_float().tolist(), "printed_values": normal_float(PRINTED_ENDS).tolist()} | {
        name: d.max().item() for name, d in off.items()
    }


def rounding(values: tuple[float, ...], double: bool = False) -> Callable[[Tensor], Tensor]:
    return lambda w: quantize_nf4(w, double=double, codebook=values).dequantize()


def relative_error(weights: list[Tensor], approximate: Callable[[Tensor], Tensor]) -> float:
    """sqrt(sum of squared errors / sum of squares) over all matrices."""
    wrong = sum((w - approximate(w)).double().square().sum() for w in weights)
    return math.sqrt(wrong / sum(w.double().square().sum() for w in weights))


def entropy(weights: list[Tensor], values: tuple[float, ...]) -> float:
    """Bits that the 4-bit codes carry: 4 where all are used alike."""
    counts = torch.zeros(16, dtype=torch.float64)
    for w in weights:
        codes = unpack(quantize_nf4(w, double=False, codebook=values).packed, 4, w.numel())
        counts += torch.bincount(codes.int(), minlength=16)
    share = counts / counts.sum()
    return -torch.xlogy(share, share).sum().item() / math.log(2)


def types(lm: SmolLM) -> dict:
    """Losses of SmolLM2 and relative errors on MiniLM by data type; NF4 with double quantization beside it."""
    ids, clean = windows(lm), [m.weight.detach() for m in linears(load_minilm().model).values()]
    rows = []
    for name, values, double in [(n, v, False) for n, v in TYPES.items()] + [("NF4, double", NF4, True)]:
        approximate = rounding(values, double)
        with replaced_linears(lm.model, rounded(approximate)):
            found = losses(lm.model, ids)
        row = {
            "type": name,
            "losses": found,
            "error": relative_error(clean, approximate),
            "bits": entropy(clean, values),
        }
        rows.append(row)
    return {"full": losses(lm.model, ids), "tokens": ids.numel(), "rows": rows}


def sizes(lm: SmolLM) -> dict:
    """Bytes of SmolLM2's linear layers by the parts that are kept, counted."""
    weights = [m.weight.detach() for m in linears(lm.model).values()]
    single, double = ([quantize_nf4(w, double=d) for w in weights] for d in (False, True))
    return {
        "weights": sum(w.numel() for w in weights), "matrices": len(weights),
        "codes": sum(q.packed.nbytes for q in double), "single": sum(q.nbytes for q in single),
        "double": sum(q.nbytes for q in double),
    }  # fmt: skip


def training(lm: SmolLM, seed: int) -> dict:
    """STEPS steps on one text, loss before and after on what follows it in the same source."""
    text = lm.ids(corpus("code"), 6000)[0, 1500 * seed :][: STEPS * TOKENS + 256]
    pieces, held_out = text[: STEPS * TOKENS].view(STEPS, 1, TOKENS), text[None, -256:]

    def layer(name: str, linear: nn.Linear) -> nn.Module:
        if name.endswith(("q_proj", "v_proj")):
            return QLoRALinear(linear, rank=8, seed=seed)
        return rounded(rounding(NF4, double=True))(name, linear)  # dequantized once: the same numbers, sooner

    with replaced_linears(lm.model, layer):
        lora = [m for m in lm.model.modules() if isinstance(m, QLoRALinear)]
        codes = [m.weight.packed.clone() for m in lora]
        factors = [p for m in lora for p in (m.lora_a, m.lora_b)]
        optimizer, before = PagedAdamW(factors, lr=LR, weight_decay=0.0, page=2**12, room=ROOM), nats(lm, held_out)
        seen = [step(lm, optimizer, piece) for piece in pieces]
        after = nats(lm, held_out)
    return {
        "seed": seed, "before": before, "after": after, "training": seen, "trained": sum(p.numel() for p in factors),
        "codes_changed": sum(int((m.weight.packed != c).sum()) for m, c in zip(lora, codes, strict=True)),
        "faults": optimizer.faults, "bytes_moved": optimizer.host.bytes_in + optimizer.host.bytes_out,
        "peak_bytes": optimizer.peak_bytes, "state_bytes": 8 * sum(p.numel() for p in factors),
    }  # fmt: skip


def step(lm: SmolLM, optimizer: PagedAdamW, ids: Tensor) -> float:
    loss = F.cross_entropy(lm.model(ids)[0, :-1], ids[0, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def nats(lm: SmolLM, ids: Tensor) -> float:
    return F.cross_entropy(lm.model(ids)[0, :-1], ids[0, 1:]).item()


def run() -> dict:
    lm = load_smollm2()
    return {
        "mark": lm.mark, "codebook": codebook(), "types": types(lm), "sizes": sizes(lm),
        "training": [training(lm, seed) for seed in range(SEEDS)],
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    return [_exact(result), _printed(result), _overhead(result), _bytes(result), _best(result), _cost(result),
            _rounded_ends(result), _double(result), _trains(result), _paged(result)]  # fmt: skip


def _exact(result) -> Claim:
    book = result["codebook"]
    ends = ", ".join(f"{end:.7f}" for end in book["ends"])
    return Claim(
        "the five steps give the published 16 values", "S1, QLoRA; appendix E", 0.0, book["exact"],
        book["exact"] < 2e-7, f"Largest deviation, with the ends {ends}.",
    )  # fmt: skip


def _printed(result) -> Claim:
    off = result["codebook"]["printed"]
    note = "Largest deviation with .97, .56, .57. What it costs is below."
    return Claim("the ends as printed give them, too", "S1, QLoRA, steps 1 and 2", 0.0, round(off, 5), off < 2e-7, note)


def _overhead(result) -> Claim:
    s = result["sizes"]
    single, double = (8 * (s[kind] - s["codes"]) / s["weights"] for kind in ("single", "double"))
    return Claim(
        "maxima cost 0.5 bit per parameter, 0.127 with double quantization", "S1, QLoRA; section 3",
        "0.5, 0.127", f"{single:g}, {double:.3f}", single == 0.5 and round(double, 3) == 0.127,
        f"Counted over {s['matrices']} matrices, ragged last second blocks and means included.",
    )  # fmt: skip


def _bytes(result) -> Claim:
    s = result["sizes"]
    return Claim(
        "two weights in a byte", "NF4", s["weights"] // 2, s["codes"], s["codes"] == s["weights"] // 2,
        f"With maxima {s['double']:,} bytes against {2 * s['weights']:,} in 16 bits.",
    )  # fmt: skip


def _rows(result) -> dict:
    return {row["type"]: row for row in result["types"]["rows"]}


def _against(result, name, other="full") -> str:
    rows = _rows(result)
    base = result["types"]["full"] if other == "full" else rows[other]["losses"]
    times, error = ratio(rows[name]["losses"], base)
    return f"{perplexity(rows[name]['losses']):.2f} (times {times:.3f} ± {error:.3f})"


def _best(result) -> Claim:
    rows = {name: _rows(result)[name] for name in ("NF4", "FP4", "INT4")}
    error = ", ".join(f"{name} {row['error']:.4f}" for name, row in rows.items())
    bits = ", ".join(f"{name} {row['bits']:.2f}" for name, row in rows.items())
    return Claim(
        "NF4 is the best 4-bit type for normal weights", "S1, QLoRA; section 3", "NF4 first", error,
        min(rows, key=lambda n: rows[n]["error"]) == "NF4",
        f"Relative error over MiniLM's matrices. Bits that the codes carry (4 if used alike): {bits}.",
    )  # fmt: skip


def _cost(result) -> Claim:
    rows, half = _rows(result), len(result["types"]["full"]) // 2
    worse = {name: ratio(rows[name]["losses"], rows["NF4"]["losses"]) for name in ("FP4", "INT4")}
    first, error = ratio(rows["FP4"]["losses"][:half], rows["NF4"]["losses"][:half])
    text = ", ".join(f"{name} {_against(result, name)}" for name in ("NF4", *worse))
    return Claim(
        "and its model reads best", "Dettmers et al. 2023, table 2", "NF4 first", text,
        all(times - 2 * error > 1 for times, error in worse.values()),
        f"Perplexity on {result['types']['tokens']:,} tokens, full {perplexity(result['types']['full']):.2f}. To NF4: "
        + ", ".join(f"{name} times {times:.3f} ± {error:.3f}" for name, (times, error) in worse.items())
        + f"; on the first half alone FP4 {first:.3f} ± {error:.3f}. The weights had been on another 4-bit grid "
        "before.",
    )  # fmt: skip


def _rounded_ends(result) -> Claim:
    name = "NF4, ends as printed"
    times, error = ratio(_rows(result)[name]["losses"], _rows(result)["NF4"]["losses"])
    return Claim(
        "rounding the ends costs nothing that is seen", "measured, no claim", "-",
        f"perplexity times {times:.4f} ± {error:.4f}", abs(times - 1) < 2 * error,
        f"Relative error {_rows(result)[name]['error']:.5f} against {_rows(result)['NF4']['error']:.5f}.",
    )  # fmt: skip


def _double(result) -> Claim:
    times, error = ratio(_rows(result)["NF4, double"]["losses"], _rows(result)["NF4"]["losses"])
    return Claim(
        "double quantization costs no quality", "Dettmers et al. 2023, section 3", "no degradation",
        f"perplexity times {times:.4f} ± {error:.4f}", times - 2 * error < 1,
        f"Relative error {_rows(result)['NF4, double']['error']:.5f} "
        f"against {_rows(result)['NF4']['error']:.5f}.",
    )  # fmt: skip


def _trains(result) -> Claim:
    runs = result["training"]
    gains = torch.tensor([run["before"] - run["after"] for run in runs])
    error, changed = gains.std().item() / len(runs) ** 0.5, sum(run["codes_changed"] for run in runs)
    return Claim(
        "few factors train beside locked 4-bit weights", "S1, QLoRA, key idea", "loss falls, codes stay",
        f"held-out loss {gains.mean():.3f} ± {error:.3f} nats lower, {changed} bytes of codes changed",
        gains.mean().item() > 2 * error and not changed,
        f"{runs[0]['trained']:,} numbers trained, {STEPS} steps of {TOKENS} tokens, {len(runs)} seeds: "
        + ", ".join(f"{r['before']:.2f} to {r['after']:.2f}" for r in runs) + ".",
    )  # fmt: skip


def _paged(result) -> Claim:
    run = result["training"][0]
    return Claim(
        "a paged optimizer lives in less device memory than its state", "S1, QLoRA, figure 1", f"<= {ROOM:,}",
        f"{run['peak_bytes']:,} of {run['state_bytes']:,} bytes",
        run["peak_bytes"] <= ROOM < run["state_bytes"],
        f"{run['faults']:,} pages came back in {STEPS} steps, {run['bytes_moved']:,} bytes crossed over. "
        "Updates are AdamW's (a test). Device and host are one memory here.",
    )  # fmt: skip
