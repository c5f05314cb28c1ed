"""Is this machine ready for the course? One line per fact, one fix per problem.

    python -m course doctor [--json]          the whole examination; exit status 1 when there is a problem
    python course/doctor.py --before-install  the part that needs nothing installed: `make` runs it before pip

The file runs under a bare Python: everything outside the standard library is imported inside the check that needs it.
A *note* is a limit to know about (no GPU, toy weights); a *problem* stops something and has a fix.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 11), (3, 12))
INSTALL_GB = 3.0  # torch, triton and JupyterLab take 2.1 GB unpacked (CPU build), pip needs room to unpack
SPARE_GB = 1.0
PAUSE_S = 10
INSTALL = "make lab (it installs what is missing)"
REINSTALL = "rm -rf .venv; make lab"


@dataclass(frozen=True)
class Finding:
    """One fact about this machine."""

    name: str
    status: str  # "ok" | "note" | "problem"
    says: str
    fix: str = ""  # what to do; empty only when there is nothing to do


def ok(name: str, says: str) -> Finding:
    return Finding(name, "ok", says)


def note(name: str, says: str, fix: str = "") -> Finding:
    return Finding(name, "note", says, fix)


def problem(name: str, says: str, fix: str) -> Finding:
    return Finding(name, "problem", says, fix)


# --- before anything is installed -----------------------------------------------------------------------------------


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """3.11 and 3.12 are what the pinned packages and the tests are for."""
    found = ".".join(map(str, version[:3]))
    if tuple(version[:2]) in PYTHONS:
        return ok("Python", found)
    return problem(
        "Python",
        f"this is Python {found}; the course runs on 3.11 and 3.12",
        "install Python 3.12 and remove .venv, or name one that you have: make lab PYTHON=python3.12",
    )


def check_disk(root: Path = ROOT, needed_gb: float = SPARE_GB) -> Finding:
    free_gb = shutil.disk_usage(root).free / 1e9
    if free_gb >= needed_gb:
        return ok("disk", f"{free_gb:.0f} GB free")
    return problem(
        "disk",
        f"{free_gb:.1f} GB free where the course lies, {needed_gb:.0f} GB needed",
        "free some space, or clone the course onto a larger disk",
    )


def has_gpu() -> bool:
    """An NVIDIA driver is here. Asks the system, because torch may not be installed yet."""
    signs = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"), Path("/dev/dxg"))
    return shutil.which("nvidia-smi") is not None or any(sign.exists() for sign in signs)


def pinned(package: str, root: Path = ROOT) -> str:
    """`name==version` of a package in constraints.txt, or the bare name."""
    lines = (root / "constraints.txt").read_text().split()
    return next((line for line in lines if line.lower().startswith(f"{package}==")), package)


def pip_choice(requirement: str, timeout_s: float = 60) -> dict | None:
    """What pip would install for `requirement` on this machine with its present settings: {version, requires_dist}.

    A dry run reads the package's metadata, not its gigabytes. None when pip cannot say in time.
    """
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    try:
        run = subprocess.run(
            [*command, "--report", "-", requirement], capture_output=True, text=True, timeout=timeout_s, check=True
        )
        chosen = json.loads(run.stdout)["install"][0]["metadata"]
    except (subprocess.SubprocessError, OSError, ValueError, LookupError):
        return None
    return {"version": chosen["version"], "requires_dist": chosen.get("requires_dist", [])}


def check_torch_build(
    gpu: Callable[[], bool] = has_gpu, choice: Callable[[str], dict | None] = pip_choice, system: str = sys.platform
) -> Finding:
    """Would pip pull gigabytes of CUDA libraries onto a machine that has no NVIDIA GPU?"""
    if system != "linux":
        return ok("PyTorch build", "the usual one: its wheels for this system hold no CUDA libraries")
    if gpu():
        return ok("PyTorch build", "the usual one, with CUDA: this machine has an NVIDIA driver")
    chosen = choice(pinned("torch"))
    if chosen is None:
        return note("PyTorch build", "pip could not tell in time which build it would take")
    if not any(need.startswith(("nvidia-", "cuda-")) for need in chosen["requires_dist"]):
        return ok("PyTorch build", f"{chosen['version']}: no CUDA libraries")
    return note(
        "PyTorch build",
        f"no NVIDIA GPU here, but pip would take torch {chosen['version']} with CUDA: several GB that nothing can use",
        "stop now (Ctrl-C) and give pip PyTorch's CPU wheels: make lab PIP_EXTRA_INDEX_URL=ADDRESS, where ADDRESS is "
        'the one that https://pytorch.org/get-started/locally/ shows for "CPU"',
    )


def before_install() -> list[Finding]:
    python = check_python()
    if python.status == "problem":  # the rest would only repeat it in other words
        return [python]
    return [python, check_disk(needed_gb=INSTALL_GB), check_torch_build()]


# --- after -----------------------------------------------------------------------------------------------------------


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_packages(root: Path = ROOT) -> Finding:
    """Are the pinned packages the ones in use? Others may work; nobody has tested them."""
    named = ("torch", "triton", "numpy", "jupyterlab", "nbgrader", "matplotlib", "ipywidgets")
    found = {name: version_of(name) for name in named}
    missing = [name for name in named if found[name] is None and not (name == "triton" and sys.platform != "linux")]
    if missing:
        return problem("packages", f"not installed: {', '.join(missing)}", INSTALL)
    wanted = {name: pinned(name, root).partition("==")[2] for name in named}
    # A local build tag such as +cpu is the same version.
    other = [f"{name} {have}" for name, have in found.items() if have and have.partition("+")[0] != wanted[name]]
    if other:
        return note("packages", f"other versions than constraints.txt: {', '.join(other)}", REINSTALL)
    return ok("packages", "the seven named ones, in the versions of constraints.txt")


def check_torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return problem("torch", f"does not import: {error}", INSTALL)
    says = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if torch.version.cuda and not torch.cuda.is_available():
        says += f"; built for CUDA {torch.version.cuda}, runs on the CPU here"
    return ok("torch", says)


def check_gpu() -> Finding:
    try:
        import torch
    except ImportError:
        return note("GPU", "unknown until torch imports")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return ok("GPU", f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}")
    if has_gpu():
        return problem(
            "GPU",
            f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it",
            "install PyTorch's build for your driver (https://pytorch.org/get-started/locally/), then make doctor",
        )
    return note("GPU", "none: every lab runs on the CPU, and is graded there")


# One tiny kernel, end to end: an interpreter that imports but computes nonsense is the worst case.
TRITON_PROBE = """
import json, torch
from refimpl import _triton
out = {"has": bool(_triton.HAS_TRITON), "interpret": bool(_triton.INTERPRET)}
if out["has"]:
    from refimpl.online_softmax import fused_softmax
    x = torch.linspace(-3, 3, 21, device="cpu" if out["interpret"] else "cuda").reshape(3, 7)
    out["error"] = float((fused_softmax(x) - torch.softmax(x, -1)).abs().max())
