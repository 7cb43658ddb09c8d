"""Two sidecars and one followed log: whatever one has read before it has the lock, each line is collected once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.sidecar.interleaving import Sidecar, Writer, after, assert_each_line_once, before, end, lines, records
from support.sidecar.volume import Volume

from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs import lease


def keep(log: Writer) -> None:
    """The log as it is."""


def rotate(log: Writer) -> None:
    log.move(log.path.with_name("app.log.1"))


def cut(log: Writer) -> None:
    """Nothing that was written before is there any more; it is in what was collected."""
    os.ftruncate(log.fd, 0)


def delete(log: Writer) -> None:
    log.path.unlink()


@pytest.mark.parametrize("then", [keep, rotate, cut, delete])
@pytest.mark.parametrize("closed", [True, False])
def test_a_log_that_another_sidecar_has_followed_since_the_pass_began(
    volume: Volume,
    log: Writer,
    sidecar: Sidecar,
    monkeypatch: pytest.MonkeyPatch,
    then: Callable[[Writer], None],
    closed: bool,
) -> None:
    log.write(3)
    late, other = sidecar(), sidecar()

    def another() -> None:
        other.run_pass()
        then(log)
        if then is not delete:
            log.write(2)
        other.tick()
        if closed:
            log.close()

    before(monkeypatch, late.parts.locks, "acquire", another, argument="c1")
    late.run_pass()
    log.close()
    end(late)
    end(other)  # a deleted log is for the one that has it open
    end(late)
    assert_each_line_once(volume, log)


@pytest.mark.parametrize("then", [keep, rotate, cut])
def test_a_log_that_another_sidecar_has_finished_since_the_pass_began(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, then: Callable[[Writer], None]
) -> None:
    log.write(3)
    late = sidecar()
    late.run_pass()

    def another() -> None:
        then(log)
        log.write(2)
        log.close()
        end(sidecar(), 3)

    before(monkeypatch, late.parts.locks, "acquire", another, argument="c1")
    end(late)
    assert_each_line_once(volume, log)


def test_a_log_that_another_cut_generations_ago_is_copied_whole_before_it_is_sealed(
    volume: Volume, log: Writer, sidecar: Sidecar
) -> None:
    late, other = sidecar(), sidecar()
    log.write(2)
    late.run_pass()
    cut(log)
    other.run_pass()
    log.write(2)
    delete(log)
    log.close()
    end(late)
    assert_each_line_once(volume, log)


def test_what_is_written_between_the_last_copy_and_the_close_is_collected(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = sidecar()
    log.write()
    collector.run_pass()
    delete(log)

    def last_words() -> None:
        log.write()
        log.close()

    before(monkeypatch, lease, "query", last_words)
    end(collector)
    assert_each_line_once(volume, log)


def test_a_deleted_log_for_which_there_is_no_room_is_not_sealed_in_part(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = sidecar()
    log.write()
    collector.run_pass()
    with monkeypatch.context() as patch:
        patch.setattr(collector.parts.destination, "is_short", lambda floor: True)
        log.write()
        delete(log)
        log.close()
        end(collector)
        assert volume.files() == {}
    end(collector)
    assert_each_line_once(volume, log)


class Helped:
    """A follower, and a helper without locks whose settings follow nothing."""

    def __init__(self, volume: Volume, sidecar: Sidecar) -> None:
        self.follower = sidecar()
        self.helper = Collector(volume.job(follow=()), Events(volume.events.append), CollectorOptions(shard=(0, 2)))
        self.helper._helping = True


@pytest.fixture
def helped(volume: Volume, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helped]:
    monkeypatch.setattr("zlib.crc32", lambda data: 0)  # every file is the first part's
    found = Helped(volume, sidecar)
    yield found
    found.helper.close()


def test_a_helper_that_moves_a_log_before_it_has_a_record(
    volume: Volume, log: Writer, helped: Helped, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write(3)

    def help_out() -> None:
        log.close()
        assert helped.helper.run_pass().collected == 1

    before(monkeypatch, helped.follower.parts.copies.records, "create", help_out)
    helped.follower.run_pass()
    end(helped.follower)
    assert_each_line_once(volume, log)


def test_a_helper_that_claims_a_log_as_its_record_is_made_puts_it_back(
    volume: Volume, log: Writer, helped: Helped, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write(3)
    follower, helper = helped.follower, helped.helper

    def help_out() -> None:
        log.close()
        assert helper.run_pass().collected == 0

    after(monkeypatch, follower.parts.copies.records, "create", help_out)
    follower.run_pass()
    end(follower)
    assert_each_line_once(volume, log)


def test_a_helper_leaves_a_followed_log_alone(volume: Volume, log: Writer, helped: Helped) -> None:
    log.write(3)
    helped.follower.run_pass()
    log.close()
    assert helped.helper.run_pass().collected == 0
    end(helped.follower)
    assert_each_line_once(volume, log)


@pytest.mark.parametrize("closed", [True, False])
def test_a_log_that_is_moved_to_another_container_has_one_follower(
    volume: Volume, log: Writer, sidecar: Sidecar, closed: bool
) -> None:
    first, second = sidecar(), sidecar()
    log.write()
    first.run_pass()
    log.move(volume.spool / "c2" / "logs" / "app.log")
    log.write()
    if closed:
        log.close()
    assert first.parts.locks.acquire("c1")
    before_it = volume.live()
    second.run_pass()  # it finds the log in c2, whose record names c1
    assert volume.live() == before_it
    first.parts.locks.release()
    second.run_pass()
    log.close()
    end(second)
    end(first)
    assert_each_line_once(volume, log)


def test_a_claim_of_a_log_that_was_followed_since_the_pass_began(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The follower is killed in the middle of moving it."""
    log.write(2)
    late = sidecar()

    def another() -> None:
        other = sidecar()
        other.run_pass()
        log.write()
        log.close()
        with monkeypatch.context() as patch:
            patch.setattr(other.parts.catalog, "add", lambda items: False)  # published, not let go of
            other.run_pass()
        other.close()
        assert volume.claims() != []

    before(monkeypatch, late.parts.claims, "left_behind", another)
    end(late)
    assert_each_line_once(volume, log)


