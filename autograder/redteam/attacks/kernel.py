"""Ask the kernel for what an answer never needs: sockets, namespaces, keys, tracing, devices."""

from typing import Any

from autograder.redteam.attack import attack


@attack("measured against nbgrader 0.9.6", quick=True)
def data_sent_out(target: dict, report: Any) -> None:
    """Connects to a listener on this machine and sends what it can read."""
    import socket

    with socket.create_connection(("127.0.0.1", target["port"]), timeout=1) as connection:
        connection.sendall(b"stolen " + target["mark"].encode())


@attack("own")
def data_sent_by_unix_sockets(target: dict, report: Any) -> None:
    """Connects to a Unix socket by path and by abstract name."""
    import socket

    for name in (target["unix"], target["abstract"]):
        connection = socket.socket(socket.AF_UNIX)
        if worked(lambda name=name, c=connection: c.connect(name)):
            connection.sendall(b"stolen " + target["mark"].encode())


@attack("own")
def sockets_of_every_family(target: dict, report: Any) -> None:
    """Makes sockets of every family: internet, netlink, packet, vsock, Bluetooth, kernel crypto."""
    import socket

    families = {"INET": 2, "INET6": 10, "NETLINK": 16, "PACKET": 17, "ALG": 38, "VSOCK": 40, "BLUETOOTH": 31, "XDP": 44}
    for name, number in families.items():
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            made, _ = syscall("socket", number, kind, 0)
            if made >= 0:
                report(f"a socket of family {name}")
                break


@attack("own", quick=True)
def namespaces_made(target: dict, report: Any) -> None:
    """Makes namespaces of its own, where it would be root: user, mount, network, process."""
    import os

    flags = {"user": 0x10000000, "mount": 0x20000, "net": 0x40000000, "pid": 0x20000000, "ipc": 0x08000000}
    for name, flag in flags.items():
        if syscall("unshare", flag)[0] == 0:
            report(f"a new {name} namespace")
    for name in ("mnt", "net", "pid", "user"):
        for pid in (1, *target["judge_pids"]):
            try:
                handle = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
            except OSError:
                continue
            if syscall("setns", handle, 0)[0] == 0:
                report(f"entered the {name} namespace of process {pid}")


@attack("own")
def mounts_made(target: dict, report: Any) -> None:
    """Mounts, pivots, changes its root and asks for the new mount calls."""
    for name, arguments in {
        "mount": (b"none", b".", b"tmpfs", 0, None),
        "pivot_root": (b".", b"."),
        "chroot": (b".",),
        "fsopen": (b"tmpfs", 0),
    }.items():
        result, problem = syscall(name, *arguments)
        if result >= 0 or problem not in (1, 2, 13, 38):
            report(f"{name} was not refused ({result}, errno {problem})")


@attack("own")
def privileged_calls(target: dict, report: Any) -> None:
    """Asks for keys, BPF, io_uring, userfaultfd, performance counters and file handles."""
    import ctypes

    buffer = ctypes.create_string_buffer(256)
    calls = {
        "keyctl": (0, -3, 1, 0, 0),
        "add_key": (b"user", b"redteam", b"x", 1, -2),
        "bpf": (0, buffer, 72),
        "io_uring_setup": (1, buffer),
        "userfaultfd": (1,),
        "perf_event_open": (buffer, 0, -1, -1, 0),
        "kcmp": (1, 1, 0, 0, 0),
        "name_to_handle_at": (-100, b"/", buffer, buffer, 0),
        "init_module": (buffer, 0, b""),
        "personality": (0x0040000,),  # no address space layout randomisation
    }
    for name, arguments in calls.items():
        result, problem = syscall(name, *arguments)
        # EPERM and ENOSYS are refusals; any other errno means that the kernel looked at the arguments.
        if result >= 0 or problem not in (1, 13, 38):
            report(f"{name} was not refused ({result}, errno {problem})")


@attack("own", plain=False)
def other_abi(target: dict, report: Any) -> None:
    """Makes calls under their 32-bit and x32 numbers, where a careless filter looks at the wrong table."""
    import ctypes
    import platform

    if platform.machine() != "x86_64":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(0x40000000 + 41, 2, 1, 0) >= 0:
        report("a socket through the x32 ABI")
    if libc.syscall(0x40000000 + 57) > 0:
        report("a child through the x32 ABI")


@attack("own", quick=True)
def objects_that_outlive(target: dict, report: Any) -> None:
    """Leaves System V shared memory, semaphores, message queues and a POSIX queue behind."""
    key = target["ipc_key"]
    for name, arguments in {
        "shmget": (key, 1 << 20, 0o1666),
        "semget": (key, 1, 0o1666),
        "msgget": (key, 0o1666),
    }.items():
        syscall(name, *arguments)
    syscall("mq_open", target["mark"].encode(), 0o102, 0o666, None)
    from multiprocessing import shared_memory

    shared_memory.SharedMemory(target["mark"], create=True, size=1 << 20)


@attack("own", plain=False, quick=True)
def sandbox_taken_off(target: dict, report: Any) -> None:
    """Becomes root again, regains capabilities, makes itself dumpable, and stacks a filter that allows everything."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    if os.getuid() != 0 and worked(lambda: os.setuid(0)):
        report("became root")
    if worked(lambda: os.setgroups([0])):
        report("joined group 0")
    libc.prctl(4, 1, 0, 0, 0)
    libc.prctl(8, 1, 0, 0, 0)
    if libc.prctl(39, 0, 0, 0, 0) == 0 and target["tier"] != "T0":
        report("no_new_privs is not set")
    status = open("/proc/self/status").read()
    # To read everywhere is kept where Python itself lies in a closed folder (bit 2); Landlock bounds it.
    kept = [line for line in status.splitlines() if line.startswith(("CapEff", "CapPrm"))]
    powers = [line for line in kept if int(line.split()[1], 16) & ~4]
    if powers:
        report(f"holds {powers}")
    if "Seccomp:\t2" not in status and target["tier"] != "T0":
        report("no seccomp filter is in force")
