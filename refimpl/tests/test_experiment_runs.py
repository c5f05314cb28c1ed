"""Experiments run whole at tiny sizes, from weights to claims: what a record is made of, on a model of 60 k weights.

The model is random, so nothing is asked of the verdicts; records of the real model are judged in test_experiments.
"""

import json
import types
from dataclasses import replace

import pytest
import torch

from refimpl.experiments import (
    decoding_time,
    mixture_lm,
    row_04,
    row_08,
    row_09,
    row_13,
    row_14,
    row_15,
    row_16,
    row_17,
    row_18,
    row_19,
    row_23,
    row_24,
    row_25,
    row_29,
    row_30,
)
from refimpl.models import MiniLM, SmolLM
from refimpl.models.bert import Bert, BertConfig
from refimpl.models.llama import LlamaConfig
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama

TINY = LlamaConfig(
    layers=6, model=36, heads=9, kv_heads=3, dim=8, ffn=48, vocab=256, context=2048, rope_base=100.0, norm_eps=1e-5
)
SHALLOW = replace(TINY, layers=2)


def whole(experiment):
    """Result and claims of a run, as a reader of the record has them."""
    result = json.loads(json.dumps(experiment.run()))
    return result, experiment.claims(result)


@pytest.fixture(autouse=True)
def one_thread():
    """As the harness runs them; small operations on several threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch):
    """tiny(experiment, NAME=value, …): the experiment reads a small random model, its constants are set."""

    def shrink(experiment, tied=True, sizes=SHALLOW, **constants):
        if hasattr(experiment, "load_smollm2"):
            monkeypatch.setattr(experiment, "load_smollm2", lambda: smollm(tied, sizes))
        for name, value in constants.items():
            monkeypatch.setattr(experiment, name, value)
        return experiment

    return shrink


def smollm(tied=True, sizes=SHALLOW):
    """Blocks write four times as much as a toy's, so that what was read before matters.

    Where text is written, tied=False: a random tied model repeats its last token for ever.
    """
    model = toy_llama(replace(sizes, tied=tied))
    for block in model.layers:
        block.mlp.down_proj.weight.mul_(4), block.self_attn.o_proj.weight.mul_(4)
    return SmolLM(model, ByteTokenizer(), model.config, True, "toy")


# --- rows 4, 13 and 14: caches ---------------------------------------------------------------------------------------


def test_caches_are_compared_counted_and_timed(tiny):
    """Row 4: logits equal, bytes and FLOPs those of the formulas, whatever the model."""
    result, claims = whole(tiny(row_04, PROMPTS=[24, 40, 60], STEPS=2))
    equal, size, sharing, split, *_ = claims
    assert equal.shows and size.shows and sharing.shows and split.shows
    assert [row["prompt"] for row in result["seconds"]] == [16, 24, 40] and len(claims) == 6


@pytest.fixture
def short_windows(tiny):
    """Rows 13 and 14 share their windows: two of 64 tokens, scored from 40 on."""
    tiny(row_13, WINDOWS=2, LENGTH=64, FROM=40, KEEP=[1, 16, 32])
    return tiny


def test_top_k_is_scored_by_the_number_of_keys(short_windows):
    """Row 13: one row per k, and shares of the softmax that grow with it."""
    result, claims = whole(short_windows(row_13))
    assert [row["keep"] for row in result["top_k"]] == [1, 16, 32] and len(result["mass"]) == SHALLOW.layers
    assert all(0 < a < b < c <= 1.0001 for a, b, c in result["mass"]) and len(claims) == 3


def test_policies_are_scored_on_prose_and_on_a_glossary(short_windows, monkeypatch):
    """Row 14: budgets counted in every layer and head, on windows of 64 tokens and 4 texts with 3 pairs."""
    monkeypatch.setattr(row_14, "_words", lambda lm, text: list(range(97, 123)))
    result, claims = whole(short_windows(row_14, BUDGETS=[8, 16, 32], PAIRS=3, ROUNDS=3, GAP=4, FROM=40))
    assert [row["kept"] for row in result["prose"][:4]] == [[8]] * 4 and len(claims) == 8
    assert len(result["prose"]) == 3 * 5 and len(result["glossary"]) == 1 + 2 * 4


# --- rows 8 and 9: memory --------------------------------------------------------------------------------------------


def test_blocks_are_metered_by_length_and_by_number(tiny):
    """Row 8: the three ways agree, and blockwise keeps less than plain, at an eighth of the size."""
    small = {"MODEL": 16, "HEADS": 2, "BLOCK": 32, "LENGTHS": [64, 128], "COUNTS": [1, 2], "TOKENS": 64}
    result, claims = whole(tiny(row_08, **small))
    assert claims[0].shows and claims[1].shows
    assert [row["tokens"] for row in result["lengths"]] == [64, 128] and "plain" not in result["lengths"][-1]


def test_checkpoints_are_metered_three_ways(tiny):
    """Row 9: equal gradients, 4/3 of the FLOPs, and nothing on the device with offload."""
    _, claims = whole(tiny(row_09, LAYERS=3, MODEL=16, HEADS=2, TOKENS=32))
    assert [claim.shows for claim in claims] == [True, True, True]


# --- rows 15 to 17: low rank, and other forms of attention -----------------------------------------------------------


@pytest.fixture
def toy_minilm(monkeypatch):
    """`load_minilm` gives its toy."""
    monkeypatch.setenv("COURSE_MODELS", "toy")


def test_weights_are_taken_apart_truncated_and_put_back(tiny, toy_minilm):
    """Row 15: components, pairs, perplexity after truncation; the model is as before at the end."""
    result, claims = whole(tiny(row_15, CALIBRATION=64, SCORED=64, WINDOW=32))
    assert result["truncation"]["restored"] == result["truncation"]["perplexity"]
    assert len(result["truncation"]["rows"]) == 4 and result["parts"]["difference"] < 1e-5
    assert len(claims) == 6 and result["truncation"]["mark"] == "toy weights"


def test_attention_maps_have_spectra_and_costs_are_counted(tiny, toy_minilm):
    """Row 16: shares grow with rank, the best projection errs less than a random one, memory grows with N alone."""
    result, claims = whole(tiny(row_16, LENGTHS=[64, 128, 256]))
    for row in result["spectrum"]:
        assert row["share"]["32"] < row["share"]["64"] < row["share"]["128"]
        assert row["best_128"] < row["random_128"]
    assert claims[2].shows, "4 and 2 per doubling"


def test_forms_agree_are_timed_and_swapped_in(tiny):
    """Row 17: float64 agreement of three forms, exponents of two lengths, perplexity with another attention."""
    result, claims = whole(tiny(row_17, LENGTHS=[64, 128]))
    assert claims[0].shows and [row["tokens"] for row in result["time"]] == [64, 128]
    assert set(result["swap"]) == {"mark", "softmax", "one layer", "all layers"}


# --- rows 23 to 25: quantization -------------------------------------------------------------------------------------


@pytest.fixture
def short_text(tiny):
    """The windows of rows 23 to 25: 147 tokens, two pieces of 73."""
    tiny(row_24, LENGTH=147)
    return tiny


def test_errors_and_losses_are_measured_by_method_and_bits(short_text, monkeypatch):
    """Row 23: the table, a smaller picture's palettes, decibels that grow with bits; without gguf a row says so."""
    small, wide = row_23.picture(12, 16), replace(SHALLOW, model=64, ffn=64, heads=8, kv_heads=4)
    weights = BertConfig(layers=2, model=64, heads=4, ffn=128, vocab=256, context=512, norm_eps=1e-12)
    short_text(row_23, picture=lambda: small, BITS=[4, 8])
    monkeypatch.setattr(row_23, "load_smollm2", lambda: smollm(sizes=wide))  # rows that groups of 64 divide
    monkeypatch.setattr(row_23, "load_minilm", lambda: MiniLM(Bert(weights), ByteTokenizer(), True, "toy"))
    result, claims = whole(row_23)
    assert claims[0].shows and [len(row["db"]) for row in result["errors"]["rows"]] == [2] * 6
    assert all(row["db"][0] < row["db"][1] for row in result["errors"]["rows"])
    assert [row["method"] for row in result["four_bits"]["rows"]] == row_23.FOUR_BITS
    nothing = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(row_23, "importlib", nothing)
    missing = row_23.q4_1(torch.zeros(2, 32))
    assert "pip install gguf" in missing["unavailable"]
    assert not row_23._q4_1({"errors": {"q4_1": missing}}).shows


