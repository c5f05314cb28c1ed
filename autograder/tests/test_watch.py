"""Operations seen while an answer runs."""

import pytest
import torch

from autograder.sandbox.watch import ForbiddenCall, ForbidFunctions, WatchOperations, own_error

X = torch.randn(3, 4)


def both(names, call):
    with ForbidFunctions(names), WatchOperations(names) as watch:
        call()
    return watch


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("softmax", lambda: torch.softmax(X, -1)),
        ("softmax", lambda: X.softmax(-1)),
        ("softmax", lambda: torch.nn.functional.softmax(X, -1)),
        ("softmax", lambda: torch.nn.Softmax(-1)(X)),
        ("softmax", lambda: torch.ops.aten.softmax.int(X, -1)),
        ("logsumexp", lambda: X.logsumexp(-1)),
        ("scaled_dot_product", lambda: torch.nn.functional.scaled_dot_product_attention(X, X, X)),
        ("aten.sum.", lambda: X.sum()),
    ],
)
def test_a_forbidden_operation_is_refused_by_whatever_road(name, call):
    """Function, method, module or operator: the name is in it somewhere."""
    call()
    with pytest.raises(ForbiddenCall, match=f"to be solved without `{name}`"):
        both([name], call)


def test_an_operator_is_seen_below_the_public_name():
    """What torch dispatches is refused even where only its inside is forbidden."""
    with pytest.raises(ForbiddenCall, match=r"`aten\._softmax"), WatchOperations(["_softmax"]):
        X.softmax(-1)
    with pytest.raises(ForbiddenCall), ForbidFunctions(["scaled_dot_product"]):
        torch.nn.functional.scaled_dot_product_attention(X, X, X)


def test_other_operations_pass_with_their_results():
    """Watching changes no number."""
    kept = []
    both(["softmax", "logsumexp"], lambda: kept.append((X.exp() / X.exp().sum(-1, keepdim=True)).log()))
    assert torch.allclose(kept[0], X.log_softmax(-1), atol=1e-6)


def test_the_largest_tensor_is_noted():
    """By storage, so a view or an expanded tensor counts what it stands on."""
    watch = both([], lambda: (X[:, None, :] * X[None]).sum())
    assert (watch.largest_bytes, watch.largest_shape) == (3 * 3 * 4 * 4, (3, 3, 4))
    assert both([], lambda: X.expand(1000, 3, 4)).largest_bytes == X.untyped_storage().nbytes()
    assert both([], lambda: None).largest_bytes == 0


class InterpreterError(Exception):
    """Stands for Triton's."""


def test_what_a_kernel_raised_is_what_counts():
    """Triton's interpreter wraps the error, maybe twice; other chains are left alone."""
    inner, middle, outer = NotImplementedError("kernel"), InterpreterError("1"), InterpreterError("2")
    middle.__cause__, outer.__cause__ = inner, middle
    assert own_error(outer) is inner
    other = ValueError()
    other.__cause__ = inner
    assert own_error(other) is other
    alone = InterpreterError("alone")
    assert own_error(alone) is alone
