"""Row 29, early exiting: agreement and saved layers against the threshold, exits untrained and trained, on SmolLM2.

Exits behind five layers may write 4,096 tokens. They are trained on what the whole model writes on other messages and
another module of the standard library, three seeds; judged on 1,024 tokens each of the 1981 message and of `heapq`, and
while generating. Work is counted, exits included. Sources: S1, "Language model Inference"; Schuster et al. 2022;
Elbayad et al. 2020; Belrose et al. 2023 (the lens).
"""

import statistics
import time

import torch

from refimpl.early_exit import Exit, decide, early_exit_generate, frequent_tokens, streams, train_exit
from refimpl.experiments.harness import Claim
from refimpl.models import SmolLM, corpus, generate, load_smollm2
from refimpl.models.data import messages
from refimpl.shapes import Int, Tensor

TITLE = "early exiting: agreement and saved layers against the threshold, and what becomes of the skipped layers' cache"
DEPTHS, TOKENS = (10, 15, 20, 24, 27), 4096
TRAINING, WINDOW, JUDGED = 6, 512, 2  # windows of training text per kind, their tokens, windows judged per kind
EPOCHS, SEEDS = 2, 3
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
PROMPT, NEW, AT = 128, 32, 0.9  # generation: tokens of the prompt, new ones, threshold
HEAPQ = '"""Heap queue algorithm'  # how the source of heapq begins
HIGH = 0.95  # agreement that we call unharmed


def windows(ids: Tensor, count: int) -> Int[Tensor, "count window"]:
    return ids[0, : count * WINDOW].view(count, WINDOW)


