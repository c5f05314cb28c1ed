"""The fused Triton softmax: in the interpreter on a CPU, compiled on a GPU."""

import pytest
import torch
from torch.testing import assert_close

from refimpl.online_softmax import fused_softmax, kernel


def rand(*shape, times=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[-1])) * times


@pytest.mark.parametrize("n", [1, 7, 128, 1000, 5000])
def test_fused_softmax_is_softmax(device, n):
    """Any width, logits x20, judged in float64."""
    x = rand(3, n, times=20).to(device)
    assert_close(fused_softmax(x).double(), torch.softmax(x.double(), -1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(device, dtype):
    """The output has the input's dtype, and its only error is its own rounding, in the interpreter too."""
    x = rand(4, 300, times=5).to(device, dtype)
    got = fused_softmax(x)
    assert got.dtype == dtype
    assert_close(got.float(), torch.softmax(x.float(), -1), rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_a_row_of_minus_infinity_gives_zeros(device):
    """No NaN where a query may look at no key, and no effect on its neighbours."""
    x = rand(3, 100)
    x[1] = -torch.inf
    x[2, :99] = -torch.inf
    y = fused_softmax(x.to(device))
    assert (y[1] == 0).all() and y[2, 99] == 1
    assert_close(y[0].cpu(), torch.softmax(x[0], -1))


def test_rows_inside_a_buffer_of_nan_are_read_exactly(device):
    """A view with a row stride of its own: lanes beyond the row never reach memory, on any side."""
    buffer = torch.full((5, 400), torch.nan)
    buffer[1:4, 50:350] = rand(3, 300)
    view = buffer.to(device)[1:4, 50:350]
    assert_close(fused_softmax(view), torch.softmax(view, -1))


def test_columns_that_are_not_adjacent_are_handled(device):
    """A transposed matrix gives the right answer, not the memory order's."""
    x = rand(40, 6).to(device).T
    assert_close(fused_softmax(x), torch.softmax(x, -1))
    assert fused_softmax(x[:0]).shape == (0, 40)


def test_errors_name_the_limit_and_the_way_out(device):
    """A vector, a double and a row of more than 2**20 columns are refused in words."""
    with pytest.raises(ValueError, match=r"must be a half or float32 matrix, given torch.float32 \(4,\)"):
        fused_softmax(torch.zeros(4, device=device))
    with pytest.raises(ValueError, match=r"given torch\.float64"):
        fused_softmax(torch.zeros(4, 4, device=device, dtype=torch.float64))
    with pytest.raises(ValueError, match="use softmax_two_pass"):
        fused_softmax(torch.zeros(1, kernel.MAX_COLS + 1, device=device))
