"""Try, from a student's cell, what a confined process must not do: one JSON object of outcomes on standard output.

    python confined.py TIER SECRET

SECRET is a file of the grader's own. Run as root and as an ordinary user by test_confine.py.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from autograder.judge.session import Cell, Notebook, Session
from autograder.judge.zygote import Zygote

CELL = """
import ctypes, os, resource, signal, socket, struct, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)


def syscall(number, *arguments):
    made = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if made < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return made


def read(path):
    with open(path, "rb") as file:
        return repr(file.read(40))


def write(path):
    with open(path, "w") as file:
        file.write("x")


def by_link(path):
    os.symlink(path, "link")
    return read("link")


def by_folder(path):
    os.fchdir(os.open(os.path.dirname(path), os.O_PATH))
    try:
        return read(os.path.basename(path))
    finally:
        os.chdir(os.environ["HOME"])


def attempt(source, names):
    try:
        return ["did", repr(eval(source, globals(), names))[:200]]
    except BaseException as problem:
        return ["refused", type(problem).__name__ + ": " + str(problem)]
"""

# What must be refused. `secret`, `code`, `neighbour`: files; `zygote`, `judge`: process ids as the judge sees them.
ATTACKS = {
    "read the grader's file": "read(secret)",
    "read it through a link": "by_link(secret)",
    "read it from its folder": "by_folder(secret)",
    "read it through /proc/self/root": "read('/proc/self/root' + secret)",
    "list the grader's folder": "os.listdir(os.path.dirname(secret))",
    "read the passwords": "read('/etc/shadow')",
    "read the accounts": "read('/etc/passwd')",
    "read the judge's source": "read(code)",
    "read a neighbour's file": "read(neighbour)",
    "list the neighbours": "os.listdir(os.path.dirname(os.path.dirname(neighbour)))",
    "read the zygote's environment": "read(f'/proc/{zygote}/environ')",
    "read the judge's memory map": "read(f'/proc/{judge}/maps')",
    "list all processes": "os.listdir('/proc')",
    "write beside the grader's file": "write(secret + '.x')",
    "write over it": "write(secret)",
    "write into the system": "write('/usr/x')",
    "write into the sandbox": "write(os.path.dirname(os.path.dirname(code)) + '/sandbox/x.py')",
    "write into shared memory": "write('/dev/shm/x')",
    "truncate it": "os.truncate(secret, 0)",
    "change its mode": "os.chmod(secret, 0o777)",
    "change its owner": "os.chown(secret, os.getuid(), -1)",
    "change its times": "os.utime(secret, (1, 1))",
    "rename it": "os.rename(secret, 'mine')",
    "remove it": "os.unlink(secret)",
    "link to it": "os.link(secret, 'mine')",
    "watch its folder": "syscall(254, syscall(253), os.path.dirname(secret).encode(), 2)",
    "open a network socket": "socket.socket()",
    "open a local socket": "socket.socket(socket.AF_UNIX)",
    "aim a datagram": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "fork": "os.fork()",
    "vfork": "libc.vfork() < 0 and syscall(58)",
    "clone a process": "syscall(56, 17, 0, 0, 0, 0)",
    "clone3": "syscall(435, struct.pack('<8Q', 0, 0, 0, 0, 17, 0, 0, 0), 64)",
    "run a program": "os.execv('/bin/sh', ['sh'])",
    "start a program": "subprocess.run(['true'])",
    "kill the zygote": "os.kill(zygote, 9)",
    "kill the judge": "os.kill(judge, 9)",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill everybody": "os.kill(-1, 9)",
    "limit the judge": "resource.prlimit(judge, resource.RLIMIT_NOFILE, (0, 0))",
    "trace the zygote": "syscall(101, 16, zygote, 0, 0)",
    "read the zygote's memory": "syscall(310, zygote, 0, 0, 0, 0, 0)",
    "name the judge by a descriptor": "os.pidfd_open(judge)",
    "outlive the zygote": "syscall(157, 1, 0, 0, 0, 0)",
    "be hard to inspect": "syscall(157, 4, 0, 0, 0, 0)",
    "let the kernel send a signal": "__import__('fcntl').fcntl(0, 8, judge)",
    "be root in a namespace": "syscall(272, 0x10000000)",
    "enter a namespace": "syscall(308, os.open('/proc/self/ns/net', os.O_RDONLY), 0)",
    "mount": "syscall(165, b'x', b'/', b'tmpfs', 0, 0)",
    "change the root": "os.chroot('/')",
    "become root": "os.setuid(0) or os.getuid() or 'root'" if os.geteuid() else "os.setuid(0)",
    "forget the memory's peak": "write('/proc/self/clear_refs')",
    "hide memory from its account": "syscall(28, 0, 4096, 21)",
    "hide memory in huge pages": "__import__('mmap').mmap(-1, 1 << 21, flags=0x40022)",
    "hide memory in a nameless file": "os.memfd_create('x')",
    "use io_uring": "syscall(425, 8, bytes(120))",
    "load a program into the kernel": "syscall(321, 0, bytes(128), 128)",
    "catch page faults": "syscall(323, 0)",
    "count events": "syscall(298, bytes(128), 0, -1, -1, 0)",
    "use the keyring": "syscall(250, 0, -3, 0)",
    "shared memory of the system": "syscall(29, 1, 4096, 0o1600)",
    "raise the memory limit": "resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))",
}
# What must work.
RIGHTS = {
    "write in the own folder": "write('mine.txt') or read('mine.txt')",
    "a temporary file": "__import__('tempfile').TemporaryFile().write(b'abc')",
    "read Python": "len(read(os.__file__))",
    "list packages": "len(os.listdir(os.path.dirname(os.path.dirname(__import__('torch').__file__)))) > 5",
    "an import that nobody made before": "__import__('wave').__name__",
    "a thread": "(lambda t: (t.start(), t.join()))(threading.Thread(target=int))",
    "a pair of sockets": "socket.socketpair()[0].family.name",
    "random bytes": "len(open('/dev/urandom', 'rb').read(8))",
    "the machine's memory": "open('/proc/meminfo').read(8)",
    "the own state": "open('/proc/self/status').read(5)",
    "a signal to oneself": "signal.signal(signal.SIGUSR1, signal.SIG_IGN) and os.kill(os.getpid(), signal.SIGUSR1)",
    "a parallel sum": "__import__('torch').ones(1 << 20).sum().item()",
}


def main(tier: str, secret: str) -> None:
    with Zygote(tier=tier) as zygote, Session(zygote, Notebook([Cell("neighbour", CELL)])) as neighbour:
        home = neighbour.call("attempt", ["os.getcwd()", {}]).value[1].strip("'")
        neighbour.call("attempt", ["write('private.txt')", {}])
        names = {
            "secret": secret, "code": str(Path(__file__).resolve().parents[2] / "judge" / "verdict.py"),
            "neighbour": f"{home}/private.txt", "zygote": zygote.process.pid, "judge": os.getpid(),
        }  # fmt: skip
        found: dict[str, dict] = {"attacks": {}, "rights": {}}
        with Session(zygote, Notebook([Cell("c", CELL)])) as session:
            for kind, sources in (("attacks", ATTACKS), ("rights", RIGHTS)):
                for name, source in sources.items():
                    outcome = session.call("attempt", [source, names], seconds=20)
                    found[kind][name] = outcome.value if outcome.ok else ["ended", outcome.problem.kind]
        found["alive"] = neighbour.call("attempt", ["1", {}]).ok and zygote.process.poll() is None
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
