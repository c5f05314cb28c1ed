"""The untrusted side: what the runner does with cells and calls, and what the zygote leaves behind (nothing)."""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from autograder.judge import session as session_module
from autograder.judge import zygote as booting
from autograder.judge.memory import Before, read_peak, start_peak
from autograder.judge.session import Cell, Notebook, Session
from autograder.judge.zygote import SandboxError, Zygote
from autograder.sandbox import runner, stub, wire
from autograder.sandbox import zygote as zygote_module
from autograder.sandbox.objects import Objects

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def namespace(monkeypatch):
    """A notebook's globals, without taking over pytest's own __main__."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # put back at the end
    return runner.fresh_namespace()


def ask(namespace, **request):
    """One request to the runner, in this process; returns the reply and the decoded value."""
    reply, blob = runner.answer({"id": "7", **request}, b"", runner.Desk(namespace, Objects()))
    return reply, wire.decode(reply.get("value"), blob)


def execute(namespace, source, name="c"):
    return ask(namespace, op="exec", name=name, source=source)[0]


def call(namespace, answer, *args, drive=None, forbid=(), once=(), **kwargs):
    form, blob = wire.encode((args, kwargs))
    request = {"id": "7", "op": "call", "answer": answer, "case": "a case", "drive": drive, "args": form["t"][0]}
    request.update(kwargs=form["t"][1], forbid=forbid, once=once)
    reply, out = runner.answer(request, blob, runner.Desk(namespace, Objects()))
    return reply, wire.decode(reply.get("value"), out)


# --- cells ----------------------------------------------------------------------------------------------


def test_a_cell_defines_what_the_next_one_uses(namespace):
    """As in a notebook."""
    assert execute(namespace, "import torch\nk = 2")["ok"]
    assert execute(namespace, "def f(x):\n    return k * x")["ok"]
    assert torch.equal(call(namespace, "f", torch.ones(2))[1], torch.full((2,), 2.0))


def test_an_error_names_the_cell_and_the_line(namespace):
    """The innermost line of the student's own, also when torch raised below it."""
    execute(namespace, "import torch\n\n\ndef f(x):\n    return x @ torch.ones(5)", name="f")
    error = call(namespace, "f", torch.ones(2))[0]["error"]
    assert (error["type"], error["cell"], error["line"]) == ("RuntimeError", "f", 5)


def test_a_syntax_error_names_its_line(namespace):
    """It happens before anything runs, so no frame tells."""
    error = execute(namespace, "x = 1\ndef f(:", name="s")["error"]
    assert (error["type"], error["cell"], error["line"]) == ("SyntaxError", "s", 2)


def test_a_message_that_cannot_be_read_stops_nothing(namespace):
    """An exception class may lie in wait in its __str__."""
    reply = execute(namespace, "class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E")
    assert reply["error"]["message"] == "(its message could not be read)"


def test_a_cell_may_exit_without_ending_the_runner(namespace):
    """sys.exit() in a notebook is a mistake, not an attack."""
    assert execute(namespace, "import sys\nsys.exit(3)")["error"]["type"] == "SystemExit"


def test_the_source_of_a_cell_can_be_read_back(namespace):
    """inspect finds it by linecache; @triton.jit needs that."""
    execute(namespace, "import inspect\n\n\ndef f():\n    return 41  # kept", name="src")
    execute(namespace, "def g():\n    return inspect.getsource(f)")
    assert "# kept" in call(namespace, "g")[1]


def test_a_dataclass_finds_its_module(namespace):
    """dataclasses look their class's module up by name."""
    reply = execute(namespace, "from dataclasses import dataclass\n\n\n@dataclass\nclass A:\n    x: int = 1\n\n\nA()")
    assert reply["ok"], reply


def test_top_level_await_works(namespace):
    """IPython allows it, so students write it."""
    execute(namespace, "import asyncio\n\n\nasync def f():\n    return 3\n\n\nx = await f()\ndef g():\n    return x")
    assert call(namespace, "g")[1] == 3


