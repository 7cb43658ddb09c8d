"""What one sidecar shows another of a followed log: that it sees the log, and that it has the log open."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from interleaving import Sidecar, Writer, assert_each_line_once, end
from volume import Volume

from sharedvol_sidecar.collector import Collector
from sharedvol_sidecar.follow_open import OpenLogs

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
    assert (len(first.logs), len(second.logs)) == (0, 0)


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
    first.logs.leave_open(kept)
    first.close()
    log.write()
    other = sidecar()
    end(other)
    assert volume.files() == {} and len(volume.live()) == 1
    again = sidecar()
    again.logs.resume(kept)
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
        with contextlib.closing(Collector(volume.job(**settings), volume.events.append, shard=(0, 2))) as helped:
            end(helped)
            assert volume.files() == {} and len(volume.live()) == 1
            log.write()
            log.close()
            end(helped)
    assert_each_line_once(volume, log)
