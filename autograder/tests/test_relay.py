"""Programs on several ranks: the hub matches, computes and counts; the same in threads and in sandboxed processes."""

import re
import threading
import time

import pytest
import torch

from autograder import Case, Traffic
from autograder.checks import examine
from autograder.hub import MAX_HELD, Hub, HubError
from autograder.student import AnswerInPlace
from autograder.tests.kinds import SEED, declared, defined, everywhere, first_case, judged

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # torch 2.13 renames collectives


class Three:
    """The answer on three ranks, given its own row."""

    ranks = 3

    def cases(self, rng):
        yield Case("rows", torch.arange(18.0).reshape(3, 6))

    def drive(self, answer, case):
        import torch.distributed as dist

        return answer(case.args[0][dist.get_rank()])


def run(zygote, source, seconds=5.0, spec=Three):
    """The outcome of `answer` in threads, and in the judge."""
    asked = declared(spec)
    case = first_case(asked)
    here = AnswerInPlace(defined(source)).call(asked, case)
    with judged(zygote, source, seconds) as runner:
        return here, runner.call(asked, case)


ROWS = torch.arange(18.0).reshape(3, 6)
COLLECTIVES = {
    "all_reduce": ("dist.all_reduce(x)\n    return x", [ROWS.sum(0)] * 3, 32),
    "all_reduce, maximum": ("dist.all_reduce(x, op=dist.ReduceOp.MAX)\n    return x", [ROWS[2]] * 3, 32),
    "all_reduce, mean": ("dist.all_reduce(x, op=dist.ReduceOp.AVG)\n    return x", [ROWS.mean(0)] * 3, 32),
    "all_reduce, later": ("w = dist.all_reduce(x, async_op=True)\n    w.wait()\n    return x", [ROWS.sum(0)] * 3, 32),
    "reduce": ("dist.reduce(x, 1)\n    return x", [ROWS[0], ROWS.sum(0), ROWS[2]], 24),
    "broadcast": ("dist.broadcast(x, 2)\n    return x", [ROWS[2]] * 3, 24),
    "all_gather": (
        "out = [torch.empty(6) for _ in range(3)]\n    dist.all_gather(out, x)\n    return torch.stack(out)",
        [ROWS] * 3, 48,
    ),
    "all_gather_into_tensor": (
        "out = torch.empty(3, 6)\n    dist.all_gather_into_tensor(out, x)\n    return out", [ROWS] * 3, 48,
    ),
    "reduce_scatter": (
        "out = torch.empty(2)\n    dist.reduce_scatter(out, list(x.split(2)))\n    return out",
        list(ROWS.sum(0).split(2)), 16,
    ),
    "reduce_scatter_tensor": (
        "out = torch.empty(2)\n    dist.reduce_scatter_tensor(out, x)\n    return out", list(ROWS.sum(0).split(2)), 16,
    ),
    "all_to_all": (
        "out = list(torch.empty(3, 2))\n    dist.all_to_all(out, list(x.split(2)))\n    return torch.cat(out)",
        [torch.cat([row[2 * r : 2 * r + 2] for row in ROWS]) for r in range(3)], 16,
    ),
    "all_to_all_single": (
        "out = torch.empty(6)\n    dist.all_to_all_single(out, x)\n    return out",
        [torch.cat([row[2 * r : 2 * r + 2] for row in ROWS]) for r in range(3)], 16,
    ),
    "all_to_all_single, uneven": (
        "r = dist.get_rank()\n    out = torch.empty(3 * (r + 1))\n"
        "    dist.all_to_all_single(out, x, [r + 1] * 3, [1, 2, 3])\n    return out",
        [torch.cat([row[a:b] for row in ROWS]) for a, b in ((0, 1), (1, 3), (3, 6))], 20,
    ),
    "gather": (
        "out = [torch.empty(6) for _ in range(3)] if dist.get_rank() == 1 else None\n"
        "    dist.gather(x, out, dst=1)\n    return torch.stack(out) if out else x",
        [ROWS[0], ROWS, ROWS[2]], 24,
    ),
    "scatter": (
        "out = torch.empty(2)\n    dist.scatter(out, list(x.split(2)) if dist.get_rank() == 0 else None, src=0)\n"
        "    return out",
        list(ROWS[0].split(2)), 16,
    ),
    "a ring": (
        "out, r = torch.empty(6), dist.get_rank()\n    ops = [dist.P2POp(dist.isend, x, (r + 1) % 3),"
        " dist.P2POp(dist.irecv, out, (r - 1) % 3)]\n    for w in dist.batch_isend_irecv(ops):\n        w.wait()\n"
        "    return out",
        [ROWS[2], ROWS[0], ROWS[1]], 24,
    ),
    "receive first, send later": (
        "out, r = torch.empty(6), dist.get_rank()\n    w = dist.irecv(out, (r - 1) % 3)\n"
        "    dist.send(x, (r + 1) % 3)\n    w.wait()\n    return out",
        [ROWS[2], ROWS[0], ROWS[1]], 24,
    ),
    "a subgroup": (
        "group = dist.new_group([0, 2])\n    if dist.get_rank() != 1:\n        dist.all_reduce(x, group=group)\n"
        "    return x",
        [ROWS[0] + ROWS[2], ROWS[1], ROWS[0] + ROWS[2]], 24,
    ),
    "a barrier": ("dist.barrier()\n    return x", list(ROWS), 0),
}  # fmt: skip


