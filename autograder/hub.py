"""Where the ranks of one program meet: matches collectives, computes and counts them, and says why one can not work.

Held by whoever is trusted: in the judge it is the only road between ranks, so its counts can not be forged. In a
notebook, ranks are threads that call it directly. Everything a rank posts is only a claim and is looked at first.

Bytes are what leaves one rank in the usual bandwidth-optimal algorithm, S being the whole tensor, n the group's size:
all_reduce 2(n-1)/n S; reduce_scatter, all_gather, scatter at the root (n-1)/n S; broadcast, reduce, gather, send S;
all_to_all what is meant for others; recv and barrier 0.
"""

import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

Tensors = list[torch.Tensor]
COLLECTIVES = (
    "all_reduce", "reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all", "gather", "scatter", "barrier",
)  # fmt: skip
REDUCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "SUM": lambda stack: stack.sum(0),
    "AVG": lambda stack: stack.mean(0),
    "PRODUCT": lambda stack: stack.prod(0),
    "MIN": lambda stack: stack.amin(0),
    "MAX": lambda stack: stack.amax(0),
}
AXIS_BYTES = 8
MAX_OPERATIONS = 100_000  # of one rank
FINISHED = "has finished"
MAX_HELD = 1 << 30  # bytes posted and not yet received, over all ranks


class HubError(Exception):
    """The program can not go on; the message names ranks and operations and is fit for a student to read."""


@dataclass
class Tally:
    """What one rank did, by operation: calls, and bytes that left it."""

    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, name: str, sent: float) -> None:
        self.calls[name] += 1
        self.bytes[name] += sent


@dataclass(frozen=True)
class Operation:
    """One rank's part in an operation, checked to be of the right form."""

    name: str
    group: str
    ranks: tuple[int, ...]
    root: int = 0
    by: str = ""
    peer: int = 0
    tag: int = 0

    @property
    def what(self) -> str:
        """Name and the detail in which two ranks could differ."""
        return f"{self.name} by {self.by}" if self.by else self.name


def checked(claim: object, rank: int, world: int) -> Operation:
    """The claim of a rank as an Operation. HubError when it is not of the form that sandbox/relay.py sends."""
    try:
        operation = Operation(**{**claim, "ranks": tuple(claim["ranks"])})  # type: ignore[arg-type,dict-item,index]
        numbers = (*operation.ranks, operation.root, operation.peer, operation.tag)
        n = len(operation.ranks)
        fits = (
            operation.name in (*COLLECTIVES, "send", "recv")
            and all(type(number) is int for number in numbers)
            and rank in operation.ranks
            and all(0 <= member < world for member in operation.ranks)
            and len(set(operation.ranks)) == n
            and 0 <= operation.root < n
            and 0 <= operation.peer < n
            and type(operation.group) is str
            and len(operation.group) < 200
            and operation.by in ("", *REDUCE)
            and bool(operation.by) == ("reduce" in operation.name)
        )
    except (TypeError, KeyError, AttributeError):
        fits = False
    if not fits:
        raise HubError(f"rank {rank} posted something that is no collective")
    return operation


