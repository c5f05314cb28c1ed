"""One place where attacks are judged: a course with secrets planted, a warm zygote, a neighbour, and witnesses.

Everything stands in one throwaway folder. An attack is judged exactly as a submission is; what it achieved is then
read from outside: points, the neighbour's grade, processes, files, kernel objects, connections, and every byte that
its process sent or that a student would read.
"""

import json
import os
import re
import secrets
import shutil
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autograder import feedback
from autograder.hidden import hidden_numbers, significant
from autograder.judge import session as sessions
from autograder.judge.intake import Refused, load_release
from autograder.judge.judge import judge_notebook
from autograder.judge.vault import Vault
from autograder.judge.verdict import Verdict, rebuild
from autograder.judge.zygote import Zygote
from autograder.labs import Lab, load_lab
from autograder.redteam import outside
from autograder.redteam.attack import WORTHLESS, Attack, breaches, fill, hand_in, to_bytes
from autograder.redteam.ground import SLUG
from autograder.redteam.outside import Tap

SECONDS = 1.0  # deadline of an attacker's calls; honest students have the lab's own
BOUND_SECONDS = 25.0  # an attacker may cost several deadlines: a hanging cell, two hanging calls, restarts
KEPT = ("course", "home", "labs")  # put back after every attack that changed them


@dataclass
class Result:
    """What one attack achieved. No faults: it was held."""

    attack: str
    earned: dict[str, float] = field(default_factory=dict)
    honest: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    refused: str = ""  # why intake did not take the notebook

    @property
    def held(self) -> bool:
        return not self.faults


# Digits that the judge made up or measured: by chance they could be those of a hidden number.
OF_THE_JUDGE = ("submission_sha256", "bank_version", "judge_version", "draw", "created", "seconds")


def untimed(report: dict[str, Any]) -> dict[str, Any]:
    """A question's public report without the judge's clock in it."""
    return {**report, "cases": [{**case, "milliseconds": 0.0} for case in report["cases"]]}


