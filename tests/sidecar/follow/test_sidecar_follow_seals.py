"""A followed log that is sealed: a kill, a full disk or a failed catalog at any step; each line is collected once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.processes import Child
from support.sidecar import killing
from support.sidecar.interleaving import Writer, assert_each_line_once, before, lines, records
from support.sidecar.volume import Volume, fail_once
from support.torture.layouts import sample

import sharedvol_sidecar.follow.ended as follow_ended
import sharedvol_sidecar.follow.seals as follow_seals
import sharedvol_sidecar.follow.store as follow_records
from sharedvol import NotLockedError
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.events import Events

Sidecar = Callable[..., Collector]


class Killed(BaseException):
    """A sidecar that does not come to its next step, as if it were killed there."""


def end(*collectors: Collector, passes: int = 5) -> None:
    for _ in range(passes):
        for collector in collectors:
            collector.run_pass()


def kill_before(monkeypatch: pytest.MonkeyPatch, victim: Collector, owner: object, step: str) -> None:
    """Run passes of a sidecar, which ends just before a step and leaves the volume as a kill would."""

    def die(*arguments: object, **options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, die)
        with pytest.raises(Killed):
            end(victim)
    with contextlib.suppress(NotLockedError):
        victim.close()


def come_back(log: Writer) -> None:
    """The log has its name again, and its writer continues."""
    log.move(log.path.parents[1] / "logs" / "app.log")
    log.fd = os.open(log.path, os.O_RDWR | os.O_APPEND)


def leave(log: Writer) -> None:
    """The log is moved to a place that is not scanned, and closed."""
    log.move(log.path.parents[1] / "old" / "app.log")
    log.close()


def assert_no_notes(volume: Volume) -> None:
    """No note on a sealed copy is left."""
    assert list((volume.collected / ".sharedvol" / "follow").rglob("*.seal")) == []


compressed = pytest.mark.parametrize("compress", ["", "gzip"])


def _cut(log: Writer) -> None:
    os.ftruncate(log.fd, 0)
    log.write(2)


def _delete(log: Writer) -> None:
    log.path.unlink()
    log.close()


def _seal(connection: Connection, volume: Volume, log: Writer, number: int) -> None:
    """Follow a log, wait until something has happened to it, and be killed before a call of the passes after that."""
    collector = volume.collector()
    collector.run_pass()
    connection.send("followed")
    connection.recv()
    log.close()
    killing.CALLS = ["rename", "link", "unlink", "mkdir", "fsync", "sendfile"]
    killing.die_at(number, after=False)
    end(collector)


@compressed
@pytest.mark.parametrize("then", [_cut, _delete, leave])
def test_a_sidecar_that_is_killed_while_it_seals_a_copy(
    tmp_path: Path, then: Callable[[Writer], None], compress: str, points: Callable[[str, int], None]
) -> None:
    """Another sidecar has the copy open, except that of a moved log. That one comes back as it was."""
    kills, killed = 0, True
    for number in sample(5, f"{then.__name__} {compress}"):
        volume = Volume(tmp_path / f"spool-{number}", tmp_path / f"collected-{number}", compress=compress)
        log = Writer(volume.spool / "c1" / "logs" / "app.log")
        log.write(3)
        with Child(partial(_seal, volume=volume, log=log, number=number)) as child:
            assert child.receive() == "followed"
            living = [] if then is leave else [volume.collector()]
            end(*living, passes=1)
            then(log)
            child.send("seal")
            killed = child.wait() != 0
            child.kill()
        if then is _cut:
            log.write(2)
            log.close()
        elif then is leave:
            log.move(volume.spool / "c1" / "logs" / "app.log")
        living = living or [volume.collector()]
        end(*living)
        living[0].close()
        assert_each_line_once(volume, log)
        assert_no_notes(volume)
        if not killed:
            break
        kills += 1
    assert not killed
    points("kill points of copies that are sealed", kills)


@compressed
def test_a_copy_that_another_sidecar_sealed_is_not_written_any_more(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, compress: str
) -> None:
    """The log comes back and its writer continues: it is collected as a whole, and the sealed file stays as it is."""
    first, second = sidecar(compress=compress), sidecar(compress=compress)
    log.write(3)
    end(first, second, passes=2)
    leave(log)
    end(first, second, passes=2)
    end(first, passes=1)  # neither sees it any more
    kill_before(monkeypatch, second, second.parts.copies.records, "remove")
    (sealed,) = [name for name in volume.names() if not name.endswith(".live")]
    content = (volume.collected / sealed).read_bytes()
    come_back(log)
    end(first, passes=1)
    log.write(2)
    end(first, passes=2)
    first.tick()
    assert (volume.collected / sealed).read_bytes() == content
    log.close()
    end(first)
    found = lines(volume)
    assert [found[f"app.log {number}"] for number in range(1, 6)] == [2, 2, 2, 1, 1]
    assert volume.cli_to("verify").returncode == 0
    assert_no_notes(volume)


@pytest.mark.parametrize("then", [_cut, leave])
@pytest.mark.parametrize("module", [follow_seals, follow_records, follow_ended])
def test_a_disk_that_is_full_once_while_a_copy_is_sealed(
    volume: Volume,
    log: Writer,
    sidecar: Sidecar,
    monkeypatch: pytest.MonkeyPatch,
    then: Callable[[Writer], None],
    module: ModuleType,
) -> None:
    collector = sidecar(compress="gzip")
    log.write(3)
    end(collector, passes=1)
    then(log)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(module, "publish", fail_once(module.publish, full, lambda *path, **options: True))
    end(collector)
    if then is _cut:
        log.write()
        log.close()
    else:
        assert volume.live() == {}
        assert records(volume) == []
        log.move(volume.spool / "c1" / "logs" / "app.log")
    end(collector)
    assert_each_line_once(volume, log)
    assert_no_notes(volume)


def test_a_log_whose_record_names_another_unit_is_left_to_the_sidecar_that_has_it(
    volume: Volume, log: Writer, sidecar: Sidecar
) -> None:
    late, other = sidecar(), sidecar()
    log.write(3)
    end(late, other, passes=1)
    log.move(volume.spool / "c2" / "logs" / "app.log")
    end(other, passes=1)  # its record names c2 from now on
    log.write()
    copied = volume.live()
    with other.parts.locks.holding("c2") as mine:
        assert mine
        late.tick()
        assert volume.live() == copied
        log.close()
        late.run_pass()
        assert volume.live() == copied
    end(late, other)
    assert_each_line_once(volume, log)


@pytest.mark.parametrize("cuts", [1, 2, 3])
@compressed
def test_a_log_that_is_cut_while_the_catalog_cannot_be_written(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, cuts: int, compress: str
) -> None:
    """Each generation is kept, also by a sidecar that starts later, and `verify` calls none abandoned."""
    collector = sidecar(compress=compress)
    collector.prepare_catalog()
    log.write(3)
    end(collector, passes=1)
    with monkeypatch.context() as patch:
        patch.setattr(collector.parts.catalog, "add", lambda items: not items)
        for _ in range(cuts):
            _cut(log)
            end(collector, passes=2)
            collector.tick()
        assert len([name for name in volume.names() if name.endswith(".live")]) == cuts + 1
        found = json.loads(volume.cli_to("verify", "--json").stdout.splitlines()[-1])
        assert found["summary"]["abandoned"] == 0
        log.write(2)
        collector.close()
    log.close()
    end(sidecar(compress=compress))
    assert_each_line_once(volume, log)
    assert_no_notes(volume)


@pytest.mark.parametrize("seen", ["open", "closed", "unchanged"])
@compressed
def test_a_moved_log_that_comes_back_while_its_row_waits(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, seen: str, compress: str
) -> None:
    """The final name that its copy had is withdrawn."""
    collector = sidecar(compress=compress)
    log.write(3)
    end(collector, passes=1)
    leave(log)
    with monkeypatch.context() as patch:
        patch.setattr(collector.parts.catalog, "add", lambda items: not items)
        end(collector)
        assert len(volume.names()) == 2  # the copy, and the final name
        come_back(log)
        if seen != "unchanged":
            log.write(2)
        if seen == "open":
            end(collector, passes=2)
            assert len(volume.names()) == 1
        log.close()
    end(collector)
    assert_each_line_once(volume, log)
    assert_no_notes(volume)


def test_a_moved_log_that_comes_back_during_the_pass_in_which_another_sidecar_seals_it(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, other = sidecar(), sidecar()
    log.write(3)
    end(other, passes=1)
    leave(log)

    def another() -> None:
        assert not late.parts.ended.holds(
            log_inode.fileno(), os.fstat(log_inode.fileno()).st_ino
        )  # it has read the notes
        end(other)
        log.move(volume.spool / "c1" / "logs" / "app.log")

    with log.path.open("rb") as log_inode:
        before(monkeypatch, late.parts.locks, "acquire", another, argument="c1")
        end(late, passes=2)
    assert_each_line_once(volume, log)
    assert [event.name for event in volume.events].count("returned") == 1


def test_a_moved_log_that_came_back_changed_is_compared_once(
    volume: Volume, log: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a long one with a sign of life for each chunk."""
    beats: list[int] = []

    class Watch:
        def beat(self) -> None:
            beats.append(1)

    collector = Collector(volume.job(), Events(volume.events.append), CollectorOptions(liveness=Watch()))
    try:
        os.write(log.fd, b"a long line\n" * 400_000)
        log.write()
        end(collector, passes=1)
        leave(log)
        end(collector)
        come_back(log)
        compared: list[int] = []
        real = follow_ended.same

        def same(*arguments: Any) -> bool:
            before_it = len(beats)
            try:
                return real(*arguments)
            finally:
                compared.append(len(beats) - before_it)

        monkeypatch.setattr(follow_ended, "same", same)
        with log.path.open("r+b") as file:  # as long as it was
            file.seek(-1, os.SEEK_END)
            file.write(b" ")
        end(collector, passes=1)
        for _ in range(4):
            log.write()
            end(collector, passes=1)
        assert len(compared) == 1 and compared[0] >= 4
    finally:
        collector.close()
