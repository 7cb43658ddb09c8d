"""Adapters that break a rule on purpose, for the test of the tests: ``python broken.py FAULT``.

Each is Python's adapter with one verb done as somebody might do it who has not read the protocol.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("python_adapter", Path(__file__).parent / "adapters" / "python.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


good = _load()
say = good.say
Verbs = dict[str, Callable[..., None]]
family = "both"
fds: dict[str, int] = {}
memory: dict[str, int] = {}


def open_(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def unlock_fd(handle: str) -> None:
    os.close(fds.pop(handle))
    say("ok")


def reset() -> None:
    while fds:
        os.close(fds.popitem()[1])
    good.reset()


def nothing(*_: str) -> None:
    say("ok")


def no_lock() -> Verbs:
    def count(path: str, data: str, times: str) -> None:
        for _ in range(int(times)):
            number = int(Path(data).read_text() or "0")
            time.sleep(0)
            Path(data).write_text(str(number + 1))
        say("ok")

    def tokens(path: str, data: str, times: str) -> None:
        for _ in range(int(times)):
            with contextlib.suppress(ValueError), open(data, "a+") as file:
                file.seek(0)
                last = max((int(word) for word in file.read().split()), default=0)
                file.write(f"{last + 1}\n")
        say("ok")

    return {"lock": nothing, "unlock": nothing, "count": count, "tokens": tokens}


def one_family(operation: Callable[[int, int], object], after: Callable[[str], object] = lambda _: None) -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        fds[handle] = open_(path)
        try:
            now = 0 if limit == "inf" else fcntl.LOCK_NB
            operation(fds[handle], (fcntl.LOCK_SH if kind == "shared" else fcntl.LOCK_EX) | now)
        except OSError:
            os.close(fds.pop(handle))
            say("timeout")
        else:
            after(path)
            say("ok")

    return {"lock": lock, "unlock": unlock_fd}


def reads_the_lock_file() -> Verbs:
    return one_family(fcntl.lockf, lambda path: Path(path).read_bytes())


def waits_for_pipes() -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        with open(path, "ab"):
            good.lock(handle, path, kind, limit)

    return {"lock": lock}


def shared_is_exclusive() -> Verbs:
    return {"lock": lambda handle, path, _, limit: good.lock(handle, path, "exclusive", limit)}


def unlock_frees_all() -> Verbs:
    return {"unlock": lambda _: reset()}


def deletes_the_lock_file() -> Verbs:
    def unlock(handle: str) -> None:
        os.unlink(good.locks[handle].path)
        good.unlock(handle)

    return {"unlock": unlock}


def says_timeout_for_errors() -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        try:
            good.lock(handle, path, kind, limit)
        except OSError:
            say("timeout")

    return {"lock": lock}


def follows_links() -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        good.lock(handle, os.path.realpath(path), kind, limit)

    return {"lock": lock}


def silent_on_network() -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        good.locks[handle] = good.FileLock(path, shared=kind == "shared", allow_network=True)
        good.locks[handle].acquire(good.seconds(limit))
        say("ok")

    return {"lock": lock}


def keeps_the_file() -> Verbs:
    kept: dict[str, int] = {}

    def lock(_: str, path: str, kind: str, limit: str) -> None:
        kept.setdefault(path, open_(path))
        try:
            fcntl.flock(kept[path], fcntl.LOCK_EX | (0 if limit == "inf" else fcntl.LOCK_NB))
            say("ok")
        except OSError:
            say("timeout")

    def unlock(_: str) -> None:
        for fd in kept.values():
            fcntl.flock(fd, fcntl.LOCK_UN)
        say("ok")

    return {"lock": lock, "unlock": unlock}


def leaks() -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        os.dup(0)
        good.lock(handle, path, kind, limit)

    return {"lock": lock}


def polls() -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                good.lock(handle, path, kind, "0")
                return
            time.sleep(0.05)

    return {"lock": lock}


def holds_by_a_helper() -> Verbs:
    """A process of its own that takes the lock, and lives on when the adapter is killed."""

    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        fds[handle] = open_(path)
        if os.fork() == 0:
            fcntl.flock(fds[handle], fcntl.LOCK_EX)
            say("ok")
            while True:
                time.sleep(60)

    def unlock(handle: str) -> None:
        fcntl.flock(fds[handle], fcntl.LOCK_UN)
        unlock_fd(handle)

    return {"lock": lock, "unlock": unlock}


def keeps_a_late_grant() -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        fds[handle] = open_(path)
        if limit == "inf":
            fcntl.flock(fds[handle], fcntl.LOCK_EX)
            say("ok")
            return
        waiter = threading.Thread(target=fcntl.flock, args=(fds[handle], fcntl.LOCK_EX), daemon=True)
        waiter.start()
        waiter.join(float(limit))
        say("timeout" if waiter.is_alive() else "ok")

    return {"lock": lock, "unlock": unlock_fd}


def child_frees() -> Verbs:
    def fork(handle: str, fifo: str) -> None:
        if os.fork() == 0:
            fcntl.flock(fds[handle], fcntl.LOCK_UN)
            say("ok", "no")
            Path(fifo).read_bytes()
            os._exit(0)

    return {**one_family(fcntl.flock), "fork": fork}


def child_believes() -> Verbs:
    def fork(handle: str, fifo: str) -> None:
        if os.fork() == 0:
            say("ok", "yes")
            Path(fifo).read_bytes()
            os._exit(0)

    return {"fork": fork}


def greedy() -> Verbs:
    def turns(path: str, data: str, total: str, mark: str) -> None:
        with good.FileLock(path):
            Path(data).write_text(mark * int(total))
        say("ok")

    return {"turns": turns}


def publishing(write: Callable[[str, str, Callable[[], None]], None]) -> Verbs:
    def pause() -> None:
        say("writing")
        good.hear()

    def done(path: str, source: str, between: Callable[[], None]) -> None:
        write(path, source, between)
        say("ok")

    return {
        "publish": lambda path, source: done(path, source, lambda: None),
        "publish-slowly": lambda path, source: done(path, source, pause),
    }


def overwrites() -> Verbs:
    def write(path: str, source: str, between: Callable[[], None]) -> None:
        temporary = f"{path}.{os.getpid()}.tmp"
        shutil.copy(source, temporary)
        between()
        if Path(path).is_dir():
            os.rename(path, f"{path}.old")
        os.replace(temporary, path)

    return publishing(write)


def replaces_everything() -> Verbs:
    def replace(path: str, source: str) -> None:
        data = Path(source).read_bytes()
        with contextlib.suppress(IsADirectoryError):
            os.unlink(path)
        Path(path).write_bytes(data)
        say("ok")

    return {"replace": replace}


def writes_through_links() -> Verbs:
    def replace(path: str, source: str) -> None:
        Path(path).write_bytes(Path(source).read_bytes())
        say("ok")

    return {"replace": replace}


def says_ok_where_taken() -> Verbs:
    def write(path: str, source: str, between: Callable[[], None]) -> None:
        with contextlib.suppress(FileExistsError), good.sharedvol.publish(path, "wb") as file:
            file.write(Path(source).read_bytes())
            between()

    return publishing(write)


def visible_while_writing() -> Verbs:
    def write(path: str, source: str, between: Callable[[], None]) -> None:
        data = Path(source).read_bytes()
        with open(path, "wb", buffering=0) as file:
            file.write(data[:4096])
            time.sleep(0.3)  # long, so that a kill finds it here
            file.write(data[4096:])
        between()

    return publishing(write)


def unlocked_temporary() -> Verbs:
    def write(path: str, source: str, between: Callable[[], None]) -> None:
        temporary = Path(path).with_name(f".{os.getpid()}.sharedvol-tmp")
        shutil.copy(source, temporary)
        between()
        os.link(temporary, path)
        temporary.unlink()

    return publishing(write)


def publishes_a_part() -> Verbs:
    def write(path: str, source: str, between: Callable[[], None]) -> None:
        with good.sharedvol.publish(path, "wb") as file:
            file.write(Path(source).read_bytes()[:4096])
            between()

    return publishing(write)


def dates_back() -> Verbs:
    def write(path: str, source: str, between: Callable[[], None]) -> None:
        temporary = Path(path).with_name(f".{os.getpid()}.tmp")
        shutil.copy(source, temporary)
        between()
        os.utime(temporary, ns=(0, temporary.stat().st_mtime_ns - 1))
        os.link(temporary, path)
        temporary.unlink()

    return publishing(write)


def marks_by_the_second_alone() -> Verbs:
    def write(path: str, source: str, between: Callable[[], None]) -> None:
        temporary = Path(path).with_name(f".{os.getpid()}.tmp")
        shutil.copy(source, temporary)
        between()
        second = int(temporary.stat().st_mtime) - 1
        moment = second * 10**9 + good.microsecond(second, 0) * 1000
        os.utime(temporary, ns=(moment, moment))
        os.link(temporary, path)
        temporary.unlink()

    return publishing(write) | {"mark": lambda second, size: say("ok", good.microsecond(int(second), 0))}


def marks_in_whole_floats() -> Verbs:
    """The products are not reduced first, so a double rounds them."""

    def mark(second: str, size: str) -> None:
        say("ok", int(1 + (float(second) * 374_761 + float(size) * 668_265) % 999_983))

    return {"mark": mark}


def makes_directories() -> Verbs:
    def write(path: str, source: str, between: Callable[[], None]) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with good.sharedvol.publish(path, "wb") as file:
            file.write(Path(source).read_bytes())
            between()

    return publishing(write)


def naive_names() -> Verbs:
    """As sprintf would build them, and a split at the last underscore parse them."""

    def host() -> str:
        return os.environ.get("HOSTNAME", "default")

    def container(raw: str) -> None:
        os.environ["HOSTNAME"] = raw
        say("ok", raw)

    def build(directory: str, name: str) -> None:
        stem, suffix = os.path.splitext(name)
        say("ok", f"{directory}/{stem}_{host()}{suffix}")

    def parse(name: str, *containers: str) -> None:
        stem, suffix = os.path.splitext(os.path.basename(name))
        head, _, found = stem.rpartition("_")
        say("ok", "container", head + suffix, found, "", "0000000000000", "1")

    return {
        "container": container,
        "build-container": build,
        "build-unique": build,
        "build-log": lambda directory, day: say("ok", f"{directory}/{host()}_{day.replace('-', '')}.log"),
        "parse": parse,
    }


def fencing(next_token: Callable[[str], int], *, locked: bool = True, size: int = 95) -> Verbs:
    """Tokens by ``next_token``, which is given the path of the token file; no holder file."""

    def fence(handle: str, path: str, limit: str, _: str) -> None:
        good.locks[handle] = good.FileLock(path)
        good.locks[handle].acquire()
        token = next_token(f"{path}.token")
        line = f"sharedvol-token 1 {token:019} {token + 10_000:019} {'-':36}"
        Path(f"{path}.token").write_text(f"{line:{size - 1}}\n")
        say("ok", token)

    def tokens(path: str, data: str, times: str) -> None:
        for _ in range(int(times)):
            with good.FileLock(path), open(data, "a") as file:
                file.write(f"{next_token(path + '.token')}\n")
        say("ok")

    return {"fence": fence, "tokens": tokens}


def _last(path: str) -> int:
    found = re.findall(r"\d{19}", Path(path).read_text()) if Path(path).is_file() else []
    return int(found[0]) if found else 0


def token_goes_back() -> Verbs:
    return fencing(lambda path: max(1, _last(path) - 1))


def token_from_memory() -> Verbs:
    def next_token(path: str) -> int:
        memory[path] = memory.get(path, 0) + 1
        return memory[path]

    return fencing(next_token)


def token_guessed() -> Verbs:
    """Begins at 1 where there is no file or a damaged one, and knows no boot and no reservation."""
    return fencing(lambda path: _last(path) + 1)


def plain_takes_tokens() -> Verbs:
    def lock(handle: str, path: str, kind: str, limit: str) -> None:
        if kind == "shared":
            good.lock(handle, path, kind, limit)
        else:
            good.locks[handle] = good.FileLock(path, fenced=True)
            good.locks[handle].acquire()
            say("ok")

    return {"lock": lock}


def holder_unlocked() -> Verbs:
    """A holder file as JSON writes it, not padded, and not locked."""

    def fence(handle: str, path: str, limit: str, purpose: str) -> None:
        good.locks[handle] = good.FileLock(path)
        good.locks[handle].acquire()
        Path(f"{path}.holder").write_text('{"sharedvol": 1, "token": 1}')
        say("ok", 1)

    return {"fence": fence}


def holder_believed() -> Verbs:
    def holder(path: str) -> None:
        say("ok", *re.findall(r'"replica":"(.*?)"', Path(f"{path}.holder").read_text(errors="replace")))

    return {"holder": holder}


def holder_fails_locks() -> Verbs:
    def fence(handle: str, path: str, limit: str, purpose: str) -> None:
        Path(f"{path}.holder").write_text("")
        good.fence(handle, path, limit, purpose)

    return {"fence": fence}


def purges_always() -> Verbs:
    def purge(directory: str, version: str) -> None:
        with good.FileLock(f"{directory}/version.lock"):
            for name in os.listdir(directory):
                if os.path.isdir(f"{directory}/{name}"):
                    shutil.rmtree(f"{directory}/{name}")
                elif name != "version.lock":
                    os.unlink(f"{directory}/{name}")
            os.makedirs(f"{directory}/entries", exist_ok=True)
            Path(f"{directory}/version").write_text(f"{version}\n")
        say("ok", "yes")

    return {"purge": purge}


def refuses_leftovers() -> Verbs:
    def purge(directory: str, version: str) -> None:
        with good.FileLock(f"{directory}/version.lock"):
            if set(os.listdir(directory)) - {"version.lock", "version", "entries"}:
                raise OSError("not a cache")
        good.purge(directory, version)

    return {"purge": purge}


def splits_at_semicolons() -> Verbs:
    return {"split": lambda text: say("ok", *(part for piece in text.split(";") if (part := piece.strip())))}


FAULTS: dict[str, tuple[Callable[[], Verbs], tuple[str, ...]]] = {
    "none": (dict, ()),
    "no lock": (
        no_lock,
        (
            "LOCK-12.families",
            "LOCK-1.exclusive",
            "LOCK-7.deleted",
            "LOCK-1.updates",
            "LOCK-3.both_and_each",
            "FENCE-1.many",
        ),
    ),
    "only flock": (lambda: one_family(fcntl.flock), ("LOCK-12.families",)),
    "only fcntl": (lambda: one_family(fcntl.lockf), ("LOCK-12.families",)),
    "reads the lock file": (reads_the_lock_file, ("LOCK-12.families", "LOCK-1.exclusive", "LOCK-9.other_locks")),
    "waits for pipes": (waits_for_pipes, ("GEN-2.pipe",)),
    "shared is exclusive": (shared_is_exclusive, ("LOCK-11.shared",)),
    "unlock frees all": (unlock_frees_all, ("LOCK-9.other_locks",)),
    "deletes the lock file": (deletes_the_lock_file, ("LOCK-6.mode",)),
    "says timeout for errors": (says_timeout_for_errors, ("GEN-2.no_file",)),
    "follows links": (follows_links, ("GEN-2.link",)),
    "silent on network": (silent_on_network, ("GEN-6.warned", "GEN-6.strict")),
    "keeps the file": (keeps_the_file, ("LOCK-7.deleted",)),
    "leaks": (leaks, ("LOCK-4.failed_tries",)),
    "polls": (polls, ("LOCK-4.granted",)),
    "holds by a helper": (holds_by_a_helper, ("LOCK-1.killed", "LOCK-4.holder_killed", "LOCK-4.waiter_killed")),
    "keeps a late grant": (keeps_a_late_grant, ("LOCK-4.gave_up",)),
    "child frees": (child_frees, ("LOCK-10.forked",)),
    "child believes": (child_believes, ("LOCK-10.forked",)),
    "greedy": (greedy, ("LOCK-4.turns",)),
    "overwrites": (overwrites, ("PUB-2.kept", "PUB-2.race")),
    "replaces everything": (replaces_everything, ("PUB-2.special",)),
    "writes through links": (writes_through_links, ("PUB-2.replaced",)),
    "says ok where taken": (says_ok_where_taken, ("PUB-2.kept", "PUB-2.race")),
    "visible while writing": (visible_while_writing, ("PUB-1.killed_anywhere", "PUB-3.killed")),
    "unlocked temporary": (unlocked_temporary, ("PUB-3.cleaners",)),
    "publishes a part": (publishes_a_part, ("PUB-1.whole", "PUB-2.race")),
    "dates back": (dates_back, ("PUB-4.marked",)),
    "marks by the second alone": (marks_by_the_second_alone, ("PUB-4.marked", "PUB-4.given")),
    "marks in whole floats": (marks_in_whole_floats, ("PUB-4.given",)),
    "makes directories": (makes_directories, ("PUB-1.impossible",)),
    "naive names": (
        naive_names,
        (
            "NAME-2.containers",
            "NAME-1.nobody",
            "NAME-3.built",
            "NAME-6.parsed",
            "NAME-6.round_trip",
            "NAME-5.unique",
            "NAME-3.random_names",
        ),
    ),
    "token goes back": (token_goes_back, ("FENCE-2.grows", "FENCE-1.many")),
    "token from memory": (
        token_from_memory,
        ("FENCE-1.killed_anywhere", "FENCE-2.killed", "FENCE-7.replaced", "FENCE-1.many"),
    ),
    "token guessed": (
        token_guessed,
        (
            "FENCE-4.file",
            "FENCE-4.deleted",
            "FENCE-5.damaged",
            "FENCE-6.too_large",
            "FENCE-2.booted",
            "FENCE-3.reserved",
        ),
    ),
    "plain takes tokens": (plain_takes_tokens, ("FENCE-1.plain",)),
    "holder unlocked": (holder_unlocked, ("HOLD-1.file", "HOLD-2.locked", "HOLD-3.told")),
    "holder believed": (holder_believed, ("HOLD-3.silent", "HOLD-3.forged")),
    "holder fails locks": (holder_fails_locks, ("HOLD-4.unwritable",)),
    "purges always": (
        purges_always,
        ("CACHE-1.once", "CACHE-1.only_entries", "CACHE-1.same_version", "CACHE-2.no_cache"),
    ),
    "splits at semicolons": (splits_at_semicolons, ("SQL-2.split", "SQL-2.random_scripts")),
    "refuses leftovers": (refuses_leftovers, ("CACHE-1.killed",)),
}
"""By name: what it does, and the checks that must see it."""

if __name__ == "__main__":
    good.BY_NAME.update({"reset": reset, **FAULTS[sys.argv[1]][0]()})
    good.main()