@pytest.mark.parametrize(("body", "want", "sent"), COLLECTIVES.values(), ids=COLLECTIVES)
def test_a_collective_gives_what_torch_says_and_is_counted(zygote, body, want, sent):
    """In threads and in processes: the same numbers, and the same bytes on the busiest rank (6 floats are 24)."""
    for outcome in run(zygote, f"def answer(x):\n    {body}"):
        assert outcome.error == "", outcome.message
        assert all(torch.equal(a, b) for a, b in zip(outcome.value, want, strict=True))
        assert max(sum(tally.bytes.values()) for tally in outcome.seen.ranks) == pytest.approx(sent)


BROKEN = {
    "other collectives": (
        "dist.barrier() if dist.get_rank() == 1 else dist.all_reduce(x)",
        r"collective 1 does not match: rank \d calls (all_reduce by SUM|barrier), rank \d calls",
    ),
    "other roots": ("dist.broadcast(x, dist.get_rank() // 2)", r"broadcast with root 1"),
    "other shapes": (
        "dist.all_reduce(x[: 4 + dist.get_rank()])",
        r"rank 0 brings shape \(4,\) torch.float32, rank 1 brings",
    ),
    "one rank leaves early": (
        "dist.barrier() if dist.get_rank() else None",
        r"deadlock: rank 1 waits in barrier; rank 2 waits in barrier; rank 0 has finished",
    ),
    "everybody receives": (
        "dist.recv(x, (dist.get_rank() + 1) % 3)",
        r"deadlock: rank 0 waits in recv from rank 1; rank 1 waits in recv from rank 2; rank 2 waits in recv from",
    ),
    "an output of another size": ("dist.recv(x[:1], 0) if dist.get_rank() else [dist.send(x, 1), dist.send(x, 2)]", ""),
}


@pytest.mark.parametrize(("body", "says"), BROKEN.values(), ids=BROKEN)
def test_a_program_that_can_not_go_on_is_stopped_at_once_with_rank_and_operation(zygote, body, says):
    """Long before the deadline, and in the judge's words."""
    start = time.monotonic()
    here, there = run(zygote, f"def answer(x):\n    {body}\n    return x")
    assert time.monotonic() - start < 4
    assert here.error == there.error == "RelayError"
    for outcome in (here, there) if says else ():
        assert re.search(says, outcome.message), outcome.message


def test_the_error_of_one_rank_speaks_for_all(zygote):
    """Not the complaints of those who waited for it."""
    here, there = run(
        zygote, "def answer(x):\n    if dist.get_rank() == 2:\n        raise ValueError('mine')\n    dist.barrier()"
    )
    assert (here.error, here.message) == (there.error, there.message) == ("ValueError", "mine")


def test_a_rank_that_hangs_is_named_at_the_deadline(zygote):
    """And the others did not hang: they waited."""
    source = (
        "def answer(x):\n    while dist.get_rank() == 1 and x[0] > 5:\n        pass\n    dist.barrier()\n    return x"
    )
    asked = declared(Three)
    with judged(zygote, source, seconds=1.0) as runner:
        outcome = runner.call(asked, first_case(asked))
        assert outcome.error == "Timeout" and "rank 1 computes; rank 2 waits in barrier" in outcome.message
        again = runner.call(asked, first_case(asked).replace(torch.zeros(3, 6)))
        assert again.error == "" and len(again.value) == 3


class Shards(Three):
    """The sum of all rows, each rank its own part; no more bytes than a reduce_scatter needs."""

    mechanism = (Traffic(at_most=lambda case, oracle: 2 / 3 * 24),)


def oracle(x):
    import torch.distributed as dist

    part = torch.empty(2, dtype=x.dtype)
    dist.reduce_scatter(part, list(x.split(2)))
    return part


def test_traffic_is_what_the_formula_allows(zygote):
    """(n-1)/n of the tensor leaves each rank."""
    honest = "def answer(x):\n    out = torch.empty(2)\n    dist.reduce_scatter(out, list(x.split(2)))\n    return out"
    assert all(report.passed for report in everywhere(zygote, declared(Shards), honest, oracle))


