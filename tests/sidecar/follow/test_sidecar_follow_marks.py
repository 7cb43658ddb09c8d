"""What one sidecar shows another of a followed log: that it sees the log, and that it has the log open."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.sidecar.interleaving import Sidecar, Writer, assert_each_line_once, assert_nothing_left, end, lines
from support.sidecar.volume import Volume

from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.open_logs import OpenLogs

WIDE = ("results", "logs", "old")


def delete(log: Writer) -> None:
    log.path.unlink()


def move_out(log: Writer) -> None:
    log.move(log.path.parents[1] / "olddir" / "app.log")


def move_to_another_kind(log: Writer) -> None:
    log.move(log.path.parents[1] / "old" / "app.log")


@pytest.mark.parametrize("leave", [delete, move_out])
@pytest.mark.parametrize("earlier", range(5))
def test_sidecars_that_begin_to_miss_a_log_at_different_passes_finish_it(
    volume: Volume, log: Writer, sidecar: Sidecar, leave: Callable[[Writer], None], earlier: int
) -> None:
    first, second = sidecar(), sidecar()
    for _ in range(2):
        log.write()
        first.run_pass()
        second.run_pass()
    leave(log)
    log.write()
    log.close()
    end(first, earlier)
    for _ in range(5):
        second.run_pass()
        first.run_pass()
    assert_each_line_once(volume, log)
    assert (len(first.parts.follower), len(second.parts.follower)) == (0, 0)


@pytest.mark.parametrize("leave", [delete, move_out])
def test_a_log_that_another_sidecar_has_open_is_left_to_that_sidecar(
    volume: Volume, log: Writer, sidecar: Sidecar, leave: Callable[[Writer], None]
) -> None:
    first = sidecar()
    log.write()
    first.run_pass()
    leave(log)
    end(first)  # it has missed the log for long
    second = sidecar()
    log.write()
    end(second)
    assert volume.files() == {} and len(volume.live()) == 1
    log.write()
    log.close()
    end(first)
    assert_each_line_once(volume, log)


@pytest.mark.parametrize("leave", [delete, move_out])
def test_a_log_is_left_to_a_sidecar_that_has_a_fault(
    volume: Volume, log: Writer, sidecar: Sidecar, leave: Callable[[Writer], None]
) -> None:
    first, kept = sidecar(), OpenLogs()
    log.write()
    first.run_pass()
    leave(log)
    end(first)
    first.parts.follower.leave_open(kept)
    first.close()
    log.write()
    other = sidecar()
    end(other)
    assert volume.files() == {} and len(volume.live()) == 1
    again = sidecar()
    again.parts.follower.resume(kept)
    end(other)
    log.write()
    log.close()
    end(again)
    end(other)
    assert_each_line_once(volume, log)
    assert kept.close() == 0


@pytest.mark.parametrize("leave", [delete, move_out])
def test_a_log_whose_last_reader_has_died_is_finished(
    volume: Volume, log: Writer, sidecar: Sidecar, leave: Callable[[Writer], None]
) -> None:
    first, second = sidecar(), sidecar()
    log.write(3)
    first.run_pass()
    leave(log)
    end(second)
    assert volume.files() == {}
    first.close()
    end(second)
    assert_each_line_once(volume, log)


@pytest.mark.parametrize("follow", [("logs",), ()])
def test_a_restarted_sidecar_marks_a_log_that_it_sees_and_does_not_follow(
    volume: Volume, log: Writer, sidecar: Sidecar, follow: tuple[str, ...]
) -> None:
    first = sidecar(kinds=WIDE)
    log.write(3)
    first.run_pass()
    move_to_another_kind(log)
    log.write()
    first.close()
    first, narrow = sidecar(kinds=WIDE, follow=follow), sidecar()
    for _ in range(5):
        first.run_pass()
        narrow.run_pass()
    assert volume.files() == {} and len(volume.live()) == 1
    log.write()
    log.close()
    for _ in range(5):
        narrow.run_pass()
        first.run_pass()
    assert_each_line_once(volume, log)


@pytest.mark.parametrize("settings", [{"follow": ()}, {"kinds": WIDE}], ids=["follow-none", "another-kind"])
def test_a_sidecar_with_a_helper_sees_every_followed_log(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """It sees half of the files of the kinds that it does not follow, and judges the logs that it does not see."""
    first = sidecar(kinds=WIDE)
    log.write(3)
    first.run_pass()
    if "kinds" in settings:
        move_to_another_kind(log)
    first.close()
    with monkeypatch.context() as patch:
        patch.setattr("zlib.crc32", lambda data: 1)  # every file is the helper's
        with contextlib.closing(
            Collector(volume.job(**settings), Events(volume.events.append), CollectorOptions(shard=(0, 2)))
        ) as helped:
            end(helped)
            assert volume.files() == {} and len(volume.live()) == 1
            log.write()
            log.close()
            end(helped)
    assert_each_line_once(volume, log)


def test_a_log_that_no_running_sidecar_sees_is_reported(volume: Volume, log: Writer, sidecar: Sidecar) -> None:
    """Its kind was taken out of the settings. The log is not lost: it and its copy wait for a sidecar that sees it."""
    first, narrow = sidecar(), sidecar(kinds=("results",))
    volume.write("c1/results/a.json", "a\n")
    log.write(2)
    first.run_pass()
    end(narrow)
    assert volume.told("unfollowed") == []  # the other one sees it
    assert json.loads(volume.cli_to("verify", "--json").stdout)["summary"]["unwatched"] == 0
    first.close()
    end(narrow)
    (event, *_) = volume.told("unfollowed")
    assert event.path == "c1/logs/app.log" and "run a sidecar once with the --kinds" in event.detail
    found = volume.cli_to("verify")
    assert found.returncode == 0 and "1 followed logs are not finished, and no running sidecar sees" in found.stdout
    log.close()
    end(sidecar())
    assert lines(volume) == {"app.log 1": 1, "app.log 2": 1, "a": 1}
    assert_nothing_left(volume)


def test_a_claim_with_a_log_s_old_inode_does_not_keep_the_log_from_its_end(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inode's number is used again at once. Here a file in a claim has the number of the log."""
    collector = sidecar()
    log.write()
    collector.run_pass()
    claimed = volume.spool / ".sharedvol" / "claims" / "7" / "x.1" / "c1" / "results"
    claimed.mkdir(parents=True)
    number = os.fstat(log.fd).st_ino
    delete(log)
    log.close()
    (claimed / "stuck").write_text("x")
    monkeypatch.setattr(collector.parts.claims, "left_behind", lambda: (one for one in ()))
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", with_inode(os.scandir, "stuck", number))
        end(collector)
    (claimed / "stuck").unlink()
    assert_each_line_once(volume, log)


