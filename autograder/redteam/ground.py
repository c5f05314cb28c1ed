"""The ground on which attacks are judged: a throwaway course with a secret wherever one would be."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

SLUG = "00_target"
TARGET = Path(__file__).parent / "target"
BUILD = (
    "import sys; from pathlib import Path; from course.notebooks import open_source, student_text;"
    "folder = Path(sys.argv[1]); (folder / 'lab.ipynb').write_text(student_text(open_source(folder)))"
)


def build(folder: Path, canary: str) -> None:
    """Lay out labs, course, home and temp under `folder`, with `canary` wherever a secret would be."""
    shutil.copytree(TARGET, folder / "labs" / SLUG, ignore=shutil.ignore_patterns("__pycache__"))
    # A command, as in the cycle: the grader imports nothing of the course.
    subprocess.run(
        [sys.executable, "-c", BUILD, str(folder / "labs" / SLUG)], check=True, cwd=Path(__file__).resolve().parents[2]
    )
    for name in ("course", "home", "temp", "outside", "inbox"):
        (folder / name).mkdir()
    for name in ("source", "submitted/neighbour/00_target", ".judge"):
        (folder / "course" / name).mkdir(parents=True)
    (folder / "outside").chmod(0o777)
    for name in ("course/secret.txt", "course/.judge/key-of-a-friend", "home/.token", "course/source/answers.txt"):
        (folder / name).write_text(f"{canary}\n", encoding="utf-8")
    make_gradebook(folder / "course" / "gradebook.db")


def make_gradebook(path: Path) -> None:
    """The one table that attacks go for; the whole gradebook belongs to the rehearsal."""
    with sqlite3.connect(path) as book:
        book.execute("CREATE TABLE grade (id INTEGER PRIMARY KEY, manual_score REAL)")
        book.executemany("INSERT INTO grade (manual_score) VALUES (?)", [(10.0,)] * 7)
    book.close()
