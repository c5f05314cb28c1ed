"""Tier T2's own small world: a root folder of read-only parts, no network, and per session its own processes and files.

The zygote moves into that root once, before it has forked anybody; a session then adds what is its own: a process
namespace with its /proc, and an empty disk in memory. Without privilege all of it happens in a user namespace.
"""

import os
from pathlib import Path

from . import system, view

BOX = "/box"  # a session's home; /tmp is a link to it
MAX_FILES = 4096


def enter(*, privileged: bool) -> None:
    """Leave the machine's files and network: for the zygote, before it has threads."""
    uid, gid = os.getuid(), os.getgid()
    flags = system.CLONE_NEWNS | system.CLONE_NEWNET | system.CLONE_NEWUTS | system.CLONE_NEWCGROUP
    system.unshare(flags if privileged else flags | system.CLONE_NEWUSER)
    if not privileged:
        map_to_self(uid, gid)
    system.mount("none", "/", flags=system.MS_REC | system.MS_PRIVATE)
    root = free_folder()
    system.mount("tmpfs", str(root), "tmpfs", system.MS_NOSUID | system.MS_NODEV, "size=1m,mode=755")
    furnish(root)
    system.make_read_only(str(root), recursive=False)
    system.change_root(str(root))
    os.environ["TMPDIR"] = BOX


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


def divide() -> None:
    """In a session's reaper: the next child is process 1 of a world of its own."""
    system.unshare(system.CLONE_NEWPID | system.CLONE_NEWNS | system.CLONE_NEWIPC)


def settle(uid: int, gid: int, disk_bytes: int) -> None:
    """In that child: its own /proc over the zygote's, and its own disk."""
    flags = system.MS_NOSUID | system.MS_NODEV | system.MS_NOEXEC
    system.mount("proc", "/proc", "proc", flags)
    options = f"size={disk_bytes},nr_inodes={MAX_FILES},mode=700,uid={uid},gid={gid}"
    system.mount("tmpfs", BOX, "tmpfs", system.MS_NOSUID | system.MS_NODEV, options)
