"""Small tools for attacks. Their text travels with every attack, so each imports what it needs."""

from typing import Any

# System calls by number, so that no library stands between the attack and the kernel.
NUMBERS = {
    "x86_64": {
        "ptrace": 101, "keyctl": 250, "add_key": 248, "bpf": 321, "io_uring_setup": 425, "userfaultfd": 323,
        "perf_event_open": 298, "unshare": 272, "setns": 308, "mount": 165, "pivot_root": 155, "chroot": 161,
        "process_vm_readv": 310, "pidfd_open": 434, "pidfd_getfd": 438, "memfd_create": 319, "clone": 56,
        "clone3": 435, "vfork": 58, "fork": 57, "execveat": 322, "shmget": 29, "open_by_handle_at": 304, "socket": 41,
        "name_to_handle_at": 303, "mknod": 133, "prlimit64": 302, "personality": 135, "mq_open": 240, "kcmp": 312,
        "semget": 64, "msgget": 68, "sethostname": 170, "settimeofday": 164, "init_module": 175, "fsopen": 430,
    },
    "aarch64": {
        "ptrace": 117, "keyctl": 219, "add_key": 217, "bpf": 280, "io_uring_setup": 425, "userfaultfd": 282,
        "perf_event_open": 241, "unshare": 97, "setns": 268, "mount": 40, "pivot_root": 41, "chroot": 51,
        "process_vm_readv": 270, "pidfd_open": 434, "pidfd_getfd": 438, "memfd_create": 279, "clone": 220,
        "clone3": 435, "execveat": 281, "shmget": 194, "open_by_handle_at": 265, "socket": 198,
        "name_to_handle_at": 264, "prlimit64": 261, "personality": 92, "mq_open": 180, "kcmp": 272,
        "semget": 190, "msgget": 186, "sethostname": 161, "settimeofday": 170, "init_module": 105, "fsopen": 430,
    },
}  # fmt: skip


def report(text: Any) -> None:
    """Tell the campaign that something worked; the judge throws away what a notebook prints."""
    print("BREACH:", text, flush=True)


def worked(action: Any) -> bool:
    """Whether `action()` got through without an exception."""
    try:
        action()
    except Exception:
        return False
    return True


def syscall(name: str, *arguments: Any) -> tuple[int, int]:
    """A raw system call: (result, errno)."""
    import ctypes
    import platform

    number = NUMBERS[platform.machine()].get(name)
    if number is None:  # this machine has no such call
        return -1, 38
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, *arguments)
    return result, ctypes.get_errno()


def oracle_descriptors() -> list[int]:
    """Open descriptors that are stream sockets: the way to the judge is among them."""
    import os
    import stat

    found = []
    for descriptor in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                found.append(descriptor)
        except OSError:
            pass
    return found


def frame(head: Any, blob: bytes = b"", lengths: tuple | None = None) -> bytes:
    """A frame as the judge's protocol has it, with lengths that may lie."""
    import json
    import struct

    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<II", *(lengths or (len(text), len(blob)))) + text + blob


def request_id() -> str:
    """The id of the request being answered, from the locals of the frames above us."""
    import sys

    above: Any = sys._getframe()
    while above is not None:
        request = above.f_locals.get("request")
        if isinstance(request, dict) and "id" in request:
            return request["id"]
        above = above.f_back
    return ""


def tell_judge(data: bytes) -> None:
    """Write raw bytes to the judge past the runner."""
    import os

    for descriptor in oracle_descriptors():
        try:
            os.write(descriptor, data)
        except OSError:
            pass


def right(x: Any) -> Any:
    """What the softmax question wants, for comparing memory with it; an honest student's own work."""
    shifted = (x.double() - x.double().amax(-1, keepdim=True)).exp()
    return shifted / shifted.sum(-1, keepdim=True)


GADGETS = (report, worked, syscall, oracle_descriptors, frame, request_id, tell_judge, right)
