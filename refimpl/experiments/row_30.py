"""Row 30, speculative sampling: the slide's table, the target's distribution, tokens per pass, and what time it saves.

SmolLM2-135M as the target; drafts: the text itself (prompt lookup) and the target's first 24 blocks. Time is CPU time
of one thread, each run once, prompts apart (`decoding_time`). Prompts are taken every 1,500 tokens from the start of
both texts, none left out.
Sources: S1, "Speculative Sampling"; Chen et al. 2023; Leviathan et al. 2023, table 2; Saxena 2023 (prompt lookup).
"""

import statistics
from fractions import Fraction

import torch

from refimpl.experiments.decoding_time import KS, PROMPT, gain, lookups, places, self_drafted, verify
from refimpl.experiments.harness import Claim
from refimpl.models import SmolLM, corpus, load_smollm2
from refimpl.shapes import Float, Tensor
from refimpl.speculative_sampling import acceptance, distribution, expected_tokens, speculate

TITLE = "speculative sampling: kept or replaced, exactly; tokens per pass; time on code and on prose"
TABLE = {
    "dogs": ("0.8", "0.9"),
    "love": ("0.7", "0.8"),
    "chasing": ("0.9", "0.8"),
    "after": ("0.8", "0.3"),
    "cars": ("0.7", "0.8"),
}  # fmt: skip  token: p of the draft, q of the target
PRINTED = ["1", "1", "8/9", "3/8"]  # "after" is refused on the slide, so "cars" is not reached
T5 = [  # task, target's draft, temperature, gamma, alpha, speed, as printed
    ("ENDE", "small", 0, 7, 0.75, 3.4), ("ENDE", "base", 0, 7, 0.8, 2.8), ("ENDE", "large", 0, 7, 0.82, 1.7),
    ("ENDE", "small", 1, 7, 0.62, 2.6), ("ENDE", "base", 1, 5, 0.68, 2.4), ("ENDE", "large", 1, 3, 0.71, 1.4),
    ("CNNDM", "small", 0, 5, 0.65, 3.1), ("CNNDM", "base", 0, 5, 0.73, 3.0), ("CNNDM", "large", 0, 3, 0.74, 2.2),
    ("CNNDM", "small", 1, 5, 0.53, 2.3), ("CNNDM", "base", 1, 3, 0.55, 2.2), ("CNNDM", "large", 1, 3, 0.56, 1.7),
]  # fmt: skip
CHEN = (1.92, 2.46)  # speed-ups of the slide's other table, smallest and largest
K = 3  # as the slide recommends
ROUNDS, LIKELY = 4000, 512  # rounds of a chi-square; tokens kept of the vocabulary, the rest has < 10 % of the mass


# --- one round, exactly ----------------------------------------------------------------------------------------------


def table() -> list[dict]:
    """min(1, q/p) in fractions, and what the reference computes in float64."""
    rows = []
    for token, (p, q) in TABLE.items():
        exact = min(Fraction(1), Fraction(q) / Fraction(p))
        ours = acceptance(*(torch.tensor([float(x)], dtype=torch.float64) for x in (p, q))).item()
        rows.append({"token": token, "exact": str(exact), "ours": str(Fraction(ours).limit_denominator(1000))})
    return rows


@torch.no_grad()
def pair(lm: SmolLM, temperature: float) -> tuple[Float[Tensor, "likely"], Float[Tensor, "likely"]]:
    """(p, q): a draft that has read the last 16 tokens only, and the target, on the LIKELY most likely tokens."""
    ids = lm.ids(corpus("prose"), PROMPT)
    q, p = (distribution(lm.model(x, last=1)[0, -1], temperature) for x in (ids, ids[:, -16:]))
    best = q.topk(min(LIKELY, len(q))).indices
    return p[best] / p[best].sum(), q[best] / q[best].sum()


def chi_square(counts: Float[Tensor, "vocab"], q: Float[Tensor, "vocab"]) -> tuple[float, int, float]:
    """(X², degrees of freedom, chance of as much or more); tokens expected fewer than 10 times are counted as one."""
    expected = q.double() * counts.sum()
    rare = expected < 10
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    seen = torch.cat((counts[~rare], counts[rare].sum()[None])).double()
    statistic, dof = ((seen - expected).square() / expected.clamp(min=1e-9)).sum(), len(seen) - 1
    return statistic.item(), dof, torch.special.gammaincc(torch.tensor(dof / 2), statistic.float() / 2).item()