def texts(lm: SmolLM) -> dict[str, Int[Tensor, "windows window"]]:
    """Training windows and judged ones by kind; no text is in both."""
    # Others' messages, two windows of each; where there are none, a later part of the same text.
    others = [corpus("prose", message=m) for m in messages()[-3 * TRAINING :: 6]] or [corpus("prose")[300_000:]]
    share = -(-TRAINING // len(others))
    prose = torch.cat([windows(lm.ids(text, share * WINDOW), share) for text in others])[:TRAINING]
    return {
        "training": torch.cat([prose, windows(lm.ids(corpus("code"), TRAINING * WINDOW), TRAINING)]),
        **{kind: windows(lm.ids(held_out(kind), JUDGED * WINDOW), JUDGED) for kind in ("prose", "code")},
    }


def held_out(kind: str) -> str:
    """The 1981 message, or the last module of the code; training reads the first."""
    text = corpus(kind)
    return text if kind == "prose" else text[text.rindex(HEAPQ) :]


@torch.no_grad()
def read(lm: SmolLM, ids: Int[Tensor, "windows window"]) -> tuple[Tensor, Tensor]:
    """(streams (depths, tokens, model), what the whole model writes (tokens,)), window by window."""
    found = [streams(lm.model, window[None], depths(lm)) for window in ids]
    return torch.cat([x[:, 0] for x, _ in found], dim=1), torch.cat([written[0] for _, written in found])


def depths(lm: SmolLM) -> list[int]:
    """DEPTHS, in proportion where the model has other than 30 blocks."""
    return sorted({max(1, d * lm.config.layers // 30) for d in DEPTHS})


def untrained(lm: SmolLM, written: Tensor) -> list[Exit]:
    tokens = frequent_tokens(written, TOKENS)
    return [Exit(lm.model, depth, tokens) for depth in depths(lm)]


def trained(lm: SmolLM, x: Tensor, written: Tensor, seed: int) -> list[Exit]:
    exits = untrained(lm, written)
    for exit_, stream in zip(exits, x, strict=True):
        train_exit(exit_, stream, written, epochs=EPOCHS, seed=seed)
    return exits


# --- on given text ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def lens(exits: list[Exit], x: Tensor, written: Tensor) -> list[dict]:
    """Every exit asked of every token: how often it agrees, and how sure it is when it does and when not."""
    rows = []
    for exit_, stream in zip(exits, x, strict=True):
        guess, probability = exit_.best(stream)
        right, sure = guess == written, probability >= AT
        rows.append({
            "depth": exit_.depth, "agreement": right.float().mean().item(), "sure": sure.float().mean().item(),
            "agreement_where_sure": right[sure].float().mean().item() if sure.any() else None,
        })  # fmt: skip
    return rows


def swept(lm: SmolLM, exits: list[Exit], x: Tensor, written: Tensor) -> list[dict]:
    """Agreement, layers saved and FLOPs saved by threshold, as if each token were read by the whole model before."""
    c, rows = lm.config, []
    block = 2 * c.model * c.dim * (2 * c.heads + 2 * c.kv_heads) + 6 * c.model * c.ffn  # attention's pairs left out
    copy, head = 4 * c.model * c.kv_heads * c.dim, 2 * c.model * c.vocab
    check = 2 * c.model * (c.model + len(exits[0].tokens) + 1)
    full = c.layers * block + head
    for threshold in THRESHOLDS:
        token, depth = decide(exits, x, written, threshold=threshold, layers=c.layers)
        asked = sum((depth >= exit_.depth).float() for exit_ in exits)
        spent = depth * block + asked * check + (c.layers - depth) * copy + (depth == c.layers) * head
        early = depth < c.layers
        rows.append({
            "threshold": threshold, "agreement": (token == written).float().mean().item(),
            "early": early.float().mean().item(), "layers_saved": (c.layers - depth).float().mean().item(),
            "agreement_early": (token == written)[early].float().mean().item() if early.any() else None,
            "flops_saved": 1 - (spent / full).mean().item(),
        })  # fmt: skip
    return rows


# --- while generating ------------------------------------------------------------------------------------------------


def generated(lm: SmolLM, exits: list[Exit], kind: str) -> list[dict]:
    """Both ways of filling the skipped layers, and no exits: text, layers, work and CPU time after the prompt."""
    ids = lm.ids(held_out(kind), PROMPT)
    own, rows = generate(lm.model, ids, NEW)[0, PROMPT:], []
    for way, threshold in (("later", 1.01), ("later", AT), ("copy", AT)):
        start = time.process_time()
        out = early_exit_generate(lm.model, exits, ids, NEW, threshold=threshold, skipped=way)
        seconds, new = time.process_time() - start, out.ids[0, PROMPT:]
        same = (new == own).long().cumprod(0).sum().item()
        rows.append({
            "text": kind, "skipped": way if threshold <= 1 else "none", "same": (new == own).float().mean().item(),
            "first_same": same, "seconds": seconds, "flops": out.flops(lm.config, len(exits[0].tokens)),
            "layers_saved": lm.config.layers - statistics.mean(out.depths), "blocks": out.blocks,
            "agreement": followed(lm, out.ids),
        })  # fmt: skip
    return rows


@torch.no_grad()
def followed(lm: SmolLM, ids: Tensor) -> float:
    """Share of the new tokens that the whole model would have written after the same text."""
    return (lm.model(ids)[0, PROMPT - 1 : -1].argmax(-1) == ids[0, PROMPT:]).float().mean().item()


def run() -> dict:
    lm = load_smollm2()
    given = texts(lm)
    x, written = read(lm, given["training"])
    judged = {kind: read(lm, given[kind]) for kind in ("prose", "code")}
    result = {"mark": lm.mark, "layers": lm.config.layers, "trained_on": len(written), "judged": {
        kind: {"tokens": len(found[1]), "lens": lens(untrained(lm, written), *found), "seeds": []}
        for kind, found in judged.items()
    }}  # fmt: skip
    for seed in range(SEEDS):
        exits = trained(lm, x, written, seed)
        for kind, found in judged.items():
            row = {"exits": lens(exits, *found), "sweep": swept(lm, exits, *found)}
            result["judged"][kind]["seeds"].append(row)
    return result | {"generated": [row for kind in judged for row in generated(lm, exits, kind)]}


# --- what the runs say -----------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [_lens(result), _training(result), *(_threshold(result, kind) for kind in ("prose", "code")),
            _sure(result), _copies(result), _later(result)]  # fmt: skip


def spread(values) -> tuple[float, float]:
    """(mean, standard error) over seeds."""
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _by_depth(result, kind) -> str:
    found = result["judged"][kind]
    rows = []
    for i, row in enumerate(found["lens"]):
        mean, error = spread([seed["exits"][i]["agreement"] for seed in found["seeds"]])
        rows.append(f"{row['depth']}: {row['agreement']:.2f} to {mean:.2f} ± {error:.3f}")
    return ", ".join(rows)


def _lens(result) -> Claim:
    last = {kind: found["lens"][-1] for kind, found in result["judged"].items()}
    return Claim(
        "a model's own head on an early layer already says what the last layer will", "the free form of early exiting",
        "most tokens", ", ".join(f"{kind} {row['agreement']:.2f}" for kind, row in last.items()),
        all(row["agreement"] > 0.8 for row in last.values()),
        f"Agreement after {last['prose']['depth']} of {result['layers']} blocks, without training. "
        "Layers do not speak the head's language: see the next line.",
    )  # fmt: skip


def _training(result) -> Claim:
    better = []
    for found in result["judged"].values():
        for i, row in enumerate(found["lens"]):
            mean, error = spread([seed["exits"][i]["agreement"] for seed in found["seeds"]])
            better.append(mean - 2 * error > row["agreement"])
    return Claim(
        "a trained map before the head repairs it", "Belrose et al. 2023; Schuster et al. 2022", "every exit improves",
        f"{sum(better)} of {len(better)} exits", all(better),
        f"Agreement by depth, untrained to trained. Prose {_by_depth(result, 'prose')}. Code "
        f"{_by_depth(result, 'code')}. {result['trained_on']:,} training tokens, "
        f"{len(result['judged']['prose']['seeds'])} seeds.",
    )  # fmt: skip


def sweep(result, kind, key) -> list[tuple[float, float]]:
    """(mean, standard error) by threshold."""
    seeds = result["judged"][kind]["seeds"]
    return [spread([seed["sweep"][i][key] for seed in seeds]) for i in range(len(seeds[0]["sweep"]))]


def _threshold(result, kind) -> Claim:
    thresholds = [row["threshold"] for row in result["judged"][kind]["seeds"][0]["sweep"]]
    agreement, layers, work = (sweep(result, kind, key) for key in ("agreement", "layers_saved", "flops_saved"))
    text = "; ".join(
        f"{t:g}: {a:.3f} ± {e:.3f}, {n:.1f} layers, {100 * f:.0f} % of the FLOPs"
        for t, (a, e), (n, _), (f, _) in zip(thresholds, agreement, layers, work, strict=True)
    )
    kept = [i for i, (a, _) in enumerate(agreement) if a >= HIGH]
    most = max((work[i][0] for i in kept), default=0.0)
    return Claim(
        f"layers are saved at {100 * HIGH:.0f} % agreement: {kind}", "Schuster et al. 2022, abstract: up to 3 times",
        "up to 3 times faster", f"{100 * most:.0f} % of the FLOPs", most > 0.1,
        f"By threshold: agreement with the whole model, layers saved of {result['layers']}, FLOPs saved with exits and "
        f"copies paid: {text}. {result['judged'][kind]['tokens']:,} tokens.",
    )  # fmt: skip


def _sure(result) -> Claim:
    rows = {kind: [seed["sweep"] for seed in found["seeds"]] for kind, found in result["judged"].items()}
    at, text, close = THRESHOLDS.index(AT), [], []
    for kind, sweeps in rows.items():
        mean, error = spread([row[at]["agreement_early"] or 0.0 for row in sweeps])
        text.append(f"{kind} {mean:.3f} ± {error:.3f}")
        close.append(mean >= AT - 0.05)
    return Claim(
        f"a confidence of {AT:g} is right {100 * AT:.0f} % of the time", "Schuster et al. 2022, section 4: calibrated",
        AT, ", ".join(text), all(close),
        "Agreement of those tokens that left early, exits trained; shown where no more than 5 points are missing. "
        "Exits are asked in turn, so each gives a token another chance to be wrong.",
    )  # fmt: skip


def _way(result, way) -> list[dict]:
    return [row for row in result["generated"] if row["skipped"] == way]


def _listed(rows, key, form=".2f") -> str:
    return ", ".join(f"{row['text']} {row[key]:{form}}" for row in rows)


def _copies(result) -> Claim:
    full, copied = _way(result, "none"), _way(result, "copy")
    less = [1 - a["flops"] / b["flops"] for a, b in zip(copied, full, strict=True)]
    return Claim(
        "generating with copied states saves work", "Elbayad et al. 2020; Schuster et al. 2022", "less work",
        ", ".join(f"{row['text']} {100 * x:.0f} %" for row, x in zip(copied, less, strict=True)), min(less) > 0,
        f"FLOPs counted, against exits that are never taken; threshold {AT:g}. Tokens the whole model would have "
        f"written after the same text: {_listed(copied, 'agreement')}; seconds {_listed(copied, 'seconds')} against "
        f"{_listed(full, 'seconds')}.",
    )  # fmt: skip


def _later(result) -> Claim:
    full, later = _way(result, "none"), _way(result, "later")
    saved = [1 - a["flops"] / b["flops"] for a, b in zip(later, full, strict=True)]
    return Claim(
        "waiting tokens keep the cache exact, and put work off instead of saving it", "Chen et al. 2023, EE-LLM",
        "no FLOPs saved", ", ".join(f"{row['text']} {100 * x:.0f} %" for row, x in zip(later, saved, strict=True)),
        max(saved) < 0.3,
        f"Blocks run {_listed(later, 'blocks', ',')} of {_listed(full, 'blocks', ',')}; layers saved at the moment of "
        f"writing {_listed(later, 'layers_saved', '.1f')}; what is saved are heads, and who still waits at the end. "
        f"Tokens the whole model would have written: {_listed(later, 'agreement')}; seconds "
        f"{_listed(later, 'seconds')} against {_listed(full, 'seconds')}.",
    )  # fmt: skip