print(json.dumps(out))
"""


def ask(*arguments: str, timeout_s: float = 120) -> tuple[dict | None, str]:
    """Run this Python with `arguments`; its last line as JSON, else None and what it said."""
    try:
        run = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {timeout_s:.0f} s"
    for text in (run.stdout, run.stdout.strip().rpartition("\n")[2]):
        try:
            answer = json.loads(text)
        except ValueError:
            continue
        if isinstance(answer, dict):
            return answer, ""
    return None, (run.stderr or run.stdout or "no output").strip().splitlines()[-1]


def check_triton() -> Finding:
    """Which way the Triton kernels run here: CUDA, the interpreter, or not at all."""
    answer, why = ask("-c", TRITON_PROBE)
    version = version_of("triton")
    if answer is None:
        return problem("Triton", f"a three-line kernel does not run: {why}", REINSTALL)
    if not answer["has"]:
        if sys.platform == "linux":
            return problem("Triton", "not installed", INSTALL)
        return note("Triton", f"has no wheels for {platform.system()}: its questions say so and are not graded here")
    if answer["error"] > 1e-6:
        return problem("Triton", f"{version} computes a softmax wrongly (by {answer['error']:.1e})", REINSTALL)
    return ok("Triton", f"{version}, {'interpreter, on the CPU' if answer['interpret'] else 'CUDA'}")


def check_kernel() -> Finding:
    """Notebooks ask for the kernel `python3`; a spec in the user's home can point it at another Python."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return problem("kernel", "Jupyter is not installed", INSTALL)
    try:
        spec = KernelSpecManager().get_kernel_spec("python3")
    except NoSuchKernel:
        return problem("kernel", "no kernel named python3", f"{sys.executable} -m ipykernel install --sys-prefix")
    program = spec.argv[0]
    # jupyter_client replaces a bare "python" by the Python that it runs in.
    mine = Path(program).name == program and program.startswith("python")
    if mine or Path(program).parent == Path(sys.executable).parent or Path(program) == Path(sys.executable):
        return ok("kernel", "python3 is this Python")
    return problem(
        "kernel",
        f"python3 is another Python: {program} (from {spec.resource_dir})",
        "start JupyterLab with `make lab`, which prefers the course's kernel, or remove that folder",
    )


