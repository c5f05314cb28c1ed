"""Plain data over a socket: a JSON head and a safetensors blob, never pickle.

Frame: two little-endian uint32 lengths, the head, the blob. Both lengths are checked before a byte of
either is read. One deadline covers a whole frame, so a slow drip of bytes cannot hold the reader.
Values: None, bool, int, float, str, list, tuple, dict and plain tensors of every dtype safetensors knows.
Anything else travels as `{"?": type name}` and decodes to `Opaque`, which equals nothing; or as a number that stands
for it, `{"H": …}` an object kept by the runner and `{"S": …}` a function served by the judge, where a caller says so.
"""

import json
import math
import re
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load as load_blob
from safetensors.torch import save as save_blob

MAX_HEAD = 1 << 20
MAX_BLOB = 256 << 20
MAX_DEPTH = 40
MAX_NAME = 80
_LENGTHS = struct.Struct("<II")
# Possessive, and content with a string that never ends: a hostile text costs one pass, not one pass per quote.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class WireError(Exception):
    """The other end sent something that is not a frame of ours, or would not fit."""


class Opaque:
    """Stands for a returned object that is not plain data; `kind` is what the sender calls it. Equal to nothing."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.kind}, which is not plain data>"


# --- frames -----------------------------------------------------------------------------------------


def send(sock: socket.socket, head: dict, blob: bytes = b"", deadline: float | None = None) -> None:
    """Write one frame; `deadline` is a time.monotonic() value for the whole of it."""
    text = json.dumps(head, allow_nan=False).encode()
    if len(text) > MAX_HEAD or len(blob) > MAX_BLOB:
        raise WireError(f"frame too large: head {len(text)} of {MAX_HEAD} bytes, blob {len(blob)} of {MAX_BLOB} bytes")
    sock.settimeout(_left(deadline))
    sock.sendall(_LENGTHS.pack(len(text), len(blob)) + text)
    if blob:
        sock.settimeout(_left(deadline))
        sock.sendall(blob)


def receive(sock: socket.socket, deadline: float | None = None) -> tuple[dict, bytes]:
    """Read one frame. TimeoutError past the deadline, EOFError when the peer is gone, WireError on nonsense."""
    head_size, blob_size = _LENGTHS.unpack(_exactly(sock, _LENGTHS.size, deadline))
    if head_size > MAX_HEAD or blob_size > MAX_BLOB:
        raise WireError(f"frame too large: head {head_size}, blob {blob_size} bytes")
    text = _exactly(sock, head_size, deadline)
    blob = _exactly(sock, blob_size, deadline)
    return parse_head(text), blob


def parse_head(text: bytes) -> dict:
    """JSON object of limited depth; the depth is counted before the parser recurses."""
    depth = deepest = 0
    for bracket in _BRACKET.finditer(_STRING.sub(b"", text)):
        depth += 1 if bracket[0] in b"[{" else -1
        deepest = max(deepest, depth)
        if deepest > MAX_DEPTH:
            raise WireError(f"nested deeper than {MAX_DEPTH} levels")
    try:
        head = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as problem:
        raise WireError(f"not JSON: {type(problem).__name__}") from None
    if not isinstance(head, dict):
        raise WireError("the head is not an object")
    return head


def _refuse_constant(name: str) -> float:
    """A NaN of JSON's parser is a new object each time, so a dict could hold two; ours is `{"f": "nan"}`."""
    raise WireError(f"{name} is not JSON")


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline")
    return left


