"""Faults while it runs: sources stay, readiness tells the reason, and all is well again by itself."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from support.processes import LIMIT, has_permission_to_mount, wait_until
from support.sidecar.interleaving import Writer
from support.sidecar.service_process import HASTE, Mounts, service, settled
from support.sidecar.volume import Volume

from sharedvol_sidecar.catalog.catalog import Catalog
from sharedvol_sidecar.errors import ConfigError, DestinationError, SpoolError
from sharedvol_sidecar.fs.mounts import MountGuard, mount_point
from sharedvol_sidecar.service.reporting import reason_of

mounting = pytest.mark.skipif(not has_permission_to_mount(), reason="mounts need root")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(root: Path) -> list[str]:
    """Of the regular files below, without what is hidden."""
    return sorted(str(path.relative_to(root)) for path in root.glob("[!.]*/**/*") if path.is_file())


@mounting
def test_full_destination_until_there_is_room(volume: Volume) -> None:
    mounts = Mounts(f"mount -t tmpfs -o size=1M tmpfs '{volume.collected}'")
    options = ("--catalog", "none", "--min-free", "0")
    with service(volume, *options, shim=HASTE, prefix=mounts.prefix, interval="0.1") as served:
        served.await_ready()
        source = volume.spool / "c1" / "results" / "large"
        source.parent.mkdir(parents=True)
        wanted = os.urandom(2**21)
        source.write_bytes(wanted)
        served.await_reason("destination_full")
        assert digest(source) == hashlib.sha256(wanted).hexdigest()
        volume.write("c1/results/small", "goes on")
        wait_until(lambda: len(names(mounts.path(served, volume.collected))) == 1, "one that fits")
        served.await_reason("destination_full")
        mounts.run(served, "mount", "-o", "remount,size=16M", volume.collected)
        wait_until(lambda: not source.exists(), "the large one")
        served.await_ready()
        found = mounts.path(served, volume.collected)
        assert hashlib.sha256(wanted).hexdigest() in [digest(found / name) for name in names(found)]
        assert settled(served)["files"] == 2
    assert volume.waiting() == {}


@mounting
def test_destination_without_inodes_is_full_however_often_it_is_looked_at(volume: Volume) -> None:
    """After the first fault all is opened anew, and what fails then is not the move."""
    mounts = Mounts(f"mount -t tmpfs -o size=1M,nr_inodes=12 tmpfs '{volume.collected}'")
    with service(volume, "--catalog", "none", "--min-free", "0", shim=HASTE, prefix=mounts.prefix) as served:
        served.await_ready()
        for number in range(20):
            volume.write(f"c{number}/results/{number}", str(number))
        assert {served.until("fault")["reason"] for _ in range(5)} == {"destination_full"}
        served.await_reason("destination_full")
        mounts.run(served, "mount", "-o", "remount,nr_inodes=1000", volume.collected)
        wait_until(lambda: names(volume.spool) == [], "all to be moved")
        served.await_ready()
        found = mounts.path(served, volume.collected)
        assert Counter((found / name).read_text() for name in names(found)) == Counter(map(str, range(20)))
        assert settled(served)["files"] == 20


@mounting
def test_full_at_the_start_is_a_fault_like_any_other(volume: Volume) -> None:
    volume.write("c1/results/a", "x")
    mounts = Mounts(f"mount -t tmpfs -o size=1M,nr_inodes=2 tmpfs '{volume.collected}' && touch '{volume.collected}/x'")
    options = ("--catalog", "none", "--min-free", "0")
    with service(volume, *options, shim=HASTE, prefix=mounts.prefix, first="fault") as served:
        assert served.seen[-1]["reason"] == "destination_full"
        served.await_reason("destination_full", "starting")
        mounts.run(served, "mount", "-o", "remount,nr_inodes=1000", volume.collected)
        assert served.until("collected")["files"] == 1
        served.await_ready()
        assert settled(served)["files"] == 1


@mounting
@pytest.mark.parametrize("leave", ["delete", "move"])
def test_what_is_written_to_a_deleted_or_moved_log_while_the_destination_is_full(volume: Volume, leave: str) -> None:
    mounts = Mounts(f"mount -t tmpfs -o size=1M tmpfs '{volume.collected}'")
    options = ("--catalog", "none", "--min-free", "0", "--follow-interval", "0.05")
    log = Writer(volume.spool / "c1/logs/app.log")
    with service(volume, *options, shim=HASTE, prefix=mounts.prefix, interval="0.05") as served:
        found = mounts.path(served, volume.collected)
        log.write(3)
        wait_until(lambda: any(path.stat().st_size == os.fstat(log.fd).st_size for path in found.rglob("*.live")), "3")
        log.path.unlink() if leave == "delete" else log.move(volume.spool / "olddir/app.log")
        with (found / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 4096):
                pass
        log.write(1_000)  # more than a page
        faults = [served.until("fault") for _ in range(5)]  # a scan that misses the log among them
        assert {fault["reason"] for fault in faults} == {"destination_full"}
        assert "so only this process can read the rest of it: keep it running" in faults[-1]["error"]
        (found / "filler").unlink()
        log.write()
        log.close()
        wait_until(
            lambda: names(found) == [path for path in names(found) if path.endswith("/app.log")] != [], "its end"
        )
        text = "".join((found / name).read_text() for name in names(found))
        assert text.splitlines() == [f"app.log {number + 1}" for number in range(log.number)]
        settled(served)


def test_a_spool_that_is_away_takes_deleted_logs_with_it(volume: Volume) -> None:
    """They are closed, or the volume could not be unmounted; and the fault says what is lost."""
    log = Writer(volume.spool / "c1/logs/app.log")
    with service(volume, shim=HASTE, interval="0.05") as served:
        log.write()
        wait_until(lambda: any(volume.live().values()), "its copy")
        log.path.unlink()
        volume.spool.rename(volume.spool.with_name("away"))
        fault = served.until("fault")
        assert fault["reason"] == "spool_unavailable"
        assert "; logs that were deleted or moved while open: 1; what was not copied of them" in fault["error"]
        links = [os.readlink(link) for link in Path(f"/proc/{served.process.pid}/fd").iterdir() if link.is_symlink()]
        assert not [link for link in links if "app.log" in link]
        assert "deleted" not in served.until("fault")["error"]
        log.close()
        volume.spool.with_name("away").rename(volume.spool)
        served.await_ready()
        wait_until(lambda: bool(volume.files()), "the part that was copied")
        settled(served)
    assert volume.bag() == Counter(["app.log 1\n"])


@mounting
def test_read_only_destination_keeps_its_reason(volume: Volume) -> None:
    mounts = Mounts(f"mount --bind '{volume.collected}' '{volume.collected}'")
    with service(volume, "--catalog", "none", shim=HASTE, prefix=mounts.prefix) as served:
        mounts.run(served, "mount", "-o", "remount,bind,ro", volume.collected)
        volume.write("c1/results/a", "x")
        assert {served.until("fault")["reason"] for _ in range(4)} == {"destination_unavailable"}
        served.await_reason("destination_unavailable")
        mounts.run(served, "mount", "-o", "remount,bind,rw", volume.collected)
        served.until("collected")
        served.await_ready()
        settled(served)
    assert volume.bag() == Counter(["x"])


@mounting
@pytest.mark.parametrize("gone", ["spool", "collected"])
def test_unmounted_and_mounted_again(volume: Volume, tmp_path: Path, gone: str) -> None:
    """Nothing goes into the volume that nobody sees, nor below the mount point."""
    place = volume.spool if gone == "spool" else volume.collected
    store = tmp_path / "store"
    store.mkdir()
    mounts = Mounts(f"mount --bind '{store}' '{place}'")
    reason = "spool_unavailable" if gone == "spool" else "destination_unavailable"
    source = (store if gone == "spool" else volume.spool) / "c1" / "results"
    source.mkdir(parents=True)
    with service(volume, shim=HASTE, prefix=mounts.prefix, interval="0.05") as served:
        (source / "before").write_text("0")
        served.until("collected")
        mounts.run(served, "umount", "--lazy", place)
        assert {served.until("fault")["reason"] for _ in range(3)} == {reason}
        served.await_reason(reason)
        (source / "meanwhile").write_text("1")
        # What was open is let go of: a volume that is held could not be attached anew.
        held = [os.readlink(link) for link in Path(f"/proc/{served.process.pid}/fd").iterdir() if link.is_symlink()]
        assert not any(os.path.relpath(path, store)[:2] != ".." for path in held if path.startswith("/")), held
        served.until("fault")
        assert names(place) == [] and (source / "meanwhile").exists()
        mounts.run(served, "mount", "--bind", store, place)
        assert served.until("collected")["files"] == 1
        served.await_ready()
        assert settled(served)["files"] == 2
    found = volume.collected if gone == "spool" else store
    assert Counter((found / name).read_text() for name in names(found) if name.endswith(("before", "meanwhile"))) == (
        Counter("01")
    )


def test_spool_that_became_read_only(volume: Volume, tmp_path: Path) -> None:
    flag = tmp_path / "ro"
    shim = f"""
