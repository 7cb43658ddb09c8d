"""The rules of the lock file: who is kept out, who waits, and what a death does."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapter import Adapter, meet
from kernel_view import Raw, is_free, wait_blocked, wait_for
from rules import Scene, rule

TRIES = 60
"""Failed tries of one process: enough that a descriptor lost for each is no accident."""


@rule(
    "LOCK-12",
    "The lock's families are those that the adapter claims: it excludes the kernel's own users of them.",
    "lock timeout",
)
def families(scene: Scene, one: Adapter) -> None:
    path, family = scene.directory / "x.lock", scene.claims(one).family
    one.do("lock", 1, path, "exclusive", 0)
    for other in ("fcntl", "flock"):
        assert is_free(path, other) != meet(family, other), f"claims {family}, but is it kept out by {other}?"
    one.do("unlock", 1)
    for other in ("fcntl", "flock"):
        with Raw(path, other):
            answer = one.ask("lock", 1, path, "exclusive", 0)
            assert answer.word == ("timeout" if meet(family, other) else "ok"), f"{answer} while {other} is held"
            if answer.word == "ok":
                one.do("unlock", 1)


@rule(
    "LOCK-1",
    "While one holds it exclusively, nobody else gets it; when it is freed, the next one does.",
    "lock",
    "lock timeout",
    meeting=True,
)
def exclusive(scene: Scene, holder: Adapter, other: Adapter) -> None:
    path = scene.directory / "x.lock"
    for limit in (0, 0.05):
        holder.do("lock", 1, path, "exclusive", "inf")
        for kind in ("exclusive", "shared") if "shared" in scene.claims(other).capabilities else ("exclusive",):
            answer = other.ask("lock", 1, path, kind, limit)
            assert answer.word == "timeout", f"{answer} while it is held"
        holder.do("unlock", 1)
        other.do("lock", 1, path, "exclusive", limit)
        other.do("unlock", 1)


@rule(
    "LOCK-11",
    "Shared holders hold together, and keep an exclusive one out until the last has gone.",
    "lock shared",
    "lock shared timeout",
    meeting=True,
)
def shared(scene: Scene, one: Adapter, other: Adapter) -> None:
    path = scene.directory / "x.lock"
    third = scene.another(other)
    one.do("lock", 1, path, "shared", "inf")
    other.do("lock", 1, path, "shared", 0)
    assert third.ask("lock", 1, path, "exclusive", 0).word == "timeout"
    one.do("unlock", 1)
    assert third.ask("lock", 1, path, "exclusive", 0).word == "timeout", "one shared holder is left"
    other.do("unlock", 1)
    third.do("lock", 1, path, "exclusive", 0)


@rule(
    "LOCK-9",
    "A holder keeps its lock whatever else it does with locks: takes and frees another, asks who holds its own.",
    "lock",
    "lock timeout",
    meeting=True,
)
def other_locks(scene: Scene, holder: Adapter, other: Adapter) -> None:
    first, second = scene.directory / "a.lock", scene.directory / "b.lock"
    holder.do("lock", 1, first, "exclusive", "inf")
    holder.do("lock", 2, second, "exclusive", "inf")
    holder.do("unlock", 2)
    if "holder" in scene.claims(holder).capabilities:
        assert holder.ask("holder", first).word == "unknown"
    assert other.ask("lock", 1, first, "exclusive", 0).word == "timeout"
    other.do("lock", 2, second, "exclusive", 0)


@rule("LOCK-6", "A lock file is made with mode 0666 whatever the umask; it stays, and stays empty.", "lock")
def mode(scene: Scene, one: Adapter) -> None:
    path = scene.directory / "x.lock"
    one.do("lock", 1, path, "exclusive", "inf")
    made = path.lstat()
    assert stat.filemode(made.st_mode) == "-rw-rw-rw-", f"{path} has mode {stat.filemode(made.st_mode)}"
    one.do("unlock", 1)
    one.do("lock", 1, path, "exclusive", "inf")
    one.do("unlock", 1)
    left = path.lstat()
    assert (left.st_ino, left.st_size) == (made.st_ino, 0)


@rule(
    "GEN-2",
    "What cannot be a lock file is an error, not a lock and not a time-out: a directory, a path to nowhere.",
    "lock timeout",
)
def no_file(scene: Scene, one: Adapter) -> None:
    for path in (scene.directory / "missing" / "x.lock", scene.directory):
        for limit in (0, "inf"):
            answer = one.ask("lock", 1, path, "exclusive", limit)
            assert answer.word == "error", f"{answer} for {path}"
    assert list(scene.directory.iterdir()) == []


@rule("GEN-2", "A pipe in the place of a lock file makes nobody wait.", "lock timeout")
def pipe(scene: Scene, one: Adapter) -> None:
    path = scene.directory / "x.lock"
    os.mkfifo(path)
    # Not every language can see what it is, and a lock on it would be a lock. To wait for its other end is the mistake.
    answer = one.ask("lock", 1, path, "exclusive", 0)
    assert answer.word in ("error", "ok"), answer


@rule("GEN-2", "A symbolic link is refused as a lock file, and what it points to is left alone.", "lock")
def link(scene: Scene, one: Adapter) -> None:
    target, path = scene.directory / "target", scene.directory / "x.lock"
    path.symlink_to(target)
    assert one.ask("lock", 1, path, "exclusive", "inf").word == "error"
    assert not target.exists()


ON_NETWORK = """
mount -t tmpfs sharedvol-conformance "$1" || exit 77
sed 's/ - tmpfs sharedvol-conformance / - nfs4 server:\\/export /' /proc/self/mountinfo >"$2" || exit 77
mount --bind "$2" /proc/$$/mountinfo || exit 77
shift 2
exec "$@"
"""
"""A shell's script that starts a command with a directory that the kernel seems to have mounted from a server."""


