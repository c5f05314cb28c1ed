"""The campaign counts what its witnesses saw, and its witnesses see what was done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autograder.judge.tiers import machine_tier
from autograder.redteam import campaign, ordinary, outside
from autograder.redteam.attack import all_attacks
from autograder.redteam.campaign import Column, choose, defeats, table

HELD = {"faults": [], "earned": {}, "honest": {}}
LOST = {"faults": ["softmax: 0 -> 10 points"], "earned": {}, "honest": {}}


def column(name, seen, tier="T1"):
    return Column(tier, "root", {name: seen})


def test_any_fault_of_an_attack_is_a_defeat():
    """One witness is enough, and the line says which tier, which attack and what was seen."""
    [attack] = choose(["nan everywhere"], False)
    assert list(defeats([attack], [column(attack.name, HELD)])) == []
    assert list(defeats([attack], [column(attack.name, LOST)])) == ["T1 root: nan everywhere: softmax: 0 -> 10 points"]


def test_a_column_that_was_skipped_says_why():
    """A tier that this machine lacks leaves no silent gap."""
    shown = table(all_attacks(), [Column("T2", "root", skipped="this machine gives T0")], {})
    assert "T2 root: skipped, this machine gives T0" in shown


def test_an_unknown_attack_is_an_error():
    """A misspelt name does not run nothing and call it a success."""
    with pytest.raises(SystemExit, match="no attack is called"):
        choose(["no such attack"], False)


# --- witnesses ------------------------------------------------------------------------------------------


def test_a_process_left_behind_is_seen_and_ended():
    """A child that was not there before is a stranger, whoever started it."""
    known = set(outside.descendants())
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found = outside.strangers(known)
        assert child.pid in found
        outside.end(found)
        child.wait(10)
    finally:
        child.kill()
    assert outside.strangers(known) == {}


def test_every_kind_of_change_to_a_folder_is_seen(tmp_path):
    """Content, mode, links and names, without following a link."""
    (tmp_path / "kept").write_text("a")
    (tmp_path / "gone").write_text("a")
    before = outside.tree(tmp_path)
    (tmp_path / "kept").write_text("b")
    (tmp_path / "gone").unlink()
    (tmp_path / "link").symlink_to("/")
    lines = outside.changes(before, outside.tree(tmp_path))
    assert lines == [f"came: {tmp_path}/link", f"changed: {tmp_path}/kept", f"went: {tmp_path}/gone"]


def test_a_folder_nested_beyond_recursion_is_read_and_removed(tmp_path):
    """Neither the snapshot nor the clean-up recurses."""
    made = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
    subprocess.run([sys.executable, "-c", made], cwd=tmp_path, check=True)
    assert len(outside.tree(tmp_path)) > 100
    outside.remove(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_what_is_sent_to_the_listener_is_heard(tmp_path):
    """By internet socket, by path and by abstract name."""
    import socket
    import time

    listener = outside.Listener(tmp_path, f"redteam-test-{os.getpid()}")
    try:
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", listener.port)),
            (socket.AF_UNIX, listener.path),
            (socket.AF_UNIX, listener.abstract),
        ):
            with socket.socket(family) as client:
                client.connect(address)
                client.sendall(b"stolen")
        deadline = time.monotonic() + 10
        heard: list = []
        while len(heard) < 3 and time.monotonic() < deadline:
            heard += listener.taken()
            time.sleep(0.01)
    finally:
        listener.close()
    assert heard == [b"stolen"] * 3


# --- an ordinary user -----------------------------------------------------------------------------------


def test_a_closed_folder_on_the_way_is_found(tmp_path):
    """The first folder that others may not enter, and everything behind it."""
    (tmp_path / "open" / "closed" / "python").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "open"):
        folder.chmod(0o755)
    (tmp_path / "open" / "closed").chmod(0o700)
    found = ordinary.closed([tmp_path / "open" / "closed" / "python"])
    outermost = next(iter(found))
    assert outermost == tmp_path / "open" / "closed" or outermost in tmp_path.parents


def test_a_cage_does_not_see_what_lies_in_tmp(monkeypatch):
    """Then the column says so, in place of a process that ends at once."""
    monkeypatch.setattr(ordinary, "needed", lambda: [Path("/opt/python"), Path("/tmp/clone")])
    monkeypatch.setattr(ordinary, "why_not", lambda: "")
    assert ordinary.why_no_cage() == "a cage hides this machine's /tmp, where /tmp/clone lies"


@pytest.mark.skipif(bool(ordinary.why_not()), reason=f"an ordinary user: {ordinary.why_not()}")
def test_an_ordinary_user_can_run_this_python_and_root_s_files_stay_closed(tmp_path):
    """In the private namespace Python and the repository are readable; of root's own folder nothing else is."""
    tmp_path.chmod(0o755)
    (tmp_path / "hold").mkdir()
    listed = "os.listdir('/root') if os.path.isdir('/root') else []"
    code = f"import os, numpy, autograder; print(os.getuid()); print({listed})"
    line = ordinary.command([sys.executable, "-c", code], tmp_path / "hold")
    made = subprocess.run(line, capture_output=True, text=True, check=False, cwd="/")
    assert made.returncode == 0, made.stderr
    uid, listed = made.stdout.splitlines()
    assert int(uid) == ordinary.account()[0]
    assert ".ssh" not in listed


