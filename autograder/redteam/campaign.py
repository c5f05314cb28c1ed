"""Attack our own grader with everything we know: `autograder redteam`.

Each tier and each user gets a process of its own, with a throwaway course full of planted secrets. An attack has
succeeded when any witness of `arena.py` saw something.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autograder.judge.tiers import TIERS, at_least, machine_tier
from autograder.redteam import ground, ordinary, outside
from autograder.redteam.attack import Attack, all_attacks

RESULTS = Path(__file__).parent / "results"
PLAIN = RESULTS / "plain_nbgrader.json"
SECONDS_PER_ATTACK = 60
SECRET = "REDTEAM_CANARY"  # the variable in the judge's environment that nobody may read
USERS = ("root", "nobody")
DESCRIPTION = """Hand in one hostile notebook after another, in each tier that this machine gives, as root and as an
ordinary user. For each: no point more than the honest score, the neighbours' grades unchanged, no process, file or
byte left outside, nothing hidden read, and an end in bounded time. Exit status 1 if any attack succeeds."""


@dataclass
class Column:
    """One tier as one user: attack -> what was seen, or why the column is empty."""

    tier: str
    user: str
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: str = ""
    seconds: float = 0.0

    @property
    def title(self) -> str:
        return f"{self.tier} {self.user}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.inner:
        return inner(arguments)
    chosen = choose(arguments.attack, arguments.quick)
    if arguments.plain:
        from autograder.redteam import plain_nbgrader

        return plain_nbgrader.run([attack for attack in chosen if attack.plain], arguments.json or PLAIN)
    columns = [run_column(tier, user, chosen) for tier in tiers(arguments.tier) for user in users(arguments.user)]
    print(table(chosen, columns, plain_column()))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(column) for column in columns], indent=1) + "\n", encoding="utf-8")
    broken = list(defeats(chosen, columns))
    for line in broken:
        print(f"BROKEN {line}", file=sys.stderr)
    print(summary(chosen, columns, broken))
    return 1 if broken or not any(column.results for column in columns) else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="autograder redteam", description=DESCRIPTION)
    result.add_argument("--tier", action="append", choices=TIERS, help="only this; may be repeated [default: T1, T2]")
    result.add_argument("--user", action="append", choices=USERS, help="only this; may be repeated [default: both]")
    result.add_argument(
        "--attack", action="append", default=[], metavar="NAME", help="only those whose name contains it"
    )
    result.add_argument("--quick", action="store_true", help="only the subset that the tests run")
    result.add_argument("--plain", action="store_true", help="attack plain nbgrader in place of ours (half an hour)")
    result.add_argument("--json", type=Path, metavar="FILE", help="write everything that was seen")
    result.add_argument("--inner", nargs=2, metavar=("FOLDER", "TIER"), help=argparse.SUPPRESS)
    return result


def choose(names: Sequence[str], quick: bool) -> list[Attack]:
    """The attacks to run, in their order."""
    found = [attack for attack in all_attacks() if attack.quick or not quick]
    wanted = [attack for attack in found if not names or any(name in attack.name for name in names)]
    if not wanted:
        raise SystemExit(f"no attack is called like {', '.join(names)}; `autograder redteam --help`")
    return wanted


def tiers(asked: Sequence[str] | None) -> list[str]:
    return list(asked or TIERS[1:])


def users(asked: Sequence[str] | None) -> list[str]:
    return list(asked or USERS)


# --- one column -----------------------------------------------------------------------------------------


def run_column(tier: str, user: str, chosen: Sequence[Attack]) -> Column:
    """All attacks in one tier as one user, in a process of their own."""
    column = Column(tier, user, skipped=why_skipped(tier, user))
    if column.skipped:
        return column
    folder = Path(tempfile.mkdtemp(prefix="campaign-"))
    start = time.monotonic()
    try:
        said = start_inner(folder, tier, user, chosen)
        column.results = collect(folder / "results.jsonl")
        missing = [attack.name for attack in chosen if attack.name not in column.results]
        if missing:
            says = f"the campaign's own process ended: {said.strip()[-600:]}"
            column.results[missing[0]] = {"attack": missing[0], "faults": [says], "earned": {}, "honest": {}}
    finally:
        outside.remove(folder)
    column.seconds = time.monotonic() - start
    return column


def why_skipped(tier: str, user: str) -> str:
    """Why this column stays empty, or ""."""
    if tier == "T0" and (user == "root" or os.geteuid() != 0):
        return "without a sandbox, attacks run as an ordinary user only, in a cage that root builds"
    if tier == "T0" and (why := ordinary.why_no_cage()):
        return why
    if not at_least(machine_tier(), tier):
        return f"this machine gives {machine_tier()}; see `autograder doctor`"
    if user == "root" and os.geteuid() != 0:
        return "not started as root"
    return ordinary.why_not() if user == "nobody" and os.geteuid() == 0 else ""


def start_inner(folder: Path, tier: str, user: str, chosen: Sequence[Attack]) -> str:
    """Build the arena's folder and run `inner` as `user`, with a secret in its environment; what it said."""
    canary = f"CANARY-{secrets.token_hex(16)}"
    ground.build(folder, canary)
    folder.chmod(0o755)
    names = [word for attack in chosen for word in ("--attack", f"={attack.name}")]
    line = [sys.executable, "-m", "autograder.redteam.campaign", "--inner", str(folder), tier, *names]
    if user == "nobody" and os.geteuid() == 0:
        (folder / "hold").mkdir()
        ordinary.give(folder)
        line = ordinary.command(line, folder / "hold", caged=tier == "T0")
    environment = surroundings(folder, tier, canary)
    try:
        status, said = ordinary.run(line, environment, 120 + SECONDS_PER_ATTACK * len(chosen))
    except subprocess.TimeoutExpired as late:
        return f"killed after {late.timeout:.0f} s"
    return f"exit status {status}\n{said}"


