"""Unit 02: the lab's oracles and `refimpl` are two ways to write the same counts, and the lecture's facts hold."""

import importlib.util
from pathlib import Path

import pytest
import torch

from refimpl import cost_model, memory_model, roofline, scaling_law
from refimpl.cost_model import GPT2_XL, ModelShape
from refimpl.models.llama import Llama, LlamaConfig

PATH = Path(__file__).parent / "02_cost_model" / "reference.py"
spec = importlib.util.spec_from_file_location("reference_of_lab_02", PATH)
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

CONFIG = LlamaConfig(
    layers=3, model=40, heads=6, kv_heads=2, dim=10, ffn=56, vocab=101, context=64, rope_base=1e4, norm_eps=1e-5
)
SHAPE = ModelShape.of(CONFIG)
SIZES = {name: getattr(CONFIG, name) for name in ("model", "heads", "kv_heads", "dim", "ffn")}


@pytest.mark.parametrize(("tokens", "cached"), [(17, 0), (1, 30), (5, 9)])
def test_flops_of_a_block_are_those_of_the_cost_model(tokens, cached):
    """Part by part, with and without a cache."""
    ours = reference.block_flops(tokens, cached=cached, **SIZES)
    theirs = cost_model.forward(SHAPE, batch=1, tokens=tokens, cached=cached)
    assert {name: CONFIG.layers * flops for name, flops in ours.items()} == {n: theirs[n].flops for n in ours}


@pytest.mark.parametrize("tied", [True, False])
def test_the_count_of_parameters_is_that_of_a_real_model(tied):
    """Norms and head included, to the last weight."""
    config = LlamaConfig(**{**CONFIG.__dict__, "tied": tied})
    counted = reference.param_count(**SIZES, layers=CONFIG.layers, vocab=CONFIG.vocab, tied=tied)
    assert counted == sum(weight.numel() for weight in Llama(config).parameters())


def test_time_and_regime_are_those_of_the_roofline():
    """Without overhead the calculator and the machine of `refimpl` agree on both sides of the ridge."""
    machine = roofline.Machine("a machine", 1e11, 1e10, "float32")
    for flops in (10**6, 10**9):
        cost = cost_model.Cost(flops, 10**7)
        got = reference.predict_seconds(flops, 10**7, flop_per_s=1e11, bytes_per_s=1e10, overhead=0.0)
        assert got == (machine.seconds(cost), machine.limit(cost))


@pytest.mark.parametrize(("inner", "cols", "ridge"), [(576, 1536, 10), (4096, 4096, 153), (64, 64, 16)])
def test_one_row_fewer_does_not_saturate(inner, cols, ridge):
    """The answer reaches the ridge, its predecessor does not."""
    rows = reference.rows_to_saturate(inner, cols, itemsize=2, ridge=ridge)
    assert cost_model.matmul(rows, inner, cols).intensity >= ridge
    assert cost_model.matmul(rows - 1, inner, cols).intensity < ridge


def test_no_rows_saturate_a_matrix_that_is_too_small():
    """Where None is the answer, a million rows stay below the ridge."""
    assert reference.rows_to_saturate(64, 100, itemsize=2, ridge=153) is None
    assert cost_model.matmul(10**6, 64, 100).intensity < 153


def test_the_numbers_of_the_lecture_are_3_24_60_and_141_gb():
    """Row 3 of the facts: weights, states and activations of GPT-2, and the slide that does not follow."""
    printed = {"weights": 3.0, "states": 24.0, "activations": 60.0}
    counted, wrong = reference.which_claim(
        printed, params=1_500_000_000, layers=48, model=1600, heads=25, batch=32, tokens=1024
    )
    assert wrong == ["activations"]
    assert counted["weights"] == 3 * 10**9
    assert counted["states"] == sum(memory_model.training_memory(1_500_000_000).values()) == 24 * 10**9
    whole = memory_model.activation_elements(GPT2_XL, batch=32, tokens=1024, score_matrix=True)
    assert counted["activations"] == 2 * whole
    published = 2 * memory_model.activation_elements(GPT2_XL, batch=32, tokens=1024)
    assert round(published / 1e9, 1) == 60.4 and round((2 * whole - published) / 1e9, 1) == 80.5


def test_scores_outweigh_the_rest_above_768_tokens():
    """The lecture's closing question: h N > 12 d for GPT-2."""
    for tokens, heavier in ((768, False), (769, True)):
        saved = memory_model.saved_per_token(GPT2_XL, tokens)
        scores = saved["P, the softmax of the scores"]
        assert (scores > 12 * GPT2_XL.model) == heavier


def test_a_law_without_noise_is_found_by_both_fits():
    """The lab's line on log axes and refimpl's least squares in the loss."""
    x = torch.tensor([1e4, 1e5, 1e6, 1e7], dtype=torch.float64)
    loss = 1.5 + (3e6 / x) ** 0.3
    ours = reference.fit_power_law(x, loss, floor=1.5)
    theirs = scaling_law.fit_power_law(x.tolist(), loss.tolist(), floor=1.5)
    assert ours["alpha"].item() == pytest.approx(0.3) == pytest.approx(theirs.alpha, rel=1e-3)
    assert ours["x_c"].item() == pytest.approx(3e6) == pytest.approx(theirs.x_c, rel=1e-2)
    assert (ours["low"], ours["high"]) == (theirs.low, theirs.high)