def test_a_command_that_takes_too_long_ends_with_all_that_it_started():
    """Its children, too, also where they hold its output open."""
    outside.adopt_orphans()
    known = set(outside.descendants())
    code = "import subprocess, time; subprocess.Popen(['sleep', '100']); time.sleep(100)"
    with pytest.raises(subprocess.TimeoutExpired):
        ordinary.run([sys.executable, "-c", code], dict(os.environ), 1.0)
    assert [says for says in outside.strangers(known).values() if says] == []  # "": dead, to be reaped by us


# --- the campaign itself --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(bool(ordinary.why_no_cage()), reason=f"a cage without a sandbox: {ordinary.why_no_cage()}")
def test_without_a_sandbox_the_witnesses_see_the_attacks_succeed():
    """The control: in T0 secrets are read, files are left and a neighbour dies, and each is reported as such."""
    names = ["secrets read", "traces left everywhere", "signals to others", "nan everywhere"]
    made = campaign.run_column("T0", "nobody", choose(names, False))
    assert set(names) <= set(made.results), made
    seen = {name: " ".join(made.results[name]["faults"]) for name in names}
    assert "CANARY-" in seen["secrets read"] and "its process sent a secret" in seen["secrets read"]
    assert "came: " in seen["traces left everywhere"]
    assert "killed the neighbour" in seen["signals to others"]
    assert seen["nan everywhere"] == ""


def user():
    """Root where the tests run as root, else whoever runs them."""
    return "root" if os.geteuid() == 0 else "nobody"


@pytest.mark.slow
@pytest.mark.skipif(machine_tier() == "T0", reason="this machine has no sandbox: it gives T0")
def test_the_quick_attacks_are_held_in_the_strongest_tier(capsys):
    """One or two attacks of every family."""
    status = campaign.main(["--tier", machine_tier(), "--user", user(), "--quick"])
    said = capsys.readouterr()
    assert status == 0, said.err


@pytest.mark.e2e
@pytest.mark.siege
@pytest.mark.parametrize("who", campaign.USERS)
@pytest.mark.parametrize("tier", ["T1", "T2"])
def test_every_attack_is_held(tier, who, capsys):
    """The whole list, in each tier, as root and as an ordinary user."""
    if problem := campaign.why_skipped(tier, who):
        pytest.skip(problem)
    status = campaign.main(["--tier", tier, "--user", who])
    said = capsys.readouterr()
    assert status == 0, said.err


def test_the_repository_is_where_the_campaign_looks_for_it():
    """Attacks look for the sources here."""
    assert (Path(outside.REPOSITORY) / "autograder" / "redteam" / "campaign.py").is_file()
