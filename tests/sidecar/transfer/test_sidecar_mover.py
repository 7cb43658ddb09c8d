"""What moves, what stays, and that writers, other movers and faults lose nothing."""

from __future__ import annotations

import errno
import fcntl
import gzip
import mmap
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.processes import Child
from support.sidecar.interleaving import before
from support.sidecar.volume import Volume, fail_once

import sharedvol_sidecar.fs.content as contents
import sharedvol_sidecar.fs.lease as lease
import sharedvol_sidecar.transfer.contents as syncing
import sharedvol_sidecar.transfer.staging as staging
from sharedvol import publish
from sharedvol_sidecar.errors import DestinationError, SpoolError
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.spool.container_locks import ContainerLocks
from sharedvol_sidecar.transfer.claimer import Claimer

HOUR = 3600.0


def test_file_open_for_writing_by_another_process_stays(volume: Volume) -> None:
    path = volume.write("c1/results/a", "x")

    def hold(connection: Any) -> None:
        with open(path, "a"):
            connection.send("open")
            connection.recv()

    with Child(hold) as writer:
        writer.receive()
        assert volume.one_pass().writing == 1
        assert volume.files() == {}
        writer.send("close")
    assert volume.one_pass().collected == 1


def test_shared_writable_mapping_of_a_closed_file_stays(volume: Volume) -> None:
    path = volume.write("c1/results/a", "x" * 100)
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 100) as mapping:
        os.close(fd)
        assert volume.one_pass().writing == 1
        mapping[0] = ord("y")
    assert volume.one_pass().collected == 1
    assert volume.bag() == Counter(["y" + "x" * 99])


def test_file_that_readers_hold_moves(volume: Volume) -> None:
    with open(volume.write("c1/results/a", "x")) as reader:
        assert volume.one_pass().collected == 1
        assert reader.read() == "x"


def test_closed_file_waits_for_the_quiet_time(volume: Volume) -> None:
    volume.write("c1/results/a", "x")
    collector = volume.collector(quiet=HOUR)
    assert collector.run_pass().settling == 1
    assert collector.due is not None and 0 < collector.due <= HOUR
    collector.close()
    assert volume.one_pass(quiet=0.0).collected == 1