def surroundings(folder: Path, tier: str, canary: str) -> dict[str, str]:
    """The environment of a column's process: nothing of ours but where programs are, and the planted secret."""
    ours = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    fixed = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "TRITON_INTERPRET": "1"}
    places = {"HOME": folder / "home", "TMPDIR": folder / "temp", "COURSE_LABS": folder / "labs"}
    places["PYTHONPATH"] = outside.REPOSITORY
    return {
        **ours,
        **fixed,
        **{name: str(path) for name, path in places.items()},
        "AUTOGRADER_TIER": tier,
        SECRET: canary,
    }


def collect(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["attack"]: line for line in lines}


def inner(arguments: argparse.Namespace) -> int:
    """In the column's own process: one line of results.jsonl per attack."""
    from autograder.redteam.arena import Arena

    folder, tier = Path(arguments.inner[0]), arguments.inner[1]
    wanted = {name.removeprefix("=") for name in arguments.attack}
    with Arena(folder, tier, os.environ[SECRET]) as arena, (folder / "results.jsonl").open("w") as results:
        for attack in all_attacks():
            if attack.name in wanted:
                results.write(json.dumps(asdict(arena.run(attack))) + "\n")
                results.flush()
    return 0


# --- what came of it ------------------------------------------------------------------------------------


def defeats(chosen: Sequence[Attack], columns: Sequence[Column]) -> Iterator[str]:
    """One line per attack that succeeded where it should not."""
    for column in columns:
        if column.tier == "T0":  # promises nothing; it shows that the witnesses see what they should
            continue
        for attack in chosen:
            seen = column.results.get(attack.name)
            if seen and seen["faults"]:
                yield f"{column.title}: {attack.name}: {'; '.join(seen['faults'])}"


def word(seen: dict[str, Any] | None) -> str:
    """One cell of the table."""
    if seen is None:
        return "-"
    if seen["faults"]:
        return "SUCCEEDS"
    return "refused" if seen.get("refused") else "held"


def plain_column() -> dict[str, dict[str, Any]]:
    """What plain nbgrader did, from the committed record."""
    if not PLAIN.is_file():
        return {}
    return json.loads(PLAIN.read_text(encoding="utf-8"))["attacks"]


def table(chosen: Sequence[Attack], columns: Sequence[Column], plain: dict[str, dict[str, Any]]) -> str:
    """attack | plain nbgrader | one column per tier and user."""
    titles = [column.title for column in columns]
    lines = [f"{'attack':42} {'plain nbgrader':28} " + " ".join(f"{title:>10}" for title in titles)]
    family = ""
    for attack in chosen:
        if attack.family != family:
            family = attack.family
            lines.append(f"{family}")
        beside = plain.get(attack.name, {}).get("outcome", "-" if attack.plain else "n/a")
        words = " ".join(f"{word(column.results.get(attack.name)):>10}" for column in columns)
        lines.append(f"  {attack.name:40} {beside[:28]:28} {words}")
    lines += [f"{column.title}: skipped, {column.skipped}" for column in columns if column.skipped]
    return "\n".join(lines)


def summary(chosen: Sequence[Attack], columns: Sequence[Column], broken: Sequence[str]) -> str:
    ran = [column for column in columns if not column.skipped]
    times = ", ".join(f"{column.title} {column.seconds:.0f} s" for column in ran)
    return f"{len(chosen)} attacks x {len(ran)} columns: {len(broken)} succeed. {times}"


if __name__ == "__main__":
    raise SystemExit(main())
