"""The three tiers, as steps: in the zygote at its start, in a session's reaper, and in its runner before any cell runs.

T0  a plain process.   T1  Landlock, seccomp and limits.   T2  the same, inside namespaces of its own.
A step that fails raises OSError and the session does not start: no tier turns into a weaker one.
"""

import os
import tempfile
from dataclasses import dataclass

from . import identity, landlock, limits, namespaces, system, view
from .cgroups import Groups, parents
from .seccomp import SyscallFilter

TIERS = ("T0", "T1", "T2")
PROC = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat")


@dataclass(frozen=True)
class Order:
    """What the judge wants of one session."""

    memory_bytes: int
    disk_bytes: int
    processes: bool = False


@dataclass(frozen=True)
class Place:
    """Where and as whom a runner lives."""

    folder: str
    uid: int
    gid: int
    group: str  # name of its control group


class Fence:
    """Tier T0: what every session gets, and the hooks of the others."""

    name = "T0"
    private_disk = False  # True: a session's folder is its own mount, and ends with it
    watched_disk = False  # True: the reaper has to see to it that the folder stays small

    def __init__(self) -> None:
        self.groups = Groups({})
        self.tasks = 0

    def enter(self) -> None:
        """In the zygote, before it imports anything large."""

    def prepare(self, *, gpu: bool) -> None:
        """In the zygote, after that: whatever sessions need that can be made once."""

    def account(self) -> tuple[int, int]:
        """(uid, gid) of the session, asked in its reaper."""
        return os.getuid(), os.getgid()

    def describe(self) -> dict:
        """For `autograder doctor`: how memory is limited, and who a session is."""
        return {"memory": sorted(self.groups.folders), "own_account": False, "landlock": None}

    def divide(self) -> None:
        """In the reaper, before it forks the runner."""

    def move_in(self, place: Place, order: Order) -> None:
        """In the runner, before it goes to its folder."""

    def step_down(self, place: Place) -> None:
        """In the runner: its own control group and account, and no privilege."""

    def shut_in(self, place: Place, order: Order) -> None:
        """In the runner: files, processes and system calls."""

    def limit(self, order: Order) -> None:
        """In the runner, with its descriptors closed, as the last act before the first cell."""
        limits.apply(order.memory_bytes, order.disk_bytes)


class Landlocked(Fence):
    """Tier T1: works with no privilege at all; with it, each session has an account of its own."""

    name = "T1"
    watched_disk = True

    def enter(self) -> None:
        import pyseccomp  # noqa: F401 -- finds its library by programs that T2's root does not have

        landlock.abi()
        self.groups = Groups(parents())

    def prepare(self, *, gpu: bool) -> None:
        self.gpu = gpu
        own_account = identity.privileged()
        self.tasks = limits.MAX_TASKS if own_account else limits.MAX_TASKS_SHARED + limits.tasks_of(os.getuid())
        folders = () if self.private_disk else (f"{tempfile.gettempdir()}/session",)
        self.capabilities = identity.needed([*view.named(), *folders]) if own_account else 0
        self.filters = {wants: SyscallFilter(processes=wants, devices=gpu) for wants in (False, True)}
        self.paths = {wants: self.open_rules(wants) for wants in (False, True)}

    def open_rules(self, processes: bool) -> list[tuple[int, int, bool]]:
        """(descriptor, rights, is a folder) of all that every session may reach."""
        opened = []
        for path, rights in view.rules(processes=processes, devices=view.gpu_devices() if self.gpu else ()):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            opened.append((fd, rights, os.path.isdir(path)))  # noqa: PTH112
        return opened

    def describe(self) -> dict:
        own_account, version = identity.privileged(), landlock.abi()
        return {**super().describe(), "own_account": own_account, "landlock": version, "kept": self.capabilities}

    def account(self) -> tuple[int, int]:
        return identity.account(os.getpid())

    def step_down(self, place: Place) -> None:
        self.groups.join(place.group)
        identity.become(place.uid, place.gid, self.capabilities)

    def shut_in(self, place: Place, order: Order) -> None:
        if order.processes and not self.can_keep_apart():
            raise OSError("this kernel's Landlock has no signal scope (ABI 6), so processes need tier T2")
        system.prctl(system.PR_SET_NO_NEW_PRIVS, 1)
        self.restrict_files(place.folder, order.processes)
        self.filters[order.processes].load()

    def limit(self, order: Order) -> None:
        limits.apply(order.memory_bytes, order.disk_bytes, tasks=self.tasks, address_space=not self.gpu)

    def can_keep_apart(self) -> bool:
        """Whether a session that may send signals reaches only its own processes."""
        return landlock.abi() >= landlock.SCOPE_ABI

    def restrict_files(self, folder: str, processes: bool) -> None:
        rules = landlock.Ruleset()
        for fd, rights, is_folder in self.paths[processes]:
            rules.allow(fd, rights, folder=is_folder)
        for path in PROC:
            rules.allow_path(path, landlock.READ_FILE)
        rules.allow_path(f"/proc/{os.getpid()}", landlock.READ_FILE | landlock.READ_DIR)
        rules.allow_path(folder, landlock.OF_OWN_FOLDER)
        rules.restrict()


class Namespaced(Landlocked):
    """Tier T2: the zygote lives in a root of read-only parts; a session sees no process and no disk but its own."""

    name = "T2"
    private_disk, watched_disk = True, False

    def enter(self) -> None:
        super().enter()
        namespaces.enter(privileged=identity.privileged())

    def divide(self) -> None:
        namespaces.divide()

    def move_in(self, place: Place, order: Order) -> None:
        namespaces.settle(place.uid, place.gid, order.disk_bytes)

    def can_keep_apart(self) -> bool:
        return True


def fence(tier: str) -> Fence:
    return {"T0": Fence, "T1": Landlocked, "T2": Namespaced}[tier]()
