"""What the simulator counts equals the algebra, and both give the published bytes, but not the published FLOPs."""

import math

import pytest

from refimpl.flash_attention.simulator import (
    A100_SRAM_ELEMENTS,
    Traffic,
    attention_flops,
    block_sizes,
    flash2_formula,
    flash_formula,
    pass_table,
    simulate_flash,
    simulate_flash2,
    simulate_standard,
    standard_formula,
    table_bytes,
    table_flops,
)

LENGTHS = [1, 17, 64, 77, 128, 200, 1000]
GB = 1e9


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("options", [{}, {"mask": True}, {"dropout": True}, {"mask": True, "dropout": True}])
@pytest.mark.parametrize("backward", [False, True])
def test_standard_attention_moves_what_its_formula_says(n, options, backward):
    """Tile by tile or by algebra: the same number of elements, for any length."""
    for block in (1, 48, 128):
        assert simulate_standard(n, 40, backward=backward, block=block, **options) == standard_formula(
            n, 40, backward=backward, **options
        )


SIZES = [(64, 98304), (64, 4000), (16, 1000), (40, 333), (128, 100)]
# The last has blocks of one row: forty thousand visits of them say what a million do, which take three minutes.
CASES = [(n, *size) for n in LENGTHS for size in SIZES if n <= 333 or size != SIZES[-1]]


@pytest.mark.parametrize("n,dim,sram", CASES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("fill", [False, True])
def test_flash_attention_moves_what_its_formula_says(n, dim, sram, causal, backward, fill):
    """Ragged last tiles, causal skipping and tiny SRAM included."""
    options = {"backward": backward, "causal": causal, "fill": fill}
    assert simulate_flash(n, dim, sram, **options) == flash_formula(n, dim, sram, **options)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("blocks", [(64, 64), (128, 32), (16, 48), (7, 13)])
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_2_moves_what_its_formula_says(n, blocks, causal):
    """The other loop order, any pair of block sizes."""
    assert simulate_flash2(n, 64, *blocks, causal=causal) == flash2_formula(n, 64, *blocks, causal=causal)


def test_one_hand_counted_case():
    """n = 4, d = 2, M = 16: B_r = B_c = 2, so K, V once (16) and per key tile Q, O, l, m in and O, l, m out."""
    assert block_sizes(16, 2) == (2, 2)
    assert simulate_flash(4, 2, 16) == Traffic(reads=16 + 2 * 4 * (2 + 2 + 2), writes=2 * 4 * (2 + 2))
    assert simulate_flash(4, 2, 16, causal=True) == Traffic(reads=16 + 6 * 6, writes=6 * 4)
    assert simulate_standard(4, 2) == Traffic(reads=3 * 8 + 2 * 16, writes=8 + 2 * 16)


@pytest.mark.parametrize("sram,dim,want", [(98304, 64, (64, 384)), (1000, 64, (4, 4)), (98304, 128, (128, 192))])
def test_block_sizes_follow_line_1(sram, dim, want):
    """B_c = ceil(M / 4d), B_r = min(B_c, d)."""
    assert block_sizes(sram, dim) == want


def test_block_sizes_refuse_an_empty_sram():
    """No SRAM, no tile."""
    with pytest.raises(ValueError, match="given M=0, d=64"):
        block_sizes(0, 64)


def test_standard_attention_moves_the_published_40_gigabytes():
    """18 passes over n² and 12 over n d, float16, GPT-2 medium: 40.3 GB as printed, within 1 %."""
    assert table_bytes("standard") == pytest.approx(40.3 * GB, rel=0.01)
    n, d = 1024, 64
    assert sum(r.elements for r in pass_table() if r.algorithm == "standard") == 18 * n * n + 12 * n * d


def test_flash_attention_moves_the_published_4_gigabytes():
    """About 30 n d: 4.1 GB for the loops, 4.6 GB with the zero-fill. The printed 4.4 lies between, 10 % from either."""
    loops, fill = table_bytes("flash"), table_bytes("flash fill")
    assert loops == pytest.approx(4.4 * GB, rel=0.10)
    assert loops + fill == pytest.approx(4.4 * GB, rel=0.10)
    assert loops < 4.4 * GB < loops + fill
    elements = sum(r.elements for r in pass_table() if r.algorithm == "flash")
    assert round(elements / (1024 * 64)) == 30


def test_the_pass_table_is_what_the_simulators_count():
    """Summing the rows gives the whole algorithm; nothing is counted twice."""
    rows = pass_table()
    sums = {a: sum(r.elements for r in rows if r.algorithm == a) for a in ("standard", "flash", "flash fill")}
    assert sums["standard"] == simulate_standard(1024, 64, backward=True, mask=True, dropout=True).total
    whole = simulate_flash(1024, 64, A100_SRAM_ELEMENTS, backward=True, fill=True).total
    assert sums["flash"] + sums["flash fill"] == whole


def test_algorithm_0s_forward_alone_moves_9_gigabytes():
    """So the printed 40.3 GB cannot be a forward: it is forward and backward, with mask and dropout."""
    heads = 16 * 64
    assert simulate_standard(1024, 64).bytes(2) * heads == pytest.approx(9.1 * GB, rel=0.01)


def test_the_published_gflops_do_not_follow_from_the_published_shape():
    """0.82 TFLOP standard and 0.96 with recomputation, not 66.6 and 75.2 GFLOP: those would run at 10 TFLOP/s."""
    assert table_flops() == pytest.approx(0.82e12, rel=0.01)
    assert table_flops(recompute=True) == pytest.approx(0.96e12, rel=0.01)
    assert pytest.approx(10.3e12, rel=0.01) == 75.2e9 / 7.3e-3
    assert table_flops() / 66.6e9 > 12


def test_flops_of_a_causal_head_count_the_pairs_looked_at():
    """n (n + 1) / 2 pairs; recomputation costs one more matmul, and nothing without a backward."""
    assert attention_flops(4, 8) == 4 * 16 * 8
    assert attention_flops(4, 8, causal=True) == 4 * 10 * 8
    assert attention_flops(4, 8, backward=True, recompute=True) == 14 * 16 * 8
    assert attention_flops(4, 8, recompute=True) == attention_flops(4, 8)


def test_flash_traffic_falls_with_sram_and_standard_does_not():
    """Four times the SRAM, about a quarter of the traffic: O(n² d² / M). Standard attention has no M in it."""
    small, large = (simulate_flash(8192, 64, m).total for m in (16384, 65536))
    assert small / large == pytest.approx(4, rel=0.1)


def test_flash_attention_2_writes_its_output_once():
    """n (d + 1) elements written, whatever the blocks; FlashAttention writes O once per key tile."""
    assert simulate_flash2(1000, 64, 128, 64).writes == 1000 * 65
    T_c = math.ceil(1000 / block_sizes(4000, 64)[1])
    assert simulate_flash(1000, 64, 4000).writes == T_c * 1000 * 66
