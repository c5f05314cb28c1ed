"""The system calls that a runner may make: a list of what is allowed; everything else is refused with EPERM.

No new process, no program, no socket, no other process touched. Calls that name a path but that Landlock does not
guard (chmod, chown, utime, truncate, inotify, setxattr) are not on the list: in tier T1 an unprivileged grader's files
have the same owner as the runner. Needs libseccomp and the package pyseccomp.
"""

import contextlib
import errno
import os
import socket

MEMORY = "brk munmap mremap mprotect mlock munlock mincore msync membarrier get_mempolicy"
FILES = """open openat close close_range read write readv writev pread64 pwrite64 preadv pwritev lseek fstat stat lstat
newfstatat statx access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir dup dup2 dup3
ftruncate fallocate fsync fdatasync rename renameat renameat2 mkdir mkdirat rmdir unlink unlinkat symlink symlinkat
umask statfs fstatfs pipe pipe2 sendfile copy_file_range fadvise64"""
WAITING = """poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
eventfd eventfd2 timerfd_create timerfd_settime timerfd_gettime nanosleep clock_nanosleep pause"""
TIME = "clock_gettime clock_getres gettimeofday time times getitimer setitimer alarm"
THREADS = """futex set_robust_list set_tid_address rseq sched_yield sched_getaffinity sched_getparam
sched_getscheduler sched_get_priority_max sched_get_priority_min getcpu arch_prctl exit exit_group restart_syscall"""
SIGNALS = """rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack signalfd
signalfd4"""
WHO = """getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups capget
uname sysinfo getrusage getrlimit getpriority getrandom"""
# The oracle's socket is open already, and asyncio makes a pair for itself; nothing can be connected or bound.
OPEN_SOCKETS = "sendto recvfrom sendmsg recvmsg shutdown getsockopt setsockopt getsockname getpeername"
ALLOWED = " ".join([MEMORY, FILES, WAITING, TIME, THREADS, SIGNALS, WHO, OPEN_SOCKETS]).split()
# A compiler, started by a kernel question on a machine with a GPU.
PROCESSES = """fork vfork execve execveat wait4 waitid setsid setpgid kill tkill tgkill chmod fchmod fchmodat fchmodat2
utimensat link linkat flock""".split()  # noqa: SIM905 -- a list of nineteen strings would be harder to read

CLONE_THREAD = 0x10000 | 0x800 | 0x100  # CLONE_THREAD, CLONE_SIGHAND, CLONE_VM
CLONE_NEW = 0x7E020080  # a namespace of any kind
MAP_HUGETLB = 0x40000  # pages that no account of this process's memory shows
# Not MADV_COLD (20) and MADV_PAGEOUT (21): they would take memory out of that account.
MADVISE = (0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 22, 23, 25)
FCNTL = (0, 1, 2, 3, 4, 1030, 1032)  # not F_SETOWN, F_SETSIG: the kernel would send the signal
LOCKS = (5, 6, 7, 36, 37, 38)  # on files that all can read, two sessions could talk by them
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
PRCTL = (3, 15, 16, 21, 23, 39, 0x53564D41)  # read-outs; the names of threads and of memory areas


class SyscallFilter:
    """Built once before any fork; `load` puts it on the calling process for good."""

    def __init__(self, *, processes: bool, devices: bool) -> None:
        import pyseccomp

        self.kit = pyseccomp
        self.filter = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
        self.processes = processes
        for name in ALLOWED + (PROCESSES if processes else []):
            self.allow(name)
        self.allow("mmap", self.masked(3, MAP_HUGETLB, 0))
        self.allow_some("madvise", 2, MADVISE)
        self.allow_some("fcntl", 1, FCNTL + (LOCKS if processes else ()))
        self.allow_some("prctl", 0, PRCTL)
        self.allow_ioctl(devices)
        self.allow_clone()
        self.allow("prlimit64", pyseccomp.Arg(0, pyseccomp.EQ, 0))
        # AF_UNIX streams alone: a datagram socket could be aimed at any address.
        pair = (pyseccomp.Arg(0, pyseccomp.EQ, socket.AF_UNIX), self.masked(1, 0xF, socket.SOCK_STREAM))
        self.allow("socketpair", *pair)

    def load(self) -> None:
        """Signals may go to this process alone, unless it may have others."""
        if not self.processes:
            for name in ("kill", "tgkill"):
                self.allow(name, self.kit.Arg(0, self.kit.EQ, os.getpid()))
        self.filter.load()

    def allow(self, name: str, *conditions: object) -> None:
        with contextlib.suppress(OSError):  # not on this architecture, or not known to this libseccomp: stays refused
            self.filter.add_rule(self.kit.ALLOW, name, *conditions)

    def allow_some(self, name: str, argument: int, values: tuple[int, ...]) -> None:
        for value in values:
            self.allow(name, self.kit.Arg(argument, self.kit.EQ, value))

    def masked(self, argument: int, mask: int, value: int) -> object:
        return self.kit.Arg(argument, self.kit.MASKED_EQ, mask, value)

    def allow_ioctl(self, devices: bool) -> None:
        """A GPU's driver has hundreds of requests; Landlock keeps them to its device nodes."""
        if devices:
            self.allow("ioctl")
        else:
            self.allow_some("ioctl", 1, IOCTL)

    def allow_clone(self) -> None:
        """Threads always, processes where asked for, a new namespace never."""
        refused = self.kit.ERRNO(errno.ENOSYS)
        self.filter.add_rule(refused, "clone3")  # its flags lie in memory; the C library falls back to clone
        if self.processes:
            self.allow("clone", self.masked(0, CLONE_NEW, 0))
        else:
            self.allow("clone", self.masked(0, CLONE_THREAD | CLONE_NEW, CLONE_THREAD))
