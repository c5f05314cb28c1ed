"""Tier T2's own small world: a root folder of read-only parts, no network, and per session its own processes and files.

The zygote moves into that root once, as process 1 of a namespace, so that all its sessions end with it. A session adds
what is its own: a process namespace with its /proc, and an empty disk in memory. Without privilege all of it happens
in a user namespace.
"""

import os
import tempfile
from pathlib import Path

from . import system, view

BOX = "/box"  # a session's home; /tmp is a link to it
MAX_FILES = 4096
PROC_FLAGS = system.MS_NOSUID | system.MS_NODEV | system.MS_NOEXEC


def enter(*, privileged: bool) -> int:
    """Leave the machine's files, processes and network: for the zygote, before it has threads.

    Returns a descriptor of its process namespace. What returns is a child; the process that was called stays outside,
    waits, and ends as the child does.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = system.CLONE_NEWNS | system.CLONE_NEWNET | system.CLONE_NEWUTS | system.CLONE_NEWCGROUP
    system.unshare(flags | system.CLONE_NEWPID | (0 if privileged else system.CLONE_NEWUSER))
    if not privileged:
        map_to_self(uid, gid)
    continue_in_child()
    system.mount("none", "/", flags=system.MS_REC | system.MS_PRIVATE)
    root = free_folder()
    system.mount("tmpfs", str(root), "tmpfs", system.MS_NOSUID | system.MS_NODEV, "size=1m,mode=755")
    furnish(root)
    system.make_read_only(str(root), recursive=False)
    system.change_root(str(root))
    system.mount("proc", "/proc", "proc", PROC_FLAGS)
    os.environ["TMPDIR"] = tempfile.tempdir = BOX
    return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def continue_in_child() -> None:
    """Fork; the parent does nothing but wait and pass on how the child ended."""
    parent = os.pidfd_open(os.getpid())
    pid = os.fork()
    if pid == 0:
        system.end_with(parent)
        os.close(parent)
        return
    os.closerange(3, 1 << 16)  # the judge has to notice when the child is gone
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(status if status >= 0 else 128 - status)


def free_folder() -> Path:
    """Where the new root can hang, hiding nothing that goes into it; outside this namespace no trace of it appears."""
    parts = view.roots()
    for name in ("/mnt", "/media", "/srv", "/opt", "/home", "/tmp", "/var"):
        if Path(name).is_dir() and not any(path.is_relative_to(name) for path in parts):
            return Path(name)
    raise OSError("no folder such as /mnt, /srv or /tmp to build a root on")


def map_to_self(uid: int, gid: int) -> None:
    """In a new user namespace: we are who we were, and nobody else exists."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def furnish(root: Path) -> None:
    """Bind what `view` lists below `root`, read-only, with our packages covered up."""
    parts = [str(path) for path in view.roots()]
    parts += [name for name in (*view.MACHINE, *view.DEVICES, *view.gpu_devices()) if Path(name).exists()]
    covered = view.hidden()
    for part in sorted(parts):
        bind(part, root)
        for path in sorted(covered):
            if Path(part) in path.parents:
                system.mount("tmpfs", f"{root}{path}", "tmpfs", system.MS_NOSUID, "size=64k,mode=755")
    if any(path in view.HERE.parents for path in covered):
        bind(str(view.HERE), root)
    for name in ("/proc", BOX):
        (root / name[1:]).mkdir()
    # The zygote's own; every session puts a disk of its own over it.
    system.mount("tmpfs", f"{root}{BOX}", "tmpfs", system.MS_NOSUID | system.MS_NODEV, "size=1m,mode=700")
    for path, target in {**view.links(), Path("/tmp"): Path(BOX)}.items():
        place = root / str(path)[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(target)
    system.mount("/proc", f"{root}/proc", flags=system.MS_BIND | system.MS_REC)


def bind(source: str, root: Path) -> None:
    """The folder, file or device `source` at its own place below `root`; only devices may be written to."""
    target = Path(f"{root}{source}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(source).is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    system.mount(source, str(target), flags=system.MS_BIND | system.MS_REC)
    if not source.startswith("/dev/"):
        system.make_read_only(str(target))


def divide(own_processes: int) -> None:
    """In the zygote: the next child, and only that, is process 1 of a namespace below ours."""
    system.setns(own_processes, system.CLONE_NEWPID)  # forget the last child's, or a new one is refused
    system.unshare(system.CLONE_NEWPID)


def settle(uid: int, gid: int, disk_bytes: int) -> None:
    """In that child: its own /proc over the zygote's, and its own disk."""
    system.unshare(system.CLONE_NEWNS | system.CLONE_NEWIPC)
    system.mount("proc", "/proc", "proc", PROC_FLAGS)
    options = f"size={disk_bytes},nr_inodes={MAX_FILES},mode=700,uid={uid},gid={gid}"
    system.mount("tmpfs", BOX, "tmpfs", system.MS_NOSUID | system.MS_NODEV, options)
