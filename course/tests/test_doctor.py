"""The doctor on machines that this one is not: every problem comes with a fix."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from course import doctor, models
from course.tests.tree import ROOT

CUDA = {"version": "2.13.0", "requires_dist": ["filelock", "nvidia-cublas==13.1; platform_system == 'Linux'"]}
CPU = {"version": "2.13.0+cp" + "u", "requires_dist": ["filelock", "sympy"]}


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 9)])
def test_python_311_and_312_are_welcome(version):
    """The two versions that the tests run on."""
    assert doctor.check_python(version).status == "ok"


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13), (3, 13, 0), (4, 0, 0)])
def test_any_other_python_is_refused_with_both_versions_named(version):
    """The line says what was found, what is wanted, and how to get there."""
    found = doctor.check_python(version)
    assert found.status == "problem" and "3.11 and 3.12" in found.says and "PYTHON=" in found.fix


def test_the_doctor_runs_before_anything_is_installed():
    """A bare Python without site-packages can say whether the installation may begin."""
    command = [sys.executable, "-I", "-S", str(ROOT / "course" / "doctor.py"), "--before-install"]
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert run.returncode == 0, run.stderr
    assert "PyTorch build" in run.stdout or "Python" in run.stdout


def test_cuda_wheels_on_a_machine_without_gpu_are_announced_with_the_way_round():
    """Several GB that nothing can use: said before, not after."""
    found = doctor.check_torch_build(gpu=lambda: False, choice=lambda _: CUDA, system="linux")
    assert found.status == "note" and "several GB" in found.says and "PIP_EXTRA_INDEX_URL" in found.fix


@pytest.mark.parametrize(
    ("gpu", "chosen", "system"), [(True, CUDA, "linux"), (False, CPU, "linux"), (False, CUDA, "darwin")]
)
def test_no_warning_where_cuda_wheels_fit_or_are_not_taken(gpu, chosen, system):
    """A GPU, a CPU build, a Mac."""
    found = doctor.check_torch_build(gpu=lambda: gpu, choice=lambda _: chosen, system=system)
    assert found.status == "ok" and not found.fix


def test_a_pip_that_cannot_tell_does_not_stop_the_installation():
    """No network yet, an old pip: the installation itself will say more."""
    assert doctor.check_torch_build(gpu=lambda: False, choice=lambda _: None, system="linux").status == "note"


def test_pip_is_asked_for_the_pinned_torch(monkeypatch):
    """The answer must be about the version that will be installed."""
    asked = []
    report = json.dumps({"install": [{"metadata": {"version": "9", "requires_dist": ["x"]}}]})

    def run(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=report)

    monkeypatch.setattr(doctor.subprocess, "run", run)
    assert doctor.pip_choice(doctor.pinned("torch")) == {"version": "9", "requires_dist": ["x"]}
    assert asked[0][-1].startswith("torch==2.") and "--dry-run" in asked[0]


@pytest.mark.parametrize("said", ["", "no json", '{"install": []}'])
def test_an_answer_of_pip_that_makes_no_sense_is_no_answer(said, monkeypatch):
    """Never a traceback before the first package."""
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=said))
    assert doctor.pip_choice("torch") is None


def test_a_full_disk_is_a_problem_before_pip_fills_it():
    """The need is stated in GB."""
    found = doctor.check_disk(needed_gb=1e9)
    assert found.status == "problem" and "GB free" in found.says and found.fix


def test_a_missing_package_is_named(monkeypatch):
    """One line for all of them, one fix."""
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "nbgrader" else "1")
    found = doctor.check_packages()
    assert found.status == "problem" and "nbgrader" in found.says and "torch" not in found.says


def test_another_version_is_a_note_and_a_local_build_is_not_another_version(monkeypatch):
    """+cpu is a build of the pinned version; 2.12 is not the pinned version."""
    pins = {name: doctor.pinned(name).partition("==")[2] for name in ("torch", "triton", "numpy")}
    have = {**pins, "torch": pins["torch"] + "+cp" + "u"}
    monkeypatch.setattr(doctor, "version_of", lambda name: have.get(name) or doctor.pinned(name).partition("==")[2])
    assert doctor.check_packages().status == "ok"
    have["torch"] = "2.12.0"
    found = doctor.check_packages()
    assert found.status == "note" and "torch 2.12.0" in found.says


def test_a_driver_that_torch_cannot_use_is_a_problem(monkeypatch):
    """The GPU is there, and every lab would silently run on the CPU."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "has_gpu", lambda: True)
    assert doctor.check_gpu().status == "problem"
    monkeypatch.setattr(doctor, "has_gpu", lambda: False)
    assert doctor.check_gpu().status == "note"


@pytest.mark.parametrize(
    ("answer", "system", "status", "word"),
    [
        ({"has": True, "interpret": True, "error": 1e-8}, "linux", "ok", "interpreter"),
        ({"has": True, "interpret": False, "error": 1e-7}, "linux", "ok", "CUDA"),
        ({"has": True, "interpret": True, "error": 0.3}, "linux", "problem", "wrongly"),
        ({"has": False, "interpret": False}, "linux", "problem", "not installed"),
        ({"has": False, "interpret": False}, "darwin", "note", "not graded here"),
        (None, "linux", "problem", "does not run"),
    ],
)
def test_the_mode_of_triton_is_found_by_running_a_kernel(answer, system, status, word, monkeypatch):
    """CUDA, interpreter, absent, or present and wrong."""
    monkeypatch.setattr(doctor, "ask", lambda *a, **k: (answer, "it crashed"))
    monkeypatch.setattr(doctor.sys, "platform", system)
    found = doctor.check_triton()
    assert found.status == status and word in found.says and bool(found.fix) == (status == "problem")


