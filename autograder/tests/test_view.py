"""The parts that a tier is made of, each alone: what may be seen, control groups, what is cleaned away."""

import os
import signal
import struct
import sys
from pathlib import Path

import pytest

from autograder.sandbox import cgroups, confine, identity, landlock, launch, limits, reaper, system, view

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


# --- what may be seen -----------------------------------------------------------------------------------


def test_our_packages_are_cut_out_of_a_tree_entry_by_entry(tmp_path):
    """The largest parts that hold none of what is hidden; links are left out, since they lead elsewhere."""
    for name in ("torch", "autograder/judge", "refimpl", "zlib"):
        (tmp_path / "site" / name).mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "site" / "torch.txt").touch()
    (tmp_path / "site" / "link").symlink_to(tmp_path / "site" / "refimpl")
    without = {tmp_path / "site" / "autograder", tmp_path / "site" / "refimpl"}
    found = [path.relative_to(tmp_path).as_posix() for path in view.cover(tmp_path, without)]
    assert found == ["bin", "site/torch", "site/torch.txt", "site/zlib"]
    assert list(view.cover(tmp_path, set())) == [tmp_path]
    assert list(view.cover(tmp_path / "site" / "refimpl", without)) == []


def test_an_installed_course_is_hidden_wherever_it_lies(monkeypatch, tmp_path):
    """On the path, in any site-packages of the prefixes, and around the sandbox itself."""
    for name in ("lib/python3.11/site-packages/autograder", "lib/python3.12/dist-packages/labs", "src/refimpl"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "src")])
    mine = {path.relative_to(tmp_path).as_posix() for path in view.hidden() if path.is_relative_to(tmp_path)}
    assert mine == {"lib/python3.11/site-packages/autograder", "lib/python3.12/dist-packages/labs", "src/refimpl"}
    assert view.HERE.parent in view.hidden()


def test_the_rules_grant_no_folder_of_ours_and_let_nothing_be_run():
    """Nor the repository of an editable install, nor any file beyond system, Python and sandbox."""
    repository = view.HERE.parents[1]
    for path, rights in view.rules(processes=False):
        inside = Path(path).is_relative_to(repository) and not Path(path).is_relative_to(sys.prefix)
        assert not inside or Path(path) == view.HERE, path
        assert not rights & landlock.EXECUTE and (path.startswith("/dev/") or not rights & landlock.WRITE_FILE), path
    granted = dict(view.rules(processes=True))
    assert granted[str(view.HERE)] and any(rights & landlock.EXECUTE for rights in granted.values())
    assert not granted.keys() & {"/", "/root", "/etc", "/home", "/tmp"}


def test_a_gpus_devices_are_granted_with_their_requests_only_where_there_is_one():
    """The driver is spoken to by ioctl; on a CPU machine no device but null, zero and random is there."""
    devices = [path for path, _ in view.outline(processes=False) if path.startswith("/dev/")]
    assert set(devices) <= set(view.DEVICES)
    with_gpu = dict(view.outline(processes=False, devices=["/dev/nvidia0"]))
    assert with_gpu["/dev/nvidia0"] & landlock.IOCTL_DEV and not with_gpu["/dev/null"] & landlock.IOCTL_DEV


def test_landlock_handles_the_rights_its_version_knows():
    """Fewer on old kernels, never an unknown bit."""
    bits = {version: landlock.all_rights(version).bit_length() for version in range(1, 8)}
    assert bits == {1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16}
    assert not landlock.OF_OWN_FOLDER & (landlock.EXECUTE | landlock.MAKE_SPECIAL | landlock.IOCTL_DEV)


# --- limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "makes", "expected"),
    [
        ("4:memory:/a\n8:pids:/\n0::/\n", ["memory/a", "pids"], {"memory": "memory/a", "pids": "pids"}),
        ("0::/user/app\n", ["user/app", "user"], {"memory": "user", "pids": "user"}),
        ("0::/user/app\n", ["user/app"], {}),
        ("4:memory:/gone\n", [], {}),
    ],
)
def test_control_groups_are_made_where_the_grader_may(monkeypatch, tmp_path, lines, makes, expected):
    """Version 1 below the own group; version 2 beside it, if the controllers are switched on there; else nowhere."""
    for name in makes:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "cgroup.procs").touch()
    if "user" in makes:
        (tmp_path / "user" / "cgroup.subtree_control").write_text("memory pids\n")
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self: lines if str(self) == "/proc/self/cgroup" else read(self))
    monkeypatch.setattr(cgroups, "MOUNT", tmp_path)
    assert {name: str(path.relative_to(tmp_path)) for name, path in cgroups.parents().items()} == expected


def test_a_group_is_limited_joined_and_removed(tmp_path):
    """In a pretended version 2: both controllers in one folder. A leftover of a dead zygote is swept."""
    groups = cgroups.Groups({"memory": tmp_path, "pids": tmp_path})
    (tmp_path / "session-1-0").mkdir()
    for file in ("memory.max", "pids.max", "cgroup.procs"):
        (tmp_path / "session-1-0" / file).touch()
    groups.make("session-1-0", 1 << 30, 7)
    groups.join("session-1-0")
    assert (tmp_path / "session-1-0" / "memory.max").read_text() == str(1 << 30)
    assert (tmp_path / "session-1-0" / "pids.max").read_text() == "7"
    assert (tmp_path / "session-1-0" / "cgroup.procs").read_text() == "0"
    (tmp_path / "session-2-0").mkdir()
    groups.sweep("session-", lambda name: name == "session-2-0")
    assert (tmp_path / "session-1-0").exists() and not (tmp_path / "session-2-0").exists()


