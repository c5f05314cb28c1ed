"""A unit has one name: the same slug in lectures/, labs/ and refimpl; the number only sorts."""

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from course.tests.tree import ROOT, files, plant

UNIT = re.compile(r"\d\d_[a-z][a-z0-9]*(_[a-z0-9]+)*")


def units(root: Path) -> dict[str, list[Path]]:
    """unit name -> its lecture source and its lab folder, as far as they exist."""
    found: dict[str, list[Path]] = {}
    for path in files(root):
        if path.parts[0] == "lectures" and len(path.parts) == 2 and path.suffix == ".py":
            found.setdefault(path.stem, []).append(path)
        if path.parts[0] == "labs" and path.name == "lab.toml" and not path.parts[1].startswith("_"):
            found.setdefault(path.parts[1], []).append(path.parent)
    return found


def form_problems(root: Path) -> Iterator[str]:
    """Names look like 04_flash_attention."""
    for unit, paths in units(root).items():
        if not UNIT.fullmatch(unit):
            yield f"{paths[0]}: {unit!r} is no unit name. Write it like 04_flash_attention."


def twin_problems(root: Path) -> Iterator[str]:
    """One number, one slug; one slug, one number."""
    for key, what in ((lambda unit: unit[:2], "number"), (lambda unit: unit[3:], "slug")):
        groups: dict[str, list[str]] = {}
        for unit in sorted(units(root)):
            groups.setdefault(key(unit), []).append(unit)
        for value, names in groups.items():
            if len(names) > 1:
                yield f"{what} {value} stands for {' and '.join(names)}. A unit has one name: rename one."


def oracle_problems(root: Path) -> Iterator[str]:
    """A lab's oracle is the refimpl module of its name, the one lab.toml names, or its own reference.py."""
    for unit, paths in units(root).items():
        for lab in (path for path in paths if path.parts[0] == "labs"):
            named = tomllib.loads((root / lab / "lab.toml").read_text(encoding="utf-8")).get("module", unit[3:])
            module = root / "refimpl" / named.replace(".", "/")
            if not (
                module.with_suffix(".py").exists() or (module / "__init__.py").exists() or has_reference(root / lab)
            ):
                yield f'{lab}: refimpl has no module "{named}". Write it, or name another in lab.toml: module = "…".'


def has_reference(lab: Path) -> bool:
    return (lab / "reference.py").exists()


def near_miss_problems(root: Path) -> Iterator[str]:
    """`flash_attn` beside `flash_attention` is a typing error or a future one."""
    slugs = {unit[3:] for unit in units(root)}
    for module in sorted(
        {path.parts[1].removesuffix(".py") for path in files(root, ".py") if path.parts[0] == "refimpl"}
    ):
        close = difflib.get_close_matches(module, slugs - {module}, n=1, cutoff=0.8)
        if close and module not in slugs:
            yield f"refimpl/{module}: almost the unit {close[0]}. Use the unit's word, or a clearly different one."


def open_lab_problems(root: Path) -> Iterator[str]:
    """A lab opens itself."""
    for unit, paths in units(root).items():
        for lab in (path for path in paths if path.parts[0] == "labs"):
            source = root / lab / "lab.py"
            opened = re.findall(r'open_lab\("([^"]*)"', source.read_text(encoding="utf-8")) if source.exists() else []
            for name in set(opened) - {unit}:
                yield f'{lab}/lab.py: opens "{name}". Write open_lab("{unit}").'


RULES = [form_problems, twin_problems, oracle_problems, near_miss_problems, open_lab_problems]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_this_repository_keeps_the_rule(rule):
    """No unit of ours breaks it."""
    assert not list(rule(ROOT)), "\n".join(rule(ROOT))


def test_there_are_units_to_look_at():
    """Otherwise the rules above would hold for an empty tree."""
    assert {"03_online_softmax", "04_flash_attention"} <= set(units(ROOT))


PLANTED = {
    "a number without its zero": (form_problems, {"lectures__3_x_dot_py": ""}),
    "a dash": (form_problems, {"labs__03_a-b__lab_dot_toml": ""}),
    "two slugs for one number": (twin_problems, {"lectures__03_a_dot_py": "", "labs__03_b__lab_dot_toml": ""}),
    "two numbers for one slug": (twin_problems, {"lectures__03_a_dot_py": "", "labs__04_a__lab_dot_toml": ""}),
    "no oracle": (oracle_problems, {"labs__03_a__lab_dot_toml": ""}),
    "an oracle that does not exist": (
        oracle_problems,
        {"labs__03_a__lab_dot_toml": 'module = "b"', "refimpl__a_dot_py": ""},
    ),
    "almost the same word": (
        near_miss_problems,
        {"lectures__04_flash_attention_dot_py": "", "refimpl__flash_atention_dot_py": ""},
    ),
    "a lab opens another": (
        open_lab_problems,
        {"labs__03_a__lab_dot_toml": "", "labs__03_a__lab_dot_py": 'lab = open_lab("03_b")'},
    ),
}


@pytest.mark.parametrize(("rule", "sources"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_seen(rule, sources, tmp_path):
    """The rule names the place and says the way out."""
    (problem,) = rule(plant(tmp_path, **sources))
    assert any(way in problem for way in ("Write", "rename", "Use"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_whole_unit_is_not_reported(rule, tmp_path):
    """Lecture, lab and oracle of one name, and a template that is no unit."""
    tree = plant(
        tmp_path,
        lectures__03_a_dot_py="",
        labs__03_a__lab_dot_toml="",
        labs__03_a__lab_dot_py='open_lab("03_a")',
        labs___template__lab_dot_toml="",
        refimpl__a_dot_py="",
    )
    assert not list(rule(tree))
