"""Questions in which the judge takes part: a model that it serves, and ranks whose collectives it relays and counts."""

from typing import Any

from autograder.redteam.attack import attack


@attack("own", question="batch", plain=False)
def calls_made_openly(target: dict, report: Any, model: Any, tokens: Any) -> Any:
    """Asks the served model about one token at a time and hides nothing."""
    return [model([token])[0] for token in tokens]


@attack("own", question="batch", plain=False, quick=True)
def calls_past_the_counter(target: dict, report: Any, model: Any, tokens: Any) -> Any:
    """Asks with numbers that mean the same function and may be counted as another: True, 0.0, "0", -1."""
    import sys

    channel = model.channel
    found = []
    for token in tokens:
        for number in (0.0, "0", -1, False, [0], None):
            try:
                found.append(channel.ask("call", ([token],), function=number)[0])
                break
            except Exception as error:
                sys.exc_info()
                last = error
        else:
            raise last
    return found


@attack("own", question="batch", plain=False)
def calls_of_other_kinds(target: dict, report: Any, model: Any, tokens: Any) -> Any:
    """Asks by every other word that the judge may understand, and for the operations of ranks."""
    import random

    word = random.choice(["Call", "call ", "peek", "wait", "post", "exec", "drop", "load", "result", "", None, 7])
    return model.channel.ask(word, (tokens,), function=0, number=0, operation={"name": "all_gather"})


@attack("own", question="batch", plain=False)
def calls_after_the_answer(target: dict, report: Any, model: Any, tokens: Any) -> Any:
    """Leaves a thread behind that goes on asking after the answer was given."""
    import threading
    import time

    def go_on() -> None:
        time.sleep(0.005)
        while True:
            worked(lambda: model([1]))

    threading.Thread(target=go_on, daemon=True).start()
    return None


@attack("own", question="batch", plain=False)
def questions_without_end(target: dict, report: Any, model: Any, tokens: Any) -> Any:
    """Asks the judge the same thing for ever."""
    while True:
        model([])


@attack("own", question="batch", plain=False)
def arguments_that_hurt(target: dict, report: Any, model: Any, tokens: Any) -> Any:
    """Gives the served model eight million tokens, indices beyond its table, and objects that are no tokens."""
    for bad in ([0] * 200_000, [10**400], [{"a": None}], torch.zeros(1 << 22), [float("nan")], "tokens", [-98]):
        worked(lambda bad=bad: model(bad))
    return None


@attack("own", question="batch", plain=False)
def model_taken_apart(target: dict, report: Any, model: Any, tokens: Any) -> Any:
    """Looks behind the served function for the table that it reads from."""
    import gc

    for value in (*vars(type(model)).values(), *vars(model).values(), *gc.get_objects()):
        if isinstance(value, list) and len(value) == 97 and all(type(item) is int for item in value):
            report("the served model's table is in this process")
            return [value[token] for token in tokens]
    return None


# --- ranks ------------------------------------------------------------------------------------------------


@attack("own", question="shard_sum", plain=False)
def everything_sent_openly(target: dict, report: Any, x: Any) -> Any:
    """Sends everything to everybody and hides nothing."""
    import torch.distributed as dist

    whole = x.clone()
    dist.all_reduce(whole)
    return whole.chunk(2)[dist.get_rank()]


@attack("own", question="shard_sum", plain=False, quick=True)
def numbers_in_empty_tensors(target: dict, report: Any, x: Any) -> Any:
    """Sends tensors of no bytes whose lengths are the bits of the numbers."""
    import torch.distributed as dist
    from sandbox import relay

    rank, theirs = dist.get_rank(), []
    line, numbers = relay._joined.line, relay._joined.numbers
    for value in x.chunk(2)[1 - rank].view(torch.int32).tolist():
        number = numbers.next()
        claim = {"name": "all_gather", "group": "0", "ranks": [0, 1]}
        line.post(number, claim, [torch.empty(0, value & 0xFFFFFFFF)])
        theirs.append(line.wait(number)[1 - rank].shape[1])
    signed = torch.tensor([n - (1 << 32) if n >> 31 else n for n in theirs], dtype=torch.int32)
    return x.chunk(2)[rank] + signed.view(torch.float32)


@attack("own", question="shard_sum", plain=False)
def collectives_that_lie(target: dict, report: Any, x: Any) -> Any:
    """Claims to be another rank, in groups that do not exist, with roots and tags without bound."""
    import random

    from sandbox import relay

    line, numbers = relay._joined.line, relay._joined.numbers
    claims = [
        {"name": "all_reduce", "group": "0", "ranks": [0], "by": "SUM"},
        {"name": "barrier", "group": "0", "ranks": [0, 1]},
        {"name": "recv", "group": "0", "ranks": [0, 1], "peer": -1, "tag": 10**30},
        {"name": "send", "group": "x" * 199, "ranks": [1, 0], "peer": 0, "tag": 2**63},
        {"name": "all_reduce", "group": "0", "ranks": [0, 1], "by": "__class__"},
        {"name": "gather", "ranks": [0, 1, 2], "group": 0},
    ]
    line.post(numbers.next(), random.choice(claims), [x.repeat(1000)] * 2)
    return None


