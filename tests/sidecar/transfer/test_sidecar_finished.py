"""A file is finished at once only by its writer's word: a rename that an event proves, or the mark of `publish`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.sidecar.volume import Volume

import sharedvol_sidecar.transfer.release as release
from sharedvol import publish
from sharedvol.publishing.mark import is_marked
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.spool.put_backs import OLD, PutBacks
from sharedvol_sidecar.spool.watcher import Watch
from sharedvol_sidecar.transfer.claimer import Claimer

HOUR = 3600.0
DAY = 86_400.0

Act = Callable[[Path], object]


def write(path: Path) -> None:
    path.write_text("first\n")


def touch(path: Path, *, seconds: float = 0.0) -> None:
    moment = path.stat().st_mtime + seconds
    os.utime(path, (moment, moment))


def give_an_attribute(path: Path) -> None:
    try:
        os.setxattr(path, "user.note", b"x")
    except OSError:
        pytest.skip("no extended attributes here")


def link_and_unlink(path: Path) -> None:
    os.link(path, path.with_name("other"))
    path.with_name("other").unlink()


def written_and(act: Act) -> Act:
    def both(path: Path) -> None:
        write(path)
        act(path)

    return both


def renamed_from(name: str) -> Act:
    def rename(path: Path) -> None:
        start = (path.parent / name).resolve()
        start.parent.mkdir(exist_ok=True)
        write(start)
        start.rename(path)

    return rename


def linked(path: Path) -> None:
    write(path.with_name(".new"))
    os.link(path.with_name(".new"), path)
    path.with_name(".new").unlink()


def published(path: Path, **options: Any) -> None:
    with publish(path, **options) as file:
        file.write("first\n")


def renamed_and(act: Act) -> Act:
    def both(path: Path) -> None:
        renamed_from(".new")(path)
        act(path)

    return both


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("second\n")


def append_and_touch(path: Path) -> None:
    append(path)
    touch(path, seconds=-DAY)


def collected_and_written_again(path: Path) -> None:
    """The name was that of a renamed file before."""
    renamed_from(".new")(path)
    path.rename(path.with_name(".away"))
    write(path)
    touch(path, seconds=-DAY)


def renamed_while_open(path: Path) -> None:
    with path.with_name(".new").open("w") as file:
        file.write("first\n")
        path.with_name(".new").rename(path)
        file.write("second\n")
    touch(path, seconds=-DAY)


WAITS: dict[str, Act] = {
    "nothing": write,
    "chmod": written_and(lambda path: path.chmod(0o640)),
    "chown": written_and(lambda path: os.chown(path, os.getuid(), os.getgid())),
    "touch": written_and(touch),
    "touch yesterday": written_and(lambda path: touch(path, seconds=-DAY)),
    "touch tomorrow": written_and(lambda path: touch(path, seconds=DAY)),
    "an attribute": written_and(give_an_attribute),
    "link and unlink": written_and(link_and_unlink),
    "a link without the mark": linked,
    "published, then appended to": written_and(lambda path: (path.unlink(), published(path), append(path))),
    "published, then touched": written_and(lambda path: (path.unlink(), published(path), touch(path, seconds=-DAY))),
    "renamed, then appended to": renamed_and(append_and_touch),
    "renamed while it was open": renamed_while_open,
    "the name of a renamed file": collected_and_written_again,
}

PUBLISHED: dict[str, Act] = {
    "publish": published,
    "publish, binary": lambda path: _published_bytes(path),
    "publish with replace": lambda path: published(path, replace=True),
    "publish, then chmod": lambda path: (published(path), path.chmod(0o640)),
    "publish, then rename": lambda path: (published(path.with_name(".new")), path.with_name(".new").rename(path)),
}

RENAMED: dict[str, Act] = {
    "renamed in its directory": renamed_from(".new"),
    "renamed from a visible name": renamed_from("other"),
    "renamed from outside": renamed_from("../../elsewhere/new"),
    "renamed from outside the spool": renamed_from("../../../elsewhere/new"),
    "renamed, then chmod": renamed_and(lambda path: path.chmod(0o640)),
    "renamed over another": lambda path: (write(path), renamed_from(".new")(path)),
}


def _published_bytes(path: Path) -> None:
    with publish(path, "wb") as file:
        file.write(bytes(range(256)))


@pytest.fixture
def watched(volume: Volume) -> Iterator[tuple[Collector, Watch]]:
    """A collector that watches the spool, as `run` does. The quiet time is an hour."""
    volume.write("c1/results/.first")
    with Watch() as watch:
        collector = Collector(volume.job(quiet=HOUR), Events(volume.events.append), CollectorOptions(watch=watch))
        collector.run_pass()
        yield collector, watch
        collector.close()


def next_pass(watched: tuple[Collector, Watch]) -> int:
    """What the next pass collects, after the events of all that has happened."""
    collector, watch = watched
    watch.wait(0.0)
    return collector.run_pass().collected


@pytest.mark.parametrize("act", WAITS.values(), ids=WAITS)
def test_what_is_not_the_writers_word_waits_for_the_quiet_time(
    volume: Volume, watched: tuple[Collector, Watch], act: Act
) -> None:
    act(volume.spool / "c1/results/r.csv")
    assert next_pass(watched) == 0
    assert volume.one_pass(quiet=HOUR).settling == 1
    assert volume.one_pass(quiet=0.0).collected == 1


@pytest.mark.parametrize("act", PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_file_moves_at_once_with_and_without_events(volume: Volume, act: Act) -> None:
    (volume.spool / "c1/results").mkdir(parents=True)
    act(volume.spool / "c1/results/r.csv")
    assert volume.one_pass(quiet=HOUR).collected == 1


@pytest.mark.parametrize("act", RENAMED.values(), ids=RENAMED)
def test_a_renamed_file_moves_at_once_where_an_event_proves_it(
    volume: Volume, watched: tuple[Collector, Watch], act: Act
) -> None:
    act(volume.spool / "c1/results/r.csv")
    assert volume.one_pass(quiet=HOUR).settling == 1, "nothing but an event proves a rename"
    assert next_pass(watched) == 1


def test_files_of_a_renamed_directory_are_not_renamed_files(volume: Volume, watched: tuple[Collector, Watch]) -> None:
    volume.write("elsewhere/new/r.csv", "first\n")
    (volume.spool / "elsewhere/new").rename(volume.spool / "c1/results/new")
    assert next_pass(watched) == 0
    assert volume.one_pass(quiet=HOUR).settling == 1


def test_a_write_that_comes_after_the_events_were_read_is_seen(
    volume: Volume, watched: tuple[Collector, Watch]
) -> None:
    path = volume.spool / "c1/results/r.csv"
    renamed_from(".new")(path)
    watched[1].wait(0.0)
    append_and_touch(path)
    assert watched[0].run_pass().collected == 0
    assert watched[1].wait(0.0), "an event that the pass has read is reported to the next wait"


def test_a_queue_that_has_overflowed_proves_nothing(volume: Volume, watched: tuple[Collector, Watch]) -> None:
    path = volume.spool / "c1/results/r.csv"
    renamed_from(".new")(path)
    watched[1].wait(0.0)
    size = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    noise = volume.write("c1/results/.a")
    for number in range(size + 1):
        here, there = (".a", ".b") if number % 2 == 0 else (".b", ".a")
        noise.with_name(here).rename(noise.with_name(there))
    append_and_touch(path)
    assert next_pass(watched) == 0


def put_back_once(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> int:
    """A pass in which a writer opens every file again while it is moved."""
    with monkeypatch.context() as patch:
        patch.setattr(release.lease, "is_intact", lambda fd: False)
        tally = collector.run_pass()
    assert tally.collected == 0
    return tally.put_back


def test_what_we_put_back_waits_for_the_quiet_time(
    volume: Volume, watched: tuple[Collector, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed_from(".new")(volume.spool / "c1/results/r.csv")
    watched[1].wait(0.0)
    assert put_back_once(watched[0], monkeypatch) == 1
    assert next_pass(watched) == 0
    assert volume.one_pass(quiet=0.0).collected == 1


def test_what_another_sidecar_puts_back_waits_for_the_quiet_time(
    volume: Volume, watched: tuple[Collector, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(volume.spool / "c1/results/r.csv")
    other = volume.collector(quiet=0.0)
    assert put_back_once(other, monkeypatch) == 1
    other.close()
    assert next_pass(watched) == 0


def test_another_file_that_was_put_back_waits_for_the_quiet_time(
    volume: Volume, watched: tuple[Collector, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name was used again between the look and the claim: the new file is put back, and not the one looked at."""
    path = volume.spool / "c1/results/r.csv"
    renamed_from(".new")(path)
    real = Claimer.claim

    def claim(self: Claimer, *args: Any) -> bool:
        path.rename(path.with_name(".away"))
        write(path)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Claimer, "claim", claim)
        assert next_pass(watched) == 0
    assert volume.waiting() == {"c1/results/r.csv": "first\n"}
    assert next_pass(watched) == 0


