"""Row 28, distillation in small, every student on the same budget of steps.

Layers: MiniLM teaches a student of three random layers on sentences without labels, measured by the rank correlation of
the similarities that both see between 200 unread sentences (`bert_students`). Texts: four ways to learn from a
byte-level language model (`lm_students`). Density: one normal for two modes.
Sources: S1, "Distillation"; Jiao et al. 2020; Kim and Rush 2016; Gu et al. 2023.
"""

import torch

from refimpl.distillation import Normal, fit_normal
from refimpl.experiments.bert_students import bert_students
from refimpl.experiments.harness import Claim
from refimpl.experiments.lm_students import CONTEXT, PROMPT, WAYS, WINDOWS, lm_students
from refimpl.models import load_minilm

TITLE = "distillation: layers, unlabelled text, augmentation; logits, texts, reverse KL; two modes"
SEEDS = (0, 1, 2)
SIZES = {  # texts and steps of the two parts
    "few": 32, "many": 256, "test": 200, "steps": 100,
    "teacher": 300, "start": 150, "more": 40, "texts": 192, "held_out": 96,
}  # fmt: skip
MODES = ((0.6, -2.5, 0.6), (0.4, 3.0, 1.0))  # share, mean and deviation of the density's two modes


def run() -> dict:
    return measure(SIZES, SEEDS)


def measure(sizes: dict[str, int], seeds: tuple[int, ...]) -> dict:
    lm = load_minilm()
    return {
        "mark": lm.mark, "sizes": sizes, "layers": bert_students(lm, sizes, seeds),
        "texts": lm_students(sizes, seeds), "density": density(),
    }  # fmt: skip


def density() -> dict:
    """Two modes, and the normal nearest to them in each direction; every third point for the picture."""
    x = torch.linspace(-14, 14, 841, dtype=torch.float64)
    p = sum(share * _normal(x, mean, std) for share, mean, std in MODES)
    mean = (p * x).sum() / p.sum()
    std = ((p * (x - mean) ** 2).sum() / p.sum()).sqrt()
    fits = {"forward": fit_normal(p, x, "forward")}
    fits |= {f"reverse from {m:g}": fit_normal(p, x, "reverse", start=(m, 1.0)) for _, m, _ in MODES}
    shown = (x.abs() <= 9) & (torch.arange(len(x)) % 3 == 0)
    curves = {"p": p} | {name: _normal(x, fit.mean, fit.std) for name, fit in fits.items()}
    return {
        "moments": [mean.item(), std.item()], "fits": {name: fit._asdict() for name, fit in fits.items()},
        "x": _rounded(x[shown]), "curves": {name: _rounded(y[shown]) for name, y in curves.items()},
    }  # fmt: skip


def _normal(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    return torch.distributions.Normal(mean, std).log_prob(x).exp()


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(v, 5) for v in values.tolist()]


# --- what the runs say -----------------------------------------------------------------------------------------------


def claims(result: dict) -> list[Claim]:
    return [
        _supervision(result), _unlabelled(result), _augmentation(result), _logits(result), _ranking(result),
        _reverse(result), _seeking(result), _picture(result),
    ]  # fmt: skip


def agreements(result: dict, how: str, texts: str) -> list[float]:
    """Per seed."""
    return next(r["agreement"] for r in result["layers"] if (r["how"], r["texts"]) == (how, texts))


def of(result: dict, way: str, what: str) -> list[float]:
    """Per seed, of a language model."""
    return [r[what] for r in result["texts"]["rows"] if r["way"] == way]


