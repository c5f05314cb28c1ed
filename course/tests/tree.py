"""What the architecture tests read: the files of a tree, and what its modules import. Takes any folder as root."""

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("refimpl", "autograder", "course")


@dataclass(frozen=True)
class Import:
    """One imported module name, and where."""

    name: str
    line: int
    at_module_level: bool
    level: int = 0  # leading dots


def files(root: Path, *suffixes: str) -> list[Path]:
    """Files that are, or would be, in git; all files where the folder is no repository. Relative to `root`."""
    git = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (root / ".git").exists():
        names = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [Path(name) for name in names if name and (root / name).is_file()]
    else:
        paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return sorted(path for path in paths if not suffixes or path.suffix in suffixes)


def is_test(path: Path) -> bool:
    return "tests" in path.parts or path.name == "conftest.py"


def is_sample(path: Path) -> bool:
    """Files that tests read as data, small labs for example: they play a part and belong to no package."""
    return "tests/data/" in path.as_posix()


def modules(root: Path, package: str, *, tests: bool = False) -> dict[str, Path]:
    """Dotted name -> relative path of each module of `package`."""
    found = {}
    for path in files(root, ".py"):
        if path.parts[0] == package and (tests or not is_test(path)) and not is_sample(path):
            parts = path.with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path, path: Path) -> Iterator[Import]:
    """Every import statement of a file, also inside functions; not those for the type checker only."""
    tree = ast.parse((root / path).read_text(encoding="utf-8"), filename=str(path))
    yield from _imports(tree, path, at_module_level=True)


def _imports(node: ast.AST, path: Path, *, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_module_level)
        elif isinstance(child, ast.ImportFrom):
            base = ".".join([*path.parent.parts[: len(path.parent.parts) - child.level + 1]] if child.level else [])
            module = ".".join(filter(None, [base, child.module or ""]))
            for alias in child.names:
                yield Import(f"{module}.{alias.name}", child.lineno, at_module_level, child.level)
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, path, at_module_level=at_module_level and not inside)


def plant(root: Path, **sources: str) -> Path:
    """Write small files for a test of the rules: keys are paths with `__` for `/` and `_dot_` for `.`."""
    for key, text in sources.items():
        path = root / key.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