def test_records_of_other_sidecars_are_seen_however_coarse_the_clock(
    volume: Volume, log: Writer, sidecar: Sidecar
) -> None:
    """The directory's time of change is the same before and after the other's record: so that time is not trusted."""
    collector, other = sidecar(), sidecar()
    directory = volume.collected / ".sharedvol" / "follow" / collector.parts.spool_id
    info = directory.stat()
    os.utime(directory, ns=(info.st_atime_ns, info.st_mtime_ns))
    collector.parts.follower.refresh()
    log.write()
    other.run_pass()
    os.utime(directory, ns=(info.st_atime_ns, info.st_mtime_ns))
    collector.parts.follower.refresh()
    assert len(collector.parts.follower) == 1


def test_verify_reports_a_live_copy_without_a_record(volume: Volume, log: Writer, sidecar: Sidecar) -> None:
    log.write()
    collector = sidecar()
    collector.prepare_catalog()
    collector.run_pass()
    clean = volume.cli_to("verify", "--json")
    assert clean.returncode == 0 and json.loads(clean.stdout)["summary"]["abandoned"] == 0
    (record,) = records(volume)
    next((volume.collected / ".sharedvol" / "follow").rglob(record)).unlink()
    found = volume.cli_to("verify", "--json")
    finding, last = map(json.loads, found.stdout.splitlines())
    assert (finding["problem"], finding["path"]) == ("abandoned", next(iter(volume.live())))
    assert last["summary"]["abandoned"] == 1 and found.returncode == 1
    assert "1 abandoned" in volume.cli_to("verify").stdout
    collector.run_pass()  # the log is still there, and its next record adopts the copy
    assert volume.cli_to("verify").returncode == 0


@pytest.fixture
def outside(volume: Volume) -> Path:
    """A place in the spool that is not scanned, on the same file system."""
    return volume.spool / "c1" / "old" / "app.log"


def test_a_log_that_is_moved_out_of_the_sources_is_finished(
    volume: Volume, log: Writer, sidecar: Sidecar, outside: Path
) -> None:
    collector = sidecar()
    log.write(2)
    collector.run_pass()
    log.move(outside)
    log.write()
    end(collector)
    assert volume.files() == {} and len(collector.parts.follower) == 1  # it is open
    log.write()
    log.close()
    collector.run_pass()
    assert_each_line_once(volume, log)
    assert len(collector.parts.follower) == 0 and outside.exists()