def check_models() -> Finding:
    """Are the real weights and the text here, or will the notebooks run on the seeded toy?"""
    folder = os.environ.get("COURSE_MODELS")
    if folder and not Path(folder).is_dir():
        return problem("models", f"COURSE_MODELS={folder} is no folder", "name one that is, or unset COURSE_MODELS")
    if folder:
        return ok("models", f"weights from COURSE_MODELS={folder}")
    from course.models import WHEELS, is_present

    missing = [wheel for wheel in WHEELS if not is_present(wheel)]
    if missing:
        return note("models", "; ".join(f"no {wheel.what}: {wheel.instead}" for wheel in missing), "make models")
    return ok("models", f"{' and '.join(wheel.what for wheel in WHEELS)}, from their wheels")


def check_nbgrader() -> Finding:
    version = version_of("nbgrader")
    if version is None:
        return problem("nbgrader", "not installed", INSTALL)
    data = Path(sysconfig.get_path("data"))
    parts = {
        "JupyterLab extension": data / "share/jupyter/labextensions/@jupyter/nbgrader/package.json",
        "server extensions": data / "etc/jupyter/jupyter_server_config.d/nbgrader.json",
    }
    if missing := [name for name, path in parts.items() if not path.is_file()]:
        fix = f"{sys.executable} -m pip install --force-reinstall --no-deps {pinned('nbgrader')}"
        return problem("nbgrader", f"{version}, but without its {' and '.join(missing)}", fix)
    return ok("nbgrader", f"{version}, with its JupyterLab and server extensions")


def check_grading() -> Finding:
    """How well student code can be shut in here; `autograder` knows, so it is asked as a command."""
    answer, why = ask("-m", "autograder", "doctor", "--json")
    if answer is None or "tier" not in answer:
        return note("grading", f"the autograder gives no tier ({why or 'no key tier in its answer'})")
    tier = str(answer["tier"])
    if tier == "T0":
        return note("grading", "tier T0: checks run, but this machine's grades are for self-study only")
    return ok("grading", f"tier {tier}")


def check_threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > cores:
        says = f"OMP_NUM_THREADS={asked} on {cores} cores: they wait for each other"
        return problem("threads", says, "unset OMP_NUM_THREADS")
    return ok("threads", f"{cores} cores" + (f", OMP_NUM_THREADS={asked}" if asked else ""))


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_disk,
    check_threads,
    check_packages,
    check_torch,
    check_gpu,
    check_triton,
    check_kernel,
    check_nbgrader,
    check_models,
    check_grading,
)


# --- the report -------------------------------------------------------------------------------------------------------


def line(finding: Finding) -> str:
    mark = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}[finding.status]
    text = f"{mark}  {finding.name:<13}  {finding.says}"
    return text + (f"\n{'':9}{'':15}fix: {finding.fix}" if finding.fix else "")


def report(findings: Sequence[Finding], as_json: bool) -> int:
    bad = sum(finding.status == "problem" for finding in findings)
    if as_json:
        print(json.dumps({"ready": not bad, "findings": [asdict(finding) for finding in findings]}, indent=2))
    elif bad:
        print(f"\n{bad} problem{'s' if bad > 1 else ''} to fix, the first one first.")
    else:
        print("\nThis machine is ready.")
    return 1 if bad else 0


def pause_for_reader(findings: Sequence[Finding]) -> None:
    """Give a person the time to stop before a large download; never block a machine."""
    warned = any(finding.fix and finding.status == "note" for finding in findings)
    if warned and sys.stdin.isatty() and not os.environ.get("CI"):
        print(f"Going on in {PAUSE_S} s. Ctrl-C stops.", flush=True)
        time.sleep(PAUSE_S)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="course doctor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--before-install", action="store_true", help="only what can be told before pip has run")
    options = parser.parse_args(argv)
    findings = before_install() if options.before_install else []
    if options.before_install:
        shown = [finding for finding in findings if finding.status != "ok"]
        print("\n".join(map(line, shown or findings)), flush=True)
        pause_for_reader(findings)
        return int(any(finding.status == "problem" for finding in findings))
    for check in CHECKS:
        findings.append(check())
        if not options.json:
            print(line(findings[-1]), flush=True)  # one by one: some checks take seconds
    return report(findings, options.json)


if __name__ == "__main__":
    sys.exit(main())