def test_notebook_habits_do_no_harm(namespace):
    """Magics, shell commands and display do nothing; a timed cell still defines its functions."""
    body = "get_ipython().run_line_magic('matplotlib', 'inline')\nget_ipython().system('pip install x')\ndisplay(1)"
    assert execute(namespace, body)["ok"]
    assert execute(namespace, "get_ipython().run_cell_magic('time', '', 'def f():\\n    return 5')")["ok"]
    assert execute(namespace, "get_ipython().run_cell_magic('bash', '', 'exit 1')")["ok"]
    assert call(namespace, "f")[1] == 5


def test_output_is_kept_to_a_tail(namespace):
    """200 MB of prints cost the judge 4 KB."""
    reply = execute(namespace, "import sys\nprint('x' * 1_000_000)\nprint('end', file=sys.stderr)")
    assert len(reply["stdout"]) == runner.STDOUT_TAIL and reply["stdout"].endswith("end\n")
    assert runner.Tail().writable()


# --- calls ----------------------------------------------------------------------------------------------


def test_a_missing_answer_is_said_as_such(namespace):
    """Not a NameError of the student's own."""
    assert call(namespace, "nothing")[0]["error"]["type"] == "AnswerMissing"


@pytest.mark.parametrize("parameters", ["answer, case", "self, answer, case"])
def test_drive_turns_an_answer_into_data(namespace, parameters):
    """Its source travels; torch, math and np are in its scope; `self` is nothing it may use."""
    execute(namespace, "def f(x, k=1):\n    return x * k")
    body = "y = answer(*case.args, **case.kwargs)\n    return [math.pi, np.pi, y, case.name]"
    drive = f"def drive({parameters}):\n    {body}"
    value = call(namespace, "f", torch.ones(1), drive=drive, k=3)[1]
    assert value[0] == value[1] and value[2].item() == 3 and value[3] == "a case"


def test_an_argument_read_once_runs_dry(namespace):
    """A second pass over the blocks finds nothing."""
    execute(namespace, "def f(blocks):\n    return [sum(blocks), sum(blocks)]")
    assert call(namespace, "f", [1, 2], once=[0])[1] == [3, 0]
    assert call(namespace, "f", [1, 2])[1] == [3, 3]


def test_a_forbidden_operation_stops_the_call(namespace):
    """By whatever road it is reached."""
    execute(namespace, "import torch\n\n\ndef f(x):\n    return x.softmax(-1)\n\n\ndef g(x):\n    return x.exp()")
    assert call(namespace, "f", torch.ones(2), forbid=["softmax"])[0]["error"]["type"] == "ForbiddenCall"
    assert call(namespace, "g", torch.ones(2), forbid=["softmax"])[0]["ok"]


