"""`autograder new-lab SLUG`: a new lab is one new folder, a copy of `labs/_template` under its own name.

The copy is a lab that already works: it builds, checks, proves and grades before a word of it is changed.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from autograder.labs import LabError, lab_roots

TEMPLATE = "_template"
TEMPLATE_TITLE = "A new lab"
SLUG = re.compile(r"(\d\d)_[a-z][a-z0-9]*(_[a-z0-9]+)*")
LEFT_OUT = ("lab.ipynb", "__pycache__")  # the notebook is built from lab.py, for the new name

NEXT_STEPS = """{folder} is a whole lab now, with the template's question. Make it yours:
  1. lab.toml      title, minutes, one table per question: points, minutes, difficulty
  2. lab.py        the notebook, worked solutions between `# BEGIN SOLUTION` and `# END SOLUTION`
  3. checks.py     cases from a seed, and the oracle by name (`reference.py` goes once it is in refimpl)
  4. mistakes.py   five plausible wrong answers per question, each with what its author should read
  5. staff.md      how to grade the written answers
Build the notebook, then examine the grader:
  python -m course notebooks {folder}
  python -m autograder prove {slug} --quick     seconds; without --quick through the real judge
  python -m autograder prove {slug} --mutate    which slips no case notices"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="autograder new-lab", description="Make the folder of a new lab.")
    parser.add_argument("slug", metavar="SLUG", help="two digits and words, as in 03_online_softmax")
    parser.add_argument("--title", help="as readers see it; left out, made from the slug")
    options = parser.parse_args(argv)
    try:
        folder = new_lab(options.slug, options.title)
    except LabError as error:
        print(f"new-lab: {error}", file=sys.stderr)
        return 2
    status = build(folder)
    print(NEXT_STEPS.format(folder=shown(folder), slug=folder.name))
    return status


def new_lab(slug: str, title: str | None = None) -> Path:
    """Copy the template to `labs/<slug>` and fill in slug, number and title; returns the folder."""
    match = SLUG.fullmatch(slug)
    if not match:
        raise LabError(f"{slug!r} is no lab's name: two digits, then lower-case words, as in 03_online_softmax")
    title = title or " ".join(slug.split("_")[1:]).capitalize()
    if re.search(r'["\\\n]', title):
        raise LabError(f"a title is one line without quotes or backslashes; got {title!r}")
    template = template_folder()
    folder = target_root() / slug
    if folder.exists():
        raise LabError(f"{shown(folder)} exists; choose another slug, or delete the folder yourself")
    folder.mkdir(parents=True)
    for source in sorted(template.iterdir()):
        if source.is_file() and source.name not in LEFT_OUT:
            shutil.copyfile(source, folder / source.name)
    for path in folder.iterdir():
        path.write_text(filled(path.read_text(encoding="utf-8"), slug, match[1], title), encoding="utf-8")
    return folder


def filled(text: str, slug: str, number: str, title: str) -> str:
    """The template's text under the new name."""
    text = text.replace(f'open_lab("{TEMPLATE}")', f'open_lab("{slug}")')
    text = text.replace(f"Lab 00 · {TEMPLATE_TITLE}", f"Lab {number} · {title}")
    text = text.replace(f'title = "{TEMPLATE_TITLE}"', f'title = "{title}"')
    return text.replace(f"Staff notes: {TEMPLATE_TITLE.lower()}", f"Staff notes: {title}")


def template_folder() -> Path:
    for root in lab_roots():
        if (root / TEMPLATE / "lab.toml").is_file():
            return root / TEMPLATE
    raise LabError("no labs/_template was found here or beside the installed package; set $COURSE_LABS")


def target_root() -> Path:
    """The nearest folder of labs; never the one inside an installed package."""
    own = Path(__file__).resolve().parent / "_labs"
    return next((root for root in lab_roots() if root.is_dir() and root != own), Path.cwd() / "labs")


def build(folder: Path) -> int:
    """Build the new lab's notebook by the course's own command."""
    command = [sys.executable, "-m", "course", "notebooks", str(folder)]
    return subprocess.run(command, check=False).returncode


def shown(folder: Path) -> str:
    """The path as one would type it here."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
