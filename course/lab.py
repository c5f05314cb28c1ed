"""Open the course in JupyterLab: `python -m course lab [--staff] [JupyterLab's own options]`.

Students work on copies in `my-course/`, laid out like the course (`lectures/`, `labs/<slug>/`), which git ignores:
no build, no `git pull` and no second start ever writes over a file that somebody has edited. JupyterLab gets the page
configuration in `course/labconfig/` for this launch only, and its settings, layouts and signatures live in
`my-course/.jupyter`: the Jupyter folders in the user's home are neither read nor written.
"""

import argparse
import hashlib
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nbformat
from nbformat.sign import NotebookNotary

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Path(__file__).resolve().parent / "labconfig"
MINE = "my-course"
PLACED = ".placed.json"  # path -> sha256 of what was put there: tells an untouched copy from an edited one


def published(root: Path) -> list[Path]:
    """What a student gets, relative to `root`: every lecture, every lab's student version with the data it declares."""
    paths = sorted((root / "lectures").glob("[0-9]*.ipynb"))
    for notebook in sorted((root / "labs").glob("[0-9]*/lab.ipynb")):
        settings = tomllib.loads(notebook.with_name("lab.toml").read_text(encoding="utf-8"))
        paths += [notebook, *(notebook.with_name(name) for name in settings.get("data", []))]
    return [path.relative_to(root) for path in paths]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def place_notebooks(root: Path, mine: Path) -> Iterator[str]:
    """Copy each published file into `mine` unless an edited one is there; yield what the student should know."""
    mine.mkdir(parents=True, exist_ok=True)
    record = mine / PLACED
    placed = json.loads(record.read_text()) if record.exists() else {}
    trust = notary(mine)
    for path in published(root):
        name, theirs, new = path.as_posix(), mine / path, digest(root / path)
        if not theirs.exists() or digest(theirs) == placed.get(name):
            write_atomically(theirs, (root / path).read_bytes())
            if path.suffix == ".ipynb":
                trust.sign(nbformat.read(theirs, as_version=4))
            placed[name] = new
        elif placed.get(name) not in (None, new):
            yield f"{theirs} has your edits and stays; the course has a newer one. To take it, rename yours first."
    write_atomically(record, json.dumps(placed, indent=1).encode())


def notary(mine: Path) -> NotebookNotary:
    """Signs the course's own notebooks: JupyterLab hides SVG and HTML outputs of a notebook that it does not trust."""
    data = mine / ".jupyter" / "data"
    data.mkdir(parents=True, exist_ok=True)
    return NotebookNotary(data_dir=str(data))


def write_atomically(path: Path, content: bytes) -> None:
    """Never leave half a notebook behind, also when the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def first_page(mine: Path) -> str:
    """The first unit's lecture; once JupyterLab has saved a layout, the tabs that were open."""
    if any((mine / ".jupyter" / "lab" / "workspaces").glob("*")):
        return "/lab"
    lectures = sorted(path.name for path in (mine / "lectures").glob("[0-9]*.ipynb"))
    return f"/lab/tree/lectures/{lectures[0]}" if lectures else "/lab"


def environment(root: Path, mine: Path, base: Mapping[str, str], *, staff: bool = False) -> dict[str, str]:
    """What JupyterLab and its kernels inherit. Staff keep their own Jupyter settings and get nbgrader's."""
    env = {
        **base,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{base.get('PATH', '')}",
        "COURSE_LABS": str(root / "labs"),  # where open_lab finds checks and points
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, also when another place has one of the same name
    }
    if staff:
        paths = [str(root / "course"), base.get("JUPYTER_CONFIG_PATH", "")]  # holds nbgrader_config.py
        return env | {"JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, paths))}
    return env | {"JUPYTER_CONFIG_DIR": str(mine / ".jupyter"), "JUPYTER_DATA_DIR": str(mine / ".jupyter" / "data")}


def command(root: Path, mine: Path, extra: Sequence[str] = (), *, staff: bool = False, browser: str = "") -> list[str]:
    """The JupyterLab command line; `extra` comes last, so the caller's options win."""
    options = [f"--ServerApp.root_dir={root if staff else mine}", "--Application.log_level=WARN"]
    if staff:
        options.append("--LabApp.default_url=/lab")
    else:
        options += [
            f"--LabApp.default_url={first_page(mine)}",
            f"--LabApp.app_settings_dir={CONFIG}",  # page_config.json and overrides.json
            f"--config={CONFIG / 'jupyter_server_config.json'}",
        ]
    if browser == "none":
        options.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.append("--allow-root")  # a container; the server listens on this machine only, behind a token
    return [sys.executable, "-m", "jupyterlab", *options, *extra]


def main(argv: Sequence[str] | None = None) -> int:
    """Place the notebooks and become JupyterLab."""
    parser = argparse.ArgumentParser(
        prog="course lab", description="Open the course in JupyterLab. Other options go to JupyterLab itself."
    )
    parser.add_argument("--staff", action="store_true", help="the whole repository, with nbgrader's instructor tools")
    parser.add_argument("--folder", type=Path, default=ROOT / MINE, help=f"where your notebooks are [default: {MINE}]")
    options, extra = parser.parse_known_args(argv)
    mine = options.folder.resolve()
    for message in place_notebooks(ROOT, mine):
        print(message)
    browser = os.environ.get("BROWSER", "")
    words = command(ROOT, mine, extra, staff=options.staff, browser=browser)
    print(f"Your notebooks are in {mine}. JupyterLab's address follows; Ctrl-C stops it.", flush=True)
    os.chdir(ROOT)
    os.execve(words[0], words, environment(ROOT, mine, os.environ, staff=options.staff))
