"""`python -m course.frontpage`: the picture of README.md, drawn from what the audit recomputes.

The numbers come from the reference through the audit's child process, so the picture cannot drift from the course; its
alt text stands in README.md, and a test compares the two.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from course.audit import recompute
from course.viz import byte_bars
from course.viz.display import check_alt, to_png

PICTURE = Path(__file__).resolve().parent / "frontpage.png"
USE = ["refimpl.cost_model", "refimpl.memory_model", "refimpl.transformer", "refimpl.meter", "course.claims.counting"]
STATES = "memory_model.training_memory(1_500_000_000)"
EXPRESSIONS = {
    "weights": f"{STATES}['weights'] / 1e9",
    "states": f"sum({STATES}.values()) / 1e9",
    "formula": "2 * memory_model.activation_elements(cost_model.GPT2_XL, batch=32, tokens=1024) / 1e9",
    "kept": "2 * counting.saved_at(transformer, meter, cost_model.GPT2_XL, 32, 1024) / 1e9",
}
CARD = 32  # GB, the card of the lecture


def numbers() -> dict[str, float]:
    """GB to hold the 1.5-billion-parameter GPT-2, of its training states, and of activations: printed and kept."""
    asked = [{"id": name, "use": USE, "compute": text, "shows": {}, "given": {}} for name, text in EXPRESSIONS.items()]
    return {name: result["value"] for name, result in recompute(asked).items()}


def figure(gb: Mapping[str, float]) -> Figure:
    """Byte bars: run it, train it, and with activations as printed and as counted."""
    states = {"weights": gb["weights"], "gradients and Adam": gb["states"] - gb["weights"]}
    rows: dict[str, dict[str, float]] = {
        "the slide's GPU": {"memory": CARD},
        "to run it": {"weights": gb["weights"]},
        "to train it, states": states,
        "+ activations, printed": {**states, "activations": gb["formula"]},
        "+ activations, counted": {**states, "activations": gb["formula"], "score matrix": gb["kept"] - gb["formula"]},
    }
    parts = {
        "memory": "dots",
        "weights": "ink",
        "gradients and Adam": "hero",
        "activations": "alt",
        "score matrix": "foil",
    }
    return byte_bars(
        rows, parts,
        claim=f"The slide says {gb['formula']:.0f} GB of activations; PyTorch keeps {gb['kept']:.0f}",
        sub="GPT-2, 1.5 billion parameters, batch 32 of 1,024 tokens, 16 bit. Counted on running blocks.",
    )  # fmt: skip


def alt(gb: Mapping[str, float]) -> str:
    """The picture in words."""
    return (
        f"Horizontal byte bars for a GPT-2 with 1.5 billion parameters and a GPU of {CARD} GB: "
        f"{gb['weights']:.0f} GB to run it, "
        f"{gb['states']:.0f} GB of states to train it, {gb['states'] + gb['formula']:.0f} GB with activations as the "
        f"slide prints them, {gb['states'] + gb['kept']:.0f} GB as counted: the score matrix was left out."
    )


def main() -> int:
    """Draw the picture and say its alt text."""
    gb = numbers()
    check_alt(alt(gb))
    PICTURE.write_bytes(to_png(figure(gb)))
    print(alt(gb))
    return 0


if __name__ == "__main__":
    sys.exit(main())
