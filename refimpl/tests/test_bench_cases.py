"""Benchmark cases run whole at tiny sizes: every row is there, and bounds speak in words. No time of these counts."""

import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import nn

from refimpl.bench.cases import kv_cache, linear_attention, mixture_of_experts, quantization, speculative_sampling
from refimpl.models import KVCache, SmolLM
from refimpl.models.llama import Llama, LlamaConfig, generate
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama

TINY = LlamaConfig(
    layers=2, model=36, heads=9, kv_heads=3, dim=8, ffn=48, vocab=256, context=1024, rope_base=100.0, norm_eps=1e-5
)


def smollm():
    return SmolLM(toy_llama(TINY), ByteTokenizer(), TINY, False, "tiny")


# --- KV cache: transformers is played by our own model ---------------------------------------------------------------


class Rotary(nn.Module):
    """Buffers that do not survive the meta device, as transformers' do not."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("inverse", torch.ones(config.head_dim // 2), persistent=False)


class LlamaForCausalLM(nn.Module):
    """The part of transformers' class that the case uses, over refimpl's Llama."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        ours = LlamaConfig(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
            config.head_dim, config.intermediate_size, config.vocab_size, config.max_position_embeddings,
            config.rope_parameters["rope_theta"], config.rms_norm_eps,
        )  # fmt: skip
        self.model = Llama(ours)
        self.model.rotary_emb, self.lm_head = Rotary(config), nn.Linear(ours.model, ours.vocab, bias=False)

    def forward(self, ids, past_key_values, use_cache=True, logits_to_keep=None):
        if past_key_values.cache is None:
            past_key_values.cache = KVCache(self.model, 600)
        return self.model(ids, past_key_values.cache, last=logits_to_keep)

    def generate(self, ids, attention_mask, max_new_tokens, do_sample, use_cache):
        return generate(self.model, ids, max_new_tokens)


class DynamicCache:
    def __init__(self, config):
        self.cache = None

    def crop(self, tokens):
        self.cache.length += tokens  # a negative number takes tokens away


@pytest.fixture
def peer(monkeypatch):
    """A module that answers to the name of transformers."""
    fake = types.ModuleType("transformers")
    fake.__spec__ = ModuleSpec("transformers", None)
    fake.LlamaConfig = lambda **sizes: types.SimpleNamespace(**sizes)
    fake.LlamaForCausalLM, fake.DynamicCache = LlamaForCausalLM, DynamicCache
    monkeypatch.setitem(sys.modules, "transformers", fake)
    found = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: True))
    monkeypatch.setattr(kv_cache, "importlib", found)  # this module's alone: torch looks for packages, too
    monkeypatch.setattr(kv_cache, "load_smollm2", smollm)


def test_decoding_is_measured_against_a_peer_over_the_same_weights(peer):
    """Steps and whole generation at each prompt, the same tokens, and attention alone."""
    rows = kv_cache.run(runs=1)
    assert [(row["case"], row["keys"]) for row in rows] == [
        ("step", 128), ("generate", 128), ("step", 512), ("generate", 512), ("attention", 512), ("attention", 8192),
    ]  # fmt: skip
    assert all(row["same_tokens"] for row in rows if row["case"] == "generate")
    weights = sum(p.numel() for p in toy_llama(TINY).parameters() if p.ndim == 2)
    assert rows[0]["flops"] == 2 * weights + 4 * 2 * 9 * 8 * 128
    assert all(row["seconds"] > 0 and row["speed_over_peer"] > 0 for row in rows)


def test_the_peer_has_our_weights_and_not_a_copy(peer):
    """Same memory, so the two can differ in time alone."""
    lm = smollm()
    theirs = kv_cache.transformers_llama(lm)
    assert theirs.lm_head.weight.data_ptr() == lm.model.embed_tokens.weight.data_ptr()
    assert not any(p.is_meta for p in [*theirs.parameters(), *theirs.buffers()])


# --- the other cases -------------------------------------------------------------------------------------------------


def test_linear_forms_are_timed_as_the_sequence_doubles(monkeypatch):
    """Three implementations at two lengths; the exponent is that of the doubling; a steep one is a problem."""
    monkeypatch.setattr(linear_attention, "LENGTHS", (64, 128))
    rows = linear_attention.run(runs=1)
    assert [(row["tokens"], row["implementation"]) for row in rows] == [
        (n, name) for n in (64, 128) for name in ("sdpa", "linear attention", "selective scan")
    ]
    assert [("exponent" in row) for row in rows] == [False] * 3 + [True] * 3
    sdpa, linear = ([row["flops"] for row in rows if row["implementation"] == n] for n in ("sdpa", "linear attention"))
    assert sdpa[1] == 4 * sdpa[0] and linear[1] == 2 * linear[0]
    steep = {"implementation": "linear attention", "exponent": 2.0}
    assert linear_attention.problems([steep, steep | {"implementation": "sdpa"}]) == [
        "linear attention: time grows as the length to the 2.0, at most 1.3 allowed"
    ]


@pytest.fixture
def few_experts(monkeypatch):
    for name, value in {"TOKENS": 32, "EXPERTS": 4, "MODEL": 16, "HIDDEN": 16}.items():
        monkeypatch.setattr(mixture_of_experts, name, value)


def test_experts_are_timed_three_ways_that_give_the_same(few_experts):
    """Eager, all experts, PyTorch's grouped product; the dense form has experts / choices times the FLOPs."""
    outputs = {name: call() for name, call in mixture_of_experts.layers().items()}
    for out in outputs.values():
        torch.testing.assert_close(out, outputs["eager"], rtol=1e-4, atol=1e-4)
    rows = {row["implementation"]: row for row in mixture_of_experts.run(runs=1)}
    assert rows["all experts"]["flops"] == 2 * rows["eager"]["flops"] == 2 * 4 * 32 * 2 * 16 * 16
    assert set(rows) == {"eager", "all experts", "torch grouped_mm"}


