"""The system calls of confinement that Python 3.11 has no name for. Linux; every failure is an OSError."""

import ctypes
import os
import select
import signal
import struct

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 8, 23, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR = 442  # the same number on every architecture, as for all calls since 2019
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4

CAP_DAC_READ_SEARCH, CAP_SETPCAP = 2, 8
CAPABILITY_VERSION_3 = 0x20080522


def checked(result: int, what: str) -> int:
    """The result of a libc call, or an OSError that names the call."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0, extra: int = 0) -> None:
    checked(libc.prctl(option, value, extra, 0, 0), f"prctl({option})")


def unshare(flags: int) -> None:
    checked(libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    checked(libc.setns(fd, kind), f"setns({kind:#x})")


def end_with(parent: int) -> None:
    """Be killed when the process of this pidfd, our parent, dies, however it dies; if it is dead already, end here."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([parent], [], [], 0)[0]:
        os._exit(1)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    made = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    checked(made, f"mount {kind or source} on {target}")


def make_read_only(target: str, *, recursive: bool = True) -> None:
    """A mount, and all mounts below it: no writing, no device nodes, no set-uid programs."""
    flags = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    attributes = struct.pack("<QQQQ", flags, 0, 0, 0)
    size = ctypes.c_size_t(len(attributes))
    at = AT_RECURSIVE if recursive else 0
    made = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), at, attributes, size)
    checked(made, f"mount_setattr {target}")


def change_root(target: str) -> None:
    """Make `target` the root of this mount namespace and let go of the old one (stacked at the same place)."""
    os.chdir(target)
    checked(libc.pivot_root(b".", b"."), f"pivot_root {target}")
    checked(libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


def empty_bounding_set() -> None:
    """No program started from here on, set-uid or not, gains a capability."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) < 0:  # past the last one that this kernel has
            break
        prctl(PR_CAPBSET_DROP, capability)


def set_capabilities(mask: int) -> None:
    """Effective and permitted set; nothing is inheritable, nothing ambient."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("<Ii", CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = struct.pack("<6I", low, low, 0, high, high, 0)
    checked(libc.capset(header, data), "capset")