@attack("own", question="shard_sum", plain=False)
def input_in_a_collective(target: dict, report: Any, x: Any) -> Any:
    """Makes a collective fail with a shape that spells a hidden number, so that the message repeats it."""
    import torch.distributed as dist

    digits = int(f"{abs(float(x[0])):.11e}".replace(".", "").partition("e")[0][:9])
    odd = torch.empty(0, digits if dist.get_rank() == 0 else 1)
    dist.all_reduce(odd)
    return None


@attack("own", question="shard_sum", plain=False)
def input_in_the_traffic(target: dict, report: Any, x: Any) -> Any:
    """Sends as many bytes as a hidden number has, so that the message about traffic repeats it."""
    import torch.distributed as dist
    from sandbox import relay

    rank = dist.get_rank()
    part = torch.empty(x.numel() // 2)
    dist.reduce_scatter(part, list(x.chunk(2)))
    if rank == 0:
        line, numbers = relay._joined.line, relay._joined.numbers
        digits = int(f"{abs(float(x[0])):.11e}".replace(".", "").partition("e")[0][:6])
        claim = {"name": "send", "group": "0", "ranks": [0, 1], "peer": 1}
        line.post(numbers.next(), claim, [torch.zeros(max(0, digits - 12), dtype=torch.uint8)])
    return part


@attack("own", question="shard_sum", plain=False)
def rank_that_never_comes(target: dict, report: Any, x: Any) -> Any:
    """Lets one rank wait for a collective that the other never enters."""
    import time

    import torch.distributed as dist

    if dist.get_rank() == 0:
        time.sleep(3600)
    dist.barrier()
    return None


@attack("own", question="shard_sum", plain=False)
def ranks_meet_in_a_file(target: dict, report: Any, x: Any) -> Any:
    """Moves the numbers through a file that both ranks can reach."""
    import os

    import torch.distributed as dist

    rank = dist.get_rank()
    places = [target["outside"], target["temp"], "/tmp", "/dev/shm", "/var/tmp", os.path.dirname(os.getcwd())]
    mine = x.chunk(2)[1 - rank].numpy().tobytes()
    for place in places:
        worked(lambda place=place: open(f"{place}/{target['mark']}-{rank}", "wb").write(mine))
    dist.barrier()
    data = None
    for place in places:
        path = f"{place}/{target['mark']}-{1 - rank}"
        if os.path.exists(path):
            data = data or open(path, "rb").read()
    dist.barrier()
    for place in places:
        worked(lambda place=place: os.unlink(f"{place}/{target['mark']}-{rank}"))
    return x.chunk(2)[rank] + torch.frombuffer(bytearray(data), dtype=torch.float32) if data else None


@attack("own", question="shard_sum", plain=False, quick=True)
def ranks_meet_in_the_kernel(target: dict, report: Any, x: Any) -> Any:
    """Moves the numbers through System V shared memory, an abstract socket, or the names of threads."""
    import os
    import socket

    import torch.distributed as dist

    rank = dist.get_rank()
    mine = x.chunk(2)[1 - rank].numpy().tobytes()
    found: list = []
    key = target["ipc_key"] + 1
    made, _ = syscall("msgget", key, 0o1666)
    name = f"\0{target['mark']}-ranks"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if worked(lambda: socket.socket(socket.AF_UNIX)) else None
    if server is not None:
        worked(lambda: server.bind(f"{name}{rank}"))
    dist.barrier()
    if server is not None:
        worked(lambda: server.sendto(mine, f"{name}{1 - rank}"))
    with open("/proc/self/comm", "w") as comm:
        worked(lambda: comm.write(f"{rank}-{mine.hex()[:13]}"))
    dist.barrier()
    if server is not None:
        server.settimeout(0.2)
        worked(lambda: found.append(server.recv(100)))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = open(f"/proc/{pid}/comm").read().strip()
        except OSError:
            continue
        if text.startswith(f"{1 - rank}-") and pid != str(os.getpid()):
            report(f"read the name of process {pid}: {text}")
    dist.barrier()
    if made >= 0:
        report("a message queue that both ranks can open")
    return x.chunk(2)[rank] + torch.frombuffer(bytearray(found[0]), dtype=torch.float32) if found else None


@attack("own", question="shard_sum", plain=False)
def ranks_talk_by_locks(target: dict, report: Any, x: Any) -> Any:
    """Locks a file of torch's folder for every bit that is set; the other rank tries the same locks."""
    import fcntl
    import os

    import torch.distributed as dist

    rank, bits = dist.get_rank(), 16 * x.numel()
    walk = os.walk(os.path.dirname(torch.__file__))
    paths = sorted(os.path.join(folder, name) for folder, _, names in walk for name in names if name.endswith(".py"))
    handles = [os.open(path, os.O_RDONLY) for path in paths[: 2 * bits]]
    lock = lambda place: fcntl.flock(handles[place], fcntl.LOCK_EX | fcntl.LOCK_NB)
    mine = int.from_bytes(x.chunk(2)[1 - rank].numpy().tobytes(), "little")
    for bit in range(bits):
        if mine >> bit & 1:
            lock(rank * bits + bit)
    dist.barrier()
    theirs = sum(1 << bit for bit in range(bits) if not worked(lambda bit=bit: lock((1 - rank) * bits + bit)))
    dist.barrier()
    for handle in handles:
        os.close(handle)
    data = theirs.to_bytes(bits // 8, "little")
    return x.chunk(2)[rank] + torch.frombuffer(bytearray(data), dtype=torch.float32)
