"""Row 22, modules: one for each task, several at once, and which one for an input that does not say its task.

SmolLM2-135M, four small tasks, one LoRA module of rank 8 for each (12 steps of 6 pairs), three seeds. Every module is
scored on every task's held-out pairs, so are their sum and their mean; then inputs of all tasks form one batch, and
each finds its module by MiniLM's embedding of its question. At last a task that no module was trained on: identifiers
rewritten and in quotes, for which one module knows the first half and another the second.
Sources: S1, "One task, one module", "One task, composed modules", "Modular Retrieval".
"""

import torch

from refimpl.experiments.harness import Claim
from refimpl.experiments.row_20 import mean
from refimpl.models import SmolLM, load_minilm, load_smollm2
from refimpl.models.minilm import MiniLM
from refimpl.peft.attach import Delta
from refimpl.peft.composition import averaged, routed, summed
from refimpl.peft.lora import LoRA
from refimpl.peft.retrieval import ModuleIndex
from refimpl.peft.tasks import START, TASKS, Pair, fit, score, split
from refimpl.shapes import Float, Tensor

TITLE = "Modules: one per task, composed, and found by the input"
SEEDS, STEPS, SIZE, RATE, RANK = 3, 12, 6, 2e-3, 8
TRAIN, HELD_OUT, ASKED = 80, 12, 64  # pairs to learn from, to score, and questions to find the module of
EXAMPLES = (1, 4, 16, 64)  # of each task, from which the keys are made
PARTS = ("identifiers", "words")  # the modules whose skills the composed task takes

Splits = dict[str, tuple[list[Pair], list[Pair]]]


def embed(encoder: MiniLM, pairs: list[Pair]) -> Float[Tensor, "pairs features"]:
    return encoder.embed([question.removeprefix(START) for question, _ in pairs])


def retrieval(encoder: MiniLM, seed: int) -> list[dict]:
    """Held-out questions whose nearest key is their own task's, by examples per key, and who was taken for whom."""
    train, asked = ({t: embed(encoder, split(t, TRAIN, ASKED, seed=seed)[i]) for t in TASKS} for i in (0, 1))
    rows = []
    for n in EXAMPLES:
        index = ModuleIndex.of({task: vectors[:n] for task, vectors in train.items()})
        best = {task: index.best(vectors)[:, 0] for task, vectors in asked.items()}
        table = [torch.bincount(best[task], minlength=len(TASKS)).tolist() for task in TASKS]
        rows.append({"examples": n, "table": table, "right": sum(table[i][i] for i in range(len(TASKS)))})
    return rows


def scored(lm: SmolLM, delta: Delta, splits: Splits) -> dict:
    with delta.attached(lm.model):
        return {task: score(lm, held_out) for task, (_, held_out) in splits.items()}