def test_int8_products_are_scored_by_their_scales(short_text):
    """Row 24: every way over the same pieces; bytes are a quarter of float32's and a scale per channel."""
    result, claims = whole(short_text(row_24))
    full, *ways = result["rows"]
    assert [row["way"] for row in ways] == list(row_24.WAYS) and len(full["losses"]) == 4
    assert all(full["bytes"] / 4 < row["bytes"] < full["bytes"] / 3 for row in ways)
    assert set(result["outliers"]) == set(row_24.INPUTS) and len(claims) == 5


def test_four_bit_types_are_scored_and_factors_trained(short_text, toy_minilm):
    """Row 25: codebook, types, bytes, and training that changes no code, through pages."""
    result, claims = whole(short_text(row_25, SEEDS=2, STEPS=2, TOKENS=24, ROOM=2**16))
    assert claims[0].shows and [row["type"] for row in result["types"]["rows"]] == [*row_25.TYPES, "NF4, double"]
    assert [run["codes_changed"] for run in result["training"]] == [0, 0] and len(claims) == 10


# --- rows 18 and 19 --------------------------------------------------------------------------------------------------

SMALL_LM = {
    "VOCAB": 280, "CONTEXT": 16, "BATCH": 4, "WIDTH": 16, "STEPS": 12, "JUDGED": 20, "CHARACTERS": 8000, "PIECE": 8,
}  # fmt: skip


