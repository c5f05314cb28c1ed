"""The figures of one `autograder throughput` run, and how they are shown."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spent:
    """What a command took: wall time, and CPU time of it and all it started, which a busy machine changes little."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)

    def __truediv__(self, count: int) -> "Spent":
        return Spent(self.wall_s / count, self.cpu_s / count)


@dataclass
class Result:
    """What one run measured; times in the unit that the name says, per submission where it says so."""

    tier: str
    cores: int
    submissions: int
    plain_submissions: int
    own_ms: float = 0.0  # a submission's cells and calls, in one process, without any sandbox
    boot_s: float = 0.0  # until the first verdict of a single worker: importing torch, booting its zygote
    judge_ms: dict[int, float] = field(default_factory=dict)  # workers -> ms per submission once they are warm
    beyond_ms: dict[int, float] = field(default_factory=dict)  # the same without the workers' share of own_ms
    judge_command: Spent = field(default_factory=lambda: Spent(0, 0))
    record_command: Spent = field(default_factory=lambda: Spent(0, 0))
    plain_command: Spent = field(default_factory=lambda: Spent(0, 0))
    cells: int = 0
    unequal: list[str] = field(default_factory=list)

    @property
    def ours(self) -> Spent:
        """Per submission, both commands."""
        return (self.judge_command + self.record_command) / self.submissions

    @property
    def plain(self) -> Spent:
        return self.plain_command / self.plain_submissions

    @property
    def times_faster(self) -> dict[str, float]:
        return {"wall": self.plain.wall_s / self.ours.wall_s, "cpu": self.plain.cpu_s / self.ours.cpu_s}


def table(r: Result) -> str:
    """The figures, one a line."""
    two = max(r.judge_ms)
    lines = [
        f"tier {r.tier}, {r.cores} cores, torch loaded; {r.submissions} students, 5 functions, 7 cases drawn twice",
        f"{'a submission alone, no sandbox':44} {r.own_ms:9.1f} ms",
        *(f"{f'judged with {n} worker' + 's' * (n > 1):44} {ms:9.1f} ms" for n, ms in r.judge_ms.items()),
        *(f"{f'  beyond its own compute, {n} worker' + 's' * (n > 1):44} {v:9.1f} ms" for n, v in r.beyond_ms.items()),
        f"{'until a first verdict (import, zygote), once':44} {r.boot_s:9.1f} s",
        f"{'':44} {'wall':>12} {'CPU':>12}",
        both(f"autograder judge, {two} workers, as a command", r.judge_command, "s"),
        both("autograder record, as a command", r.record_command, "s"),
        both(f"nbgrader autograde on {r.plain_submissions} of them", r.plain_command, "s"),
        both("judge and record, per submission", r.ours, "ms"),
        both("nbgrader autograde, per submission", r.plain, "ms"),
        f"{'times faster, through the gradebook':44} {r.times_faster['wall']:9.1f} {r.times_faster['cpu']:12.1f}",
        f"{'cell grades equal to plain nbgrader':44} {r.cells - len(r.unequal):5d} of {r.cells}",
    ]
    return "\n".join([*lines, *(f"UNEQUAL {line}" for line in r.unequal)])


def both(says: str, spent: Spent, unit: str) -> str:
    scale = 1000 if unit == "ms" else 1
    return f"{says:44} {scale * spent.wall_s:9.1f} {unit:2} {scale * spent.cpu_s:9.1f} {unit:2}"
