"""Rows 20, 21, 22 and 39 in small on the toy: every part runs, and what is exact is exact there, too."""

import json

import pytest

from refimpl.experiments import harness, row_20, row_21, row_22, row_39
from refimpl.models import SmolLM
from refimpl.models.llama import LlamaConfig
from refimpl.models.minilm import MiniLM, load_minilm
from refimpl.models.tokenizer import ByteTokenizer
from refimpl.models.toy import toy_llama

CONFIG = LlamaConfig(3, 32, 4, 2, 8, 48, 256, 600, 100.0, 1e-5)


@pytest.fixture
def lm():
    return SmolLM(toy_llama(CONFIG), ByteTokenizer(), CONFIG, True, "toy")


def load_minilm_toy() -> MiniLM:
    """The encoder's stand-in, whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_MODELS", "toy")
        return load_minilm()


def verdicts(experiment, result):
    """Says -> shows, of a result as a reader of the file has it."""
    return {claim.says: claim.shows for claim in experiment.claims(json.loads(json.dumps(result)))}


def test_lora_is_counted_and_merged_exactly_on_any_model(lm):
    """Row 20 on the toy: numbers, bytes, FLOPs and equality hold; two steps of a random model learn nothing."""
    shows = verdicts(row_20, row_20.run(lm, steps=2, seeds=2, size=2))
    exact = ["r (d + k) numbers are trained per matrix", "merged equals unmerged", "merged, LoRA costs no time",
             "gradients and Adam's state are kept for the trained numbers alone"]  # fmt: skip
    assert all(shows[says] for says in exact)
    assert not shows["few trained numbers learn a task"] and not shows["and can be taken out again"]


def test_the_table_of_methods_counts_exactly_on_any_model(lm):
    """Row 21 on the toy: six methods with their formulas, those that merge cost no FLOP, the others some."""
    result = row_21.run(lm, steps=1, seeds=2, size=2)
    shows = verdicts(row_21, result)
    assert all(row["numbers"] == row["formula"] for row in result["runs"]) and len(result["runs"]) == 12
    assert shows["what is a matrix or scales one costs nothing afterwards"]
    assert shows["prefix and prompt take their places from the context"]
    assert not shows["each learns the same small task"]
    assert all(row["flops"] > 0 for row in row_21.table(result) if not row["mergeable"])


def test_modules_are_trained_scored_composed_and_found(lm):
    """Row 22 on toys: every way is scored on every task; what is found is counted to the last question."""
    result = row_22.run(lm, load_minilm_toy(), steps=1, seeds=2, size=2, held_out=3)
    assert len(row_22.claims(json.loads(json.dumps(result)))) == 8
    for run in result["runs"]:
        assert run["by"].keys() == {*result["tasks"], "mean", "sum"} and run["batch"]["of"] == 12
        assert all(sum(map(sum, row["table"])) == 4 * row_22.ASKED for row in run["retrieval"])
    assert "a task costs a module and not a model" in verdicts(row_22, result)


def test_a_batch_in_which_each_text_has_its_own_module_scores_as_the_modules_alone(lm):
    """Row 22's mixed batch against the modules one after the other, trained for a step."""
    run = row_22.run(lm, load_minilm_toy(), steps=2, seeds=1, size=2, held_out=3)["runs"][0]
    alone = [run["by"][task][task]["exact"] for task in run["by"] if task in row_22.TASKS]
    assert run["batch"]["own"]["exact"] == pytest.approx(sum(alone) / 4)


def test_the_outlook_runs_on_the_pieces(lm):
    """Row 39 on the toy: counted attention is linear in the length, bits are those of NF4, all claims are judged."""
    result = row_39.run(lm, steps=2, seeds=2, length=74, group=16, byte_steps=20)
    assert len(row_39.claims(json.loads(json.dumps(result)))) == 8
    short, long = result["attention"]
    assert (
        long["full"]["flops"] == 4 * short["full"]["flops"]
        and long["shifted"]["flops"] < 2.3 * short["shifted"]["flops"]
    )
    assert 4 < result["sizes"]["bits"] < 5 and result["sizes"]["ours"] < result["sizes"]["full"]
    for run in result["experts"]:
        assert run["no experts"]["bits"] < run["three values"]["bits"] < run["NF4"]["bits"] < 5
        assert run["NF4"]["error"] < run["three values"]["error"] < run["no experts"]["error"] == 1


@pytest.mark.parametrize("row", ["20", "21", "22", "39"])
def test_records_were_made_with_real_weights(row):
    """No record of these rows carries the toy's mark."""
    assert harness.load(row)["result"]["mark"] == ""