@linux
def test_the_tasks_of_an_account_are_counted():
    """This process at least, with its threads; none for an account that nobody has."""
    assert limits.tasks_of(os.getuid()) >= 1 and limits.tasks_of(0x7FFFFFF0) == 0
    assert limits.reserved_bytes() > 1 << 20


# --- the end --------------------------------------------------------------------------------------------


@linux
def test_what_a_dead_zygote_left_is_told_from_what_a_live_one_uses():
    """By the process id in its name, which tells nothing about the zygotes of another process namespace."""
    here = identity.namespace()
    assert not confine.is_gone(f"session-{os.getpid()}-{here}-abc") and not confine.is_gone("session-x")
    assert confine.is_gone(f"session-4194305-{here}-0")  # above the highest process id
    assert not confine.is_gone(f"session-4194305-{here + 1}-0")


@linux
def test_zygotes_of_containers_are_told_apart_though_their_process_ids_begin_anew(monkeypatch):
    """Names and accounts: nodes that share a machine's control groups and /tmp would clear each other away."""
    monkeypatch.setattr(os, "getpid", lambda: 77)
    names, numbers = set(), set()
    for container in range(1000):
        monkeypatch.setattr(identity, "namespace", lambda container=container: identity.MACHINE + container)
        names.add(confine.own_prefix())
        numbers.add(identity.number())
    assert len(names) == len(numbers) == 1000 and 77 in numbers
    assert identity.FIRST_UID + max(numbers) * identity.SLOTS + identity.SLOTS - 1 <= identity.HIGHEST_UID


@linux
def test_a_runner_ends_with_its_descendants_and_orphans_while_others_live():
    """Orphans come to the subreaper; other sessions are spared."""

    def sleeper(*inner):
        pid = os.fork()
        if pid == 0:
            for start in inner:
                start()
            signal.pause()
            os._exit(0)
        return pid

    system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    other, runner = sleeper(), sleeper(sleeper)
    try:
        known = reaper.children(os.getpid()) - {runner}  # pytest's own children are none of ours
        while not reaper.descendants(runner):
            pass
        family = reaper.descendants(runner)
        assert family and os.WIFSIGNALED(reaper.end(runner, known)) and other in reaper.children(os.getpid())
        assert not any(Path(f"/proc/{pid}").exists() for pid in family)
    finally:
        system.prctl(system.PR_SET_CHILD_SUBREAPER, 0)
        reaper.end(other, reaper.children(os.getpid()) - {other})


def test_children_are_unknown_where_proc_is_missing():
    """Then the runner alone is killed."""
    assert reaper.children(-1) == set()


def test_disk_use_counts_files_folders_and_what_was_unlinked(tmp_path):
    """A thousand empty files take space too."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(bytes(1 << 20))
    visible = reaper.disk_use(str(tmp_path), -1)
    assert 1 << 20 <= visible < (1 << 20) + (1 << 16)
    if sys.platform == "linux":
        with (tmp_path / "gone").open("wb") as file:
            file.write(bytes(1 << 20))
            file.flush()
            (tmp_path / "gone").unlink()
            assert reaper.disk_use(str(tmp_path), os.getpid()) >= visible + (1 << 20)


def test_a_tree_is_removed_without_following_its_links(tmp_path):
    """What a link points to stays."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "f").touch()
    tree = tmp_path / "tree"
    (tree / "a" / "b" / "c").mkdir(parents=True)
    (tree / "a" / "b" / "c" / "f").touch()
    (tree / "link").symlink_to(tmp_path / "kept")
    (tree / "a" / "link").symlink_to(tmp_path / "kept" / "f")
    reaper.remove_tree(str(tree))
    assert not tree.exists() and (tmp_path / "kept" / "f").exists()
    reaper.remove_tree(str(tree))  # gone already: nothing to do


def test_descriptors_are_closed_but_those_kept(monkeypatch):
    """Each gap between the kept ones, up to the highest that there can be."""
    closed = []
    monkeypatch.setattr(os, "dup2", lambda a, b: None)
    monkeypatch.setattr(os, "open", lambda *a: 99)
    monkeypatch.setattr(os, "closerange", lambda low, high: closed.append((low, high)))
    launch.close_inherited({7, 12})
    assert closed == [(3, 7), (8, 12), (13, launch.HIGHEST_DESCRIPTOR)]


def test_credentials_are_three_numbers_of_four_bytes():
    """As the kernel lays them out, at both ends."""
    from autograder.judge.zygote import CREDENTIALS

    assert CREDENTIALS.size == 12 and CREDENTIALS.unpack(struct.pack("iII", -1, 2, 1 << 31)) == (-1, 2, 1 << 31)