import errno
real = os.rename
def rename(*args, **options):
    if os.path.exists({str(flag)!r}):
        raise OSError(errno.EROFS, "Read-only file system")
    return real(*args, **options)
os.rename = rename
"""
    with service(volume, shim=HASTE + shim) as served:
        served.await_ready()
        flag.touch()
        volume.write("c1/results/a", "x")
        fault = served.until("fault")
        assert fault["reason"] == "spool_unavailable" and "EROFS" in fault["error"]
        served.await_reason("spool_unavailable")
        assert volume.waiting() == {"c1/results/a": "x"}
        flag.unlink()
        served.until("collected")
        served.await_ready()
        settled(served)
    assert volume.bag() == Counter(["x"])


@pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
def test_closed_directory_of_the_destination_keeps_the_others_open() -> None:
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        volume = Volume(Path(top, "spool"), Path(top, "collected"))
        closed = volume.collected / "c1"
        closed.mkdir()
        volume.write("c1/results/a", "1")
        volume.write("c2/results/b", "2")
        subprocess.run(["chown", "-R", "65534:65534", top], check=True, timeout=LIMIT)
        closed.chmod(0)
        plain = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        # The template puts each container into a directory of its own.
        options = ("--template", "{container}/{name}")
        with service(volume, *options, shim=HASTE, prefix=plain, interval="0.1") as served:
            wait_until(lambda: names(volume.spool) == ["c1/results/a"], "the other container")
            served.await_reason("permission")
            closed.chmod(0o700)
            wait_until(lambda: names(volume.spool) == [], "the closed one")
            served.await_ready()
            settled(served)
        assert volume.bag() == Counter("12")


def test_catalog_that_cannot_be_written_stops_no_file_and_rows_follow_once(volume: Volume) -> None:
    """With no event and no scan due: the wait for the catalog alone explains that the rows follow."""
    place = volume.collected / ".sharedvol"
    haste = "import sharedvol_sidecar.transfer.catalog_writer as register\nregister._AGAIN = 0.2\n"
    with service(volume, shim=haste) as served:
        served.await_ready()
        for path in place.glob("catalog.db*"):
            path.unlink()
        (place / "catalog.db").mkdir()
        for number in range(3):
            volume.write(f"c1/results/{number}", str(number))
        wait_until(lambda: len(volume.files()) == 3, "the files")
        served.await_reason("catalog_unavailable")
        assert len(volume.claims()) == 3
        (place / "catalog.db").rmdir()
        wait_until(lambda: not volume.claims(), "the rows")
        served.await_ready()
        settled(served)
    catalog = Catalog.open("", volume.collected)
    assert sorted(found.path for found in catalog.rows()) == sorted(volume.files())
    catalog.close()
    assert volume.bag() == Counter("012")


def test_catalog_that_is_back_is_noticed_though_no_file_comes_and_told_each_time(volume: Volume) -> None:
    place = volume.collected / ".sharedvol" / "catalog.db"
    haste = "import sharedvol_sidecar.transfer.catalog_writer as register\nregister._AGAIN = 0.2\n"
    place.parent.mkdir(mode=0o700)
    place.mkdir()
    with service(volume, shim=haste, first="listening") as served:
        for again in ("a", "b"):
            assert "not a regular file" in served.until("catalog")["detail"]
            served.await_reason("catalog_unavailable")
            place.rmdir()
            assert "again" in served.until("catalog")["detail"]
            served.await_ready()
            for path in place.parent.glob("catalog.db*"):
                path.unlink()
            place.mkdir()
            volume.write(f"c1/results/{again}", again)
        served.await_reason("catalog_unavailable")
        settled(served)


def test_free_space_floor_holds_copies_back_and_is_told(volume: Volume, tmp_path: Path) -> None:
    """Links go on: they need no space. Two names make a file be copied."""
    flag = tmp_path / "short"
    shim = f"""