class Arena:
    """Judges attacks in one tier, one after another, in a folder that `build` made."""

    def __init__(self, folder: Path, tier: str, canary: str) -> None:
        outside.adopt_orphans()
        self.folder, self.tier, self.canary = folder, tier, canary
        self.lab = load_lab(folder / "labs" / SLUG)
        self.hasty = replace(self.lab, seconds=SECONDS)
        self.release = load_release(self.lab.folder)
        self.vault = Vault(folder / "course" / ".judge")
        self.seed = self.vault.seed(SLUG, "redteam")
        self.vault.sign(b"")  # the key exists from here on
        self.mark = f"{outside.PREFIX}{secrets.token_hex(4)}"
        self.listener = outside.Listener(folder, self.mark)
        self.solutions = {name: self.lab.solution(name) for name in self.lab.checks}
        self.numbers = hidden_numbers(self.lab, self.seed)
        self.neighbour = self.write_neighbour()
        for name in KEPT:
            shutil.copytree(folder / name, folder / "kept" / name)
        self.zygote, self.hurt = Zygote(self.lab.imports), False
        self.full = self.judge_neighbour(self.lab)
        self.honest = {name: self.judge_honest(name) for name in self.lab.checks}

    def __enter__(self) -> "Arena":
        return self

    def __exit__(self, *exception: object) -> None:
        self.zygote.close()
        self.listener.close()

    # --- honest work ---

    def write_neighbour(self) -> Path:
        """A classmate with every question right, and a mark of their own to look for."""
        path = self.folder / "course" / "submitted" / "neighbour" / SLUG / "lab.ipynb"
        self.secret = f"NEIGHBOUR-{secrets.token_hex(16)}"
        sources = {name: f'{source}\n\nNOTE = "{self.secret}"\n' for name, source in self.solutions.items()}
        path.write_bytes(to_bytes(fill(self.release.notebook, sources)))
        return path

    def judge_neighbour(self, lab: Lab) -> dict[str, float]:
        return earned(judge_notebook(lab, self.neighbour, self.seed, zygote=self.zygote, release=self.release))

    def judge_honest(self, question: str) -> dict[str, float]:
        """Points of the notebook without the attack: the worthless answer among the right ones."""
        path = self.folder / "inbox" / "honest.ipynb"
        path.write_bytes(
            to_bytes(fill(self.release.notebook, {**self.solutions, question: "import torch\n" + WORTHLESS[question]}))
        )
        return earned(judge_notebook(self.lab, path, self.seed, zygote=self.zygote, release=self.release))

    # --- an attack ---

    def run(self, attack: Attack) -> Result:
        """Judge one attack with a neighbour in the same zygote, before, during and after."""
        result = Result(attack.name, honest=self.honest[attack.question])
        with Neighbour(self) as neighbour:
            known, before = set(outside.descendants()), self.snapshot()
            path = self.folder / "inbox" / f"{attack.code.__name__}.ipynb"
            hand_in(attack, self.release.notebook, self.solutions, self.target(neighbour), path)
            start = time.monotonic()
            with Tap() as tap:
                verdict = self.judge(narrowed(self.hasty, attack), path, result)
            result.seconds = time.monotonic() - start
            result.faults += self.points(verdict, result)
            result.faults += self.words(tap, verdict)
            result.faults += self.traces(known, before)
            result.faults += neighbour.problems()
        result.faults += self.afterwards(narrowed(self.lab, attack))
        if result.seconds > BOUND_SECONDS:
            result.faults.append(f"took {result.seconds:.0f} s")
        path.unlink() if not path.is_dir() or path.is_symlink() else outside.remove(path)
        return result

    def judge(self, lab: Lab, path: Path, result: Result) -> Verdict | None:
        """The verdict, or None where intake refuses; whatever else the judge raises is the attack's success."""
        try:
            return judge_notebook(lab, path, self.seed, student="attacker", zygote=self.zygote, release=self.release)
        except Refused as refused:
            result.refused = str(refused)
        except Exception as problem:
            result.faults.append(f"stopped the judge: {type(problem).__name__}: {str(problem)[:200]}")
            self.hurt = True
        return None

    def renew(self) -> None:
        self.zygote.close()
        self.zygote, self.hurt = Zygote(self.lab.imports), False

    def target(self, neighbour: "Neighbour") -> dict[str, Any]:
        """All that an attacker could ever know about this machine, apart from the secrets themselves."""
        course, paths = self.folder / "course", {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
        seeds = sorted(str(path) for path in (course / ".judge").rglob("*") if path.is_file())
        return {
            "tier": self.tier, "user": os.geteuid(), "mark": self.mark, "folder": str(self.folder),
            "judge_pids": [os.getpid(), self.zygote.process.pid], "neighbour_pids": sorted(neighbour.pids),
            "port": self.listener.port, "unix": self.listener.path, "abstract": self.listener.abstract,
            "course": str(course), "labs": str(self.folder / "labs"), "home": str(self.folder / "home"),
            "temp": str(self.folder / "temp"), "outside": str(self.folder / "outside"),
            "gradebook": str(course / "gradebook.db"), "submissions": [str(self.neighbour)],
            "secrets": [str(course / "secret.txt"), str(self.folder / "home" / ".token"), *seeds, "/etc/shadow"],
            "repository": str(outside.REPOSITORY), "site_packages": sorted(map(str, paths)), "ipc_key": outside.IPC_KEY,
        }  # fmt: skip

    def snapshot(self) -> dict[str, str]:
        return outside.tree(*(self.folder / name for name in (*KEPT, "temp", "outside")))

    def restore(self) -> None:
        """Put everything back as it was, so that the next attack is not blamed."""
        for name in KEPT:
            outside.remove(self.folder / name)
            shutil.copytree(self.folder / "kept" / name, self.folder / name, symlinks=True)

    # --- witnesses ---

    def points(self, verdict: Verdict | None, result: Result) -> Iterator[str]:
        if verdict is None:
            return
        result.earned = earned(verdict)
        for name, points in result.earned.items():
            if points > result.honest[name]:
                yield f"{name}: {result.honest[name]:g} -> {points:g} points"

    def words(self, tap: Tap, verdict: Verdict | None) -> Iterator[str]:
        """What the attacker's process said, and what a student would read."""
        yield from (f"reported: {says}" for says in dict.fromkeys(breaches(tap.printed)))
        secret = (self.canary, self.secret, str(self.seed), self.vault.key.hex())
        yield from (f"its process sent a secret ({text[:12]}…)" for text in secret if text in tap.everything)
        if verdict is None:
            return
        told = {**asdict(verdict), "staff_notes": []}
        reports = {name: untimed(report) for name, report in verdict.questions.items()}
        pages = [feedback.as_html(rebuild(report), reveal=False) for report in reports.values()]
        shown = "\n".join([json.dumps(told, ensure_ascii=False), *pages])
        yield from (f"the student reads a secret ({text[:12]}…)" for text in secret if text in shown)
        told |= {**dict.fromkeys(OF_THE_JUDGE), "questions": reports}
        shown = "\n".join([json.dumps(told, ensure_ascii=False), *pages])
        shown = re.sub(r"(?<=\d),(?=\d)", "", shown)  # 216,293 is a number, too
        found = sorted(self.numbers & set(significant(shown)))
        if found:
            yield f"the student reads hidden numbers: {found[:3]}"

    def traces(self, known: set[int], before: dict[str, str]) -> Iterator[str]:
        """Processes, files, kernel objects and connections that the attack left."""
        left = outside.strangers(known)
        yield from (f"left process {pid}: {says}" for pid, says in sorted(left.items())[:3])
        outside.end(left)
        lines = outside.changes(before, self.snapshot())
        yield from (f"outside its sandbox {line}" for line in lines[:5])
        for line in lines:
            if line.startswith("came: "):
                outside.remove(Path(line.removeprefix("came: ")))
        if lines:
            self.restore()
        for path in outside.planted():
            yield f"left {path}"
            outside.remove(path)
        yield from (f"left a {thing}" for thing in outside.kernel_objects(self.mark))
        yield from (f"sent {data[:60]!r} out" for data in self.listener.taken())

    def afterwards(self, lab: Lab) -> Iterator[str]:
        """The neighbour in the same zygote, right after; as in the cycle, any trouble costs the zygote."""
        if self.hurt:
            self.renew()
        try:
            points = self.judge_neighbour(lab)
        except Exception as problem:
            self.renew()
            yield f"the next submission could not be judged: {type(problem).__name__}: {problem}"
            return
        if points != {name: self.full[name] for name in points}:
            yield f"the next submission got {points} in place of {self.full}"


class Neighbour:
    """An honest student's process in the same zygote, alive while the attack runs."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    def __enter__(self) -> "Neighbour":
        from autograder.judge.cells import runnable
        from autograder.judge.intake import take_in

        known = set(outside.descendants())
        submission = take_in(self.arena.neighbour, self.arena.release)
        notebook = sessions.Notebook(runnable(submission.notebook, self.arena.release))
        self.session = sessions.Session(self.arena.zygote, notebook, seconds=self.arena.lab.seconds)
        self.pids = set(outside.descendants()) - known
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.session.close()
        except Exception:  # its zygote may be gone, which `problems` has reported
            self.session.pid = None

    def problems(self) -> Iterator[str]:
        """Whether the neighbour's process still answers, and right."""
        import torch

        x = torch.arange(12.0).reshape(3, 4)
        try:
            outcome = self.session.call("softmax", (x,), seconds=self.arena.lab.seconds)
        except Exception as problem:
            self.arena.hurt = True
            yield f"the neighbour can no longer be judged: {type(problem).__name__}: {str(problem)[:80]}"
            return
        if outcome.problem is not None:
            yield f"the neighbour's process no longer answers: {outcome.problem.kind} {outcome.problem.message[:80]}"
        elif not torch.allclose(outcome.value, torch.softmax(x, -1)):
            yield "the neighbour's process answers something else"


def narrowed(lab: Lab, attack: Attack) -> Lab:
    """The lab with the attacked question and the first one; all of them where the notebook itself is the weapon."""
    if attack.kind in ("notebook", "file"):
        return lab
    narrow = replace(lab)
    vars(narrow)["all_mistakes"] = lab.all_mistakes  # read before fewer questions are left for them
    vars(narrow)["checks"] = {name: lab.checks[name] for name in dict.fromkeys(("softmax", attack.question))}
    return narrow


def earned(verdict: Verdict) -> dict[str, float]:
    return {name: question["earned"] for name, question in verdict.questions.items()}
