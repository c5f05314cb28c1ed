"""In the cage: hand one attack in to plain nbgrader, let it autograde, and look around. Run by `plain_nbgrader`."""

import contextlib
import json
import os
import resource
import secrets
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from autograder.judge.course import open_api
from autograder.redteam import outside
from autograder.redteam.attack import WORTHLESS, all_attacks, breaches, fill, hand_in, to_bytes
from autograder.redteam.ground import SLUG
from autograder.redteam.plain_nbgrader import CONTROL, GRADED, SOLUTIONS, configuration, release

STARTUP = "/home/.ipython/profile_default/startup"  # what lies here runs in the next student's kernel
MEMORY_BYTES = 7 << 30  # more than any attack asks for; the machine's, not nbgrader's, safety


def inside(folder: Path, name: str) -> None:
    """Hand in, autograde, look around, and where anything was left autograde the neighbour again."""
    outside.adopt_orphans()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    course, mark = folder / "course", f"{outside.PREFIX}{secrets.token_hex(4)}"
    decoy = subprocess.Popen(["sleep", "1000"])
    listener = outside.Listener(folder, mark)
    path = course / "submitted" / "attacker" / SLUG / "lab.ipynb"
    path.parent.mkdir(parents=True)
    attack = next((attack for attack in all_attacks() if attack.name == name), None)
    if attack is None:
        path.write_bytes(to_bytes(fill(release(course), {**SOLUTIONS, "softmax": WORTHLESS["softmax"]})))
    else:
        hand_in(attack, release(course), SOLUTIONS, target(folder, mark, listener, decoy.pid), path)
    api, before, start = open_api(configuration(folder)), snapshot(folder), time.monotonic()
    made = api.autograde(SLUG, "attacker", force=True)
    seconds = time.monotonic() - start
    survivors = {pid: says for pid, says in outside.strangers({decoy.pid}).items() if says}  # the rest has ended
    notebook = course / "autograded" / "attacker" / SLUG / "lab.ipynb"
    text = ""
    with contextlib.suppress(OSError):
        text = notebook.read_text(errors="replace")
    seen: dict[str, Any] = {
        "earned": scores(api, "attacker") if made["success"] else None, "seconds": round(seconds, 1),
        "survivors": sorted(survivors.values()),
        "sent": [data.decode(errors="replace")[:60] for data in listener.taken()],
        "changed": [line.replace(mark, "MARK") for line in outside.changes(before, snapshot(folder))],
        "reported": sorted(set(breaches(printed(text))))[:5], "megabytes": len(text) >> 20,
        "hidden_tests_shown": "torch.softmax(hidden, -1)" in text.replace("\\u001b[39m", ""),
    }  # fmt: skip
    seen["reported"] += [f"left a {thing}" for thing in outside.kernel_objects(mark)]
    if decoy.poll() is not None:
        seen["reported"].append("killed another process")
    if attack is not None and attack.kind == "notebook" and seen["earned"] is not None:
        seen["reported"] += live_markup(api, course)
    # Where nothing was left behind, the neighbour's next grading would only repeat the last one.
    hurt = bool(seen["survivors"] or seen["reported"] or not made["success"] or name == CONTROL)
    again = api.autograde(SLUG, "neighbour", force=True) if hurt or seen["changed"] else made
    seen["neighbour"] = scores(api, "neighbour") if again["success"] else None
    (folder / "result.json").write_text(json.dumps(seen))


def live_markup(api: Any, course: Path) -> list[str]:
    """What of the student's would run in the browser of whoever opens the feedback page."""
    api.generate_feedback(SLUG, "attacker", force=True)
    pages = [page.read_text(errors="replace") for page in course.glob(f"feedback/attacker/{SLUG}/*.html")]
    return ["a script in the feedback page"] if any("<script>alert('redteam')" in page for page in pages) else []


def target(folder: Path, mark: str, listener: outside.Listener, decoy: int) -> dict[str, Any]:
    """What an attacker knows, all of it inside the cage."""
    course, packages = folder / "course", sysconfig.get_path("purelib")
    secret = [str(course / "secret.txt"), str(folder / "home" / "secret.txt")]
    return {
        "tier": "T0", "user": os.geteuid(), "mark": mark, "folder": str(folder), "judge_pids": [os.getpid()],
        "neighbour_pids": [decoy], "port": listener.port, "unix": listener.path, "abstract": listener.abstract,
        "course": str(course), "labs": str(course / "source"), "home": str(folder / "home"), "secrets": secret,
        "temp": str(folder / "temp"), "outside": str(folder / "outside"), "gradebook": str(course / "gradebook.db"),
        "submissions": [str(course / "submitted" / "neighbour" / SLUG / "lab.ipynb")],
        "repository": str(folder), "site_packages": [packages], "ipc_key": outside.IPC_KEY,
    }  # fmt: skip


def snapshot(folder: Path) -> dict[str, str]:
    """Everything but what grading itself writes, by paths relative to the folder."""
    places = outside.tree(*(folder / name for name in ("course", "home", "outside", "temp")))
    found = {path.removeprefix(str(folder)): says for path, says in places.items()}
    own = ("/course/gradebook.db", "/course/autograded", "/course/.", "/temp/kernel", "/home/.local", "/home/.ipython")
    usual = ("/temp", "/home", "/course", f"{STARTUP}/README", STARTUP)
    return {
        path: says for path, says in found.items()
        if path not in usual and (path.startswith(STARTUP) or not path.startswith(own))
    }  # fmt: skip


def printed(text: str) -> str:
    """All text that the executed notebook shows."""
    try:
        cells = json.loads(text)["cells"]
    except (ValueError, KeyError):
        return ""
    shown = [output.get("text", "") for cell in cells for output in cell.get("outputs", [])]
    return "\n".join("".join(piece) for piece in shown)[-1_000_000:]


def scores(api: Any, student: str) -> dict[str, float] | None:
    """question -> points in the gradebook, or None where there is no grade."""
    try:
        with api.gradebook as book:
            return {name: float(book.find_grade(f"check-{name}", "lab", SLUG, student).score) for name in GRADED}
    except Exception:
        return None


if __name__ == "__main__":
    inside(Path(sys.argv[1]), sys.argv[2])
