"""The wire carries plain data exactly, and refuses everything else before it can hurt."""

import json
import math
import socket
import struct
import threading
import time

import pytest
import torch

from autograder.sandbox import wire


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def there_and_back(value, *, trusted=False):
    form, blob = wire.encode(value)
    return wire.decode(wire.parse_head(json.dumps({"v": form}).encode())["v"], blob, trusted=trusted)


@pytest.mark.parametrize(
    "value", [None, True, 7, -(2**80), 1.5, "text", [1, [2.0]], (1, ("a",)), {"k": [None], 3: (4,)}]
)
def test_plain_values_arrive_unchanged(value):
    """Type and nesting survive: a tuple stays a tuple, a bool no int."""
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_arrive(value):
    """JSON has no infinity; the wire has."""
    assert there_and_back(value) == value


def test_nan_arrives_as_nan():
    """NaN is sent, so that the judge can say NaN."""
    assert math.isnan(there_and_back((math.nan,))[0])


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "int32", "uint8", "bool"]
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_of_every_dtype_and_shape_arrive_bit_for_bit(dtype, shape):
    """Also scalars, empty tensors, and dtypes that numpy does not know."""
    dtype = getattr(torch, dtype)
    value = (torch.rand(shape) * 4).to(dtype)
    back = there_and_back(value)
    assert back.dtype is dtype and back.shape == value.shape
    assert torch.equal(back.view(torch.uint8) if shape else back, value.view(torch.uint8) if shape else value)


def test_one_tensor_may_be_sent_twice():
    """An answer may return its input, or the same tensor in two places."""
    x = torch.arange(3.0)
    a, b = there_and_back((x, x))
    assert torch.equal(a, x) and torch.equal(b, x)


def test_strides_and_gradients_reach_the_runner_only():
    """A non-contiguous case arrives non-contiguous; a reply's strides are its sender's claim and are dropped."""
    x = torch.randn(4, 6).T.requires_grad_()
    inside, outside = there_and_back(x, trusted=True), there_and_back(x)
    assert inside.stride() == x.stride() and inside.requires_grad and inside.is_leaf
    assert outside.is_contiguous() and not outside.requires_grad
    assert torch.equal(inside, x)


def test_an_expanded_tensor_arrives_full():
    """Zero strides cannot be written into, so such a case travels as a plain one."""
    x = torch.ones(3, 1).expand(3, 4)
    assert torch.equal(there_and_back(x, trusted=True), x)


def test_a_parameter_arrives_as_the_tensor_it_holds():
    """An attribute of a module is one; nothing of the module comes along."""
    assert type(there_and_back(torch.nn.Parameter(torch.ones(1)))) is torch.Tensor


NOT_PLAIN = {
    "object": object(),
    "set": {1, 2},
    "module": torch.nn.Linear(1, 1),
    "sparse": torch.ones(2).to_sparse(),
    "meta": torch.ones(2, device="meta"),
    "complex": torch.ones(2, dtype=torch.complex64),
}


@pytest.mark.parametrize("value", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_anything_else_arrives_as_opaque_and_equals_nothing(value):
    """Not even itself: an object that claims to equal everything must not get through."""
    back = there_and_back([value])[0]
    assert isinstance(back, wire.Opaque)
    assert back != back and back != value
    assert "not plain data" in repr(back)


def test_a_value_nested_too_deeply_is_opaque():
    """A recursive answer costs neither side its stack."""
    value = []
    for _ in range(100):
        value = [value]
    form, _ = wire.encode(value)
    assert "nested too deeply" in json.dumps(form)


def test_a_frame_arrives(pair):
    """Head and blob, as sent."""
    ours, theirs = pair
    wire.send(ours, {"a": 1}, b"blob")
    assert wire.receive(theirs, time.monotonic() + 5) == ({"a": 1}, b"blob")


def test_a_closed_peer_is_the_end_of_file(pair):
    """No waiting for one who is gone, even in the middle of a frame."""
    ours, theirs = pair
    ours.sendall(b"\x01\x00")
    ours.close()
    with pytest.raises(EOFError):
        wire.receive(theirs, time.monotonic() + 5)


def test_a_slow_drip_of_bytes_ends_at_the_deadline(pair):
    """One deadline per frame: a byte every 50 ms does not keep the reader."""
    ours, theirs = pair
    stop = threading.Event()

    def drip():
        ours.sendall(struct.pack("<II", 1000, 0))
        while not stop.wait(0.05):
            ours.sendall(b" ")

    thread = threading.Thread(target=drip)
    thread.start()
    start = time.monotonic()
    try:
        with pytest.raises(TimeoutError):
            wire.receive(theirs, start + 0.5)
    finally:
        stop.set()
        thread.join()
    assert 0.4 < time.monotonic() - start < 5


def test_a_deadline_that_has_passed_times_out_at_once(pair):
    """Also for a reader who would find something."""
    ours, theirs = pair
    wire.send(ours, {})
    with pytest.raises(TimeoutError):
        wire.receive(theirs, time.monotonic() - 1)


@pytest.mark.parametrize("lengths", [(2**31, 0), (2, 2**32 - 1)])
def test_a_huge_frame_is_refused_before_it_is_read(pair, lengths):
    """The lengths decide; nothing of that size is allocated."""
    ours, theirs = pair
    ours.sendall(struct.pack("<II", *lengths))
    with pytest.raises(wire.WireError, match="too large"):
        wire.receive(theirs, time.monotonic() + 5)


def test_a_frame_that_is_too_large_is_not_sent(pair):
    """The sender hears of it first."""
    with pytest.raises(wire.WireError, match="too large"):
        wire.send(pair[0], {"a": "x" * wire.MAX_HEAD})


@pytest.mark.parametrize("text", [b"[" * 500_000, b'{"a":' * 100 + b"1" + b"}" * 100])
def test_deep_json_is_refused_without_recursion(text):
    """A million brackets are counted, not parsed."""
    with pytest.raises(wire.WireError, match="nested deeper"):
        wire.parse_head(text)


def test_brackets_inside_strings_do_not_count():
    """A string of brackets is a string."""
    assert wire.parse_head(json.dumps({"a": "[" * 100 + '\\"'}).encode()) == {"a": "[" * 100 + '\\"'}


@pytest.mark.parametrize("text", [b"no", b"[1]", b'{"a": ' + b"9" * 5000 + b"}", b"\xff"])
def test_heads_that_are_no_json_object_are_refused(text):
    """Including a number that Python would take seconds to read."""
    with pytest.raises(wire.WireError):
        wire.parse_head(text)


@pytest.mark.parametrize(
    "form",
    [{"T": "missing"}, {"T": [1]}, {"f": "x"}, {"d": [[{"l": []}, 1]]}, {"d": [[1]]}, [1], {"unknown": 1}, {"t": 3}],
)
def test_forms_that_are_no_value_are_refused(form):
    """One kind of error, whatever is wrong."""
    with pytest.raises(wire.WireError):
        wire.decode(form, b"")


def test_a_broken_blob_is_refused():
    """Nothing is unpickled; nonsense stays nonsense."""
    with pytest.raises(wire.WireError, match="not a value"):
        wire.decode({"T": "t0"}, b"\x80\x04garbage")


def test_the_name_of_an_opaque_value_is_cut():
    """A class may carry any name; at most 80 characters of it travel."""
    assert len(wire.decode({"?": "x" * 10_000}, b"").kind) == wire.MAX_NAME
