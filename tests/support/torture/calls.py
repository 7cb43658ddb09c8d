"""The system calls of a mover on x86-64: which change something, and which don't."""

from __future__ import annotations

from dataclasses import dataclass

_O_CREAT, _O_TMPFILE, _O_TRUNC = 0o100, 0o20000000, 0o1000


@dataclass(frozen=True, slots=True)
class Call:
    """A system call, and when it changes something.

    Attributes:
        name: as in its manual page.
        number: on x86-64.
        argument: of which argument the condition is, from 0; None: it always changes something.
        bits: it does where one of these is set.
        values: it does where the argument is one of these.
        above: it does where the argument is greater.
    """

    name: str
    number: int
    argument: int | None = None
    bits: int = 0
    values: tuple[int, ...] = ()
    above: int = -1


_SETLK, _SETLKW, _OFD_SETLK, _OFD_SETLKW, _SETLEASE, _GETLEASE = 6, 7, 37, 38, 1024, 1025
_FICLONE, _FICLONERANGE = 0x40049409, 0x4020940D

EFFECTS = (
    Call("write", 1, 0, above=2),  # not what it says on standard output and error
    Call("open", 2, 1, bits=_O_CREAT | _O_TMPFILE | _O_TRUNC),
    Call("close", 3),  # gives back leases and locks
    Call("ioctl", 16, 1, values=(_FICLONE, _FICLONERANGE)),
    Call("pwrite64", 18),
    Call("writev", 20, 0, above=2),
    Call("msync", 26),
    Call("sendfile", 40),
    Call("fcntl", 72, 1, values=(_SETLK, _SETLKW, _OFD_SETLK, _OFD_SETLKW, _SETLEASE, _GETLEASE)),
    Call("flock", 73),
    Call("fsync", 74),
    Call("fdatasync", 75),
    Call("truncate", 76),
    Call("ftruncate", 77),
    Call("rename", 82),
    Call("mkdir", 83),
    Call("rmdir", 84),
    Call("creat", 85),
    Call("link", 86),
    Call("unlink", 87),
    Call("symlink", 88),
    Call("chmod", 90),
    Call("fchmod", 91),
    Call("chown", 92),
    Call("fchown", 93),
    Call("lchown", 94),
    Call("utime", 132),
    Call("mknod", 133),
    Call("setxattr", 188),
    Call("fsetxattr", 190),
    Call("fremovexattr", 199),
    Call("utimes", 235),
    Call("openat", 257, 2, bits=_O_CREAT | (_O_TMPFILE & ~0o200000) | _O_TRUNC),
    Call("mkdirat", 258),
    Call("mknodat", 259),
    Call("fchownat", 260),
    Call("futimesat", 261),
    Call("unlinkat", 263),
    Call("renameat", 264),
    Call("linkat", 265),
    Call("symlinkat", 266),
    Call("fchmodat", 268),
    Call("splice", 275),
    Call("sync_file_range", 277),
    Call("utimensat", 280),
    Call("fallocate", 285),
    Call("pwritev", 296),
    Call("syncfs", 306),
    Call("renameat2", 316),
    Call("copy_file_range", 326),
    Call("pwritev2", 328),
)
"""The kernel stops the mover before these. A kill between two of them leaves what a kill before the second leaves."""

_HARMLESS = {
    "read": 0, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19,
    "access": 21, "pipe": 22, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33,
    "nanosleep": 35, "getpid": 39, "clone": 56, "vfork": 58, "execve": 59, "exit": 60, "wait4": 61, "kill": 62,
    "uname": 63, "getdents": 78, "getcwd": 79, "readlink": 89, "umask": 95, "gettimeofday": 96, "getrlimit": 97,
    "sysinfo": 99, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "statfs": 137,
    "fstatfs": 138, "prctl": 157, "arch_prctl": 158, "setrlimit": 160, "gettid": 186, "flistxattr": 196, "time": 201,
    "futex": 202, "getdents64": 217, "set_tid_address": 218, "restart_syscall": 219, "fadvise64": 221,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232,
    "tgkill": 234,
    "waitid": 247, "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271,
    "set_robust_list": 273, "epoll_create1": 291, "dup3": 292, "pipe2": 293, "prlimit64": 302, "getrandom": 318,
    "memfd_create": 319, "execveat": 322, "statx": 332, "rseq": 334, "pidfd_send_signal": 424,
    "pidfd_open": 434, "clone3": 435, "close_range": 436, "faccessat2": 439,
}  # fmt: skip

NAMES = {**{number: name for name, number in _HARMLESS.items()}, **{call.number: call.name for call in EFFECTS}}
"""Every call that the harness knows. One that it does not know may have an effect at which nobody was killed."""

CLOSE = 3

PAUSES = (35, 230)
"""nanosleep and clock_nanosleep, with which those wait who try again: SQLite for ten seconds where a lock fails."""