def sampled(lm: SmolLM, temperature: float) -> dict:
    """First tokens of ROUNDS rounds against q; and of a sampler that takes q for the residual, the slide's warning."""
    p, q = pair(lm, temperature)
    draw, counts, wrong = torch.Generator().manual_seed(30), torch.zeros(len(q)), torch.zeros(len(q))
    rows = torch.stack((q, q))
    for _ in range(ROUNDS):
        proposed = torch.multinomial(p, 1, generator=draw)
        round_ = speculate(proposed, p[None], rows, generator=draw)
        counts[round_.tokens[0]] += 1
        wrong[proposed if round_.accepted else torch.multinomial(q, 1, generator=draw)] += 1
    names = ("statistic", "dof", "chance")
    return {
        "temperature": temperature, "rounds": ROUNDS, "alpha": torch.minimum(p, q).sum().item(),
        "ours": dict(zip(names, chi_square(counts, q), strict=True)),
        "wrong": dict(zip(names, chi_square(wrong, q), strict=True)),
    }  # fmt: skip


# --- tokens per pass -------------------------------------------------------------------------------------------------


def alike(lm: SmolLM, k: int) -> dict:
    """Rounds in which every position has the same p and q, so that acceptance is independent and equally likely."""
    p, q = pair(lm, 1.0)
    draw, alpha = torch.Generator().manual_seed(k), torch.minimum(p, q).sum().item()
    made = []
    for _ in range(ROUNDS // 4):
        proposed = torch.multinomial(p, k, replacement=True, generator=draw)
        made.append(len(speculate(proposed, p.expand(k, -1), q.expand(k + 1, -1), generator=draw).tokens))
    error = statistics.stdev(made) / len(made) ** 0.5
    return {"k": k, "alpha": alpha, "formula": expected_tokens(alpha, k), "measured": statistics.mean(made),
            "error": error, "fewest": min(made), "most": max(made)}  # fmt: skip


def run() -> dict:
    lm = load_smollm2()
    where = places(lm)
    first = {kind: ids for kind, start, ids in where if start == 0}
    return {
        "mark": lm.mark, "table": table(), "sampled": [sampled(lm, t) for t in (1.0, 0.7)],
        "alike": [alike(lm, k) for k in (1, 3, 5, 8)], "verify": verify(lm),
        "lookups": [lookups(lm, *place) for place in where],
        "self_drafted": [self_drafted(lm, kind, ids) for kind, ids in first.items()],
    }  # fmt: skip


# --- what the runs say -----------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [
        _table(result), *(_exact(result, row) for row in result["sampled"]), _same(result), _bounds(result),
        _formula(result), _real(result), _free(result), *(_gain(result, kind) for kind in ("code", "prose")),
        _best_k(result), _model_draft(result), _span(), _beaten(),
    ]  # fmt: skip


def _table(result) -> Claim:
    exact, ours = ([row[key] for row in result["table"]] for key in ("exact", "ours"))
    return Claim(
        "accepted with min(1, q/p): dogs, love, chasing, after", "S1, Speculative Sampling - Rejection Sampling",
        ", ".join(PRINTED), ", ".join(ours[:4]), exact[:4] == PRINTED and ours == exact,
        f"In fractions; float64 gives the same. cars would be kept with {exact[4]}, but is not reached once after is "
        "refused.",
    )  # fmt: skip


def _exact(result, row) -> Claim:
    ours, wrong = row["ours"], row["wrong"]
    return Claim(
        f"the token distribution is exactly q at temperature {row['temperature']:g}", "S1, Rejection Sampling",
        "exactly q", f"X² = {ours['statistic']:.1f} at {ours['dof']} degrees of freedom, chance {ours['chance']:.2f}",
        ours["chance"] > 0.01 and wrong["chance"] < 1e-4,
        f"First tokens of {row['rounds']:,} rounds, draft and target SmolLM2 with 16 and {PROMPT} tokens of context, "
        f"kept {row['alpha']:.2f}. Sampling q in place of (q - p)+, as the slide warns, gives X² = "
        f"{wrong['statistic']:.0f}.",
    )  # fmt: skip


