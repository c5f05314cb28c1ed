"""`make lab`: whose file is whose, and what JupyterLab shows."""

import http.cookiejar
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from course import lab
from course.tests.tree import ROOT, plant

INSTRUCTOR = {"assignment-list", "course-list", "create-assignment", "formgrader"}


def notebook(text: str) -> str:
    cell = nbformat.v4.new_code_cell(f"print({text!r})", id="one")
    return nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))


@pytest.fixture
def house(tmp_path):
    """A course with two lectures and one lab, and the student's folder."""
    return plant(
        tmp_path / "course",
        lectures__03_a_dot_ipynb=notebook("lecture 3"),
        lectures__04_b_dot_ipynb=notebook("lecture 4"),
        labs__03_a__lab_dot_ipynb=notebook("lab 3"),
        labs__03_a__lab_dot_toml='data = ["weights.bin"]',
        labs__03_a__weights_dot_bin="data",
        labs__03_a__staff_dot_md="answers",
        labs___template__lab_dot_ipynb=notebook("template"),
    ), tmp_path / "mine"


def texts(folder: Path) -> dict[str, str]:
    hidden = {".jupyter", lab.PLACED}
    paths = (path for path in folder.rglob("*") if path.is_file() and not hidden & set(path.relative_to(folder).parts))
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_a_student_gets_the_notebooks_and_declared_data_and_nothing_else(house):
    """No solutions, no notes for staff, no template; laid out like the course, so links between notebooks hold."""
    root, mine = house
    assert list(lab.place_notebooks(root, mine)) == []
    assert set(texts(mine)) == {
        "lectures/03_a.ipynb", "lectures/04_b.ipynb", "labs/03_a/lab.ipynb", "labs/03_a/weights.bin",
    }  # fmt: skip


def test_an_edited_notebook_is_never_written_over(house):
    """Whether the course moved on or not, and at every later start."""
    root, mine = house
    list(lab.place_notebooks(root, mine))
    (mine / "labs/03_a/lab.ipynb").write_text("my answers", encoding="utf-8")
    assert list(lab.place_notebooks(root, mine)) == []
    (root / "labs/03_a/lab.ipynb").write_text(notebook("lab 3, second edition"), encoding="utf-8")
    for _ in range(2):
        (message,) = lab.place_notebooks(root, mine)
        assert f"{mine / 'labs/03_a/lab.ipynb'} has your edits and stays" in message and "rename yours" in message
        assert texts(mine)["labs/03_a/lab.ipynb"] == "my answers"


def test_an_untouched_notebook_follows_the_course(house):
    """Nothing of the student's is in it."""
    root, mine = house
    list(lab.place_notebooks(root, mine))
    (root / "labs/03_a/lab.ipynb").write_text(notebook("second edition"), encoding="utf-8")
    assert list(lab.place_notebooks(root, mine)) == []
    assert "second edition" in texts(mine)["labs/03_a/lab.ipynb"]


def test_a_renamed_notebook_makes_room_for_the_new_one(house):
    """What the message advises works."""
    root, mine = house
    list(lab.place_notebooks(root, mine))
    (mine / "labs/03_a/lab.ipynb").rename(mine / "labs/03_a/my lab.ipynb")
    (root / "labs/03_a/lab.ipynb").write_text(notebook("second edition"), encoding="utf-8")
    assert list(lab.place_notebooks(root, mine)) == []
    assert "second edition" in texts(mine)["labs/03_a/lab.ipynb"] and "lab 3" in texts(mine)["labs/03_a/my lab.ipynb"]


def test_a_file_that_was_there_before_is_left_alone(house):
    """The record may be lost, or the student may have copied a notebook in by hand."""
    root, mine = house
    plant(mine, labs__03_a__lab_dot_ipynb="from my old laptop")
    list(lab.place_notebooks(root, mine))
    assert texts(mine)["labs/03_a/lab.ipynb"] == "from my old laptop"
    list(lab.place_notebooks(root, mine))
    (mine / lab.PLACED).unlink()
    (mine / "lectures/03_a.ipynb").write_text("notes in the margin", encoding="utf-8")
    list(lab.place_notebooks(root, mine))
    assert texts(mine)["lectures/03_a.ipynb"] == "notes in the margin"


def test_placed_notebooks_are_trusted(house):
    """Otherwise JupyterLab hides the SVG and HTML outputs of the lectures."""
    root, mine = house
    list(lab.place_notebooks(root, mine))
    placed = nbformat.read(mine / "lectures/03_a.ipynb", as_version=4)
    assert lab.notary(mine).check_signature(placed)
    placed.cells[0].source += "# edited"
    assert not lab.notary(mine).check_signature(placed)


def test_the_first_start_shows_the_first_lecture_and_the_next_what_was_open(house):
    """A saved layout is where the student left off."""
    root, mine = house
    list(lab.place_notebooks(root, mine))
    assert lab.first_page(mine) == "/lab/tree/lectures/03_a.ipynb"
    plant(mine, _dot_jupyter__lab__workspaces__default="{}")
    assert lab.first_page(mine) == "/lab"