def found(lm: SmolLM, encoder: MiniLM, modules: dict[str, LoRA], splits: Splits) -> dict:
    """All tasks' held-out inputs as one batch, each with the module its embedding finds, against each with its own."""
    pairs = [pair for _, held_out in splits.values() for pair in held_out]
    own = torch.eye(len(splits)).repeat_interleave(len(pairs) // len(splits), dim=0)
    index = ModuleIndex.of({task: embed(encoder, train) for task, (train, _) in splits.items()})
    rows = {
        "own": own,
        "found": index.weights(embed(encoder, pairs)),
        "found, two": index.weights(embed(encoder, pairs), 2),
    }
    result = {"right": int((rows["found"].argmax(1) == own.argmax(1)).sum()), "of": len(pairs)}
    for name, weights in rows.items():
        with routed(list(modules.values()), weights).attached(lm.model):
            result[name] = score(lm, pairs)
    return result


def composed(lm: SmolLM, modules: dict[str, LoRA], pairs: list[Pair]) -> dict:
    """A task of two halves with none, one, the other, the mean and the sum of the modules for the halves."""
    quoted = [(question, f'"{answer}"') for question, answer in pairs]
    parts = [modules[name] for name in PARTS]
    ways = dict(zip(PARTS, parts, strict=True)) | {"mean": averaged(parts), "sum": summed(parts)}
    result = {"none": score(lm, quoted)}
    for name, delta in ways.items():
        with delta.attached(lm.model):
            result[name] = score(lm, quoted)
    return result


def one(lm: SmolLM, encoder: MiniLM, seed: int, steps: int, size: int, held_out: int) -> dict:
    """Train the modules of one seed and ask them everything."""
    splits: Splits = {task: split(task, TRAIN, held_out, seed=seed) for task in TASKS}
    modules = {}
    for n, (task, (train, _)) in enumerate(splits.items()):
        modules[task] = LoRA(lm.model, rank=RANK, seed=10 * seed + n)
        fit(lm, modules[task], train, steps=steps, size=size, lr=RATE, seed=seed)
    every = list(modules.values())
    ways: dict[str, Delta] = dict(modules) | {"mean": averaged(every), "sum": summed(every)}
    return {
        "seed": seed, "none": {task: score(lm, pairs) for task, (_, pairs) in splits.items()},
        "by": {name: scored(lm, delta, splits) for name, delta in ways.items()},
        "retrieval": retrieval(encoder, seed), "batch": found(lm, encoder, modules, splits),
        "composed": composed(lm, modules, splits[PARTS[0]][1]),
    }  # fmt: skip


def run(
    lm: SmolLM | None = None, encoder: MiniLM | None = None, steps: int = STEPS, seeds: int = SEEDS, size: int = SIZE,
    held_out: int = HELD_OUT,
) -> dict:  # fmt: skip
    lm, encoder = lm or load_smollm2(), encoder or load_minilm()
    return {
        "mark": lm.mark or encoder.mark, "weights": sum(p.numel() for p in lm.model.parameters()),
        "module": LoRA(lm.model, rank=RANK).numbers, "tasks": list(TASKS), "asked": ASKED,
        "runs": [one(lm, encoder, seed, steps, size, held_out) for seed in range(seeds)],
    }  # fmt: skip


def claims(result: dict) -> list[Claim]:
    return [judge(result) for judge in (_storage, _one, _right, _examples, _batch, _mean, _sum, _halves)]


def over_tasks(result: dict, way: str | None, what: str = "loss") -> list[float]:
    """Mean over tasks of a way's score, seed by seed; None: each task by its own module."""
    rows = []
    for r in result["runs"]:
        by = [r["by"][way or task][task] if way != "none" else r["none"][task] for task in result["tasks"]]
        rows.append(mean([score[what] for score in by])[0])
    return rows


def _written(result, way, what="exact") -> str:
    m, error = mean(over_tasks(result, way, what))
    return f"{m:.0%} ± {error:.0%}" if what == "exact" else f"{m:.2f} ± {error:.2f}"


def _storage(result) -> Claim:
    share = len(result["tasks"]) * result["module"] / result["weights"]
    return Claim(
        "a task costs a module and not a model", "S1, Each task has a full finetuned model",
        f"{len(result['tasks'])} models", f"{share:.1%} of one", share < 0.02,
        f"{len(result['tasks'])} modules of {result['module']:,} numbers beside {result['weights']:,} weights.",
    )  # fmt: skip


def _one(result) -> Claim:
    best = [
        task == min(result["tasks"], key=lambda way, r=r, task=task: r["by"][way][task]["loss"])
        for r in result["runs"] for task in result["tasks"]
    ]  # fmt: skip
    others = [
        r["by"][way][task]["loss"] for r in result["runs"] for task in result["tasks"] for way in result["tasks"]
        if way != task
    ]  # fmt: skip
    return Claim(
        "one task, one module", "S1, One task, one module", "the own one is best", f"{sum(best)} of {len(best)}",
        all(best), f"Loss on held-out pairs: own {_written(result, None, 'loss')}, another task's "
        f"{mean(others)[0]:.2f}, none {_written(result, 'none', 'loss')}. Right answers: own {_written(result, None)}.",
    )  # fmt: skip


def _rights(result, examples) -> list[float]:
    asked = len(result["tasks"]) * result["asked"]
    return [row["right"] / asked for r in result["runs"] for row in r["retrieval"] if row["examples"] == examples]


def _right(result) -> Claim:
    m, error = mean(_rights(result, max(EXAMPLES)))
    return Claim(
        "retrieval picks the right module on held-out inputs", "S1, Modular Retrieval", "the right one",
        f"{m:.1%} ± {error:.1%}", m > 0.9,
        f"Of {len(result['tasks']) * result['asked']} questions for each seed, keys from {max(EXAMPLES)} examples; by "
        f"chance {1 / len(result['tasks']):.0%}.",
    )  # fmt: skip


def _examples(result) -> Claim:
    found = {n: mean(_rights(result, n)) for n in EXAMPLES}
    return Claim(
        "a handful of examples is enough for a key", "Zhao et al. 2024, section 3.1", "a few",
        ", ".join(f"{n}: {m:.0%} ± {error:.0%}" for n, (m, error) in found.items()), found[16][0] > 0.9,
        "Share of questions that find their module, by examples per key; asked is 90 % with 16.",
    )  # fmt: skip


def _batch(result) -> Claim:
    ways = {name: [r["batch"][name]["exact"] for r in result["runs"]] for name in ("own", "found", "found, two")}
    m, error = mean([a - b for a, b in zip(ways["found"], ways["own"], strict=True)])
    return Claim(
        "inputs of all tasks share one batch, each with the module it finds", "Sheng et al. 2023", "as with its own",
        f"{mean(ways['found'])[0]:.0%} right, own {mean(ways['own'])[0]:.0%}", m > -0.05,
        f"Difference {m:+.1%} ± {error:.1%}; with the two nearest mixed {mean(ways['found, two'])[0]:.0%}.",
    )  # fmt: skip


def _mean(result) -> Claim:
    own, way = over_tasks(result, None), over_tasks(result, "mean")
    m, error = mean([a - b for a, b in zip(way, own, strict=True)])
    return Claim(
        "the mean of the modules does all tasks", "Chronopoulou et al. 2023", "as well as the own module",
        f"{m:+.2f} ± {error:.2f} nats", m < 2 * error,
        f"Loss {_written(result, 'mean', 'loss')}, own {_written(result, None, 'loss')}; right answers "
        f"{_written(result, 'mean')} and {_written(result, None)}. Each module keeps a quarter of its strength.",
    )  # fmt: skip


def _sum(result) -> Claim:
    own, way = over_tasks(result, None), over_tasks(result, "sum")
    m, error = mean([a - b for a, b in zip(way, own, strict=True)])
    return Claim(
        "the sum of the modules does all tasks", "Ilharco et al. 2023", "as well as the own module",
        f"{m:+.2f} ± {error:.2f} nats", m < 2 * error,
        f"Loss {_written(result, 'sum', 'loss')}; right answers {_written(result, 'sum')}. All modules change "
        "the same layers, and none was trained with another beside it.",
    )  # fmt: skip


def _halves(result) -> Claim:
    ways = {name: mean([r["composed"][name]["loss"] for r in result["runs"]]) for name in result["runs"][0]["composed"]}
    best = [min(r["composed"][w]["loss"] for w in ("mean", "sum")) < min(r["composed"][p]["loss"] for p in PARTS)
            for r in result["runs"]]  # fmt: skip
    exact = {name: mean([r["composed"][name]["exact"] for r in result["runs"]])[0] for name in ways}
    text = ", ".join(f"{name} {m:.2f} ± {error:.2f}" for name, (m, error) in ways.items())
    return Claim(
        "two composed modules do what neither was trained for", "S1, One task, composed modules",
        "better than either", f"{sum(best)} of {len(best)} seeds", all(best),
        f"Loss on identifiers rewritten and in quotes: {text}; right answers at most {max(exact.values()):.0%} "
        f"({max(exact, key=exact.__getitem__)}).",
    )  # fmt: skip
