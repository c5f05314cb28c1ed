"""Who a runner is: with privilege an account of its own per session, otherwise the grader's own without any power."""

import os
from collections.abc import Iterable
from pathlib import Path

from . import system

# Above every account that a system hands out. A zygote's process id and a slot make one, so no two live sessions of a
# machine share theirs; zygotes in containers, where process ids begin anew, start counting elsewhere.
FIRST_UID, HIGHEST_UID = 0x70000000, 0x7FFFFFFF
SLOTS = 64
ZYGOTES = (HIGHEST_UID + 1 - FIRST_UID) // SLOTS  # 2^22: Linux has no more process ids
MACHINE = 0xEFFFFFFC  # number of the process namespace that a machine starts with (PROC_PID_INIT_INO in the kernel)
APART = 2_654_435_761  # 2^32 / golden ratio: neighbours among namespaces land far from each other


def namespace() -> int:
    """The number of our process namespace: process ids mean something in it alone."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    except OSError:  # no Linux
        return MACHINE


def privileged() -> bool:
    """Whether sessions can have accounts of their own: root, and not in a container that maps a few accounts only."""
    if os.geteuid() != 0:
        return False
    ranges = [[int(word) for word in line.split()] for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(inside <= FIRST_UID and inside + count > HIGHEST_UID for inside, _, count in ranges)


def number() -> int:
    """This zygote's among all that a machine may have at once."""
    return (os.getpid() + (namespace() - MACHINE) * APART) % ZYGOTES


def account(zygote: int, slot: int) -> tuple[int, int]:
    """(uid, gid) of a session of the zygote with that number."""
    if not privileged():
        return os.getuid(), os.getgid()
    if slot >= SLOTS:
        raise OSError(f"a zygote has at most {SLOTS} sessions at once")
    uid = FIRST_UID + zygote * SLOTS + slot
    return uid, uid


def become(uid: int, gid: int, capabilities: int) -> None:
    """Take the account and give up every capability but `capabilities` (a mask)."""
    if holds_capabilities():
        system.empty_bounding_set()
    if uid != os.getuid():
        system.prctl(system.PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    system.set_capabilities(capabilities)


def holds_capabilities() -> bool:
    """Whether this process could drop anything: root, or the owner of a user namespace in it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16) >> system.CAP_SETPCAP & 1 == 1


def needed(paths: Iterable[str]) -> int:
    """The capabilities (a mask) without which a session's account could not read `paths`: none, as a rule.

    Where Python lies behind a folder that others may not enter (/root), the one to read and search everywhere is kept,
    or no module could be imported; Landlock still decides what there is to read.
    """
    return 0 if all(open_to_all(Path(path)) for path in paths) else 1 << system.CAP_DAC_READ_SEARCH


def open_to_all(path: Path) -> bool:
    """Whether any account may enter every folder above `path`."""
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)