def test_the_runner_serves_until_the_judge_hangs_up(namespace):
    """Requests and replies over a real socket; a result too large for the wire becomes an error."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=runner.serve, args=(theirs, namespace))
    thread.start()
    with ours:
        for name, source in (
            ("big", f"def big():\n    return 'x' * {2 * wire.MAX_HEAD}"),
            ("ok", "def ok():\n    return 1"),
        ):
            wire.send(ours, {"id": "1", "op": "exec", "name": name, "source": source})
            assert wire.receive(ours)[0]["ok"]
        request = {"id": "2", "op": "call", "case": "", "drive": None, "args": {"t": []}, "kwargs": {"d": []}}
        for answer in ("big", "ok"):
            wire.send(ours, {**request, "answer": answer, "forbid": [], "once": []})
            reply, _ = wire.receive(ours)
            assert reply["id"] == "2" and reply["ok"] is (answer == "ok")
    thread.join(5)
    theirs.close()
    assert not thread.is_alive()


# --- the stub -------------------------------------------------------------------------------------------


def test_the_stub_answers_a_notebook_and_helps_it_with_nothing():
    """Every name a notebook or a mistakes.py imports is there and has no effect."""
    module = stub.stub_module()
    lab = module.open_lab("03")
    assert lab.check("merge") is lab.hint("merge") is lab.anything() is None
    assert module.mistake("merge", says="x")(len) is len
    assert module.Case("a", 1) is not None and issubclass(module.CheckFailed, AssertionError)
    for missing in (lab, module):
        with pytest.raises(AttributeError):
            missing.__wrapped__  # noqa: B018


def test_the_courses_own_packages_are_refused(monkeypatch):
    """A graded cell stands on its own: no oracle, no judge, no other lab."""
    monkeypatch.setattr(sys, "modules", {"autograder.judge": 1, "refimpl": 2, "torch": torch})
    monkeypatch.setattr(sys, "meta_path", [])
    stub.install()
    assert set(sys.modules) == {"autograder", "torch"}
    (refuse,) = sys.meta_path
    for name in ("refimpl", "refimpl.attention", "course", "labs", "lectures", "autograder.judge"):
        with pytest.raises(ImportError, match="not available while a notebook is graded"):
            refuse.find_spec(name)
    assert refuse.find_spec("numpy") is None


# --- booting ------------------------------------------------------------------------------------------------


def test_the_sandbox_loads_from_its_folder_alone(monkeypatch):
    """As a package of its own, without a new entry on sys.path."""
    monkeypatch.setitem(sys.modules, "sandbox", None)
    before = list(sys.path)
    zygote_module.load_sandbox()
    assert sys.modules["sandbox"].__path__ == [str(zygote_module.HERE)] and sys.path == before


def test_the_course_is_dropped_from_the_path(monkeypatch, tmp_path):
    """An editable install puts the repository on sys.path; the sandbox takes it off."""
    (tmp_path / "refimpl").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    zygote_module.leave_course()
    assert str(tmp_path) not in sys.path and sys.path


def test_a_lab_that_names_a_missing_import_still_gets_its_zygote():
    """The cell that needs it will say so itself."""
    with Zygote(["no_such_module_here"]) as zygote, Session(zygote, Notebook([Cell("c", "x = 1")])) as session:
        assert session.notebook.problems == {} and session.pid


# --- sessions, for real -----------------------------------------------------------------------------------


def alive(pid):
    """Whether the process still runs (a zombie does not)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_session_runs_cells_and_answers_calls(zygote):
    """The whole way, in a process of its own."""
    notebook = Notebook([Cell("setup", "import torch, os"), Cell("f", "def f(x):\n    return x + 1, os.getpid()")])
    with Session(zygote, notebook) as session:
        outcome = session.call("f", [torch.ones(2)])
        assert outcome.ok and torch.equal(outcome.value[0], torch.full((2,), 2.0))
        assert outcome.value[1] in (session.pid, 1)  # its number in a process namespace of its own
        assert session.pid != os.getpid()
    assert notebook.problems == {} and not alive(session.pid)


@pytest.mark.parametrize(
    ("source", "kind"), [("while True:\n    pass", "timeout"), ("import os\nos._exit(1)", "crash")]
)
def test_a_cell_that_hangs_or_crashes_is_left_out(zygote, source, kind):
    """What it would have defined is missing; what the others define is there, before it and after it."""
    cells = [Cell("a", "def a():\n    return 1"), Cell("bad", source), Cell("b", "def b():\n    return 2")]
    notebook = Notebook(cells)
    with Session(zygote, notebook, seconds=1) as session:
        assert [session.call(name, []).value for name in ("a", "b")] == [1, 2]
    assert notebook.problems["bad"].kind == kind and set(notebook.guilty) == {"bad"}
    start = time.monotonic()
    Session(zygote, notebook, seconds=1).close()
    assert time.monotonic() - start < 0.9, "a cell that hung once must not cost its deadline again"


def test_too_many_bad_cells_end_the_session(zygote):
    """Each costs a restart; a notebook of nothing else is given up."""
    cells = [Cell(f"bad {i}", "import os\nos._exit(1)") for i in range(session_module.MAX_RESTARTS + 1)]
    with Session(zygote, Notebook([*cells, Cell("f", "def f():\n    return 1")])) as session:
        assert session.call("f", []).problem.kind == "crash"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("time.sleep(60)", "timeout"),
        ("os._exit(0)", "crash"),
        ("ctypes.string_at(0)", "crash"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    while True: pass", "timeout"),
        ("send(b'x' * 64)", "garbled"),
        ('send(frame(b\'{"id": "0", "ok": true, "value": 1}\'))', "garbled"),
        ("send(frame(b'{}'))", "garbled"),
        ("torch.zeros(1 << 33)", "error"),
        ("raise KeyboardInterrupt", "error"),
    ],
)  # fmt: skip
def test_whatever_a_call_does_the_next_one_works(zygote, body, kind):
    """Hang, exit, segmentation fault, forged replies, all of the memory: an outcome each time, and a fresh runner."""
    helpers = """import ctypes, os, signal, struct, time, torch


def send(text):
    for fd in range(3, 64):
        try:
            os.write(fd, text)
        except OSError:
            pass


def frame(head):
    return struct.pack("<II", len(head), 0) + head


def good():
    return 42


"""
    with Session(zygote, Notebook([Cell("c", f"{helpers}def bad():\n    {body}")])) as session:
        before = session.pid
        outcome = session.call("bad", [], seconds=1.5)
        assert (outcome.problem.kind, outcome.ok) == (kind, False)
        assert (session.pid == before) is (kind == "error") and (kind == "error" or not alive(before))
        assert session.call("good", []).value == 42