def with_inode(real: Callable[..., Any], name: str, number: int) -> Callable[..., Any]:
    """`os.scandir`, by which a file has that inode."""

    @contextlib.contextmanager
    def scandir(path: Any) -> Iterator[Iterator[Any]]:
        with real(path) as entries:
            yield (Entry(entry, number) if entry.name == name else entry for entry in entries)

    return scandir


class Entry:
    def __init__(self, entry: os.DirEntry[str], number: int) -> None:
        self.name, self.is_dir, self._number = entry.name, entry.is_dir, number

    def inode(self) -> int:
        return self._number


@pytest.mark.parametrize("step", [-86_400, 0])
def test_the_last_log_that_was_finished_is_remembered_whatever_the_clock_says(
    volume: Volume, log: Writer, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A thousand others were finished before, by a clock that has been set back since."""
    monkeypatch.setattr("sharedvol_sidecar.follow.ended._MOST", 3)
    collector = sidecar()
    (spool_id,) = (volume.collected / ".sharedvol" / "ended").iterdir()
    for number in range(3):
        (spool_id / f"{number}-{number}.json").write_text("{}")
        moment = time.time() - step + number
        os.utime(spool_id / f"{number}-{number}.json", (moment, moment))
    log.write(3)
    collector.run_pass()
    home = log.path
    move_out(log)
    log.close()
    end(collector)
    assert len(list(spool_id.iterdir())) == 3 and not (spool_id / "0-0.json").exists()
    log.move(home)
    end(collector)
    assert_each_line_once(volume, log)
    assert [event.path for event in volume.told("returned")] == ["c1/logs/app.log"]