def _same(result) -> Claim:
    rows = [*result["lookups"], *result["self_drafted"]]
    runs = sum(len(row["runs"]) for row in rows)
    same = all(row["same_text"] for row in rows)
    return Claim(
        "no loss: greedy text is the target's own", "S1, Rejection Sampling", "the same",
        "the same" if same else "not the same", same, f"{runs} runs, token for token.",
    )  # fmt: skip


def _bounds(result) -> Claim:
    runs = [(run["k"], n + 1) for row in result["lookups"] for run in row["runs"] for n in run["accepted"]]
    inside = all(1 <= made <= k + 1 for k, made in runs)
    full = sum(made == k + 1 for k, made in runs) / len(runs)
    return Claim(
        "worst case 1 token, best case K + 1 tokens per pass", "S1, #tokens generated in one pass", "1 to K + 1",
        f"{min(m for _, m in runs)} to {max(m for _, m in runs)}", inside,
        f"{len(runs)} passes with K up to {max(KS)}; {100 * full:.0f} % of them made K + 1.",
    )  # fmt: skip


def _formula(result) -> Claim:
    rows = result["alike"]
    text = ", ".join(f"K={r['k']} {r['measured']:.2f} ± {r['error']:.2f} (formula {r['formula']:.2f})" for r in rows)
    return Claim(
        "tokens per pass are (1 - α^(K+1)) / (1 - α)", "Leviathan et al. 2023, equation 1", "formula", text,
        all(abs(r["measured"] - r["formula"]) < 4 * r["error"] for r in rows),
        f"Where every position has the same p and q, α = sum min(p, q) = {rows[0]['alpha']:.2f}.",
    )  # fmt: skip


def _of(result, kind, k) -> list[tuple[dict, dict]]:
    """(place, its run with K)."""
    return [(p, r) for p in result["lookups"] if p["text"] == kind for r in p["runs"] if r["k"] == k]


def _pooled(result, kind, k) -> tuple[float, float]:
    """(alpha, tokens per pass) over all places: those passes only that had K guesses to check."""
    runs = [run for _, run in _of(result, kind, k)]
    kept = [a for run in runs for a, n in zip(run["accepted"], run["proposed"], strict=True) if n == k]
    checked = sum(a + (a < k) for a in kept)
    return sum(kept) / max(1, checked), 1 + sum(kept) / max(1, len(kept))


def _real(result) -> Claim:
    k, text, off = max(KS), [], []
    for kind in ("code", "prose"):
        alpha, made = _pooled(result, kind, k)
        text.append(f"{kind} {made:.2f}, formula {expected_tokens(alpha, k):.2f} (α = {alpha:.2f})")
        off.append(made / expected_tokens(alpha, k))
    return Claim(
        "the formula foretells a real draft", "Leviathan et al. 2023, section 3.1 assumes independence",
        "within 5 %", "; ".join(text), all(abs(x - 1) < 0.05 for x in off),
        f"Prompt lookup, passes with K = {k} guesses. Success comes in runs: who has found the passage keeps it, so "
        "more passes keep all or nothing than with independent guesses of the same α.",
    )  # fmt: skip


def cost(result, tokens: int) -> float:
    """A pass over `tokens` tokens in units of a pass over one, between measured sizes in proportion."""
    ms = {row["tokens"]: row["ms"] for row in result["verify"]}
    low, high = max(n for n in ms if n <= tokens), min(n for n in ms if n >= tokens)
    share = 0 if low == high else (tokens - low) / (high - low)
    return (ms[low] + share * (ms[high] - ms[low])) / ms[1]


def _free(result) -> Claim:
    text = ", ".join(f"{row['tokens']}: {cost(result, row['tokens']):.2f}" for row in result["verify"])
    worst = max(cost(result, k + 1) for k in KS)
    return Claim(
        "checking K tokens at once does not increase compute time", "S1, Utilize Transformer Structure", 1.0,
        round(worst, 2), worst < 1.1,
        f"Time of a pass by tokens read, in passes of one: {text}. Up to three rows the matrix product only waits for "
        "the weights; from four on this CPU's library takes another, slower way.",
    )  # fmt: skip


