"""Hostile inputs for `autograder fuzz`: frames and notebooks, changed where it hurts.

Every function takes a `random.Random` and gives bytes, so that a seed repeats a run. Most changes know the format (they
swap types inside the JSON, move offsets in a safetensors header); the others cut, repeat and flip bytes.
"""

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Path = list[int | str]
HUGE = 10**400
ODD: list[Any] = [
    None, True, 0, -1, 2**31, 2**63, -(2**63) - 1, HUGE, 1e308, 0.5, float("nan"), float("inf"), "", "x" * 300,
    "\ud800", "\x00", "t0", "nan", "𝕏", [], [[]], {}, [0] * 300, {"T": "t0"}, {"T": "t999"}, {"T": ["t0"]}, {"T": {}},
    {"T": "t0", "strides": [-1, 2**62], "grad": True}, {"f": "nan"}, {"f": {}}, {"f": []}, {"t": 5}, {"t": "abc"},
    {"t": {"l": []}}, {"l": None}, {"l": {"T": "t0"}}, {"d": [[1]]}, {"d": [[{"l": []}, 1]]}, {"d": {"a": 1}},
    {"d": [[{"f": "nan"}, 1], [{"f": "nan"}, 2]]}, {"d": [["k", 1, 2]]}, {"?": {"?": 1}}, {"?": "y" * 500}, {"??": 1},
    {"grade_id": ["x"]}, {"nbgrader": {}}, {"nbgrader": []}, {"nbgrader": {"grade_id": {}, "grade": True}},
]  # fmt: skip
TOKENS = [
    b'"', b"\\", b'\\"', b"[", b"]", b"{", b"}", b":", b",", b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 4400,
    b"\\ud800", b"\xff\xfe", b"\x00", b'{"T":"t0"}', b'"a":1,"a":2,', b"[" * 70, b'{"a":' * 70, b"//", b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
]  # fmt: skip
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E8M0",
    "F4",
    "C64",
    "U16",
    "X",
    "",
    None,
    7,
]


def odd(rng: random.Random) -> Any:
    """One of them, a copy of its own: later changes may reach into it."""
    return copy.deepcopy(rng.choice(ODD))


# --- JSON ---------------------------------------------------------------------------------------------


def changed_json(rng: random.Random, value: Any, times: int = 3) -> Any:
    """A copy with up to `times` nodes replaced, removed, repeated, swapped or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, times)):
        places = list(nodes(value))
        if not places:
            return odd(rng)
        parent, key = rng.choice(places)
        change(rng, parent, key, places)
    return value


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every node below the root."""
    todo = [value]
    while todo:
        node = todo.pop()
        keys: Any = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            yield node, key
            todo.append(node[key])


def change(rng: random.Random, parent: Any, key: Any, places: Sequence[tuple[Any, Any]]) -> None:
    match rng.randrange(7):
        case 0 | 1:
            parent[key] = odd(rng)
        case 2:
            del parent[key]
        case 3:
            other, name = rng.choice(places)
            parent[key] = copy.deepcopy(other[name]) if holds(other, name) else None
        case 4:
            parent[key] = wrapped(rng, parent[key])
        case 5 if isinstance(parent, dict):
            parent[str(odd(rng))[:40]] = parent.pop(key)
        case 5:
            parent.insert(key, copy.deepcopy(parent[key]))
        case 6:
            parent[key] = (
                str(parent[key])
                if rng.random() < 0.5
                else [copy.deepcopy(parent[key]) for _ in range(rng.randint(0, 3))]
            )


def holds(parent: Any, key: Any) -> bool:
    """Whether an earlier change left this node in place."""
    return key in parent if isinstance(parent, dict) else key < len(parent)


def wrapped(rng: random.Random, value: Any) -> Any:
    """The value at the bottom of many lists or tagged values."""
    tag = rng.choice(["", "l", "t", "a"])
    for _ in range(rng.choice([1, 5, 15, 19, 30, 80])):
        value = {tag: [value]} if tag else [value]
    return value


def text_of(rng: random.Random, value: Any) -> bytes:
    """JSON, now and then with bytes that are no UTF-8 or with white space."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8, indent=rng.choice([None, None, 1]))
    return text.encode("utf-8", "surrogatepass")


# --- bytes --------------------------------------------------------------------------------------------


def changed_bytes(rng: random.Random, data: bytes, times: int = 4) -> bytes:
    """A copy with up to `times` cuts, flips, repeats and inserted tokens."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, times)):
        at = rng.randint(0, len(changed))
        end = min(len(changed), at + rng.choice([1, 1, 2, 8, 64, 1000]))
        match rng.randrange(6):
            case 0:
                del changed[at:end]
            case 1:
                changed[at:at] = rng.choice(TOKENS)
            case 2:
                changed[at:at] = changed[at:end] * rng.choice([1, 2, 50])
            case 3 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 4:
                changed[at:end] = rng.randbytes(end - at)
            case 5:
                changed[at:end] = rng.choice(TOKENS)
    return bytes(changed)


# --- frames -------------------------------------------------------------------------------------------


def frame(head: bytes, blob: bytes, lengths: tuple[int, int] | None = None) -> bytes:
    """Head and blob with their lengths in front, or with other lengths."""
    told = lengths or (len(head), len(blob))
    return struct.pack("<II", *told) + head + blob


