"""Row 14, eviction to a fixed budget: perplexity and retrieval against entries kept, on a real model.

SmolLM2-135M reads token by token through `EvictingCache`; every layer and key/value head holds at most `budget`
entries, counted at the end. Prose: the windows of row 13. Glossary: pairs of words stand at the beginning, then prose
in which they come back again and again; scored is whether the model still knows a word's partner. There old entries
are needed often, which is what H2O assumes of text. Sources: S0, "Solutions"; Zhang et al. 2023; Xiao et al. 2024.
"""

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses

from refimpl.experiments.harness import Claim
from refimpl.experiments.row_13 import FROM, losses, perplexity, ratio, top_k_losses, windows
from refimpl.kv_cache import EvictingCache, heavy_hitters, random, sink_window, topk_attention, window
from refimpl.models import SmolLM, corpus, load_smollm2, replace_attention
from refimpl.shapes import Int, Tensor

TITLE = "eviction at a fixed budget: window, random, sink + window, H2O, and Top-K as the bound"
BUDGETS = [32, 64, 128]
SINKS = 4
PROSE, GLOSSARY = ["window", "random", "sink + window", "H2O"], ["sink + window", "H2O", "H2O, 1/4 recent"]
PAIRS, ROUNDS, GAP, SEEDS = 8, 5, 12, 4  # glossary: word pairs, times each comes back, tokens of prose between, texts
NO_GREAT_LOSS = 1.05  # times full attention's perplexity


