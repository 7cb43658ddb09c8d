"""Experiments with locks: whether they exclude, wake, and end with their holder."""

from __future__ import annotations

from sharedvol.doctor.experiments.testbed import Experiment, TestBed, refused
from sharedvol.doctor.report import Result, degraded, ok, unsafe
from sharedvol.doctor.side import Hung, Side, do, flag, number

_ROUNDS = 3  # on fresh files: where two caches hold a file, a lock may exclude by luck
_COUNTS = 200


def _takes(side: Side, file: int, family: str, shared: bool = False) -> bool:
    return flag(do(side, "lock", file=file, family=family, shared=shared))


def _excludes(bench: TestBed, family: str) -> Result:
    """One family of locks: exclusive excludes, shared shares, unlock frees."""
    try:
        for _ in range(_ROUNDS):
            _, a, b = bench.shared()
            if not _takes(bench.a, a, family):
                return degraded("a lock that nobody has was refused")
            if _takes(bench.b, b, family):
                return unsafe("two processes had the exclusive lock at once")
            if _takes(bench.b, b, family, shared=True):
                return unsafe("a shared lock was granted beside an exclusive one")
            do(bench.a, "unlock", file=a, family=family)
            if not _takes(bench.b, b, family):
                return degraded("the lock was still refused after its holder let go")
            do(bench.b, "unlock", file=b, family=family)
            if not (_takes(bench.a, a, family, shared=True) and _takes(bench.b, b, family, shared=True)):
                return degraded("two shared locks exclude each other")
    except OSError as error:
        return refused(error, "the file system refuses these locks")
    return ok("exclusive excludes, shared shares")


def flock(bench: TestBed) -> Result:
    return _excludes(bench, "flock")


def posix(bench: TestBed) -> Result:
    return _excludes(bench, "posix")


def ofd(bench: TestBed) -> Result:
    return _excludes(bench, "ofd")


def both(bench: TestBed) -> Result:
    """Both on one descriptor, as a FileLock: no conflict with oneself, and users of either family are excluded."""
    try:
        for _ in range(_ROUNDS):
            _, a, b = bench.shared()
            if not _takes(bench.a, a, "both"):
                return degraded("the two families conflict on one descriptor: a FileLock would never be granted")
            for family in ("both", "flock", "ofd", "posix"):
                if _takes(bench.b, b, family):
                    return unsafe(f"beside a holder of both another process was granted {_WORDS[family]}")
            do(bench.a, "unlock", file=a, family="both")
            if not _takes(bench.b, b, "both"):
                return degraded("the locks were still refused after their holder let go")
    except OSError as error:
        return refused(error, "the file system refuses these locks")
    return ok("a holder of both excludes users of either")


_WORDS = {"both": "both", "flock": "flock", "ofd": "an OFD lock", "posix": "a POSIX lock"}


def families(bench: TestBed) -> Result:
    """On a local file system flock and fcntl do not see each other, see flock(2)."""
    try:
        _, a, b = bench.shared()
        if not _takes(bench.a, a, "flock"):
            return degraded("a lock that nobody has was refused")
        if not _takes(bench.b, b, "posix"):
            return degraded("flock is made of fcntl locks here, as on NFS: users of either family exclude each other")
    except OSError as error:
        return refused(error, "the file system refuses these locks")
    return ok("they do not see each other, as Linux has it: hence both are taken")


def count(bench: TestBed) -> Result:
    """A number in a file that both sides raise under both locks, waiting for each other."""
    name = bench.made(bench.a, "")
    numbers = bench.a
    handle = number(do(numbers, "open", name=f"{name}.n", how="create"))
    do(numbers, "write", file=handle, text="0" * 20)
    try:
        each = "count", {"name": name, "times": _COUNTS}
        done = sum(map(number, bench.at_once(each, each)))
    except OSError as error:
        return refused(error, "locking failed")
    read = do(numbers, "read", file=handle)
    there = int(read) if isinstance(read, str) and read.isdigit() else -1
    if there != done:
        return unsafe(f"of {done} increments under the lock {done - there} were lost")
    return ok(f"{done} increments, none lost")


def kill(bench: TestBed) -> Result:
    """The kernel frees a killed holder's locks, and wakes who waits for them."""
    _, a, b = bench.shared()
    try:
        if not _takes(bench.a, a, "both"):
            return degraded("a lock that nobody has was refused")
        bench.b.start("lock", file=b, family="both", wait=True)
        if not bench.b.waits(bench.pause):
            flag(bench.b.finish())
            return unsafe("a second process was granted the lock at once")
        bench.a.kill()
        flag(bench.b.finish())
    except OSError as error:
        return refused(error, "waiting for the lock failed")
    except Hung:
        bench.b.kill()
        return unsafe("the lock was still held after its holder was killed: it would stay so for ever")
    return ok("freed when its holder was killed")


def wake(bench: TestBed) -> Result:
    """Who waits in the kernel is woken when the lock is free."""
    for family in ("flock", "ofd", "posix"):
        _, a, b = bench.shared()
        try:
            if not _takes(bench.a, a, family):
                return degraded("a lock that nobody has was refused")
            bench.b.start("lock", file=b, family=family, wait=True)
            if not bench.b.waits(bench.pause):
                flag(bench.b.finish())
                return unsafe(f"a second process was granted {_WORDS[family]} at once")
            do(bench.a, "unlock", file=a, family=family)
            flag(bench.b.finish())
        except OSError as error:
            return refused(error, f"waiting for {_WORDS[family]} is refused")
        except Hung:
            bench.b.kill()
            return unsafe(f"who waited for {_WORDS[family]} was not woken: it would wait for ever")
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
