"""Ranks are other processes: under `pytest --cov` they measure coverage as well, and pytest-cov combines it."""

import os
import tempfile
import time
from pathlib import Path

import pytest

SETTINGS = Path(__file__).parents[3] / "pyproject.toml"


@pytest.fixture(autouse=True, scope="module")
def coverage_in_ranks(request):
    """Sets what coverage's own subprocess support reads, for as long as the tests of one file run."""
    if not getattr(request.config.option, "cov_source", None):
        yield
        return
    before = os.environ.get("COVERAGE_PROCESS_START")
    os.environ["COVERAGE_PROCESS_START"] = str(SETTINGS)
    yield
    os.environ.pop("COVERAGE_PROCESS_START") if before is None else os.environ.update(COVERAGE_PROCESS_START=before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Launches of this test put their folders here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def alive():
    """Command lines of the processes that name a folder, as soon as there are none or after `seconds`."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("looks for processes in /proc, which Linux has")

    def look(folder: Path, seconds: float = 2.0) -> list[str]:
        deadline = time.monotonic() + seconds  # what was just killed takes a moment to be gone
        while (found := list(_commands(folder))) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    return look


def _commands(folder: Path):
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")  # a zombie's is empty
        except OSError:
            continue
        if str(folder) in command and path.parent.name != str(os.getpid()):
            yield command
