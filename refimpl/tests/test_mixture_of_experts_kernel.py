"""The grouped matrix product in Triton: right for groups of any size, and tiles for no group that is empty."""

import pytest
import torch
from torch.testing import assert_close

from refimpl._triton import HAS_TRITON, INTERPRET
from refimpl.mixture_of_experts import kernel
from refimpl.mixture_of_experts.eager import dense_experts, grouped_experts
from refimpl.mixture_of_experts.routing import top_k_routing, within_capacity

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton, whose wheels are for Linux only")


def draw(*shape, seed=0, dtype=torch.float32, device="cpu"):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(device=device, dtype=dtype)


@pytest.mark.parametrize("counts", [[5, 0, 70], [64, 64], [1], [0, 0, 3], [130, 1]])
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 2e-5), (torch.float16, 2e-2), (torch.bfloat16, 2e-1)])
def test_ragged_groups_equal_a_loop(device, counts, dtype, bound):
    """Sizes that no tile divides, empty experts, a column count that is no multiple of anything."""
    rows, w = (
        draw(sum(counts), 37, dtype=dtype, device=device),
        draw(len(counts), 37, 45, seed=1, dtype=dtype, device=device),
    )
    got = kernel.grouped_matmul(rows, w, torch.tensor(counts, device=device))
    groups = rows.double().split(counts)
    wanted = torch.cat([g @ m for g, m in zip(groups, w.double(), strict=True)])
    assert got.dtype == dtype
    assert_close(got.double(), wanted, rtol=0, atol=bound)


def test_no_tokens_make_no_launch(device):
    """An empty result of the right shape."""
    got = kernel.grouped_matmul(
        draw(0, 8, device=device), draw(3, 8, 5, device=device), torch.zeros(3, dtype=torch.long)
    )
    assert got.shape == (0, 5)


def test_rows_that_are_a_view_are_read_by_their_strides(device):
    """Every second row of a larger matrix, and a transposed weight."""
    rows, w = draw(20, 16, device=device)[::2], draw(2, 9, 16, device=device).mT
    got = kernel.grouped_matmul(rows, w, torch.tensor([4, 6], device=device))
    assert_close(got, torch.cat([rows[:4] @ w[0], rows[4:] @ w[1]]), rtol=0, atol=2e-5)


def test_it_serves_the_layer(device):
    """As `matmul` of grouped_experts, with dropped tokens."""
    x = draw(50, 16, device=device)
    w_1, w_2 = draw(4, 16, 24, seed=1, device=device) / 4, draw(4, 24, 16, seed=2, device=device) / 5
    routing = within_capacity(top_k_routing(draw(50, 4, seed=3, device=device), 2), 20)
    got = grouped_experts(x, routing, w_1, w_2, matmul=kernel.grouped_matmul)
    assert_close(got, dense_experts(x, routing, w_1, w_2), rtol=0, atol=2e-5)


def test_tiles_cover_each_group_and_no_empty_one():
    """(expert, first row, end): 130 rows make three tiles of at most 64."""
    tiles = kernel.tiles_of(torch.tensor([2, 0, 130]))
    assert tiles.tolist() == [[0, 0, 2], [2, 2, 132], [2, 66, 132], [2, 130, 132]]


def test_what_does_not_fit_is_refused(device):
    """Shapes, groups that do not add up, and mixed precision."""
    rows, w, counts = draw(4, 8, device=device), draw(2, 8, 3, device=device), torch.tensor([1, 3], device=device)
    with pytest.raises(ValueError, match="must fit, given rows"):
        kernel.grouped_matmul(rows, draw(2, 7, 3, device=device), counts)
    with pytest.raises(ValueError, match="3 rows in 2 groups"):
        kernel.grouped_matmul(rows, w, counts - 1 + torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="one dtype and one count per expert"):
        kernel.grouped_matmul(rows, w.half(), counts)


@pytest.mark.skipif(not INTERPRET, reason="about compile jobs as they are listed")
def test_both_precisions_are_compiled():
    """bfloat16 must reach the tensor cores, float32 need not."""
    jobs = list(kernel.compile_jobs(90, True))
    assert [(job.dtype, job.tensor_core) for job in jobs] == [("bf16", "half"), ("fp32", "")]