def test_one_scan_or_two_that_do_not_see_a_log_do_not_finish_it(
    volume: Volume, log: Writer, sidecar: Sidecar, outside: Path
) -> None:
    collector = sidecar()
    log.write(2)
    collector.run_pass()
    log.close()
    home = log.path
    for _ in range(3):
        log.move(outside)
        end(collector, 2)
        assert volume.files() == {} and len(volume.live()) == 1
        log.move(home)
        os.utime(home)  # it settles again
        collector.parts.quiet.seconds, seconds = 600.0, collector.parts.quiet.seconds
        collector.run_pass()
        collector.parts.quiet.seconds = seconds
    end(collector)
    assert_each_line_once(volume, log)


def test_two_sidecars_that_both_followed_a_moved_log_finish_it(
    volume: Volume, log: Writer, sidecar: Sidecar, outside: Path
) -> None:
    first, second = sidecar(), sidecar()
    for collector in (first, second):
        log.write()
        collector.run_pass()
    log.move(outside)
    log.write()
    log.close()
    end(first, 3)
    end(second, 3)
    end(first, 3)
    assert_each_line_once(volume, log)
    assert len(first.parts.follower) == 0
    second.run_pass()
    assert len(second.parts.follower) == 0


def test_a_moved_log_without_leases_is_finished_after_its_silence(
    volume: Volume, log: Writer, sidecar: Sidecar, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "acquire", lambda fd: lease.Lease.UNAVAILABLE)
    collector = sidecar(seal_after=3600.0)
    log.write()
    collector.run_pass()
    log.move(outside)
    log.close()
    end(collector)
    assert volume.files() == {}
    monkeypatch.setattr(collector.parts.endings, "_options", replace(collector.parts.copies.options, seal_after=0.0))
    end(collector)
    assert_each_line_once(volume, log)


@pytest.mark.parametrize("compress", ["", "gzip"])
def test_a_moved_log_that_comes_back_as_it_was_is_not_collected_again(
    volume: Volume, log: Writer, sidecar: Sidecar, outside: Path, compress: str
) -> None:
    collector = sidecar(compress=compress)
    log.write(3)
    collector.run_pass()
    log.move(outside)
    log.close()
    end(collector)
    before_it = sorted(path.name for path in volume.collected.rglob("app*"))
    log.move(volume.spool / "c1" / "logs" / "app.log.1")
    end(sidecar(compress=compress))
    assert sorted(path.name for path in volume.collected.rglob("app*")) == before_it
    assert volume.waiting() == {} and [event.path for event in volume.told("returned")] == ["c1/logs/app.log.1"]


def test_another_log_under_the_inode_of_one_that_was_finished_is_collected(
    volume: Volume, log: Writer, sidecar: Sidecar, outside: Path
) -> None:
    """And so is the same one if it has changed: nothing is lost, and its first lines are there twice."""
    collector = sidecar()
    log.write()
    collector.run_pass()
    log.move(outside)
    end(collector)
    log.close()
    end(collector)
    with outside.open("a") as file:
        file.write("more\n")
    log.move(volume.spool / "c1" / "logs" / "app.log")
    end(collector)
    assert volume.waiting() == {} and lines(volume)["more"] == 1


def test_a_log_that_cannot_be_opened_is_not_taken_for_moved(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = sidecar()
    log.write()
    collector.run_pass()
    log.close()
    with monkeypatch.context() as patch:

        def refuse(candidate: object) -> int:
            raise PermissionError(13, "Permission denied")

        patch.setattr(collector.parts.admission, "_open", refuse)
        end(collector)
    assert volume.files() == {} and len(volume.live()) == 1
    end(collector)
    assert_each_line_once(volume, log)


def test_a_log_whose_directory_in_the_destination_is_a_file_is_followed_in_turn(
    volume: Volume, log: Writer, sidecar: Sidecar
) -> None:
    (volume.collected / "logs").write_text("in the way\n")
    for _ in range(3):
        log.write()
        volume.one_pass()
        assert len(volume.live()) == 1
    cut(log)
    volume.one_pass()
    log.write()
    log.close()
    end(sidecar())
    (volume.collected / "logs").unlink()
    assert_each_line_once(volume, log)