def size(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the elements; of a tensor without any, of its shape, which could carry numbers in their place."""
    return sum(tensor.numel() * tensor.element_size() or AXIS_BYTES * tensor.dim() for tensor in tensors)


def sent(operation: Operation, index: int, tensors: Tensors) -> float:
    """Bytes that leave this rank, by the table at the top."""
    n, given = len(operation.ranks), size(tensors)
    if operation.name == "all_reduce":
        return 2 * (n - 1) / n * given
    if operation.name == "all_gather":
        return (n - 1) * given
    if operation.name in ("reduce_scatter", "scatter"):
        return (n - 1) / n * given
    if operation.name == "all_to_all":
        return given - size(tensors[index : index + 1])
    return given


class Meeting:
    """One collective of a group while its members arrive."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.given: dict[int, Tensors] = {}  # by global rank
        self.numbers: dict[int, int] = {}

    def problem(self) -> str:
        """Why what the members brought does not fit together; "" if it does."""
        name, n = self.operation.name, len(self.operation.ranks)
        wanted = {"barrier": 0, "reduce_scatter": n, "all_to_all": n}.get(name, 1)
        for index, rank in enumerate(self.operation.ranks):
            brings = len(self.given[rank])
            if name in ("broadcast", "scatter"):
                wanted = (n if name == "scatter" else 1) if index == self.operation.root else 0
            if brings != wanted:
                return f"rank {rank} brings {brings} tensors, expected {wanted}"
        if "reduce" in name:
            first, *others = self.operation.ranks
            form = [(tuple(t.shape), t.dtype) for t in self.given[first]]
            for rank in others:
                theirs = [(tuple(t.shape), t.dtype) for t in self.given[rank]]
                if theirs != form:
                    return f"rank {first} brings {described(form)}, rank {rank} brings {described(theirs)}"
        return ""

    def results(self) -> dict[int, Tensors]:
        """What every member gets, by global rank."""
        ranks, root = self.operation.ranks, self.operation.ranks[self.operation.root]
        all_given = [self.given[rank] for rank in ranks]
        name = self.operation.name
        if name == "barrier":
            return {rank: [] for rank in ranks}
        if name in ("all_reduce", "reduce"):
            total = self.reduced([given[0] for given in all_given])
            return {rank: [total] if name == "all_reduce" or rank == root else [] for rank in ranks}
        if name == "broadcast":
            return dict.fromkeys(ranks, self.given[root])
        if name in ("all_gather", "gather"):
            everything = [given[0] for given in all_given]
            return {rank: everything if name == "all_gather" or rank == root else [] for rank in ranks}
        if name == "scatter":
            return {rank: [self.given[root][index]] for index, rank in enumerate(ranks)}
        turned = {rank: [given[index] for given in all_given] for index, rank in enumerate(ranks)}
        if name == "all_to_all":
            return turned
        return {rank: [self.reduced(pieces)] for rank, pieces in turned.items()}

    def reduced(self, tensors: Tensors) -> torch.Tensor:
        stack = torch.stack(tensors)
        return REDUCE[self.operation.by](stack).to(stack.dtype)


def described(form: list[tuple[tuple[int, ...], torch.dtype]]) -> str:
    return ", ".join(f"shape {shape} {dtype}" for shape, dtype in form[:3]) or "nothing"


class Hub:
    """The meeting place of `world` ranks. Thread-safe: each rank posts and waits from a thread of its own."""

    def __init__(self, world: int) -> None:
        self.world, self.changed = world, threading.Condition()
        self.tallies = [Tally() for _ in range(world)]
        self.failure = ""  # why the program as a whole can not go on
        self.meetings: dict[tuple[str, tuple[int, ...], int], Meeting] = {}
        self.turn: dict[tuple[int, str, tuple[int, ...]], int] = defaultdict(int)
        self.mail: dict[tuple[int, int, int], deque[Tensors]] = defaultdict(deque)  # (from, to, tag)
        self.expected: dict[tuple[int, int, int], deque[int]] = defaultdict(deque)  # operation numbers of receivers
        self.posted: dict[tuple[int, int], str] = {}  # (rank, number): what was posted and is not finished
        self.results: dict[tuple[int, int], Tensors] = {}
        self.waiting: dict[int, int] = {}
        self.ended: dict[int, str] = {}
        self.held = 0

    # --- what a rank does -----------------------------------------------------------------------------

    def post(self, rank: int, number: object, claim: object, tensors: object) -> None:
        """A rank contributes to its operation `number`; what does not fit fails the whole program."""
        with self.changed:
            try:
                self._post(rank, number, claim, tensors)
            except HubError as problem:
                self._fail(str(problem))
            self.changed.notify_all()

    def wait(self, rank: int, number: object, deadline: float = math.inf) -> Tensors:
        """The result of a rank's operation. HubError when it can not come, TimeoutError past the deadline."""
        with self.changed:
            if type(number) is not int or ((rank, number) not in self.posted and (rank, number) not in self.results):
                raise HubError(f"rank {rank} waits for an operation that it did not start, or twice for the same")
            self.waiting[rank] = number
            self._look_for_deadlock()
            while (rank, number) not in self.results:
                if self.failure:
                    raise HubError(self.failure)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self.changed.wait(min(left, 1.0))  # woken now and then, so that Ctrl-C gets through
            del self.waiting[rank]
            result = self.results.pop((rank, number))
            self.held -= size(result)
            return result

    def end(self, rank: int, how: str = FINISHED) -> None:
        """The rank will post nothing more; with an error as `how` ("ended with ValueError"), nobody waits for it."""
        with self.changed:
            self.ended[rank] = how
            self._look_for_deadlock()
            self.changed.notify_all()

    def stop(self, why: str) -> None:
        """Let every waiting rank go."""
        with self.changed:
            self._fail(why)
            self.changed.notify_all()

    def where(self) -> str:
        """What each rank does now, for a program that ran out of time."""
        with self.changed:
            return "; ".join(
                f"rank {rank} {self.ended[rank]}" if rank in self.ended
                else f"rank {rank} waits in {self.posted[rank, self.waiting[rank]]}"
                if (rank, self.waiting.get(rank)) in self.posted
                else f"rank {rank} computes"
                for rank in range(self.world)
            )  # fmt: skip

    # --- inside the lock ------------------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why

    def _post(self, rank: int, number: object, claim: object, tensors: object) -> None:
        operation = checked(claim, rank, self.world)
        fits = isinstance(tensors, list) and all(type(t) is torch.Tensor for t in tensors)
        if not fits or type(number) is not int or (rank, number) in self.posted or (rank, number) in self.results:
            raise HubError(f"rank {rank} posted something that is no collective")
        assert isinstance(tensors, list)
        tally = self.tallies[rank]
        if sum(tally.calls.values()) >= MAX_OPERATIONS:
            raise HubError(f"rank {rank} started more than {MAX_OPERATIONS:,} operations")
        if self.held + size(tensors) > MAX_HELD:
            raise HubError(f"more than {MAX_HELD >> 20} MiB were sent and not received")
        self.held += size(tensors)
        tally.add(operation.name, sent(operation, operation.ranks.index(rank), tensors))
        self.posted[rank, number] = described_wait(operation)
        if operation.name in COLLECTIVES:
            self._meet(rank, number, operation, tensors)
        else:
            self._mail(rank, number, operation, tensors)

    def _meet(self, rank: int, number: int, operation: Operation, tensors: Tensors) -> None:
        """Join the group's next collective, and finish it when the last member is there."""
        place = (rank, operation.group, operation.ranks)
        turn = self.turn[place] = self.turn[place] + 1
        key = (operation.group, operation.ranks, turn)
        meeting = self.meetings.setdefault(key, Meeting(operation))
        first = next(iter(meeting.given), rank)
        if (operation.what, operation.root) != (meeting.operation.what, meeting.operation.root):
            theirs, mine = (f"{o.what}{rooted(o)}" for o in (meeting.operation, operation))
            raise HubError(f"collective {turn} does not match: rank {first} calls {theirs}, rank {rank} calls {mine}")
        meeting.given[rank], meeting.numbers[rank] = tensors, number
        if len(meeting.given) < len(operation.ranks):
            return
        del self.meetings[key]
        if problem := meeting.problem():
            raise HubError(f"{operation.name} (collective {turn}): {problem}")
        results = meeting.results()
        self.held -= sum(size(given) for given in meeting.given.values())
        for member, result in results.items():
            self._finish(member, meeting.numbers[member], result)

    def _mail(self, rank: int, number: int, operation: Operation, tensors: Tensors) -> None:
        """Hand a sent tensor to the receiver that waits for it, or keep it until one does."""
        peer = operation.ranks[operation.peer]
        if operation.name == "send":
            self._finish(rank, number, [])
            box = (rank, peer, operation.tag)
            self.mail[box].append(tensors)
        else:
            box = (peer, rank, operation.tag)
            self.expected[box].append(number)
        while self.mail[box] and self.expected[box]:
            arrived = self.mail[box].popleft()
            self.held -= size(arrived)
            self._finish(box[1], self.expected[box].popleft(), arrived)

    def _finish(self, rank: int, number: int, result: Tensors) -> None:
        del self.posted[rank, number]
        self.results[rank, number] = result
        self.held += size(result)

    def _look_for_deadlock(self) -> None:
        """When every rank has ended or waits for what nobody will bring, say who waits in what."""
        stuck = {rank: number for rank, number in self.waiting.items() if (rank, number) not in self.results}
        if not stuck or len(stuck) + len(self.ended) < self.world:
            return
        gone = [f"rank {rank} {how}" for rank, how in sorted(self.ended.items())]
        waits = [f"rank {rank} waits in {self.posted[rank, number]}" for rank, number in sorted(stuck.items())]
        word = "deadlock" if all(how == FINISHED for how in self.ended.values()) else "stopped"
        self._fail(f"{word}: " + "; ".join([*waits, *gone]))
        self.changed.notify_all()


def rooted(operation: Operation) -> str:
    return f" with root {operation.root}" if operation.name in ("broadcast", "reduce", "gather", "scatter") else ""


def described_wait(operation: Operation) -> str:
    """What a rank that waits for this operation does, in words."""
    if operation.name == "recv":
        return f"recv from rank {operation.ranks[operation.peer]}"
    return operation.name if operation.name != "send" else f"send to rank {operation.ranks[operation.peer]}"
