"""Landlock: a process gives up every file, port and signal it has not listed. No privilege needed.

By raw system calls: the `landlock` package is a pre-release. Each kernel knows the rights of its ABI version; those
it knows are all handled (that is, refused unless granted), the others it cannot refuse, and seccomp has to.
Source: https://docs.kernel.org/userspace-api/landlock.html
"""

import os
import stat
import struct

from . import system

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION = 1  # flag of CREATE_RULESET: return the ABI version
PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the other rights are those of a folder
MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11  # character device, socket, fifo, block device
OF_OWN_FOLDER = (1 << 16) - 1 - EXECUTE - IOCTL_DEV - MAKE_SPECIAL
RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI from which -> number of file-system rights
NET_ABI, SCOPE_ABI = 4, 6
TCP_BIND_AND_CONNECT = 3
ABSTRACT_SOCKETS_AND_SIGNALS = 3


def abi() -> int:
    """The kernel's Landlock version; OSError where it has none or it is switched off."""
    return system.checked(system.libc.syscall(CREATE_RULESET, None, 0, VERSION), "Landlock")


def all_rights(version: int) -> int:
    """Every file-system right of this ABI."""
    return (1 << max(bits for since, bits in RIGHTS.items() if version >= since)) - 1


class Ruleset:
    """What a process will still be able to reach: nothing, until `allow` says so."""

    def __init__(self) -> None:
        self.version = abi()
        self.rights = all_rights(self.version)
        attributes = struct.pack("<Q", self.rights)
        if self.version >= NET_ABI:
            attributes += struct.pack("<Q", TCP_BIND_AND_CONNECT)
        if self.version >= SCOPE_ABI:
            attributes += struct.pack("<Q", ABSTRACT_SOCKETS_AND_SIGNALS)
        made = system.libc.syscall(CREATE_RULESET, attributes, len(attributes), 0)
        self.fd = system.checked(made, "landlock_create_ruleset")

    def allow(self, path: str, rights: int) -> None:
        """Grant `rights` on `path` and all below it; on a file, those that a file can have."""
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rights &= self.rights if stat.S_ISDIR(os.fstat(fd).st_mode) else self.rights & OF_A_FILE
            made = system.libc.syscall(ADD_RULE, self.fd, PATH_BENEATH, struct.pack("<Qi", rights, fd), 0)
            system.checked(made, f"landlock_add_rule {path}")
        finally:
            os.close(fd)

    def restrict(self) -> None:
        """From here on, for this thread and all it starts, for good. Needs no_new_privs."""
        system.checked(system.libc.syscall(RESTRICT_SELF, self.fd, 0), "landlock_restrict_self")
        os.close(self.fd)