def split(data: bytes) -> tuple[Any, bytes]:
    """(head, blob) of a good frame."""
    head, _ = struct.unpack_from("<II", data)
    return json.loads(data[8 : 8 + head]), data[8 + head :]


def hostile_frame(rng: random.Random, seed: bytes) -> bytes:
    """One frame made from a good one: in the head, in the blob, in the lengths, or anywhere."""
    head, blob = split(seed)
    kind = rng.randrange(6)
    if kind <= 1:
        return frame(text_of(rng, changed_json(rng, head)), blob)
    if kind == 2 and blob:
        return frame(text_of(rng, head), hostile_blob(rng, blob))
    if kind == 3:
        return frame(changed_bytes(rng, text_of(rng, head)), blob)
    if kind == 4:
        lies = [0, 1, len(blob), 2**20, 2**20 + 1, 2**28, 2**28 + 1, 2**31, 2**32 - 1]
        return frame(text_of(rng, head), blob, (rng.choice(lies), rng.choice(lies)))
    return changed_bytes(rng, seed)


def hostile_blob(rng: random.Random, blob: bytes) -> bytes:
    """A safetensors file whose header lies: offsets, types, shapes, sizes."""
    size = struct.unpack_from("<Q", blob)[0]
    header, data = json.loads(blob[8 : 8 + size]), blob[8 + size :]
    if rng.random() < 0.15:
        return changed_bytes(rng, blob)
    for _ in range(rng.randint(1, 3)):
        tell_a_lie(rng, header, len(data))
    text = text_of(rng, header)
    told = len(text) if rng.random() < 0.85 else rng.choice([0, 1, size, 2**20, 2**63, 2**64 - 1, len(text) + 1])
    return struct.pack("<Q", told) + text + (data if rng.random() < 0.8 else data * rng.choice([0, 2]))


def tell_a_lie(rng: random.Random, header: dict[str, Any], size: int) -> None:
    name = rng.choice(list(header) or ["t0"])
    entry = header.get(name)
    if not isinstance(entry, dict):
        entry = header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    somewhere = [0, -1, 1, size, size + 1, 2**32, 2**63, 2**64, HUGE]
    lies: list[Callable[[], Any]] = [
        lambda: entry.update(dtype=rng.choice(DTYPES)),
        lambda: entry.update(
            shape=rng.choice([[], [0], [-1], [2**62], [2**31] * 3, [0, 2**62], "4", None, [1.5], [[2]]])
        ),
        lambda: entry.update(data_offsets=[rng.choice(somewhere), rng.choice(somewhere)]),
        lambda: entry.update(data_offsets=rng.choice([[], [0], [0, 4, 8], None, "0"])),
        lambda: header.update({rng.choice(["t0", "t7", "\ud800", "", "a" * 5000]): dict(entry)}),
        lambda: header.update(__metadata__=rng.choice([{}, {"a": "b" * 9000}, {"a": 1}, [], None])),
        lambda: header.pop(name),
        lambda: entry.pop(rng.choice(list(entry) or ["dtype"]), None),
        lambda: header.update({f"n{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200)}),
    ]
    rng.choice(lies)()


# --- notebooks ----------------------------------------------------------------------------------------


def hostile_notebook(rng: random.Random, seed: bytes) -> bytes:
    """One notebook made from a good one: its cells shuffled and spoilt, its JSON or its bytes changed."""
    kind = rng.randrange(5)
    if kind == 4:
        return changed_bytes(rng, seed)
    notebook = json.loads(seed)
    if kind <= 1:
        for _ in range(rng.randint(1, 4)):
            spoil_cells(rng, notebook["cells"])
    if kind >= 1:
        notebook = changed_json(rng, notebook)
    return text_of(rng, notebook)


def spoil_cells(rng: random.Random, cells: list[Any]) -> None:
    """What editors, accidents and students do to cells, and what only malice does."""
    if not cells:
        return
    at = rng.randrange(len(cells))
    cell = cells[at]
    metadata = cell.get("metadata") if isinstance(cell, dict) else None
    match rng.randrange(10):
        case 0:
            del cells[at]
        case 1:
            cells.insert(rng.randrange(len(cells) + 1), copy.deepcopy(cell))
        case 2:
            rng.shuffle(cells)
        case 3 if isinstance(metadata, dict):
            metadata["nbgrader"] = odd(rng)
        case 4 if isinstance(metadata, dict) and isinstance(metadata.get("nbgrader"), dict):
            metadata["nbgrader"][rng.choice(["grade_id", "grade", "solution", "points", "cell_type"])] = odd(rng)
        case 5 if isinstance(cell, dict):
            cell.pop(rng.choice(list(cell) or ["id"]), None)
        case 6 if isinstance(cell, dict):
            cell["source"] = rng.choice(
                ["%%time\nx", "!ls", "x?", "%matplotlib", "\x00", "(" * 300, ["a", "b"], 7, "\ud800"]
            )
        case 7 if isinstance(cell, dict):
            cell["cell_type"] = rng.choice(["code", "markdown", "raw", "heading", 3])
        case 8 if isinstance(cell, dict):
            cell["id"] = rng.choice(
                ["same", "", "x" * 65, "ü", cells[0].get("id") if isinstance(cells[0], dict) else 1]
            )
        case 9 if isinstance(cell, dict):
            cell["metadata"] = {"big": "x" * 20_000, "deep": wrapped(rng, 1)}