def test_the_home_is_neither_read_nor_written(house):
    """All of JupyterLab's folders lie in the student's folder; the checks are found through COURSE_LABS."""
    root, mine = house
    env = lab.environment(root, mine, {"PATH": "/usr/bin", "KEEP": "1"})
    assert env["JUPYTER_CONFIG_DIR"].startswith(str(mine)) and env["JUPYTER_DATA_DIR"].startswith(str(mine))
    assert env["COURSE_LABS"] == str(root / "labs") and env["KEEP"] == "1"
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_staff_get_the_repository_and_nbgraders_settings(house):
    """No extension is switched off, and the Formgrader reads course/nbgrader_config.py."""
    root, mine = house
    words = lab.command(root, mine, staff=True)
    assert f"--ServerApp.root_dir={root}" in words and not any("labconfig" in word for word in words)
    env = lab.environment(root, mine, {"JUPYTER_CONFIG_PATH": "/etc/x"}, staff=True)
    assert env["JUPYTER_CONFIG_PATH"] == f"{root / 'course'}{os.pathsep}/etc/x" and "JUPYTER_CONFIG_DIR" not in env


def test_the_callers_options_come_last_and_browser_none_opens_none(house):
    """The last option wins in JupyterLab."""
    root, mine = house
    words = lab.command(root, mine, ["--port", "9999"], browser="none")
    assert words[-2:] == ["--port", "9999"] and "--no-browser" in words
    assert "--no-browser" not in lab.command(root, mine, browser="firefox")


def test_each_switched_off_plugin_exists_under_that_name():
    """A misspelt id switches nothing off, in silence."""
    share = Path(sys.prefix) / "share" / "jupyter"
    code = "".join(path.read_text(encoding="utf-8") for path in share.glob("labextensions/**/static/*.js"))
    page = json.loads((lab.CONFIG / "page_config.json").read_text(encoding="utf-8"))
    for plugin in page["disabledExtensions"]:
        if plugin.startswith("@jupyterlab/"):
            code += "".join(path.read_text(encoding="utf-8") for path in share.glob("lab/static/*.js"))
        if ":" in plugin:
            assert f'"{plugin}"' in code, plugin
        else:
            assert (share / "labextensions" / plugin / "package.json").exists(), plugin


def test_each_overridden_setting_exists():
    """The same for settings."""
    schemas = Path(sys.prefix) / "share" / "jupyter" / "lab" / "schemas"
    for plugin, values in json.loads((lab.CONFIG / "overrides.json").read_text(encoding="utf-8")).items():
        package, _, name = plugin.partition(":")
        schema = json.loads((schemas / package / f"{name}.json").read_text(encoding="utf-8"))
        assert values.keys() <= schema["properties"].keys()


# --- the real thing ---------------------------------------------------------------------------------------------------


class Server:
    """A running JupyterLab, asked over HTTP as a browser would."""

    def __init__(self, address: str, token: str):
        self.address, self.token = address, token
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def get(self, path: str) -> str:
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"token {self.token}"})
        with self.opener.open(request, timeout=30) as answer:
            return answer.read().decode()


@contextmanager
def jupyterlab(home: Path):
    """`python -m course lab` on a free port, with an empty home; its address is read from what it prints."""
    log = home / "log"
    env = {**os.environ, "HOME": str(home), "BROWSER": "none", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "course", "lab", "--folder", str(home / "mine"), "--port", "0"]
    with log.open("w") as out, subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out) as process:
        try:
            deadline = time.monotonic() + 90
            while not (found := re.search(r"(http://localhost:\d+)(/\S*)\?token=(\w+)", log.read_text())):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield Server(found[1], found[3]), found[2]
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.e2e
def test_jupyterlab_opens_on_the_course_without_instructor_tools(tmp_path):
    """The server answers, its pages carry the course's settings, and the home's Jupyter folders stay away."""
    with jupyterlab(tmp_path) as (server, first):
        page = server.get("/lab")
        config = json.loads(re.search(r'<script id="jupyter-config-data"[^>]*>(.*?)</script>', page, re.DOTALL)[1])
        off = set(config["disabledExtensions"])
        assert {f"@jupyter/nbgrader:{name}" for name in INSTRUCTOR} <= off
        assert "@jupyterlab/apputils-extension:announcements" in off
        assert first.startswith("/lab/tree/lectures/0")
        assert {entry["name"] for entry in json.loads(server.get("/api/contents/"))["content"]} == {"labs", "lectures"}
        assert json.loads(server.get("/api/kernelspecs"))["default"] == "python3"
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.get("/formgrader")
        refused.value.close()
        assert refused.value.code == 404
    assert not {".jupyter", ".local"} & {path.name for path in tmp_path.iterdir()}  # IPython's own history may be there
