"""Experiments with locks: do they exclude, wake waiters, and end with their holder?"""

from __future__ import annotations

from sharedvol.doctor.experiments.testbed import Experiment, TestBed, refused
from sharedvol.doctor.report import Result, degraded, ok, unsafe
from sharedvol.doctor.side import Hung, Side, do, flag, number

_ROUNDS = 3  # with new files, because a lock may exclude by chance if two caches hold a file
_COUNTS = 200


def _acquires(side: Side, file: int, family: str, shared: bool = False) -> bool:
    return flag(do(side, "lock", file=file, family=family, shared=shared))


def _excludes(bed: TestBed, family: str) -> Result:
    """Test one family of locks: exclusive locks exclude, shared locks do not, and unlock releases."""
    try:
        for _ in range(_ROUNDS):
            _, a, b = bed.shared()
            if not _acquires(bed.a, a, family):
                return degraded("a lock that no process held was refused")
            if _acquires(bed.b, b, family):
                return unsafe("two processes had the exclusive lock at once")
            if _acquires(bed.b, b, family, shared=True):
                return unsafe("a shared lock was granted during an exclusive one")
            do(bed.a, "unlock", file=a, family=family)
            if not _acquires(bed.b, b, family):
                return degraded("the lock was still refused after its holder released it")
            do(bed.b, "unlock", file=b, family=family)
            if not (_acquires(bed.a, a, family, shared=True) and _acquires(bed.b, b, family, shared=True)):
                return degraded("two shared locks exclude each other")
    except OSError as error:
        return refused(error, "the file system refuses these locks")
    return ok("exclusive locks exclude, shared locks do not")


def flock(bed: TestBed) -> Result:
    """Test locks of flock."""
    return _excludes(bed, "flock")


def posix(bed: TestBed) -> Result:
    """Test POSIX locks, see fcntl(2)."""
    return _excludes(bed, "posix")


def ofd(bed: TestBed) -> Result:
    """Test open file description locks, see fcntl(2)."""
    return _excludes(bed, "ofd")


def both(bed: TestBed) -> Result:
    """Test both locks on one descriptor, as a FileLock holds them: they exclude users of either family."""
    try:
        for _ in range(_ROUNDS):
            _, a, b = bed.shared()
            if not _acquires(bed.a, a, "both"):
                return degraded("the two families conflict on one descriptor: a FileLock would never be granted")
            for family in ("both", "flock", "ofd", "posix"):
                if _acquires(bed.b, b, family):
                    return unsafe(f"during a lock of both families another process was granted {_WORDS[family]}")
            do(bed.a, "unlock", file=a, family="both")
            if not _acquires(bed.b, b, "both"):
                return degraded("the locks were still refused after their holder released them")
    except OSError as error:
        return refused(error, "the file system refuses these locks")
    return ok("a holder of both locks excludes users of either family")


_WORDS = {"both": "both", "flock": "flock", "ofd": "an OFD lock", "posix": "a POSIX lock"}


def families(bed: TestBed) -> Result:
    """Test whether flock and fcntl locks ignore each other, as on a local file system, see flock(2)."""
    try:
        _, a, b = bed.shared()
        if not _acquires(bed.a, a, "flock"):
            return degraded("a lock that no process held was refused")
        if not _acquires(bed.b, b, "posix"):
            return degraded(
                "flock is implemented by fcntl locks, as on NFS: users of the two families exclude each other"
            )
    except OSError as error:
        return refused(error, "the file system refuses these locks")
    return ok("flock and fcntl locks ignore each other, as usual on Linux; a FileLock acquires both")


def count(bed: TestBed) -> Result:
    """Increment a number in a file from both sides under both locks, waiting for each other."""
    name = bed.made(bed.a, "")
    numbers = bed.a
    handle = number(do(numbers, "open", name=f"{name}.n", how="create"))
    do(numbers, "write", file=handle, text="0" * 20)
    try:
        each = "count", {"name": name, "times": _COUNTS}
        done = sum(map(number, bed.at_once(each, each)))
    except OSError as error:
        return refused(error, "locking failed")
    read = do(numbers, "read", file=handle)
    there = int(read) if isinstance(read, str) and read.isdigit() else -1
    if there != done:
        return unsafe(f"of {done} increments under the lock {done - there} were lost")
    return ok(f"{done} increments, none lost")


def kill(bed: TestBed) -> Result:
    """Test whether the kernel frees the locks of a killed process and wakes the process that waits for them."""
    _, a, b = bed.shared()
    try:
        if not _acquires(bed.a, a, "both"):
            return degraded("a lock that no process held was refused")
        bed.b.start("lock", file=b, family="both", wait=True)
        if not bed.b.waits(bed.pause):
            flag(bed.b.finish())
            return unsafe("a second process was granted the lock at once")
        bed.a.kill()
        flag(bed.b.finish())
    except OSError as error:
        return refused(error, "waiting for the lock failed")
    except Hung:
        bed.b.kill()
        return unsafe("the lock was still held after its holder was killed: no process could acquire it again")
    return ok("freed when its holder was killed")


def wake(bed: TestBed) -> Result:
    """Test whether a process that waits in the kernel is woken when the lock is free."""
    for family in ("flock", "ofd", "posix"):
        _, a, b = bed.shared()
        try:
            if not _acquires(bed.a, a, family):
                return degraded("a lock that no process held was refused")
            bed.b.start("lock", file=b, family=family, wait=True)
            if not bed.b.waits(bed.pause):
                flag(bed.b.finish())
                return unsafe(f"a second process was granted {_WORDS[family]} at once")
            do(bed.a, "unlock", file=a, family=family)
            flag(bed.b.finish())
        except OSError as error:
            return refused(error, f"waiting for {_WORDS[family]} is refused")
        except Hung:
            bed.b.kill()
            return unsafe(f"a process that waited for {_WORDS[family]} was not woken: it would wait indefinitely")
    return ok("waiters of every family are woken")


EXPERIMENTS = (
    Experiment("locks.flock", flock),
    Experiment("locks.posix", posix),
    Experiment("locks.ofd", ofd),
    Experiment("locks.both", both),
    Experiment("locks.families", families),
    Experiment("locks.count", count),
    Experiment("locks.wake", wake),
    Experiment("locks.kill", kill),
)