@pytest.mark.parametrize("days", [-4000, 4000])
def test_times_of_another_clock_do_not_keep_a_file(volume: Volume, days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was set back since. Then the file is watched instead, whatever time it was given."""
    path = volume.write("c1/results/a", "x")
    moment = path.stat().st_ctime + days * 86_400
    os.utime(path, (moment, moment))
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: path.stat().st_ctime - 86_400)
    monkeypatch.setattr("sharedvol_sidecar.spool.quiet_time.time", clock)
    collector = volume.collector(quiet=10.0)
    assert collector.run_pass().settling == 1
    now[0] += 9.0
    assert collector.run_pass().settling == 1
    now[0] += 1.0
    assert collector.run_pass().collected == 1
    collector.close()


@pytest.mark.parametrize("step", [0.5, 3600.0, 40 * 86_400.0])
def test_a_clock_that_is_set_forward_makes_no_file_finished(
    volume: Volume, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume.write("c1/results/a", "half")
    now, offset = [1000.0], [path.stat().st_ctime - 1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0] + offset[0])
    monkeypatch.setattr("sharedvol_sidecar.spool.quiet_time.time", clock)
    collector = volume.collector(quiet=0.5)
    assert collector.run_pass().settling == 1
    now[0] += 0.25
    offset[0] += step
    volume.write("c1/results/b", "half, and not seen before")
    assert collector.run_pass().settling == 2
    assert collector.due == pytest.approx(0.25)
    now[0] += 0.25
    assert (collector.run_pass().collected, list(volume.waiting())) == (1, ["c1/results/b"])
    now[0] += 0.25
    assert collector.run_pass().collected == 1
    collector.close()


@pytest.mark.parametrize("contents", [["same"] * 30, [str(n) for n in range(30)]], ids=["same", "different"])
def test_files_of_one_name_are_all_kept(volume: Volume, contents: list[str]) -> None:
    for number, content in enumerate(contents):
        os.utime(volume.write(f"c{number}/results/a.json", content), (1, 1))
    tally = volume.drain(template="{base}")
    assert (tally.collected, tally.kept_both) == (30, 29)
    assert volume.bag() == Counter(contents)


def test_names_reused_after_collection_are_all_kept(volume: Volume) -> None:
    for number in range(20):
        volume.write("c1/results/a.json", str(number))
        assert volume.one_pass().collected == 1
    assert volume.bag() == Counter(str(number) for number in range(20))


def test_another_pass_changes_nothing(volume: Volume) -> None:
    for number in range(3):
        volume.write(f"c{number}/results/a", str(number))
    volume.drain(template="{base}")
    before = {path: os.stat(volume.collected / path) for path in volume.files()}
    assert volume.drain(template="{base}").collected == 0
    assert {path: os.stat(volume.collected / path) for path in volume.files()} == before


def test_one_file_under_two_names_keeps_both_names(volume: Volume) -> None:
    path = volume.write("c1/results/a", "x")
    os.link(path, path.with_name("b"))
    assert volume.drain(template="{base}").collected == 2
    assert volume.files() == {"a": "x", "b": "x"}


def test_two_movers_in_turn_share_the_work(volume: Volume) -> None:
    first, second = volume.collector(), volume.collector()
    for number in range(20):
        volume.write(f"c1/results/{number}", str(number))
        assert (first, second)[number % 2].run_pass().collected == 1
    assert first.run_pass().collected == second.run_pass().collected == 0
    first.close()
    second.close()
    assert volume.bag() == Counter(map(str, range(20)))


def test_file_taken_by_another_mover_between_open_and_claim(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.write("c1/results/a", "x")
    first, second = volume.collector(), volume.collector()
    # The locks that share out the work would keep it away; that no file is moved twice does not rest on them.
    (volume.spool.parent / "other").mkdir()
    monkeypatch.setattr(second.parts, "locks", ContainerLocks(open_root(volume.spool.parent / "other")))
    real = Claimer.claim
    taken: list[int] = []

    def slow(self: Claimer, *args: Any) -> bool:
        if self is first.parts.mover._claimer:
            taken.append(second.run_pass().collected)
        return real(self, *args)

    monkeypatch.setattr(Claimer, "claim", slow)
    assert first.run_pass().collected == 0
    assert taken == [1]
    assert volume.bag() == Counter(["x"])
    first.close()
    second.close()


ANY_STEP = [
    ("link", errno.ENOSPC),
    ("link", errno.EIO),
    ("link", errno.EROFS),
    ("link", errno.EFBIG),
    ("link", errno.EOVERFLOW),
    ("mkdir", errno.ENOSPC),
    ("mkdir", errno.EROFS),
    ("fsync", errno.EIO),
    ("fsync", errno.ENOSPC),
]


def in_the_destination(volume: Volume, below: str) -> Callable[..., bool]:
    """Whether a call is about a name or a directory below a path of the destination."""

    def there(*args: Any, **options: Any) -> bool:
        fd = options.get("dst_dir_fd", options.get("dir_fd", args[0]))
        name = f"/{args[0]}" if "dir_fd" in options else ""
        return isinstance(fd, int) and (os.readlink(f"/proc/self/fd/{fd}") + name).startswith(
            f"{volume.collected}{below}"
        )

    return there


@pytest.mark.parametrize(("name", "number"), ANY_STEP)
def test_fault_of_the_destination_leaves_all_for_the_next_pass(
    volume: Volume, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = volume.collector(template="{kind}/{container}/{name}")
    collector.run_pass()  # makes our own directories
    contents = {f"c1/results/d{n}/a": str(n) for n in range(12)}
    for path, content in contents.items():
        volume.write(path, content)
    there, real, real_open = in_the_destination(volume, ""), getattr(os, name), os.open

    def failing(*args: Any, **options: Any) -> Any:
        if there(*args, **options):
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    def opening(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT and there(path, **{"dir_fd": -1, **options}):
            raise OSError(number, os.strerror(number))
        return real_open(path, flags, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        patch.setattr(os, "open", opening)
        with pytest.raises(DestinationError, match="nothing was lost"):
            collector.run_pass()
    assert volume.files() == {}
    assert volume.waiting() == contents
    assert collector.run_pass().collected == 12
    collector.close()
    assert volume.bag() == Counter(contents.values())


@pytest.mark.parametrize(("name", "number"), ANY_STEP)
def test_fault_of_one_file_stops_no_other(
    volume: Volume, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {f"c1/results/d{n}/a": str(n) for n in range(12)}
    for path, content in contents.items():
        os.utime(volume.write(path, content), (1_000_000_000, 1_000_000_000))
    collector = volume.collector()
    there, real, failed = in_the_destination(volume, "/results/2001-09-09/c1/d7"), getattr(os, name), []

    def failing(*args: Any, **options: Any) -> Any:
        if there(*args, **options):
            failed.append(args)
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        tally = collector.run_pass()
        assert (tally.collected, tally.failed) == (11, 1)
        assert collector.run_pass().failed == 1
    assert failed
    assert volume.waiting() == {"c1/results/d7/a": "7"}
    (event,) = {event.detail for event in volume.told("failed")}
    assert errno.errorcode[number] in event
    collector.close()
    assert volume.drain().collected == 1
    assert volume.bag() == Counter(contents.values())


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.ESTALE, errno.EXDEV])
def test_file_that_cannot_be_claimed_stops_no_other(
    volume: Volume, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.write("c1/results/bad", "1")
    volume.write("c2/results/good", "2")
    real = os.rename

    def rename(source: str, *args: Any, **options: Any) -> None:
        if source == "bad":
            raise OSError(number, os.strerror(number))
        real(source, *args, **options)

    monkeypatch.setattr(os, "rename", rename)
    tally = volume.one_pass()
    assert (tally.collected, tally.failed) == (1, 1)
    assert volume.waiting() == {"c1/results/bad": "1"}


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EOVERFLOW])
def test_log_that_cannot_be_followed_stops_no_other(
    volume: Volume, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume.write("c1/logs/a.log", "first")
    os.truncate(path, 1 << 30)
    volume.write("c2/results/good", "2")
    real = os.ftruncate

    def ftruncate(fd: int, size: int) -> None:
        if size == 1 << 30:
            raise OSError(number, os.strerror(number))
        real(fd, size)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    with open(path, "ab"):
        tally = volume.one_pass()
    assert (tally.collected, tally.failed) == (1, 1)
    assert errno.errorcode[number] in volume.told("failed")[0].detail


def test_spool_in_which_nothing_can_be_claimed_is_a_fault(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.write("c1/results/a", "1")

    def rename(*args: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(SpoolError, match="EIO"):
            volume.one_pass()
    assert volume.waiting() == {"c1/results/a": "1"}
    assert volume.drain().collected == 1


@pytest.mark.parametrize("name", ["fsync", "pread", "fstat"])
def test_file_that_cannot_be_read_or_synced_stops_no_other(
    volume: Volume, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.write("c1/results/bad", "1")
    volume.write("c2/results/good", "2")
    real = getattr(os, name)

    def failing(fd: int, *args: Any) -> Any:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/bad"):
            raise OSError(errno.EIO, "input/output error")
        return real(fd, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        tally = volume.one_pass()
    assert (tally.collected, tally.failed) == (1, 1)
    assert volume.waiting() == {"c1/results/bad": "1"}


def test_claim_that_cannot_be_removed_stops_no_other(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.write("c1/results/bad", "1")
    real = os.unlink

    def unlink(name: str, **options: Any) -> None:
        if name == "bad" and "/claims/" in os.readlink(f"/proc/self/fd/{options['dir_fd']}"):
            raise OSError(errno.EPERM, "operation not permitted")
        real(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        collector = volume.collector(template="{name}")
        collector.run_pass()
        volume.write("c2/results/good", "2")
        collector.run_pass()
        assert volume.files() == {"bad": "1", "good": "2"}
    collector.run_pass()
    collector.close()
    assert volume.claims() == []


def test_directory_that_cannot_be_read_stops_no_other(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.write("c1/results/bad/a", "1")
    volume.write("c1/results/good/a", "2")
    volume.write("c2/results/a", "3")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if isinstance(path, int) and os.readlink(f"/proc/self/fd/{path}").endswith("/bad"):
            raise OSError(errno.EIO, "input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        tally = volume.one_pass(orphans=False)
    assert (tally.collected, tally.failed) == (2, 1)
    assert [event.path for event in volume.told("failed")] == ["c1/results/bad"]


def test_file_that_fails_again_and_again_is_tried_less_and_less_often(
    across: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    across.write("c1/results/bad", "1")
    now, tried, real = [0.0], [], contents.copy

    def failing(*args: Any) -> Any:
        tried.append(now[0])
        raise OSError(errno.EFBIG, "file too large")

    collector = across.collector()
    monkeypatch.setattr(collector.parts.failed.retries, "_clock", lambda: now[0])
    monkeypatch.setattr(staging, "copy", failing)
    for second in range(40):
        now[0] = float(second)
        assert collector.run_pass().failed == 1
    assert tried == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    monkeypatch.setattr(staging, "copy", real)
    across.write("c1/results/bad", "12")
    assert collector.run_pass().collected == 1
    collector.close()


@pytest.mark.parametrize("name", ["link", "mkdir"])
def test_directory_of_the_destination_that_is_closed_stops_no_other(
    volume: Volume, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {f"c{n}/results/a": str(n) for n in range(4)}
    for path, content in contents.items():
        volume.write(path, content)
    collector = volume.collector()
    collector.run_pass(lambda: True)
    for path, content in contents.items():
        volume.write(f"{path}2", content)
    real = getattr(os, name)

    def closed(*args: Any, **options: Any) -> None:
        fd = options.get("dst_dir_fd", options.get("dir_fd", -1))
        where = os.readlink(f"/proc/self/fd/{fd}") + f"/{args[0] if name == 'mkdir' else ''}"
        if "/.sharedvol" not in where and "/c2" in where:
            raise PermissionError(errno.EACCES, "permission denied")
        real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, closed)
        if name == "mkdir":
            for directory in volume.collected.glob("results/*/c2"):
                directory.rename(volume.collected / "away")
        tally = collector.run_pass()
    assert (tally.failed, tally.denied) == (1, 1)
    assert "write permission there" in volume.told("failed")[-1].detail
    assert list(volume.waiting()) == ["c2/results/a2"]
    collector.run_pass()
    collector.close()
    assert volume.bag() == Counter([*contents.values()] * 2)


def test_name_that_cannot_be_taken_back_is_found_again(across: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails turns read-only: neither the sync nor the undoing works. Then it is mended."""
    across.write("c1/results/a", "x")
    collector = across.collector()

    def there(name: str, *, dir_fd: int = -1) -> bool:
        return dir_fd >= 0 and os.readlink(f"/proc/self/fd/{dir_fd}").startswith(str(across.collected))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_once(os.unlink, OSError(errno.EROFS, "read-only"), there))
        failing = fail_once(collector.parts.destination.sync, OSError(errno.EIO, "i/o"), lambda: True)
        patch.setattr(collector.parts.destination, "sync", failing)
        with pytest.raises(DestinationError):
            collector.run_pass()
    assert collector.run_pass().collected == 1
    collector.close()
    assert across.bag() == Counter(["x"])
    assert across.waiting() == {} and across.claims() == [] and across.staged() == []