def _exactly(sock: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        sock.settimeout(_left(deadline))
        chunk = sock.recv(min(1 << 20, size - len(parts)))
        if not chunk:
            raise EOFError("the other end closed the connection")
        parts += chunk
    return bytes(parts)


# --- values -----------------------------------------------------------------------------------------


def opaque(value: Any) -> dict:
    """What is sent of an object that is not plain data: its type's name."""
    return {"?": type(value).__name__[:MAX_NAME]}


def encode(value: Any, other: Callable[[Any], dict] = opaque) -> tuple[Any, bytes]:
    """A JSON-able form of `value` and the blob that holds its tensors; `other` says what is sent of an object."""
    tensors: dict[str, torch.Tensor] = {}
    form = _Encoder(tensors, other).encode(value, 0)
    return form, save_blob(tensors) if tensors else b""


def decode(form: Any, blob: bytes, *, trusted: bool = False, other: Callable[[dict], Any] | None = None) -> Any:
    """The value that `encode` was given; `other` makes something of `{"H": …}` and `{"S": …}`, else they are nonsense.

    `trusted=True` (in the runner, reading the judge) restores strides and requires_grad, so that a
    non-contiguous case arrives non-contiguous; a reply's strides are never honoured.
    """
    try:
        tensors = load_blob(blob) if blob else {}
        return _Decoder(tensors, trusted, other).decode(form)
    except WireError:
        raise
    except Exception as problem:
        raise WireError(f"not a value: {type(problem).__name__}") from None


class _Encoder:
    """Takes a value apart; tensors go into `tensors`."""

    def __init__(self, tensors: dict[str, torch.Tensor], other: Callable[[Any], dict]) -> None:
        self.tensors, self.other = tensors, other

    def encode(self, value: Any, depth: int) -> Any:
        # Two levels of JSON per level of nesting; the rest of MAX_DEPTH is for the frame around it.
        if depth > (MAX_DEPTH - 6) // 3:
            return {"?": "value nested too deeply"}
        kind = type(value)
        if value is None or kind is bool or kind is int or kind is str:
            return value
        if kind is float:
            return value if math.isfinite(value) else {"f": repr(value)}
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            return self.tensor(value)
        if isinstance(value, tuple):  # a NamedTuple too: its fields are compared in order
            return {"t": [self.encode(item, depth + 1) for item in value]}
        if kind is list:
            return {"l": [self.encode(item, depth + 1) for item in value]}
        if kind is dict:
            return {"d": [[self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in value.items()]}
        return self.other(value)

    def tensor(self, value: torch.Tensor) -> Any:
        if value.layout is not torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            about = f"tensor with layout {value.layout}, device {value.device.type}, dtype {value.dtype}"
            return {"?": about[:MAX_NAME]}
        name = f"t{len(self.tensors)}"
        plain = value.detach().cpu()
        form: dict[str, Any] = {"T": name}
        if not plain.is_contiguous() and 0 not in plain.stride():  # an expanded tensor travels as a full one
            form["strides"] = list(plain.stride())
        if value.requires_grad:
            form["grad"] = True
        # A copy of its own: safetensors refuses tensors that share memory, such as an input returned twice.
        self.tensors[name] = plain.contiguous().clone()
        return form


class _Decoder:
    """Puts a value together from its form and its tensors."""

    def __init__(
        self, tensors: dict[str, torch.Tensor], trusted: bool, other: Callable[[dict], Any] | None = None
    ) -> None:
        self.tensors, self.trusted, self.other = tensors, trusted, other

    def decode(self, form: Any) -> Any:
        if not isinstance(form, dict):
            if isinstance(form, list):
                raise WireError("a bare list is not a value")
            return form
        if "T" in form:
            return self.tensor(form, self.tensors[form["T"]])
        if "f" in form:
            return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[form["f"]]
        if "t" in form:
            return tuple(self.decode(item) for item in form["t"])
        if "l" in form:
            return [self.decode(item) for item in form["l"]]
        if "d" in form:
            return {self.decode(key): self.decode(item) for key, item in form["d"]}
        if "?" in form:
            return Opaque(str(form["?"])[:MAX_NAME])
        if self.other is not None and ("H" in form or "S" in form):
            return self.other(form)
        raise WireError("unknown tag")

    def tensor(self, form: dict, plain: torch.Tensor) -> torch.Tensor:
        if plain.is_complex():
            raise WireError("a complex tensor, which nobody of ours sends")
        if plain.dtype is torch.bool:  # a byte that is neither 0 nor 1 would be both in comparisons
            plain = plain.view(torch.uint8) != 0
        if self.trusted and "strides" in form:
            plain = torch.empty_strided(plain.shape, form["strides"], dtype=plain.dtype).copy_(plain)
        return plain.requires_grad_() if self.trusted and form.get("grad") else plain
