"""What one sidecar shows another of a followed log: that it sees the log, and that it has the log open."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from interleaving import Sidecar, Writer, assert_each_line_once, end
from volume import Volume

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