def gain(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """(mean of ours - theirs, its standard error), seeds paired."""
    d = torch.tensor(ours, dtype=torch.float64) - torch.tensor(theirs, dtype=torch.float64)
    return d.mean().item(), d.std().item() / len(d) ** 0.5


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _bert_claim(result, says, ours, theirs, note) -> Claim:
    mean, error = gain(agreements(result, *ours), agreements(result, *theirs))
    learned, spread = gain(agreements(result, *ours), agreements(result, "none", "none"))
    a, b = (_mean(agreements(result, *which)) for which in (ours, theirs))
    sizes = result["sizes"]
    return Claim(
        says, "S1, Benefits of KD", "better", f"{a:.3f} against {b:.3f}",
        mean - 2 * error > 0 and learned - 2 * spread > 0,
        f"{note} Rank correlation with the teacher's similarities; difference {mean:+.3f} ± {error:.3f}, "
        f"{len(agreements(result, *ours))} seeds, {sizes['steps']} steps; an untaught student has "
        f"{_mean(agreements(result, 'none', 'none')):.3f}.",
    )  # fmt: skip


def _supervision(result) -> Claim:
    return _bert_claim(
        result, "supervision on every layer helps", ("layers", "many"), ("output", "many"),
        "TinyBERT's losses on all layers against the last layer's stream alone.",
    )  # fmt: skip


def _unlabelled(result) -> Claim:
    return _bert_claim(
        result, "unannotated data is of use", ("layers", "many"), ("layers", "few"),
        f"{result['sizes']['many']} sentences against {result['sizes']['few']}, none with a label.",
    )  # fmt: skip


def _augmentation(result) -> Claim:
    return _bert_claim(
        result, "data augmentation is useful", ("layers", "few, augmented"), ("layers", "few"),
        f"{result['sizes']['few']} sentences, words replaced by neighbours in the teacher's embedding.",
    )  # fmt: skip


def _budget(result) -> str:
    sizes = result["sizes"]
    return (
        f"{len(of(result, 'logits', 'loss'))} seeds; {sizes['start']} steps on text, then {sizes['more']} each way, "
        f"{WINDOWS} windows of {CONTEXT} bytes"
    )


def _logits(result) -> Claim:
    mean, error = gain(of(result, "logits", "loss"), of(result, "labels", "loss"))
    return Claim(
        "a teacher's probabilities teach more than the next byte alone", "S1, Benefits of KD; Hinton et al. 2015",
        "lower loss", f"{mean:+.4f} ± {error:.4f} nats per byte", mean + 2 * error < 0,
        f"On unread text; labels {_mean(of(result, 'labels', 'loss')):.3f}, teacher "
        f"{of(result, 'teacher', 'loss')[0]:.3f}. {_budget(result)}.",
    )  # fmt: skip


def _ranking(result) -> Claim:
    columns = {what: {way: _mean(of(result, way, what)) for way in WAYS} for what in ("loss", "forward", "reverse")}
    best = {what: min(found, key=found.__getitem__) for what, found in columns.items()}
    text = "; ".join(f"{what}: " + ", ".join(f"{w} {x:.3f}" for w, x in c.items()) for what, c in columns.items())
    return Claim(
        "students on the same budget rank by what is measured", "S1, A few work of KD in LLMs",
        "no single best", ", ".join(f"{what}: {way}" for what, way in best.items()), len(set(best.values())) > 1,
        f"Nats per byte: loss on text, KL(p || q) on text, KL(q || p) on own texts. {text}. {_budget(result)}.",
    )  # fmt: skip


def _reverse(result) -> Claim:
    mean, error = gain(of(result, "MiniLLM", "reverse"), of(result, "texts", "reverse"))
    a, b = (_mean(of(result, way, "teacher_nats")) for way in ("MiniLLM", "texts"))
    return Claim(
        "MiniLLM beats sequence-level distillation", "S1, figure 1 of Gu et al. 2023", "higher GPT-4 score",
        f"KL(q || p) {mean:+.3f} ± {error:.3f}", mean + 2 * error < 0,
        f"The teacher judges in place of GPT-4: {a:.3f} nats per byte of MiniLLM's own texts, {b:.3f} of the other's; "
        f"texts of {CONTEXT - PROMPT} bytes. {_budget(result)}; MiniLLM's steps also write, the other's texts were "
        "written before.",
    )  # fmt: skip


def _seeking(result) -> Claim:
    mean, error = gain(of(result, "MiniLLM", "own_nats"), of(result, "logits", "own_nats"))
    cost, spread = gain(of(result, "MiniLLM", "loss"), of(result, "logits", "loss"))
    return Claim(
        "reverse KL seeks modes: surer of its own texts, worse on others", "Gu et al. 2023, section 2",
        "lower entropy", f"own texts {mean:+.3f} ± {error:.3f}, unread text {cost:+.3f} ± {spread:.3f} nats per byte",
        mean + 2 * error < 0 < cost - 2 * spread, f"Against logits by forward KL. {_budget(result)}.",
    )  # fmt: skip


def _picture(result) -> Claim:
    fits = {name: Normal(**fit) for name, fit in result["density"]["fits"].items()}
    mean, std = result["density"]["moments"]
    covering = fits.pop("forward")
    near = all(abs(f.mean - m) < s / 4 and abs(f.std - s) < s / 4
               for f, (_, m, s) in zip(fits.values(), MODES, strict=True))  # fmt: skip
    return Claim(
        "forward KL covers both modes, reverse KL takes one", "Gu et al. 2023, figure 2", "covering and seeking",
        f"forward {covering.mean:.2f} ± {covering.std:.2f}; reverse "
        + " or ".join(f"{f.mean:.2f} ± {f.std:.2f}" for f in fits.values()),
        near and abs(covering.mean - mean) < 1e-3 and abs(covering.std - std) < 1e-3,
        f"Modes {', '.join(f'{m:g} ± {s:g}' for _, m, s in MODES)}; mean and deviation of the whole {mean:.2f} ± "
        f"{std:.2f}, which the forward fit has exactly. Reverse finds the mode next to its start.",
    )  # fmt: skip