def policies(budget: int) -> dict:
    """Name -> policy; H2O with half of the budget for recent tokens, as in the paper, and with a quarter."""
    return {
        "window": window,
        "random": random(0),
        "sink + window": sink_window(SINKS),
        "H2O": heavy_hitters(budget // 2),
        "H2O, 1/4 recent": heavy_hitters(budget // 4),
    }


# --- prose -----------------------------------------------------------------------------------------------------------


def prose(lm: SmolLM, ids: Tensor, budget: int, name: str) -> dict:
    """One policy at one budget: nats per token of each window, and what the cache holds at the end."""
    cache = EvictingCache(lm.model, budget, policies(budget)[name], batch=len(ids))
    found = losses(ids, lambda x: lm.model(x, cache))
    return {
        "policy": name, "budget": budget, "losses": found,
        "kept": sorted(set(cache.kept.flatten().tolist())), "counted": cache.kept.numel(), "evicted": cache.evicted,
        "bytes": cache.nbytes,
    }  # fmt: skip


def prose_rows(lm: SmolLM) -> list[dict]:
    ids = windows(lm)
    rows = [prose(lm, ids, budget, name) for budget in BUDGETS for name in PROSE]
    return rows + [{"policy": "Top-K", "budget": k, "losses": top_k_losses(lm, ids, k)} for k in BUDGETS]


# --- glossary --------------------------------------------------------------------------------------------------------


def glossary(lm: SmolLM, seed: int) -> tuple[Int[Tensor, "seq"], Int[Tensor, "asked"]]:
    """(ids, positions of the colons after which a partner is asked for): PAIRS lines, then ROUNDS times each again."""
    draw, text = torch.Generator().manual_seed(seed), lm.ids(corpus("prose"), 6000)[0]
    words = torch.tensor(_words(lm, text))
    picked = words[torch.randperm(len(words), generator=draw)[: 2 * PAIRS]].view(2, PAIRS).T.tolist()
    colon, newline = (lm.tokenizer.encode(c)[0] for c in ":\n")
    at, ids, asked = int(torch.randint(1000, (1,), generator=draw)), [], []
    for word, partner in picked:
        ids += [word, colon, partner, newline]
    for _ in range(ROUNDS):
        for i in torch.randperm(PAIRS, generator=draw).tolist():
            ids += [*text[at : at + GAP].tolist(), newline, picked[i][0], colon, picked[i][1], newline]
            asked.append(len(ids) - 3)
            at += GAP
    return torch.tensor(ids), torch.tensor(asked)


def _words(lm: SmolLM, text: Tensor) -> list[int]:
    """Lower-case words of one token and four letters or more."""
    known = {i: lm.tokenizer.decode([i]) for i in sorted(set(text.tolist()))}
    return [i for i, w in known.items() if len(w) > 4 and w[0] == " " and w[1:].isalpha() and w[1:].islower()]


@torch.no_grad()
def recalled(lm: SmolLM, read) -> dict:
    """Share of partners that are the most likely token, per text, and their nats; the first third of ROUNDS is free."""
    texts = [glossary(lm, seed) for seed in range(SEEDS)]
    ids, asked = torch.stack([ids for ids, _ in texts]), texts[0][1][PAIRS * ROUNDS // 3 :]
    logits, want = read(ids)[:, asked], ids[:, asked + 1]
    nats = F.cross_entropy(logits.flatten(0, 1), want.flatten(), reduction="none").view(SEEDS, -1).mean(1)
    right = (logits.argmax(-1) == want).float().mean(1)
    return {"tokens": ids.shape[1], "asked": len(asked), "right": right.tolist(), "nats": nats.tolist()}


def glossary_rows(lm: SmolLM) -> list[dict]:
    """Full attention, then three policies and Top-K at the two larger budgets."""
    rows = [{"policy": "full", "budget": None} | recalled(lm, lm.model)]
    for budget in BUDGETS[1:]:
        for name in GLOSSARY:
            cache = EvictingCache(lm.model, budget, policies(budget)[name], batch=SEEDS)
            rows.append({"policy": name, "budget": budget} | recalled(lm, lambda x, c=cache: lm.model(x, c)))
        with replace_attention(lm.model, lambda q, k, v, causal, n=budget: topk_attention(q, k, v, keep=n)):
            rows.append({"policy": "Top-K", "budget": budget} | recalled(lm, lm.model))
    return rows


def run() -> dict:
    lm = load_smollm2()
    ids = windows(lm)
    return {
        "mark": lm.mark, "windows": len(ids), "length": ids.shape[1], "scored_from": FROM,
        "full": losses(ids, lm.model), "prose": prose_rows(lm), "glossary": glossary_rows(lm),
    }  # fmt: skip


# --- what the runs say -----------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    better = [_against_sinks(result, budget) for budget in BUDGETS]
    return [_counted(result), _sinks(result), *better, _share(result), _bound(result), _glossary(result)]


def _of(result, policy, budget) -> list[float]:
    return next(r["losses"] for r in result["prose"] if (r["policy"], r["budget"]) == (policy, budget))


def _counted(result) -> Claim:
    rows = [row for row in result["prose"] if "kept" in row]
    full = all(row["kept"] == [row["budget"]] for row in rows)
    gone = all(row["evicted"] == result["length"] - row["budget"] for row in rows)
    text = ", ".join(f"{row['budget']}: {row['bytes']:,}" for row in rows if row["policy"] == "H2O")
    return Claim(
        "memory does not grow with the text", "Zhang et al. 2023", "the budget in every layer and head",
        f"exactly the budget in {rows[0]['counted']} caches" if full else "not the budget", full and gone,
        f"{result['windows']} texts, 30 layers, 3 key/value heads, after {result['length']} tokens; bytes in float32: "
        f"{text}.",
    )  # fmt: skip


def _sinks(result) -> Claim:
    full = perplexity(result["full"])
    text = ", ".join(
        f"{b}: {perplexity(_of(result, 'window', b)):.1f} and {perplexity(_of(result, 'sink + window', b)):.1f}"
        for b in BUDGETS
    )
    gains = [ratio(_of(result, "window", b), _of(result, "sink + window", b)) for b in BUDGETS]
    return Claim(
        f"a plain window collapses, {SINKS} sink tokens repair it", "Xiao et al. 2024, section 3", "collapse, repaired",
        text, all(times - 2 * error > 1.5 for times, error in gains),
        f"Perplexity of both by budget, sinks counted in it; full attention {full:.2f}. Random eviction: "
        + ", ".join(f"{perplexity(_of(result, 'random', b)):.1f}" for b in BUDGETS) + ".",
    )  # fmt: skip


def _against_sinks(result, budget) -> Claim:
    ours, other = (_of(result, name, budget) for name in ("H2O", "sink + window"))
    times, error = ratio(ours, other)
    better = sum(a < b for a, b in zip(ours, other, strict=True))
    return Claim(
        f"with {budget} entries H2O reads prose better than sink + window", "Zhang et al. 2023, section 5",
        "better at small budgets",
        f"perplexity {perplexity(ours):.2f} to {perplexity(other):.2f}, times {times:.3f} ± {error:.3f}",
        times + 2 * error < 1,
        f"Better in {better} of {len(ours)} windows; scores summed over the query heads of a group, half of the budget "
        "recent. Standard error over windows, paired.",
    )  # fmt: skip


def _share(result) -> Claim:
    budget = BUDGETS[-1]
    times, error = ratio(_of(result, "H2O", budget), result["full"])
    return Claim(
        "a fifth of the cache is enough", "Zhang et al. 2023, abstract", "20 % of the entries, no great loss",
        f"{100 * budget / result['length']:.0f} %: perplexity times {times:.3f} ± {error:.3f}",
        times < NO_GREAT_LOSS,
        f"{budget} entries at {result['length']} tokens; less of them than 20 % only at the end of each window.",
    )  # fmt: skip


def _bound(result) -> Claim:
    names = PROSE
    best = {b: min(names, key=lambda n, b=b: perplexity(_of(result, n, b))) for b in BUDGETS}
    text = ", ".join(
        f"{b}: {perplexity(_of(result, 'Top-K', b)):.2f} to {perplexity(_of(result, best[b], b)):.2f} ({best[b]})"
        for b in BUDGETS
    )
    bounded = all(perplexity(_of(result, "Top-K", b)) < perplexity(_of(result, best[b], b)) for b in BUDGETS)
    return Claim(
        "choosing anew for each query (Top-K) beats every eviction of the same budget", "S0, Solutions: H2O, Top-K",
        "Top-K first", text, bounded, "Perplexity of Top-K to the best policy's. Top-K keeps and reads all keys.",
    )  # fmt: skip


def _glossary(result) -> Claim:
    rows = {(r["policy"], r["budget"]): r for r in result["glossary"]}
    gains = {}
    for budget in BUDGETS[1:]:
        d = torch.tensor(rows["H2O", budget]["right"]) - torch.tensor(rows["sink + window", budget]["right"])
        gains[budget] = (d.mean().item(), d.std().item() / len(d) ** 0.5)
    shown = [f"{b}: {_mean(rows, 'H2O', b)} to {_mean(rows, 'sink + window', b)}" for b in BUDGETS[1:]]
    nats = [f"{b}: {_mean(rows, 'H2O', b, 'nats')} to {_mean(rows, 'sink + window', b, 'nats')}" for b in BUDGETS[1:]]
    gain = ", ".join(f"{b}: {100 * g:+.0f} ± {100 * e:.0f} points" for b, (g, e) in gains.items())
    full = rows["full", None]
    return Claim(
        "where a text goes back to old entries, heavy hitters remember more than sinks", "Zhang et al. 2023, section 3",
        "heavy hitters are needed", "; ".join(shown), all(g > 2 * e for g, e in gains.values()),
        f"Share of partners known, H2O to sink + window, by budget ({gain}); nats {'; '.join(nats)}. Full attention "
        f"{_mean(rows, 'full', None)}; H2O with a quarter recent "
        + ", ".join(_mean(rows, "H2O, 1/4 recent", b) for b in BUDGETS[1:])
        + f". {SEEDS} texts of {full['tokens']} tokens, {full['asked']} questions each.",
    )  # fmt: skip


def _mean(rows, policy, budget, what="right") -> str:
    values = rows[policy, budget][what]
    return f"{sum(values) / len(values):.2f}"
