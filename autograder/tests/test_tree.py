"""Nested values: walked, copied and widened without changing their form."""

from typing import NamedTuple

import torch

from autograder.tree import fresh, map_tensors, map_tree, tensors, to_double


class Pair(NamedTuple):
    first: object
    second: object


def nested():
    return {"a": [torch.ones(2), 3], "b": (torch.zeros(1), {"c": torch.full((1,), 5.0)}), "d": None}


def test_a_map_keeps_the_nesting():
    """Lists stay lists, tuples tuples, dicts dicts, and every leaf is changed."""
    assert map_tree(lambda leaf: leaf * 2, {"a": [1, (2, "x")], "b": ()}) == {"a": [2, (4, "xx")], "b": ()}
    assert map_tree(lambda leaf: leaf + 1, Pair(1, [2])) == Pair(2, [3])


def test_a_map_of_tensors_leaves_other_leaves_alone():
    """Numbers, strings and None pass through."""
    changed = map_tensors(lambda t: t + 1, nested())
    assert changed["a"][0].tolist() == [2.0, 2.0]
    assert changed["a"][1] == 3
    assert changed["d"] is None


def test_tensors_are_found_depth_first():
    """In the order in which a reader meets them."""
    assert [t.sum().item() for t in tensors(nested())] == [2.0, 0.0, 5.0]
    assert list(tensors("no tensor")) == []


def test_who_changes_a_fresh_copy_does_not_change_ours():
    """In place, in a list, anywhere."""
    value = nested()
    copy = fresh(value)
    copy["a"][0].zero_()
    copy["a"].append("more")
    assert value["a"][0].tolist() == [1.0, 1.0]
    assert len(value["a"]) == 2


def test_a_copy_keeps_its_strides():
    """A transposed or sliced case reaches the answer transposed or sliced."""
    transposed, sliced = torch.arange(12.0).reshape(3, 4).T, torch.arange(12.0).reshape(3, 4)[:, 1:3]
    for tensor in (transposed, sliced):
        copy = fresh(tensor)
        assert copy.stride() == tensor.stride()
        assert torch.equal(copy, tensor)
        assert copy.data_ptr() != tensor.data_ptr()


def test_an_expanded_tensor_is_copied_into_room_of_its_own():
    """Elements that share one place could not be written one by one."""
    copy = fresh(torch.tensor([1.0, 2.0])[:, None].expand(2, 3))
    copy[0, 0] = 9.0
    assert copy.tolist() == [[9.0, 1.0, 1.0], [2.0, 2.0, 2.0]]


def test_a_copy_that_wants_a_gradient_gets_it():
    """It is a leaf: `backward` through an answer fills its .grad, strided or expanded."""
    for tensor in (torch.randn(3, 2).T.requires_grad_(), torch.randn(1, 2).requires_grad_().expand(3, 2)):
        copy = fresh(tensor)
        (copy * 2).sum().backward()
        assert copy.grad.tolist() == torch.full(tensor.shape, 2.0).tolist()
    assert not fresh(torch.ones(2)).requires_grad


def test_the_oracle_run_is_widened_and_still_differentiable():
    """Floating tensors become fp64; integers, booleans and the wish for a gradient stay."""
    wide = to_double([torch.ones(2, dtype=torch.float16, requires_grad=True), torch.tensor([1]), torch.tensor([True])])
    assert [t.dtype for t in wide] == [torch.float64, torch.int64, torch.bool]
    assert wide[0].is_leaf
    assert wide[0].requires_grad