def test_a_kernel_of_another_python_is_found(tmp_path, monkeypatch):
    """A spec in the user's home wins over the environment's: `import refimpl` then fails in the notebook."""
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/opt/other/bin/python", "-m", "ipykernel"], "display_name": "x"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    found = doctor.check_kernel()
    assert found.status == "problem" and "/opt/other/bin/python" in found.says and str(spec) in found.says
    monkeypatch.delenv("JUPYTER_PATH")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    assert doctor.check_kernel().status == "ok"


def test_toy_weights_are_a_note_and_a_wrong_folder_is_a_problem(tmp_path, monkeypatch):
    """The course runs without the real model; a misspelt setting is an error."""
    monkeypatch.delenv("COURSE_MODELS", raising=False)
    monkeypatch.setattr(models, "is_present", lambda wheel: False)
    found = doctor.check_models()
    assert found.status == "note" and "toy weights" in found.says and found.fix == "make models"
    monkeypatch.setattr(models, "is_present", lambda wheel: True)
    assert doctor.check_models().status == "ok"
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path / "gone"))
    assert doctor.check_models().status == "problem"
    monkeypatch.setenv("COURSE_MODELS", str(tmp_path))
    assert doctor.check_models().status == "ok"


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        ({"tier": "T0"}, "note", "self-study"),
        ({"tier": "T2"}, "ok", "T2"),
        (None, "note", "no tier"),
        ({}, "note", "no tier"),
    ],
)
def test_the_grading_tier_is_the_graders_own_word(answer, status, word, monkeypatch):
    """Asked as a command; a machine without the grader is told, not failed."""
    monkeypatch.setattr(doctor, "ask", lambda *a, **k: (answer, "no such module" if answer is None else ""))
    found = doctor.check_grading()
    assert found.status == status and word in found.says


def test_more_threads_than_cores_is_a_problem(monkeypatch):
    """They spin for each other: 10 times slower, seen."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert doctor.check_threads().status == "problem"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert doctor.check_threads().status == "ok"


def test_an_nbgrader_without_its_extensions_is_found(tmp_path, monkeypatch):
    """pip says installed, the menu and the Validate button are missing."""
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name: str(tmp_path))
    found = doctor.check_nbgrader()
    assert found.status == "problem" and "JupyterLab extension and server extensions" in found.says
    assert "nbgrader==" in found.fix


def test_an_answer_is_read_from_the_last_line():
    """Other programs may greet first."""
    assert doctor.ask("-c", "print('hello'); print('{\"a\": 1}')") == ({"a": 1}, "")
    answer, why = doctor.ask("-c", "raise SystemExit('broken here')")
    assert answer is None and why == "broken here"
    answer, why = doctor.ask("-c", "import time; time.sleep(60)", timeout_s=0.2)
    assert answer is None and "no answer" in why


@pytest.mark.parametrize("bad", [True, False])
def test_the_exit_status_and_the_json_agree(bad, monkeypatch, capsys):
    """A script can rely on either."""
    last = doctor.problem("x", "is broken", "mend it") if bad else doctor.note("x", "is small")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: doctor.ok("y", "fine"), lambda: last))
    assert doctor.main(["--json"]) == bad
    answer = json.loads(capsys.readouterr().out)
    assert answer["ready"] is not bad and [finding["name"] for finding in answer["findings"]] == ["y", "x"]
    assert doctor.main([]) == bad
    assert ("fix: mend it" in capsys.readouterr().out) is bad


def test_the_warning_waits_for_a_person_and_never_for_a_machine(monkeypatch):
    """Ten seconds on a terminal, none in CI."""
    slept = []
    monkeypatch.setattr(doctor.time, "sleep", slept.append)
    warning = [doctor.note("PyTorch build", "CUDA", "stop now")]
    monkeypatch.setattr(doctor.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("CI", "true")
    doctor.pause_for_reader(warning)
    assert slept == []
    monkeypatch.delenv("CI")
    doctor.pause_for_reader([doctor.ok("PyTorch build", "fine")])
    assert slept == []
    doctor.pause_for_reader(warning)
    assert slept == [doctor.PAUSE_S]


def test_before_install_stops_only_for_a_problem(monkeypatch, capsys):
    """A warning goes on; a wrong Python stops, and says nothing else."""
    monkeypatch.setattr(doctor, "before_install", lambda: [doctor.note("PyTorch build", "CUDA", "stop now")])
    monkeypatch.setenv("CI", "true")
    assert doctor.main(["--before-install"]) == 0 and "stop now" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "check_python", lambda: doctor.problem("Python", "3.9", "install 3.12"))
    monkeypatch.setattr(doctor, "check_disk", lambda **need: doctor.problem("disk", "full", "empty it"))
    assert doctor.main(["--before-install"]) == 1 and capsys.readouterr().out.count("fix:") == 1


def test_this_machine_has_no_problem():
    """Where the tests run, the course runs. Only the examinations that are quick."""
    quick = (doctor.check_python, doctor.check_disk, doctor.check_packages, doctor.check_nbgrader, doctor.check_models)
    assert [finding for check in quick if (finding := check()).status == "problem"] == []


@pytest.mark.slow
def test_this_machine_computes_with_triton():
    """The probe itself works: a kernel runs and is compared."""
    found = doctor.check_triton()
    assert found.status in ("ok", "note"), found


def test_the_source_runs_on_a_python_that_it_must_refuse():
    """An old Python has to get as far as the message: nothing newer than 3.8 in the syntax."""
    import ast

    ast.parse(Path(doctor.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
