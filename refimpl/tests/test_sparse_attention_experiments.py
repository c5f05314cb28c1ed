"""Rows 10 to 12 and the benchmark: the whole path at tiny sizes; the records are judged in test_experiments."""

import json
import sys

import pytest
import torch

from refimpl.bench.cases import sparse_attention as bench
from refimpl.experiments import harness, row_10, row_11, row_12, row_38
from refimpl.models import SmolLM, load_minilm
from refimpl.models.llama import LlamaConfig
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama
from refimpl.transformer import TransformerConfig

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc, which Linux has")
SMALL = LlamaConfig(
    layers=2, model=36, heads=9, kv_heads=3, dim=8, ffn=48, vocab=256, context=1024, rope_base=100.0, norm_eps=1e-5
)


@pytest.fixture
def lm():
    return SmolLM(toy_llama(SMALL), ByteTokenizer(), SMALL, True, "toy")


@pytest.fixture
def ids():
    return torch.randint(256, (2, 280), generator=torch.Generator().manual_seed(0))


def as_read(result):
    """As a reader of the record has it."""
    return json.loads(json.dumps(result))


# --- row 10 ----------------------------------------------------------------------------------------------------------


def test_row_10_runs_from_end_to_end_on_toys(monkeypatch, lm, ids):
    """Every measurement at a tiny size, and every claim drawn from it."""
    monkeypatch.setenv("COURSE_MODELS", "toy")
    monkeypatch.setattr(row_10, "LENGTHS", [64, 128, 256])
    monkeypatch.setattr(row_10, "WIDTHS", [8, 16])
    monkeypatch.setattr(row_10, "WINDOW", 16)
    monkeypatch.setattr(row_10, "TEXTS", 2)
    monkeypatch.setattr(row_10, "TOKENS", 48)
    monkeypatch.setattr(row_10, "load_smollm2", lambda: lm)
    monkeypatch.setattr(row_10, "windows", lambda lm: ids)
    result = as_read(row_10.run())
    made = row_10.claims(result)
    assert len(made) == 10 and all(claim.says and claim.source for claim in made)
    assert [row["tokens"] for row in result["cost"]] == [64, 128, 256]
    assert set(result["language_model"]["losses"]) == {
        "full", "window", "dilated", "window + global", "dilated + global",
    }  # fmt: skip


def test_counted_work_of_the_recorded_lengths_is_counted_again():
    """FLOPs and bytes depend on shapes alone: the shortest row of the record, live."""
    kept = harness.load("10")["result"]["cost"][0]
    again = row_10.cost(kept["tokens"], kept["window"], peers=False, runs=1)
    assert (again["flops"], again["peak_bytes"]) == (kept["flops"], kept["peak_bytes"])


def test_recorded_fields_of_view_are_the_same_everywhere():
    """Each stack of layers again."""
    assert as_read([row_10.reach(*stack) for stack in row_10.STACKS]) == harness.load("10")["result"]["reach"]


def test_an_encoder_with_every_pair_allowed_is_the_encoder(monkeypatch):
    """And its attention is put back afterwards, on errors too."""
    monkeypatch.setenv("COURSE_MODELS", "toy")
    lm = load_minilm()
    ids, real = lm.ids(["one text", "another, longer text"])
    before = [block.attention.attend for block in lm.model.blocks]
    everything = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool)
    got = row_10.with_mask(lm, ids, real, everything)
    torch.testing.assert_close(got[real], lm.model(ids, real)[real])
    with pytest.raises(RuntimeError):
        row_10.with_mask(lm, ids, real, everything[:3, :3])
    assert [block.attention.attend for block in lm.model.blocks] == before


# --- row 11 ----------------------------------------------------------------------------------------------------------


def test_row_11_runs_from_end_to_end_on_toys(monkeypatch, lm, ids):
    """Every measurement at a tiny size, and every claim drawn from it."""
    for name, value in {"SIZES": [32, 64], "SEEDS": 2, "KEYS": 8, "TOKENS": 256}.items():
        monkeypatch.setattr(row_11, name, value)
    monkeypatch.setattr(row_11, "load_smollm2", lambda: lm)
    monkeypatch.setattr(row_11, "windows", lambda lm: ids)
    result = as_read(row_11.run())
    made = row_11.claims(result)
    assert len(made) == 8 and all(claim.says and claim.source for claim in made)
    assert made[4].shows and made[2].shows  # tiles and the global token are no matter of size
    assert len(result["language_model"]["losses"]["BigBird"]) == 2


def test_the_recorded_graphs_are_drawn_again():
    """The smallest of every kind, number by number."""
    kept = [row for row in harness.load("11")["result"]["graph"] if row["tokens"] == row_11.SIZES[0]]
    assert as_read([row_11.graph(row["pattern"], row["tokens"]) for row in kept]) == kept


def test_without_triton_the_kernel_row_says_so(monkeypatch):
    """A reason, and a claim that does not show."""
    monkeypatch.setattr(row_11, "HAS_TRITON", False)
    result = harness.load("11")["result"] | {"kernel": row_11.kernel_error()}
    (claim,) = (c for c in row_11.claims(result) if "kernel" in c.says)
    assert not claim.shows and "not installed" in claim.note


def test_graphs_that_are_not_connected_have_no_mean_path():
    """-1, and no mixing time."""
    found = row_11.measures(torch.eye(4, dtype=torch.bool))
    assert (found["mean_path"], found["longest_path"], found["mixing_time"]) == (-1, -1, None)