def _gains(result, kind, k) -> list[float]:
    return [gain(place, run) for place, run in _of(result, kind, k)]


def _spread(values) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {error:.2f}"


def foretold(result, kind, k) -> float:
    """Mean gain if nothing but the passes of the target took time."""
    runs = [run for _, run in _of(result, kind, k)]
    return statistics.mean(
        (sum(run["accepted"]) + len(run["accepted"])) / sum(cost(result, n + 1) for n in run["proposed"])
        for run in runs
    )


def _gain(result, kind) -> Claim:
    gains, by_k = _gains(result, kind, K), ", ".join(f"{k}: {_spread(_gains(result, kind, k))}" for k in KS)
    mine = [place for place in result["lookups"] if place["text"] == kind]
    whole = [place["plain_seconds"] / run["seconds"] for place, run in _of(result, kind, K)]
    return Claim(
        f"1.9 to 2.5 times faster: prompt lookup on {kind}", "S1, table after Chen et al. 2023",
        f"{CHEN[0]} to {CHEN[1]}", _spread(gains), statistics.mean(gains) >= CHEN[0],
        f"K = {K}, {len(gains)} prompts: {', '.join(f'{g:.2f}' for g in gains)}; by K {by_k}. Tokens and the time of "
        f"passes alone foretell {foretold(result, kind, K):.2f}. With the prompt's time {_spread(whole)}. Sampled at "
        f"temperature 1: {_spread([gain(place, place['sampled']) for place in mine])}. The published gains are of a "
        "target of 70 billion parameters and a draft model.",
    )  # fmt: skip


def _best_k(result) -> Claim:
    means = {kind: {k: statistics.mean(_gains(result, kind, k)) for k in KS} for kind in ("code", "prose")}
    best = {kind: max(of, key=of.get) for kind, of in means.items()}
    return Claim(
        "K = 3 to 4 is best", "S1, Recommends K = 3-4", "3-4", ", ".join(f"{kind} {k}" for kind, k in best.items()),
        all(k in (3, 4) for k in best.values()),
        f"Of K = {', '.join(map(str, KS))}, by mean gain; best K depends on what a pass over K + 1 tokens costs.",
    )  # fmt: skip


def _model_draft(result) -> Claim:
    rows = result["self_drafted"]
    gains = [gain(row, row["runs"][0]) for row in rows]
    return Claim(
        "a draft must be much cheaper than the target: its own first blocks", "Leviathan et al. 2023, theorem 3.8",
        "slower", ", ".join(f"{r['text']} {g:.2f}" for r, g in zip(rows, gains, strict=True)), max(gains) < 1,
        f"{rows[0]['blocks']} of 30 blocks and the head, K = 3; kept "
        + ", ".join(f"{row['runs'][0]['alpha']:.2f}" for row in rows) + ".",
    )  # fmt: skip


def _span() -> Claim:
    speeds = [row[-1] for row in T5]
    return Claim(
        "finds 2 to 3.4 times speed-up", "S1, table of T5", "2-3.4", f"{min(speeds)}-{max(speeds)}", min(speeds) >= 2,
        f"{sum(s < 2 for s in speeds)} of the {len(T5)} printed rows lie below 2.",
    )  # fmt: skip


def beaten() -> list[tuple]:
    """Rows of T5 that are faster than (1 - α^(γ+1)) / (1 - α), which a free draft and free checking would give."""
    return [row for row in T5 if row[-1] > expected_tokens(row[4], row[3])]


def _beaten() -> Claim:
    text = ", ".join(f"α = {a}, γ = {g}: {s} > {expected_tokens(a, g):.2f}" for _, _, _, g, a, s in beaten())
    beyond = sum(s - 0.05 > expected_tokens(a + 0.005, g) for _, _, _, g, a, s in beaten())
    return Claim(
        "the T5 table obeys the formula", "S1, table of T5; Leviathan et al. 2023, equation 1", 0, len(beaten()),
        not beaten(), f"A free draft cannot give more: {text}. Beyond what rounding of both allows: {beyond}.",
    )  # fmt: skip