def test_daemons_do_not_survive_their_session(tmp_path):
    """A double fork with its own session is reaped, too; in T0, where forking is possible."""
    mark = tmp_path / "pid"
    source = f"""import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open({str(mark)!r}, "w").write(str(os.getpid()))
        time.sleep(60)
    os._exit(0)
time.sleep(0.3)
"""
    with Zygote(tier="T0") as zygote:
        Session(zygote, Notebook([Cell("daemon", source)])).close()
    assert not alive(int(mark.read_text()))


def test_a_runner_inherits_no_secret_of_the_environment(zygote, monkeypatch):
    """Tokens of the grader's account stay with it."""
    monkeypatch.setenv("GRADER_TOKEN", "secret")
    source = "import os\n\n\ndef f():\n    return [sorted(os.environ), os.getcwd() == os.environ['HOME']]"
    with Zygote() as own, Session(own, Notebook([Cell("f", source)])) as session:
        names, at_home = session.call("f", []).value
    assert "GRADER_TOKEN" not in names and at_home


def test_the_sandbox_refuses_the_course(zygote):
    """By name; the oracle is not one import away."""
    cells = [Cell(name, f"import {name}") for name in ("refimpl", "course", "labs", "autograder.judge")]
    notebook = Notebook([*cells, Cell("ok", "from autograder import open_lab\nopen_lab('x').check('y')")])
    Session(zygote, notebook).close()
    assert list(notebook.problems) == [cell.name for cell in cells]
    assert {problem.type for problem in notebook.problems.values()} == {"ImportError", "ModuleNotFoundError"}


@linux
def test_peak_memory_is_seen_from_outside(zygote):
    """Within a few per cent of what the call allocates, and nothing for a call that allocates nothing."""
    source = "import torch\n\n\ndef f(mib):\n    return torch.ones(mib, 1 << 18).sum()"
    with Session(zygote, Notebook([Cell("f", source)])) as session:
        session.call("f", [1])
        small, large = (session.call("f", [mib], measure=True).peak_bytes / 2**20 for mib in (1, 64))
    assert small < 8 and 60 < large < 76


def test_memory_that_cannot_be_read_is_none():
    """Another system, or a process that is gone."""
    assert start_peak(-1) is None and read_peak(1, None) is None and read_peak(-1, Before(5, 0)) is None


def test_a_status_without_the_line_is_none(monkeypatch):
    """Some kernels do not report VmHWM."""
    monkeypatch.setattr(Path, "read_text", lambda self: "Name:\tx\n")
    assert read_peak(1, Before(5, 0)) is None


def test_a_zygote_that_does_not_start_is_said(monkeypatch, tmp_path):
    """The grader's set-up is at fault, and the message says what to run."""
    (tmp_path / "zygote.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(booting, "SANDBOX", tmp_path)
    with pytest.raises(SandboxError, match="autograder doctor"):
        Zygote()


def test_a_zygote_that_says_nothing_is_not_waited_for(monkeypatch, tmp_path):
    """Nor left behind."""
    (tmp_path / "zygote.py").write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(booting, "SANDBOX", tmp_path)
    monkeypatch.setattr(booting, "BOOT_SECONDS", 0.2)
    monkeypatch.setattr(booting, "CLOSE_SECONDS", 0.2)
    with pytest.raises(SandboxError, match="did not answer"):
        Zygote()