def claimed_by_a_dead_mover(volume: Volume, act: Act, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = volume.spool / "c1/results/r.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    act(path)

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    collector = volume.collector(quiet=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(collector.parts.linker, "stage", die)
        with pytest.raises(KeyboardInterrupt):
            collector.run_pass()
    collector.close()
    (claim,) = volume.claims()
    return volume.spool / ".sharedvol/claims" / claim


@pytest.mark.parametrize("seconds", [-DAY, DAY * 365], ids=["past", "future"])
def test_a_claim_waits_by_the_time_that_cannot_be_set(
    volume: Volume, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claimed_by_a_dead_mover(volume, write, monkeypatch)
    append(claim)  # by a writer that had it open when it was claimed
    touch(claim, seconds=seconds)
    tally = volume.one_pass(quiet=HOUR)
    assert (tally.collected, tally.settling) == (0, 1)
    tally = volume.one_pass(quiet=0.0)
    assert (tally.collected, tally.recovered) == (1, 1)
    assert list(volume.bag()) == ["first\nsecond\n"]


def test_a_claim_of_a_published_file_is_recovered_at_once(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed_by_a_dead_mover(volume, published, monkeypatch)
    assert volume.one_pass(quiet=HOUR).recovered == 1


def test_what_is_collected_keeps_its_mark(across: Volume) -> None:
    (across.spool / "c1/results").mkdir(parents=True)
    published(across.spool / "c1/results/r.csv")
    before = (across.spool / "c1/results/r.csv").stat()
    assert across.one_pass(quiet=HOUR).copied == 1
    (found,) = across.files()
    after = (across.collected / found).stat()
    assert after.st_mtime_ns == before.st_mtime_ns and is_marked(after.st_mtime_ns, after.st_size)


@pytest.fixture
def marks(volume: Volume) -> Iterator[tuple[PutBacks, Path]]:
    collector = volume.collector()
    yield collector.parts.claims.put_backs, volume.spool / ".sharedvol/put-back"
    collector.close()


def test_marks_of_files_that_were_put_back_do_not_pile_up(
    marks: tuple[PutBacks, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_backs, directory = marks
    started, since = time.clock_gettime(time.CLOCK_BOOTTIME), 0.0
    monkeypatch.setattr(time, "clock_gettime", lambda clock: started + since)
    put_backs.add(0xABC)
    assert 0xABC in put_backs and [path.name for path in directory.iterdir()] == ["abc"]
    since = 2 * OLD
    put_backs.add(0xABC)  # put back again: the mark counts from now
    put_backs.remove_old()
    assert 0xABC in put_backs
    since = 4 * OLD
    for number in range(5_000):
        put_backs.add(number % 10)
    assert 0xABC not in put_backs and len(list(directory.iterdir())) == 10


@pytest.mark.parametrize("days", [-400, 2, 400])
def test_a_mark_is_as_old_as_it_was_when_the_time_of_day_is_set(
    marks: tuple[PutBacks, Path], monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    put_backs, _ = marks
    put_backs.add(0xABC)
    moment = time.time() + days * OLD
    monkeypatch.setattr(time, "time", lambda: moment)
    put_backs.remove_old()
    assert 0xABC in put_backs


def test_on_a_full_disk_what_was_put_back_is_remembered(
    marks: tuple[PutBacks, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_backs, directory = marks

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        put_backs.add(5)
    assert 5 in put_backs and list(directory.iterdir()) == []
