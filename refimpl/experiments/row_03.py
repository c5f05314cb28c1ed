"""Row 3: memory of training and inference (S1, S3): 3 GB, 24 GB, 60 GB, and the term that the 60 GB leave out."""

import torch

from refimpl.cost_model import GPT2_XL, OPT, ModelShape, parameters
from refimpl.experiments.harness import Claim
from refimpl.memory_model import activation_elements, does_it_fit, saved_per_token, training_memory
from refimpl.meter import saved_for_backward
from refimpl.transformer import EncoderBlock, TransformerConfig

TITLE = "memory of training: states, activations and the missing score matrix"
GB = 10**9
SIZES = {"batch": 32, "tokens": 1024}  # of the 60 GB


def kept(model: int, heads: int, tokens: int) -> int:
    """Elements per token that autograd keeps of one running block."""
    block, x = EncoderBlock(TransformerConfig(1, model, heads, 1)), torch.randn(2, tokens, model, requires_grad=True)
    with saved_for_backward(*block.parameters()) as saved:
        block(x)
    return saved.elements // (2 * tokens)


def run() -> dict:
    shapes = [(32, 2, 64), (32, 4, 64), (64, 4, 64), (64, 4, 256)]
    return {
        "kept_per_token": [{"model": d, "heads": h, "tokens": n, "kept": kept(d, h, n)} for d, h, n in shapes],
        "states_1_5b": training_memory(1_500_000_000),
        "states_7b": training_memory(7_000_000_000),
        "activations": 2 * activation_elements(GPT2_XL, **SIZES),
        "activations_with_scores": 2 * activation_elements(GPT2_XL, **SIZES, score_matrix=True),
        "opt": {name: sum(parameters(shape).values()) for name, shape in OPT.items()},
    }


def claims(result: dict) -> list[Claim]:
    states, parts = result["states_1_5b"], list(result["states_7b"].values())
    published, whole = result["activations"], result["activations_with_scores"]
    fits = does_it_fit(states | {"activations": published}, 32 * GB)
    return [
        Claim("weights of the 1.5B GPT-2, GB", "S1; S3", 3, states["weights"] / GB, states["weights"] == 3 * GB),
        Claim("states to train it with Adam, GB", "S1; S3", 24, sum(states.values()) / GB,
              sum(states.values()) == 24 * GB, "2Ψ + 2Ψ + 12Ψ."),
        Claim("it can not be trained on 32 GB", "S3", "no", "fits" if fits.fits else "no", not fits.fits,
              f"Its states alone would fit; with the activations of batch 32 {-fits.left / GB:.0f} GB are missing."),
        Claim("7B example, GB", "S1", "14 + 14 + 28 + 28 + 28", " + ".join(str(p // GB) for p in parts),
              [p // GB for p in parts] == [14, 14, 28, 28, 28]),
        Claim("activations at N = 1,024, batch 32, GB", "S3, Rajbhandari et al. 2020", 60, published / GB,
              abs(published / GB - 60) < 1, "12 d B N L elements of 2 bytes."),
        _missing_term(result, published, whole),
        _opt_table(result),
    ]  # fmt: skip


def _missing_term(result, published, whole) -> Claim:
    """Is what autograd keeps 12 d per token, or 12 d + h N + 4?"""
    found = result["kept_per_token"]
    only_12d = all(row["kept"] == 12 * row["model"] for row in found)
    complete = all(
        row["kept"] == sum(saved_per_token(ModelShape(1, row["model"], row["heads"]), row["tokens"]).values())
        for row in found
    )
    return Claim(
        "elements kept per token and layer", "Rajbhandari et al. 2020, footnote 3", "12 d",
        "12 d + h N + 4" if complete else "another number", only_12d,
        f"Counted in autograd. The score matrix h N is missing: {(whole - published) / GB:.1f} GB more, which S3 "
        "itself calls the biggest.",
    )  # fmt: skip


def _opt_table(result) -> Claim:
    printed = {name: float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]] for name in result["opt"]}
    off = max(abs(n / printed[name] - 1) for name, n in result["opt"].items())
    return Claim(
        "nine sizes from 125M to 175B",
        "S1, model table",
        "12 L d² + embeddings",
        f"within {100 * off:.1f} %",
        off < 0.03,
    )