# --- row 12 ----------------------------------------------------------------------------------------------------------


def test_row_12_runs_from_end_to_end_in_a_few_steps(monkeypatch):
    """Both models, two seeds, two steps each on windows of random bytes; claims are drawn."""
    g = torch.Generator().manual_seed(0)
    windows = torch.randint(256, (96, row_12.CONTEXT), generator=g)
    monkeypatch.setattr(row_12, "data", lambda: (windows[:64], windows[64:]))
    monkeypatch.setattr(row_12, "SEEDS", 2)
    monkeypatch.setattr(row_12, "BYTES", 2 * row_38.BATCH * row_12.CONTEXT)
    result = as_read(row_12.run())
    made = row_12.claims(result)
    assert len(made) == 4 and made[0].shows  # equal weights are no matter of training
    assert "picture" in result["runs"][0] and "picture" not in result["runs"][-1]
    assert len(result["runs"][0]["picture"][0]) == row_12.CROP


def test_both_models_have_as_many_weights():
    """At another width, with other kernels: within 1 %."""
    config = TransformerConfig(256, 16, 2, 2, norm_first=True)
    counts = []
    for name in row_12.NAMES:
        model = row_12.build(name, config, kernels=(3, 5))
        counts.append(sum(p.numel() for p in model.blocks.parameters()))
    assert abs(counts[1] / counts[0] - 1) < 0.01


@pytest.mark.parametrize("row", ["10", "11"])
def test_records_are_of_the_real_models(row):
    """No figure of the course is made with toy weights."""
    result = harness.load(row)["result"]
    assert result["language_model"]["mark"] == "" and result.get("encoder", {}).get("mark", "") == ""


# --- the benchmark ---------------------------------------------------------------------------------------------------


@linux
def test_the_bench_case_measures_every_peer(monkeypatch):
    """The whole path at 256 tokens, in this process and uncompiled; no number of it is kept."""
    monkeypatch.setattr(bench, "SHAPE", {"batch": 1, "heads": 2, "seq": 256, "dim": 16})
    monkeypatch.setattr(bench, "in_fresh_process", lambda module, f, **kw: getattr(bench, f)(**kw))
    monkeypatch.setattr(bench, "why_no_flex", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda f: lambda q, k, v, block_mask: q)
    rows = bench.run(1)
    found = {(row["case"], row["implementation"]) for row in rows}
    assert {("window", name) for name in ("window", "sdpa", "sdpa + mask", "flex_attention")} <= found
    assert {("bigbird", "block-sparse"), ("memory", "window")} <= found
    assert all(row["flops"] > 0 for row in rows if row["case"] != "memory")
    assert isinstance(bench.problems(rows), list)


@linux
def test_without_a_compiler_the_flex_row_says_so(monkeypatch):
    """A reason in place of a number; nothing is compiled."""
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    monkeypatch.setattr(bench, "in_fresh_process", lambda *a, **kw: 0)
    rows = bench.rows_of("window", {"batch": 1, "heads": 1, "seq": 64, "dim": 16}, 1)
    assert "needs a C++ compiler" in rows[-1]["unavailable"]


def test_missed_bounds_are_named():
    """Too slow against either form of SDPA, more than N W, and more than linear: four sentences."""
    slow = {"case": "window", "implementation": "window", "sdpa_over_time": 1.9, "sdpa_mask_over_time": 3.0}
    memory = {"case": "memory", "implementation": "window", "window": 512}
    rows = [
        slow,
        memory | {"tokens": 4096, "counted_bytes": 10, "over_n_w": 0.5},
        memory | {"tokens": 8192, "counted_bytes": 25, "over_n_w": 1.1},
    ]
    first, second, third, fourth = bench.problems(rows)
    assert "1.9 times faster than sdpa, at least 2.0" in first and "3.0 times faster than sdpa + mask" in second
    assert "1.1 N W bytes" in third and "2.50 times the memory at 8192" in fourth
    fine = [slow | {"sdpa_over_time": 2.0, "sdpa_mask_over_time": 4.0}, rows[1]]
    assert bench.problems(fine) == []


def test_memory_of_the_window_is_within_its_bounds_at_any_size():
    """Counted, so the gate of the benchmark is checked here, too."""
    rows = bench.memory_rows({"batch": 1, "heads": 1, "seq": 4096, "dim": 32})
    assert bench.problems(rows) == []


def test_the_gpu_rows_compare_kernel_flex_and_mask(device, monkeypatch):
    """The same code at a tiny size, in the interpreter where there is no GPU; a peer that fails is a row with why."""

    def refuse(f):
        raise RuntimeError("no compiler\nin this test")

    monkeypatch.setattr(torch, "compile", refuse)
    rows = bench.gpu(device, 1, seq=96, heads=1, dim=16, block=16)
    assert [row["implementation"] for row in rows] == [
        "refimpl-flash", *["refimpl-triton", "flex_attention", "sdpa + mask"] * 2,
    ]  # fmt: skip
    assert [row["unavailable"] for row in rows if row["implementation"] == "flex_attention"] == ["no compiler"] * 2
    assert all(row["over_density"] > 0 for row in rows if row["implementation"] == "refimpl-triton")
    monkeypatch.setattr(torch, "compile", lambda f: lambda q, k, v, block_mask: q)
    attend = bench.flex_call(bench.inputs(1, 1, 96, 16), "bigbird", 16)
    assert attend().shape == (1, 1, 96, 16)