from sharedvol_sidecar.destination.destination import Destination
real = Destination.free
Destination.free = lambda self: 0 if os.path.exists({str(flag)!r}) else real(self)
import sharedvol_sidecar.transfer.staging as staging
"""
    with service(volume, "--min-free", "1K", shim=HASTE + shim, interval="0.1") as served:
        served.await_ready()
        flag.touch()
        served.await_reason("free_space_floor")
        volume.write("c1/results/linked", "1")
        wait_until(lambda: len(volume.files()) == 1, "the link")
        served.await_reason("free_space_floor")
        flag.unlink()
        served.await_ready()
        settled(served)


def _caused(error: Exception, number: int) -> Exception:
    try:
        raise error from OSError(number, os.strerror(number))
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_caused(DestinationError("x"), errno.ENOSPC), "destination_full"),
        (_caused(DestinationError("x"), errno.EDQUOT), "destination_full"),
        (_caused(DestinationError("x"), errno.EIO), "destination_unavailable"),
        (_caused(DestinationError("x"), errno.EROFS), "destination_unavailable"),
        (_caused(DestinationError("x"), errno.EACCES), "permission"),
        (_caused(SpoolError("x"), errno.EROFS), "spool_unavailable"),
        (_caused(SpoolError("x"), errno.ENOSPC), "destination_full"),  # one file system: make room there
        (_caused(SpoolError("x"), errno.EPERM), "permission"),
        (SpoolError("x"), "spool_unavailable"),
        (DestinationError("x"), "destination_unavailable"),
        (ConfigError("another user's"), "permission"),
        (OSError(errno.EMFILE, "too many"), "descriptors"),
        (_caused(DestinationError("x"), errno.ENFILE), "descriptors"),
        (OSError(errno.ENOSPC, "full"), "destination_full"),
    ],
    ids=repr,
)
def test_reason_of_an_error(volume: Volume, error: Exception, reason: str) -> None:
    assert reason_of(error, volume.job()) == reason


def test_reason_of_an_error_that_names_no_side_is_found_by_looking(volume: Volume) -> None:
    error = OSError(errno.EIO, "which?")
    volume.collected.rmdir()
    assert reason_of(error, volume.job()) == "destination_unavailable"
    volume.collected.mkdir()
    (volume.spool).rmdir()
    assert reason_of(error, volume.job()) == "spool_unavailable"
    assert list(volume.collected.iterdir()) == []


def test_looking_for_the_reason_makes_no_file_where_a_link_leads(volume: Volume, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (volume.spool / ".sharedvol").symlink_to(elsewhere)
    before = elsewhere.stat().st_mtime_ns
    assert reason_of(OSError(errno.EIO, "which?"), volume.job()) == "spool_unavailable"
    assert elsewhere.stat().st_mtime_ns == before


def test_places_are_remembered_and_a_deeper_mount_is_welcome(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, collected = str(volume.spool), str(volume.collected)
    places = MountGuard(spool, collected)
    places.remember()
    places.check()
    volume.collected.rename(volume.collected.with_name("away"))
    with pytest.raises(DestinationError, match="check that it is mounted"):
        places.check()
    volume.collected.mkdir()
    with pytest.raises(DestinationError, match="another directory"):
        places.check()
    monkeypatch.setattr("sharedvol_sidecar.fs.mounts.mount_point", lambda path: path)
    places.remember()
    places.check()
    monkeypatch.undo()
    with pytest.raises(SpoolError, match="no longer mounted"):
        places.remember()
    assert mount_point("/proc/self/fd") == "/proc" and mount_point("/proc") == "/proc" and mount_point("/") == "/"
