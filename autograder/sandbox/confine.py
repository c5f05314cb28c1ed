"""The three tiers, as steps: in the zygote at its start and for each session, in the runner before any cell runs.

T0  a plain process.   T1  Landlock, seccomp and limits.   T2  the same, inside namespaces of its own.
A step that fails raises OSError and the session does not start: no tier turns into a weaker one.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import identity, landlock, limits, namespaces, reaper, system, view
from .cgroups import Groups, parents
from .seccomp import SyscallFilter

SESSION = "session-"  # and the zygote's process id and namespace: what a session's folder and control group are called
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
    watched_disk = False  # True: the zygote has to see to it that the folder stays small
    numbers_processes_apart = False  # True: the zygote's process ids are not the judge's

    def __init__(self) -> None:
        self.groups = Groups({})
        self.tasks = 0
        self.home = ""  # the folder in which, or over which, sessions get theirs
        self.number, self.prefix = identity.number(), own_prefix()  # before T2 has a process namespace of its own

    def enter(self) -> None:
        """In the zygote, before it imports anything large."""
        self.home = make_home()

    def leave(self) -> None:
        """In the zygote, at its end."""
        if not self.private_disk:
            reaper.remove_tree(self.home)

    def prepare(self, *, gpu: bool) -> None:
        """In the zygote, after that: whatever sessions need that can be made once."""

    def account(self, slot: int) -> tuple[int, int]:
        """(uid, gid) of a session."""
        return os.getuid(), os.getgid()

    def make_place(self, slot: int, order: Order) -> Place:
        """An account, a folder where the tier does not bring one, a control group."""
        uid, gid = self.account(slot)
        name = f"{self.prefix}{slot}"
        self.groups.make(name, order.memory_bytes and order.memory_bytes + order.disk_bytes, self.tasks)
        folder = self.home
        if not self.private_disk:
            folder = f"{self.home}/{slot}"
            os.mkdir(folder, 0o700)  # noqa: PTH102
            os.chown(folder, uid, gid)
        return Place(folder, uid, gid, name)

    def remove_place(self, place: Place | None) -> None:
        if place is not None:
            if not self.private_disk:
                reaper.remove_tree(place.folder)
            self.groups.remove(place.group)

    def describe(self) -> dict:
        """For `autograder doctor`: how memory is limited, and who a session is."""
        return {"memory": sorted(self.groups.folders), "own_account": False, "landlock": None}

    def divide(self) -> None:
        """In the zygote, before it forks a runner."""

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
        self.sweep()
        self.home = namespaces.BOX if self.private_disk else make_home()

    def sweep(self) -> None:
        """Remove what the sessions of a zygote that was killed have left on the disk and among the control groups."""
        self.groups.sweep(SESSION, is_gone)
        for folder in Path(tempfile.gettempdir()).glob(f"{SESSION}*"):
            if is_gone(folder.name):
                reaper.remove_tree(str(folder))

    def prepare(self, *, gpu: bool) -> None:
        self.gpu = gpu
        own_account = identity.privileged()
        self.tasks = limits.MAX_TASKS if own_account else limits.MAX_TASKS_SHARED + limits.tasks_of(os.getuid())
        self.capabilities = identity.needed([*view.named(), self.home]) if own_account else 0
        self.filters = {wants: SyscallFilter(processes=wants, devices=gpu) for wants in (False, True)}
        self.devices = view.gpu_devices() if gpu else []
        self.shared = {} if self.private_disk else {wants: self.shared_rules(wants) for wants in (False, True)}

    def shared_rules(self, processes: bool) -> landlock.Ruleset:
        """Made once: hundreds of rules that leave our packages out, and every session's /proc and folder."""
        rules = landlock.Ruleset()
        for path, rights in view.rules(processes=processes, devices=self.devices):
            rules.allow(path, rights)
        rules.allow("/proc", landlock.READ_FILE | landlock.READ_DIR)
        rules.allow(self.home, landlock.OF_OWN_FOLDER)
        return rules

    def describe(self) -> dict:
        own_account, version = identity.privileged(), landlock.abi()
        return {**super().describe(), "own_account": own_account, "landlock": version, "kept": self.capabilities}

    def account(self, slot: int) -> tuple[int, int]:
        return identity.account(self.number, slot)

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
        """What both rulesets allow: a few rules leave only this session's own of /proc and the folders."""
        own = landlock.Ruleset()
        for path, rights in view.outline(processes=processes, devices=self.devices):
            own.allow(path, rights)
        for path in PROC:
            own.allow(path, landlock.READ_FILE)
        own.allow(f"/proc/{os.getpid()}", landlock.READ_FILE | landlock.READ_DIR)
        own.allow(folder, landlock.OF_OWN_FOLDER)
        if not self.private_disk:  # in T2 our packages are not there
            self.shared[processes].restrict()
        own.restrict()


class Namespaced(Landlocked):
    """Tier T2: the zygote lives in a root of read-only parts; a session sees no process and no disk but its own."""

    name = "T2"
    private_disk, watched_disk, numbers_processes_apart = True, False, True

    def enter(self) -> None:
        super().enter()
        self.own_processes = namespaces.enter(privileged=identity.privileged())

    def divide(self) -> None:
        namespaces.divide(self.own_processes)

    def move_in(self, place: Place, order: Order) -> None:
        namespaces.settle(place.uid, place.gid, order.disk_bytes)

    def can_keep_apart(self) -> bool:
        return True


def make_home() -> str:
    """A folder named after this zygote; its sessions' accounts may pass through it, and see nothing of the others."""
    folder = tempfile.mkdtemp(prefix=own_prefix())
    os.chmod(folder, 0o711)  # noqa: PTH101
    return folder


def own_prefix() -> str:
    """What only this zygote's folders and groups begin with, wherever containers share a /tmp or control groups."""
    return f"{SESSION}{os.getpid()}-{identity.namespace()}-"


def is_gone(name: str) -> bool:
    """Whether the zygote that a session's folder or group is named after runs no more, as far as we can know."""
    pid, _, rest = name.removeprefix(SESSION).partition("-")
    if not pid.isdigit() or rest.partition("-")[0] != str(identity.namespace()):
        return False  # process ids of another namespace tell us nothing
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # dead, and its parent has not noticed yet


def fence(tier: str) -> Fence:
    return {"T0": Fence, "T1": Landlocked, "T2": Namespaced}[tier]()
