"""Row 13, Top-K attention on a real model: what each query loses when it looks at its k best keys only.

SmolLM2-135M on three windows of prose, scored where every query has at least 256 keys to choose from. Choosing needs
all scores, so this is the bound for methods that choose with less. Sources: S0, "Solutions"; Gupta et al. 2021.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  the name everyone uses

from refimpl.attention import causal_mask, naive_attention, repeat_kv
from refimpl.experiments.harness import Claim
from refimpl.kv_cache import topk_attention
from refimpl.models import SmolLM, corpus, load_smollm2, replace_attention
from refimpl.shapes import Float, Int, Tensor

TITLE = "Top-K attention: perplexity against k"
WINDOWS, LENGTH, FROM = 3, 768, 256  # disjoint pieces of the text, read as one batch; the first position scored
KEEP = [1, 4, 8, 16, 32, 64, 128]
ENOUGH = 1.05  # times the perplexity of full attention: what we call no great loss


def windows(lm: SmolLM) -> Int[Tensor, "windows length"]:
    """The beginning of the 1981 message, cut."""
    return lm.ids(corpus("prose"), WINDOWS * LENGTH).view(WINDOWS, LENGTH)


@torch.no_grad()
def losses(ids: Int[Tensor, "windows length"], read: Callable[..., Tensor]) -> list[float]:
    """Mean nats per token of each window, tokens after position FROM."""
    logits = read(ids)[:, FROM:-1]
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, FROM + 1 :].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(1).tolist()


def top_k_losses(lm: SmolLM, ids: Tensor, keep: int) -> list[float]:
    """The same with every head of every layer looking at `keep` keys."""
    with replace_attention(lm.model, lambda q, k, v, causal: topk_attention(q, k, v, keep=keep, causal=causal)):
        return losses(ids, lm.model)


@torch.no_grad()
def mass(lm: SmolLM, ids: Int[Tensor, "windows length"], keep: list[int]) -> list[list[float]]:
    """Share of the full softmax that the k largest weights hold, mean over heads and scored queries: [layer][k]."""
    shares = []

    def watch(q, k, v, causal):
        S = (q[:, :, FROM:] * q.shape[-1] ** -0.5) @ repeat_kv(k, q.shape[1]).transpose(-2, -1)
        P = S.masked_fill(~causal_mask(*S.shape[-2:]), -torch.inf).softmax(-1)
        best = P.topk(max(keep), dim=-1).values.cumsum(-1)
        shares.append([round(best[..., n - 1].mean().item(), 4) for n in keep])
        return naive_attention(q, k, v, causal=causal)

    with replace_attention(lm.model, watch):
        lm.model.residual(ids)
    return shares


def run() -> dict:
    lm = load_smollm2()
    ids = windows(lm)
    return {
        "mark": lm.mark, "windows": WINDOWS, "length": LENGTH, "scored_from": FROM,
        "full": losses(ids, lm.model),
        "top_k": [{"keep": keep, "losses": top_k_losses(lm, ids, keep)} for keep in KEEP],
        "mass": mass(lm, ids[:1], KEEP), "mass_keep": KEEP,
    }  # fmt: skip


# --- what the runs say -----------------------------------------------------------------------------------------------


def perplexity(losses: list[float]) -> float:
    """exp of the mean over windows."""
    return torch.tensor(losses).mean().exp().item()


def ratio(losses: list[float], base: list[float]) -> tuple[float, float]:
    """(perplexity over that of `base`, its standard error), windows paired."""
    d: Float[Tensor, windows] = torch.tensor(losses) - torch.tensor(base)
    times = d.mean().exp().item()
    return times, times * d.std().item() / len(losses) ** 0.5


def claims(result: dict) -> list[Claim]:
    return [_monotone(result), _enough(result), _mass(result)]


def _monotone(result) -> Claim:
    found = [perplexity(row["losses"]) for row in result["top_k"]]
    text = ", ".join(f"{row['keep']}: {p:.4g}" for row, p in zip(result["top_k"], found, strict=True))
    return Claim(
        "quality grows with k", "S0, Solutions: Top-K", "better with every key", text,
        found == sorted(found, reverse=True) and found[-1] > perplexity(result["full"]),
        f"Perplexity; full attention {perplexity(result['full']):.2f}. {result['windows']} windows of "
        f"{result['length']} tokens, scored from {result['scored_from']}.",
    )  # fmt: skip


def _enough(result) -> Claim:
    rows = {row["keep"]: ratio(row["losses"], result["full"]) for row in result["top_k"]}
    enough = next((keep for keep, (times, _) in rows.items() if times < ENOUGH), None)
    text = "; ".join(f"k = {keep}: {t:.3f} ± {e:.3f}" for keep, (t, e) in rows.items() if keep >= 16)
    measured = "more than were tried" if enough is None else enough
    return Claim(
        "a small k is enough: the best keys of each query carry its output", "Gupta et al. 2021", "k << N", measured,
        enough is not None and enough <= result["length"] // 8,
        f"The smallest k within {100 * (ENOUGH - 1):.0f} % of full attention's perplexity, without any training. "
        f"Perplexity over full, with standard error over windows: {text}.",
    )  # fmt: skip


def _mass(result) -> Claim:
    at = result["mass_keep"].index(32)
    shares = [row[at] for row in result["mass"]]
    mean = sum(shares) / len(shares)
    return Claim(
        "attention is concentrated on few keys", "Gupta et al. 2021", "most of the mass",
        f"{mean:.2f} of the mass in 32 keys", mean > 0.5,
        f"Mean over heads and queries; {min(shares):.2f} in layer {shares.index(min(shares))}, {max(shares):.2f} in "
        f"layer {shares.index(max(shares))}. Queries with {result['scored_from']} keys and more.",
    )  # fmt: skip