@pytest.fixture
def small_lm(tiny):
    """The models of rows 18 and 19 in seconds: 12 steps on 8,000 characters."""
    tiny(mixture_lm, **SMALL_LM)
    mixture_lm.data.cache_clear()
    yield tiny
    mixture_lm.data.cache_clear()


def test_switch_models_are_trained_routed_and_judged(small_lm):
    """Row 18: shares add up, drops fall with room, a limit that drops nobody changes no loss."""
    result, claims = whole(small_lm(row_18, EXPERTS=4, SEEDS=2, PIECE=8, FACTORS=(0.5, 1.25, 4.0)))
    assert max(row["difference"] for row in result["oracle"]) < 1e-12
    assert all(row["flops"] == row["formula"] for row in result["oracle"])
    assert [(row["weight"], row["seed"]) for row in result["switch"]] == [(0, 0), (0, 1), (0.01, 0), (0.01, 1)]
    for row in result["switch"]:
        assert sum(row["shares"]) == pytest.approx(1) and 1 <= row["used"] <= 4 and len(row["history"]) == 2
        assert row["dropped"] == sorted(row["dropped"], reverse=True) and row["dropped"][-1] == 0
        assert row["losses"][-1] == pytest.approx(row["loss"], abs=1e-5)
        assert row["parameters"] > result["dense_parameters"]
    assert len(claims) == 7


def test_hash_layers_are_trained_and_compared(small_lm):
    """Row 19: all nine beside the baseline, both forms of five layers, every claim over two seeds."""
    result, claims = whole(small_lm(row_19, EXPERTS=4, SEEDS=2, STEPS=12, VOCAB=280))
    for row in result["one"]:
        assert set(row["losses"]) == set(row_19.PUBLISHED) - {"5x16 same", "5x16 different"}
        assert set(row["fullest"]) == set(row_19.hash_layers.HASHES)
    assert [set(row["losses"]) for row in result["five"]] == [{"5x16 same", "5x16 different"}] * 2
    assert len(claims) == 8


def test_a_dense_block_is_a_mixture_of_one(small_lm):
    """One expert and a hash that knows no other: the layer is relu(x W_1) W_2; its gate counts as no parameter."""
    model = mixture_lm.MixtureLM(1, {})
    layer = model.model.blocks[0].ffn.layer
    x = torch.randn(2, 3, mixture_lm.WIDTH)
    model.model.blocks[0].ffn.ids = torch.zeros(2, 3, dtype=torch.long)
    torch.testing.assert_close(model.model.blocks[0].ffn(x), torch.relu(x @ layer.w_1[0]) @ layer.w_2[0])
    assert mixture_lm.parameters(model) == sum(p.numel() for p in model.parameters()) - layer.gate.weight.numel()


