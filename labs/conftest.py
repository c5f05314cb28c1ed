"""Every test in this folder that asks for `lab` runs once per lab found; a new lab is tested by being there."""

from pathlib import Path

import pytest

LABS = sorted(path.parent for path in Path(__file__).parent.glob("*/lab.toml"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "lab" in metafunc.fixturenames:
        metafunc.parametrize("lab", LABS, ids=lambda folder: folder.name)