CHEATS = {
    "everything everywhere": "dist.all_reduce(x)\n    return x.split(2)[dist.get_rank()].clone()",
    "by mail": "for to in range(3):\n        if to != dist.get_rank():\n            dist.send(x, to)\n"
    "    y = x.clone()\n    for source in range(3):\n        if source != dist.get_rank():\n"
    "            dist.recv(y, source)\n            x = x + y\n    return x.split(2)[dist.get_rank()].clone()",
}  # fmt: skip


@pytest.mark.parametrize("body", CHEATS.values(), ids=CHEATS)
def test_more_traffic_than_that_earns_nothing(zygote, body):
    """The numbers are right and the method is not."""
    for report in everywhere(zygote, declared(Shards), f"def answer(x):\n    {body}", oracle):
        assert (
            report.cases[0].passed and report.earned == 0 and "busiest rank, allowed 16" in report.mechanisms[0].message
        )


def test_a_rank_can_not_make_its_counter_forget(zygote):
    """What a runner does to its own idea of a hub changes nothing in the judge's."""
    source = """
def answer(x):
    import sandbox.relay as relay
    post = relay.SocketLine.post
    relay.SocketLine.post = lambda self, number, operation, tensors: post(
        self, number, {**operation, "name": "barrier"} if operation["name"] == "all_reduce" else operation, tensors)
    try:
        dist.all_reduce(x)
    finally:
        relay.SocketLine.post = post
    return x.split(2)[dist.get_rank()].clone()
"""
    with judged(zygote, source) as runner:
        report = examine(declared(Shards), runner, oracle=oracle, seed=SEED)
    assert report.earned == 0 and "posted something that is no collective" in report.cases[0].message


GARBAGE = [
    None,
    [],
    {"name": "all_reduce"},
    {"name": "os.system", "group": "", "ranks": [0, 1]},
    {"name": "all_reduce", "group": "", "ranks": [1], "by": "SUM"},
    {"name": "all_reduce", "group": "", "ranks": [0, 1, 9], "by": "SUM"},
    {"name": "all_reduce", "group": "", "ranks": [0, 0], "by": "SUM"},
    {"name": "all_reduce", "group": "", "ranks": [0, 1], "by": "__class__"},
    {"name": "broadcast", "group": "", "ranks": [0, 1], "root": 2},
    {"name": "broadcast", "group": "", "ranks": [0, 1], "root": True},
    {"name": "send", "group": "", "ranks": [0, 1], "peer": -1},
    {"name": "send", "group": "x" * 1000, "ranks": [0, 1], "peer": 1},
    {"name": "barrier", "group": "", "ranks": [0, 1], "more": 1},
]


@pytest.mark.parametrize("claim", GARBAGE, ids=str)
def test_the_hub_takes_no_claim_of_another_form(claim):
    """Rank 0 posts it; the program ends with a message, and nothing raises in the judge."""
    hub = Hub(2)
    hub.post(0, 1, claim, [])
    assert hub.failure == "rank 0 posted something that is no collective"
    with pytest.raises(HubError):
        hub.wait(0, 1)


def test_the_hub_holds_a_bounded_number_of_bytes():
    """What is sent and never received does not fill the judge's memory."""
    hub, big = Hub(2), torch.empty(MAX_HELD // 4 // 4)
    for number in range(8):
        hub.post(0, number, {"name": "send", "group": "", "ranks": [0, 1], "peer": 1}, [big])
    assert "were sent and not received" in hub.failure


def test_a_wait_ends_at_its_deadline():
    """The other rank computes, so nothing is wrong yet."""
    hub = Hub(2)
    hub.post(0, 1, {"name": "barrier", "group": "", "ranks": [0, 1]}, [])
    with pytest.raises(TimeoutError):
        hub.wait(0, 1, time.monotonic() + 0.05)
    assert hub.where() == "rank 0 waits in barrier; rank 1 computes"


def test_an_interrupted_program_lets_its_threads_go(monkeypatch):
    """Ctrl-C in a notebook leaves no rank behind."""
    from autograder.ranks import Ranks

    def program(rank):
        import torch.distributed as dist

        return dist.barrier() if rank else time.sleep(0.3)

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Ranks(2, program).run()
    time.sleep(0.6)
    assert not [t for t in threading.enumerate() if t.name.startswith("rank ")]


def test_memory_is_that_of_the_largest_rank(zygote):
    """Measured from outside, each rank in a process of its own."""

    class Grows(Three):
        def grow(self, rng, n):
            return Case("n", torch.full((3, 1), float(n)))

    source = "def answer(x):\n    keep = torch.ones(int(x) << 18 if dist.get_rank() == 2 else 1)\n    return keep.sum()"
    asked = declared(Grows)
    with judged(zygote, source) as runner:
        outcome, peak = runner.peak(asked, asked.grow(SEED, 32), asked.grow(SEED, 1))
    assert outcome.error == "" and 30 < peak / 2**20 < 44
