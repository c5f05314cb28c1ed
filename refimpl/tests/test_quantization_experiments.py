"""Cheap parts of rows 23 to 25 again, and the bounds of the benchmark."""

import pytest
import torch
from torch import nn

from refimpl.bench.cases import quantization as bench
from refimpl.experiments import harness, row_23, row_24, row_25
from refimpl.models.llama import LlamaConfig
from refimpl.models.toy import toy_llama
from refimpl.quantization.nf4 import NF4


def small():
    return toy_llama(LlamaConfig(2, 32, 4, 2, 8, 48, 97, 600, 100.0, 1e-5))


def test_more_colours_come_nearer_and_a_palette_beats_equal_steps():
    """The picture of row 23, and the record says the same."""
    rows = row_23.colours()
    db = [row["k-means"] for row in rows]
    assert db == sorted(db) and all(row["k-means"] > row["equal steps"] for row in rows if "equal steps" in row)
    recorded = harness.load("23")["result"]["picture"]
    assert [row["k-means"] for row in recorded] == pytest.approx(db, abs=0.05)


def test_outliers_are_found_where_they_were_put():
    """A norm's weight of 100 makes one input feature of one layer's q, k and v large; hooks are gone afterwards."""
    model, ids = small(), torch.arange(40).view(2, 20)
    with torch.no_grad():
        model.layers[1].input_layernorm.weight[5] = 100.0
    found = row_24.outliers(model, ids)
    assert found["attention"]["features"] == [0, 1] and found["attention"]["which"] == [[], [5]]
    assert found["attention"]["width"] == 32 and not any(m._forward_pre_hooks for m in model.modules())
    counted = sum(sum(v["features"]) * {"attention": 3, "ffn": 2}.get(k, 1) for k, v in found.items())
    assert row_24.share({"outliers": found}) == counted / (2 * (6 * 32 + 48))


def test_pieces_average_to_the_loss_of_the_windows():
    """Fourteen pieces of 73 tokens; their mean is cross entropy over both windows."""
    model, ids = small(), torch.arange(1024).view(2, 512) % 97
    pieces = row_24.losses(model, ids)
    with torch.no_grad():
        whole = nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert len(pieces) == 14 and sum(pieces) / 14 == pytest.approx(whole.item(), rel=1e-5)


def test_nf4_is_nearest_on_normal_weights_and_uses_its_codes_most():
    """Each type rounds to 16 ascending values with its ends at ±1; error and information as row 25 measures them."""
    w = [torch.randn(64, 256, generator=torch.Generator().manual_seed(0))]
    assert all(len(v) == 16 and list(v) == sorted(v) and v[0] == -1 and v[-1] == 1 for v in row_25.TYPES.values())
    errors = {name: row_25.relative_error(w, row_25.rounding(values)) for name, values in row_25.TYPES.items()}
    assert min(errors["FP4"], errors["INT4"]) > errors["NF4"] * 1.05
    assert row_25.entropy(w, NF4) > row_25.entropy(w, row_25.TYPES["INT4"]) + 0.1


def test_the_benchmark_says_which_bound_is_missed():
    """A slow product counts only where the processor has integer units; a slow palette always."""
    slow = {"case": "int8 product", "speed_over_peer": 1.0, "integer_units": True}
    assert "3.0 asked" in bench.problems([slow])[0] and bench.problems([slow | {"integer_units": False}]) == []
    assert "1.0 allowed" in bench.problems([{"case": "palette", "seconds": 1.5}])[0]
    assert bench.problems([{"case": "palette", "seconds": 0.1}, slow | {"speed_over_peer": 3.5}]) == []


def test_the_gpu_part_of_the_benchmark_runs_here_in_small(device):
    """Library, int8 and NF4 at one token and at more."""
    rows = bench.gpu(device, repeats=1)
    assert [row["implementation"] for row in rows] == ["library", "int8", "nf4"] * 2
    assert all(row["seconds"] > 0 and row["tflops"] > 0 for row in rows)