def test_file_in_the_way_of_a_directory_keeps_none(volume: Volume) -> None:
    (volume.collected / "c1").write_text("in the way")
    volume.write("c1/results/a", "1")
    volume.write("c2/results/a", "2")
    tally = volume.one_pass(template="{container}/{name}")
    assert (tally.collected, tally.failed) == (2, 0)
    assert volume.files() == {"c1": "in the way", "c1~/a": "1", "c2/a": "2"}


def test_claim_directory_that_somebody_removed_is_told(volume: Volume) -> None:
    collector = volume.collector()
    volume.write("c1/results/a", "1")
    for slot in (volume.spool / ".sharedvol" / "claims").iterdir():
        shutil.rmtree(slot)
    with pytest.raises(OSError, match="restart"):
        collector.run_pass()
    collector.close()
    assert volume.drain().collected == 1


_fcntl = fcntl.fcntl


def _no_lease(fd: int, command: int, *args: Any) -> Any:
    if command == fcntl.F_SETLEASE:
        raise PermissionError(errno.EACCES, "permission denied")
    return _fcntl(fd, command, *args)


def test_without_leases_only_quiet_files_move_and_it_is_told(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = volume.write("c1/results/.tmp", "x")
    temporary.rename(temporary.with_name("renamed"))
    old = volume.write("c1/results/old", "x")
    monkeypatch.setattr(lease.fcntl, "fcntl", _no_lease)
    moment = [old.stat().st_ctime + 1.0]
    clock = SimpleNamespace(monotonic=time.monotonic, time=lambda: moment[0])
    monkeypatch.setattr("sharedvol_sidecar.spool.quiet_time.time", clock)
    assert volume.one_pass(quiet=HOUR).settling == 2
    moment[0] += 2 * HOUR
    tally = volume.one_pass(quiet=HOUR)
    assert (tally.collected, tally.unleased) == (2, 2)
    assert {event.detail for event in volume.told("unleased")} and len(set(volume.told("unleased"))) == 1


def test_without_leases_a_file_that_changed_meanwhile_is_put_back(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume.write("c1/results/a", "x")
    monkeypatch.setattr(lease.fcntl, "fcntl", _no_lease)
    collector = volume.collector()
    with open(path, "a") as late, monkeypatch.context() as patch:
        real = collector.parts.destination.sync

        def sync() -> None:
            late.write("y")
            late.flush()
            real()

        patch.setattr(collector.parts.destination, "sync", sync)
        assert collector.run_pass().put_back == 1
    assert volume.files() == {}
    assert collector.run_pass().collected == 1
    collector.close()
    assert volume.bag() == Counter(["xy"])


def test_many_are_synced_at_once_before_any_is_named(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.write("c1/results/first", "")
    seen: list[str] = []
    real_link, real_sync = os.link, syncing.sync_filesystem
    monkeypatch.setattr(syncing, "sync_filesystem", lambda root: (seen.append("sync"), real_sync(root)))
    collector = volume.collector()
    collector.run_pass(lambda: True)  # makes the lock files

    def link(source: str, *args: Any, **options: Any) -> None:
        seen.append("link")
        real_link(source, *args, **options)

    for number in range(syncing._FEW + 1):
        volume.write(f"c1/results/{number}", str(number))
    seen.clear()
    monkeypatch.setattr(os, "link", link)
    collector.run_pass()
    collector.close()
    assert seen == ["sync"] + ["link"] * (syncing._FEW + 1)


@pytest.mark.parametrize("settings", [{}, {"digests": False}, {"kinds": ("logs",)}, {"compress": "gzip"}])
@pytest.mark.parametrize("kind", ["results", "logs"])
def test_a_record_that_is_appended_before_the_lease_is_held_is_in_the_row(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict[str, Any]
) -> None:
    """The status that was read before the lease was held may be old by then: a shell's ``>>`` takes microseconds."""
    path = volume.write(f"c1/{kind}/a.log", "first\n")

    def append() -> None:
        with open(path, "a") as late:
            late.write("second\n")

    before(monkeypatch, lease, "acquire", append)
    volume.drain(**{"kinds": ("results", "logs"), **settings})
    if kind in settings.get("kinds", ("results", "logs")):
        (found,) = volume.names()
        stored = Path(volume.collected, found).read_bytes()
        assert (gzip.decompress(stored) if found.endswith(".gz") else stored) == b"first\nsecond\n"
        verified = volume.cli_to("verify")
        assert verified.returncode == 0 and "compared 1 files" in verified.stdout, verified.stdout


def test_a_finished_file_that_is_appended_to_before_the_lease_is_held_is_not_finished(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume.spool / "c1" / "results" / "a"
    path.parent.mkdir(parents=True)
    with publish(path, "w") as file:
        file.write("first")

    def append() -> None:
        with open(path, "a") as late:
            late.write("second")

    before(monkeypatch, lease, "acquire", append)
    tally = volume.one_pass(quiet=HOUR)
    assert (tally.collected, tally.settling) == (0, 1)
    assert volume.one_pass().collected == 1
    assert volume.bag() == Counter(["firstsecond"])


def test_a_file_that_changes_whenever_its_lease_is_taken_does_not_stop_the_pass(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    restless = volume.write("c1/results/a", "a")
    volume.write("c1/results/b", "b")
    real = lease.acquire

    def take(fd: int) -> lease.Lease:
        if os.path.samestat(os.fstat(fd), restless.stat()):
            with open(restless, "a") as late:
                late.write("a")
        return real(fd)

    monkeypatch.setattr(lease, "acquire", take)
    tally = volume.one_pass()
    assert (tally.collected, tally.settling) == (1, 1)
    assert list(volume.bag()) == ["b"]
