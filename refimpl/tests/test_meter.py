"""The counters count what ran, and agree with PyTorch's own."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - PyTorch's own convention
from torch.utils.flop_counter import FlopCounterMode

from refimpl.meter import Matmul, Meter, saved_for_backward


def test_a_matmul_is_recorded_with_its_sizes_flops_and_bytes():
    """(2, 3) by (3, 5) in float32: 60 FLOPs, 6 + 15 + 10 elements; a batch of them counts each."""
    with Meter() as meter:
        torch.ones(2, 3) @ torch.ones(3, 5)
        torch.ones(4, 2, 3) @ torch.ones(4, 3, 5)
        F.linear(torch.ones(2, 3), torch.ones(5, 3), torch.ones(5))
        torch.baddbmm(torch.ones(4, 2, 5), torch.ones(4, 2, 3), torch.ones(4, 3, 5))
    one, four = Matmul(1, 2, 3, 5, itemsize=4), Matmul(4, 2, 3, 5, itemsize=4)
    assert meter.matmuls == [one, four, one, four]
    assert (one.flops, one.bytes) == (60, 31 * 4)
    assert (four.flops, four.bytes) == (240, 4 * 31 * 4)
    assert meter.flops == 600


def test_the_backward_pass_is_seen_and_agrees_with_pytorchs_flop_counter():
    """Two products for one in the backward; FlopCounterMode says the same."""
    x, w = torch.randn(4, 6, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    with Meter() as meter, FlopCounterMode(display=False) as theirs:
        (x @ w).relu().sum().backward()
    assert len(meter.matmuls) == 3
    assert meter.flops == theirs.get_total_flops() == 3 * 2 * 4 * 6 * 5


def test_the_largest_tensor_is_one_that_was_made_and_no_view():
    """A view of an input or of a result makes nothing; the product does."""
    a = torch.ones(100, 8)
    with Meter() as meter:
        big = a.view(10, 80).T.expand(7, 80, 10)
        small = a[:20] @ a[:30].T
        small.view(600)
    assert big.numel() > small.numel()
    assert (meter.largest_shape, meter.largest_bytes) == ((20, 30), 600 * 4)


def test_peak_bytes_counts_what_is_alive_together_and_forgets_what_was_freed():
    """a and b together, b freed, c: the peak is the larger of the two moments."""
    with Meter() as meter:
        a = torch.ones(1000)
        b = torch.ones(500)
        del b
        c = torch.ones(200)
        assert meter.peak_bytes == 1500 * 4
        d = torch.ones(400)
        assert meter.peak_bytes == 1600 * 4
    assert len(a) + len(c) + len(d) == 1600


def test_an_operation_in_place_makes_no_new_tensor():
    """add_ returns its own input."""
    a = torch.ones(100)
    with Meter() as meter:
        a.add_(1).mul_(2)
    assert meter.peak_bytes == 0


def test_a_fused_kernel_is_refused_rather_than_counted_as_nothing():
    """SDPA's flash kernel shows no matmul, so a count would be wrong without a word."""
    q = torch.randn(1, 2, 8, 4)
    with pytest.raises(ValueError, match="count with naive_attention"), Meter():
        F.scaled_dot_product_attention(q, q, q)


def test_saved_tensors_are_counted_once_each_and_parameters_not():
    """relu(x w) w2: autograd keeps x, relu's result (the input of the second product too), and the weights."""
    x = torch.randn(4, 6)
    w, w2 = torch.randn(6, 5, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    with saved_for_backward(w, w2) as saved:
        out = (x @ w).relu() @ w2
    assert sorted(saved.shapes) == [(4, 5), (4, 6)]
    assert saved.elements == 44
    assert saved.bytes == 44 * 4
    out.sum().backward()
    assert w.grad is not None