def test_without_messages_another_text_stands_in(small_lm, monkeypatch):
    """Its end is held out; more training than there is text is refused."""
    monkeypatch.setattr(mixture_lm, "messages", list)
    monkeypatch.setattr(mixture_lm, "corpus", lambda kind: "to be or not to be, " * 9000)
    training, judged = mixture_lm.data()
    assert training.shape[1] == judged.shape[1] == 16
    monkeypatch.setattr(mixture_lm, "STEPS", 10**6)
    with pytest.raises(ValueError, match=r"python -m course\.models"):
        mixture_lm.train(1, {}, seed=0)


# --- rows 29 and 30 --------------------------------------------------------------------------------------------------


def test_early_exits_are_trained_swept_and_generate(tiny):
    """Row 29: every exit asked, agreement and layers per threshold; exits that are never taken agree always."""
    small = {"TOKENS": 200, "TRAINING": 2, "WINDOW": 64, "JUDGED": 1, "EPOCHS": 1, "SEEDS": 2, "PROMPT": 8, "NEW": 6}
    result, claims = whole(tiny(row_29, tied=False, sizes=TINY, **small))
    assert [row["depth"] for row in result["judged"]["code"]["lens"]] == [2, 3, 4, 5]
    (sweep, _) = (seed["sweep"] for seed in result["judged"]["prose"]["seeds"])
    saved = [row["layers_saved"] for row in sweep]
    assert saved == sorted(saved, reverse=True) and all(0 <= row["agreement"] <= 1 for row in sweep)
    assert [row["skipped"] for row in result["generated"]] == ["none", "later", "copy"] * 2
    assert all(row["agreement"] == 1 and row["same"] == 1 for row in result["generated"] if row["skipped"] == "none")
    assert len(claims) == 7 and result["mark"] == "toy weights"


def test_training_and_judged_windows_of_row_29_share_nothing():
    """No window of 64 tokens is in both."""
    given = row_29.texts(smollm())
    pieces = {kind: {tuple(p.tolist()) for p in ids.view(-1, 64)} for kind, ids in given.items()}
    assert not pieces["training"] & (pieces["prose"] | pieces["code"])


def test_speculation_is_timed_counted_and_judged(tiny):
    """Row 30: texts are the target's own, foretold gains follow from passes, the wrong sampler is found out."""
    tiny(decoding_time, PROMPT=40, NEW=6, PLACES=2, STRIDE=30, REPEATS=1)
    result, claims = whole(tiny(row_30, tied=False, PROMPT=40, ROUNDS=1200))
    assert [row["ours"] for row in result["table"]] == ["1", "1", "8/9", "3/8", "1"]
    assert all(row["same_text"] for row in [*result["lookups"], *result["self_drafted"]])
    assert [(row["text"], row["start"]) for row in result["lookups"]] == [
        ("code", 0), ("code", 30), ("prose", 0), ("prose", 30)]  # fmt: skip
    assert all(row["ours"]["chance"] > 1e-3 for row in result["sampled"])
    assert all(row["wrong"]["chance"] < 1e-6 for row in result["sampled"])
    assert len(claims) == 14
    shows = {claim.says: claim.shows for claim in claims}
    assert not shows["finds 2 to 3.4 times speed-up"] and not shows["the T5 table obeys the formula"]
    assert shows["accepted with min(1, q/p): dogs, love, chasing, after"]


def test_chi_square_finds_a_sampler_that_is_off_and_pools_what_is_rare():
    """A fair count passes, a shifted one does not; tokens expected fewer than 10 times are one class."""
    q = torch.tensor([0.5, 0.3, 0.19, 0.005, 0.005])
    fair, off = q * 1000, torch.tensor([450.0, 350, 190, 5, 5])
    assert row_30.chi_square(fair, q) == pytest.approx((0, 3, 1))
    assert row_30.chi_square(off, q)[2] < 0.01


def test_a_foretold_gain_is_tokens_over_the_cost_of_passes():
    """Two passes of 3 and 1 tokens kept: 6 tokens in passes of 4 and 4 rows that cost 2 each, plus none beyond."""
    verify = [{"tokens": 1, "ms": 10.0}, {"tokens": 3, "ms": 10.0}, {"tokens": 5, "ms": 30.0}]
    run = {"k": 3, "proposed": [3, 3], "accepted": [3, 1]}
    result = {"verify": verify, "lookups": [{"text": "code", "runs": [run]}]}
    assert row_30.cost(result, 2) == 1 and row_30.cost(result, 4) == pytest.approx(2)
    assert row_30.foretold(result, "code", 3) == pytest.approx(6 / 4)