def test_without_grouped_mm_there_is_a_row_that_says_so(few_experts, monkeypatch):
    """An older torch: no ratio, no bound."""
    monkeypatch.delattr(mixture_of_experts.F, "grouped_mm", raising=False)
    rows = mixture_of_experts.run(runs=1)
    assert rows[-1]["unavailable"].startswith("not in torch") and mixture_of_experts.problems(rows) == []
    slow = [{"implementation": "eager", "time_over_grouped_mm": 1.6}]
    assert mixture_of_experts.problems(slow) == ["eager: 1.6 times grouped_mm's time, at most 1.5 allowed"]


def test_quantized_products_and_palettes_are_timed(monkeypatch):
    """Five ways to multiply with the bytes of their weights, and both forms of Lloyd."""
    for name, value in {"TOKENS": 32, "FEATURES": 64, "OUT": 64, "MATRIX": (16, 32)}.items():
        monkeypatch.setattr(quantization, name, value)
    monkeypatch.setattr(quantization, "LIBRARIES", {})
    rows = {row["case"]: row for row in quantization.run(runs=1)}
    assert list(rows) == ["float32", "int8 product", "int8 layer", "int8 layer, outliers", "NF4 layer", "palette"]
    assert rows["float32"]["speed_over_peer"] == 1 and rows["float32"]["flops"] == 2 * 32 * 64 * 64
    assert rows["float32"]["bytes"] == 4 * 64 * 64 > rows["int8 layer"]["bytes"] > rows["NF4 layer"]["bytes"]
    assert rows["palette"]["seconds"] > 0 and rows["palette"]["bytes"] == 4 * 16 * 32
    monkeypatch.setattr(quantization, "Path", lambda name: types.SimpleNamespace(exists=lambda: False))
    assert quantization.has_integer_units() is False  # no /proc/cpuinfo: nothing is claimed


def test_libraries_stand_beside_ours_where_they_are_installed(monkeypatch):
    """A row for each of their cases; of one that is missing, how to get it. No bound rests on either."""
    pairs = {"int8 product": (lambda: None, lambda: torch.ones(64, 64) @ torch.ones(64, 64))}
    both = {"torch": lambda x, w: pairs, "no_such_library": lambda x, w: {}}
    monkeypatch.setattr(quantization, "LIBRARIES", both)
    timed, missing = quantization.libraries(runs=1)
    assert (timed["case"], timed["peer"]) == ("int8 product", "torch") and timed["speed_over_peer"] > 1
    assert "pip install '.[peers]'" in missing["unavailable"]
    assert quantization.problems([timed, missing]) == []


@pytest.mark.peers
@pytest.mark.parametrize("name", quantization.LIBRARIES)
def test_a_library_computes_what_we_compute(name):
    """Exactly where integers are multiplied; elsewhere within the rounding of eight bits, or of four."""
    pytest.importorskip(name)
    x, w = quantization.inputs()
    with torch.no_grad():
        for case, (ours, theirs) in quantization.LIBRARIES[name](x, w).items():
            mine, other = ours(), theirs()
            if isinstance(mine, torch.Tensor) and isinstance(other, torch.Tensor):
                tolerance = 0 if case == "int8 product" else 0.02 * float(mine.abs().max())
                torch.testing.assert_close(mine.float(), other.float().view_as(mine), rtol=0, atol=tolerance)


def test_plain_lloyd_sorts_numbers_to_colours():
    """Two heaps of numbers: colours in both, none between."""
    found = quantization.plain_lloyd(torch.cat((torch.linspace(0, 1, 80), torch.linspace(9, 10, 80))))
    assert ((found <= 1) | (found >= 9)).all() and (found <= 1).any() and (found >= 9).any()


@pytest.fixture
def short_text(monkeypatch):
    monkeypatch.setattr(speculative_sampling, "load_smollm2", smollm)
    for name, value in {"PROMPT": 40, "NEW": 6, "STARTS": {"code": (0, 30), "prose": (5,)}}.items():
        monkeypatch.setattr(speculative_sampling, name, value)


def test_speculation_is_timed_at_every_place_with_the_same_text(short_text):
    """Plain and speculated at three places, the text identical."""
    rows = speculative_sampling.run(runs=1)
    assert [row["text"] for row in rows] == [t for t in ("code at 0", "code at 30", "prose at 5") for _ in range(2)]
    assert all(row["same_text"] for row in rows) and {row["weights"] for row in rows} == {"tiny"}
    assert all(row["target_calls"] <= 6 for row in rows)
    plain = [row for row in rows if row["implementation"] == "plain"]
    assert all(row["speed_over_plain"] == row["speed_with_prompt"] == 1 for row in plain)


def test_a_slow_speculation_and_another_text_are_problems():
    """By the mean over code; prose has no bound, nor have toy weights."""
    row = {"text": "code at 0", "implementation": "prompt lookup", "speed_over_plain": 1.0, "same_text": True}
    row |= {"weights": "real"}
    assert "code: 1.00 times plain decoding on average, at least 1.5 asked" in speculative_sampling.problems([row])
    assert speculative_sampling.problems([row | {"weights": "toy"}, row | {"text": "prose at 0", "weights": "x"}]) == []
    assert "not the target's own" in speculative_sampling.problems([row | {"same_text": False}])[0]