@contextlib.contextmanager
def on_network(scene: Scene, like: Adapter, strict: str) -> Iterator[tuple[Adapter, Path]]:
    """One more adapter, and a directory that it finds on a network file system.

    Args:
        scene: the scene.
        like: an adapter of the same command.
        strict: its ``SHAREDVOL_STRICT``.
    """
    mounted = scene.directory / "mounted"
    mounted.mkdir(exist_ok=True)
    start = ["unshare", "--mount", "sh", "-c", ON_NETWORK, "sh", str(mounted), str(scene.directory / "mountinfo")]
    try:
        allowed = subprocess.run([*start, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("nothing can be mounted here")
    with Adapter([*start, "env", f"SHAREDVOL_STRICT={strict}", *like.command]) as adapter:
        yield adapter, mounted


@rule(
    "GEN-6",
    "On a network file system a lock is granted with one warning a mount, on a local one with none.",
    "lock network",
)
def warned(scene: Scene, one: Adapter) -> None:
    with on_network(scene, one, "0") as (adapter, mounted):
        adapter.do("lock", 1, scene.directory / "x.lock", "exclusive", "inf")
        assert adapter.do("warned") == ("0",)
        for handle, name in ((2, "x.lock"), (3, "y.lock")):
            adapter.do("lock", handle, mounted / name, "exclusive", "inf")
        assert adapter.do("warned") == ("1",)


@rule(
    "GEN-6",
    "Where SHAREDVOL_STRICT is set, a lock on a network file system is refused, and others are not.",
    "lock network",
)
def strict(scene: Scene, one: Adapter) -> None:
    with on_network(scene, one, "1") as (adapter, mounted):
        for _ in range(2):
            answer = adapter.ask("lock", 1, mounted / "x.lock", "exclusive", "inf")
            assert answer.word == "error", answer
        adapter.do("lock", 1, scene.directory / "x.lock", "exclusive", "inf")


@rule(
    "LOCK-7",
    "A lock file that somebody deleted is made anew at the next use, and excludes again.",
    "lock",
    "lock timeout",
    meeting=True,
)
def deleted(scene: Scene, one: Adapter, other: Adapter) -> None:
    path = scene.directory / "x.lock"
    for adapter in (one, other):
        adapter.do("lock", 1, path, "exclusive", "inf")
        adapter.do("unlock", 1)
    path.unlink()
    one.do("lock", 1, path, "exclusive", "inf")
    assert other.ask("lock", 1, path, "exclusive", 0).word == "timeout"


@rule("LOCK-4", "A try that fails leaves nothing behind, no descriptor either.", "lock timeout")
def failed_tries(scene: Scene, one: Adapter) -> None:
    path = scene.directory / "x.lock"
    with Raw(path):
        for limit in (0, 0.001):
            assert one.ask("lock", 1, path, "exclusive", limit).word == "timeout"
        before = one.descriptors()
        for _ in range(TRIES):
            assert one.ask("lock", 1, path, "exclusive", 0).word == "timeout"
        left = one.descriptors() - before
    assert left < TRIES / 2, f"{TRIES} failed tries left {left} descriptors"


@rule(
    "LOCK-1",
    "A holder that is killed holds no more: the next one gets the lock.",
    "lock",
    "lock",
    meeting=True,
)
def killed(scene: Scene, holder: Adapter, other: Adapter) -> None:
    path = scene.directory / "x.lock"
    holder.do("lock", 1, path, "exclusive", "inf")
    holder.kill()
    other.do("lock", 1, path, "exclusive", "inf")


@rule(
    "LOCK-4",
    "A waiter waits in the kernel, and gets the lock when it is freed, with and without a time limit.",
    "lock",
    "lock timeout queue",
    meeting=True,
)
def granted(scene: Scene, holder: Adapter, waiter: Adapter) -> None:
    path = scene.directory / "x.lock"
    for limit in ("inf", 600):
        holder.do("lock", 1, path, "exclusive", "inf")
        waiter.send("lock", 1, path, "exclusive", limit)
        wait_blocked(path, 1)
        holder.do("unlock", 1)
        assert waiter.receive().word == "ok"
        waiter.do("unlock", 1)


@rule(
    "LOCK-4",
    "A holder that is killed frees the lock at once for the one that waits.",
    "lock",
    "lock queue",
    meeting=True,
)
def holder_killed(scene: Scene, holder: Adapter, waiter: Adapter) -> None:
    path = scene.directory / "x.lock"
    holder.do("lock", 1, path, "exclusive", "inf")
    waiter.send("lock", 1, path, "exclusive", "inf")
    wait_blocked(path, 1)
    holder.kill()
    assert waiter.receive().word == "ok"


@rule(
    "LOCK-4",
    "A waiter that is killed leaves nobody stuck: who waits behind it gets the lock.",
    "lock",
    "lock queue",
    meeting=True,
)
def waiter_killed(scene: Scene, holder: Adapter, waiter: Adapter) -> None:
    path = scene.directory / "x.lock"
    behind = scene.another(holder) if "queue" in scene.claims(holder).capabilities else scene.another(waiter)
    holder.do("lock", 1, path, "exclusive", "inf")
    waiter.send("lock", 1, path, "exclusive", "inf")
    wait_blocked(path, 1)
    behind.send("lock", 1, path, "exclusive", "inf")
    wait_blocked(path, 2)
    waiter.kill()
    waiter.owed = 0
    holder.do("unlock", 1)
    assert behind.receive().word == "ok"


@rule(
    "LOCK-4",
    "A waiter whose time is over has left the queue: the lock is free for others.",
    "lock",
    "lock timeout queue",
    meeting=True,
)
def gave_up(scene: Scene, holder: Adapter, waiter: Adapter) -> None:
    path = scene.directory / "x.lock"
    third = scene.another(holder)
    holder.do("lock", 1, path, "exclusive", "inf")
    assert waiter.ask("lock", 1, path, "exclusive", 0.05).word == "timeout"
    holder.do("unlock", 1)
    wait_for(lambda: is_free(path), "a lock that nobody holds to be free")
    third.do("lock", 1, path, "exclusive", "inf")


@rule(
    "LOCK-10",
    "A forked child neither holds its parent's lock nor frees it, nor keeps it when the parent is killed.",
    "lock fork",
    "lock timeout",
    meeting=True,
)
def forked(scene: Scene, holder: Adapter, other: Adapter) -> None:
    path, fifo = scene.directory / "x.lock", scene.directory / "fifo"
    os.mkfifo(fifo)
    holder.do("lock", 1, path, "exclusive", "inf")
    answer = holder.ask("fork", 1, fifo)
    assert answer == ("ok", ("no",)), f"the child says {answer}"
    with fifo.open("w"):  # opens when the child reads: it has tried to release, and lives
        assert other.ask("lock", 1, path, "exclusive", 0).word == "timeout", "the child freed its parent's lock"
        holder.kill()
        other.do("lock", 1, path, "exclusive", 0)
