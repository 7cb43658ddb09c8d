"""Faults that are planted in the handler on purpose, and checks that find each of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.logged import disturbed, lines, log, once, opened, record, steps_of
from support.processes import Child

from sharedvol.logs import ReplicaFileHandler
from sharedvol.logs import files as log_files
from sharedvol.logs import writer as log_writer
from sharedvol.logs.files import LogFile, LogFiles
from sharedvol.logs.writer import LogWriter


def rotate(place: Path) -> None:
    with opened(place, max_bytes=20) as handler:
        for number in range(10):
            log(handler, f"{number} of ten")
    assert lines(place) == once([f"{number} of ten" for number in range(10)])


def mix(place: Path) -> None:
    """Another writer comes between the parts of a record."""
    real, busy = os.write, []

    def write(fd: int, data: bytes) -> int:
        if busy:
            return real(fd, data)
        busy.append(fd)
        written = real(fd, data[:5])
        log(other, "of the other")
        return written

    with opened(place) as one, opened(place) as other, pytest.MonkeyPatch.context() as patch:
        log(one, "before")
        patch.setattr(os, "write", write)
        log(one, "in two parts")
    assert lines(place) == once(["before", "in two parts", "of the other"])


def die(place: Path) -> None:
    """A writer dies in the middle of a record, and another continues."""
    with opened(place) as handler:
        log(handler, "before")
        assert handler.path is not None
        path = handler.path
    with open(path, "a") as file:
        file.write("hal")
    with opened(place) as handler:
        log(handler, "after")
    assert lines(place) == once(["before", "hal", "after"])


def interrupt(place: Path) -> None:
    """At every line of a record that is written in parts."""
    real = os.write

    def act(number: int) -> None:
        if number == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, data[: max(1, len(data) // 2)]))
        with opened(place / "counted") as handler:
            steps = steps_of(lambda handler=handler: handler.emit(record("counted")))
        for step in range(1, steps + 1):
            with opened(place / str(step)) as handler:
                with contextlib.suppress(KeyboardInterrupt):
                    disturbed(lambda handler=handler: handler.emit(record("disturbed")), act)
                log(handler, "after")
            assert lines(place / str(step)) - once(["disturbed"]) == once(["after"])


def fill(place: Path) -> None:
    real, room = os.write, [4]

    def write(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = real(fd, data[: room[0]])
        room[0] -= taken
        return taken

    with opened(place) as handler, pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(None):
        patch.setattr(os, "write", write)
        log(handler, "in parts")
        log(handler, "lost")
        room[0] = 10_000
        log(handler, "after")
        assert handler.lost == 1
    found = lines(place)
    assert {text for text in found if not text.startswith("1 records since ")} == {"in parts", "after"}
    assert len(found) == 3


def fork(place: Path) -> None:
    with opened(place) as handler:
        log(handler, "before")

        def work(connection: Any) -> None:
            log(handler, "of the child")
            connection.send(handler.path)

        with Child(work) as child:
            assert child.receive() != handler.path


def move(place: Path) -> None:
    """As a sidecar without leases does, that copies."""
    (place / "logs").mkdir()
    with opened(place / "logs") as handler, pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_writer, "CHECK_EVERY", 0.0)
        log(handler, "before")
        assert handler.path is not None
        os.rename(handler.path, place / "claimed")
        log(handler, "after")
    assert lines(place / "logs") == once(["after"])


def plant_link(place: Path) -> None:
    (place / "logs").mkdir()
    with opened(place / "logs") as handler:
        log(handler, "before")
        path = Path(str(handler.path))
    path.unlink()
    (place / "precious").write_text("precious")
    path.symlink_to(place / "precious")
    with opened(place / "logs") as handler:
        log(handler, "after")
    assert (place / "precious").read_text() == "precious"


def _rename(self: LogWriter, real: Callable[[LogWriter], None] = LogWriter._leave) -> None:
    path = self.path
    real(self)
    if path is not None:
        os.replace(path, f"{path}.1")
        self._number = 0


def _forgetful_ready(
    self: LogWriter, entry: Any, real: Callable[[LogWriter, Any], Any] = LogWriter._ready
) -> tuple[LogFile, int]:
    entry.start = -1
    return real(self, entry)  # type: ignore[no-any-return]


def _follow(self: LogFiles, parent: int, name: str, room: float) -> tuple[bool, int | None]:
    return True, os.open(name, os.O_RDWR | os.O_APPEND | os.O_CREAT, dir_fd=parent)


class _Never:
    """An attribute that is False, whatever it is set to."""

    def __get__(self, instance: object, owner: type) -> bool:
        return False

    def __set__(self, instance: object, value: object) -> None:
        pass


PLANTED: list[tuple[Callable[[Path], None], object, str, object]] = [
    (rotate, LogWriter, "_leave", _rename),
    (mix, log_files, "_lock", lambda fd: True),
    (die, LogFile, "torn", _Never()),
    (interrupt, LogWriter, "_ready", _forgetful_ready),
    (interrupt, LogWriter, "_is_draining", lambda self: True),
    (fill, LogWriter, "_is_begun", lambda self, entry: False),
    (fork, ReplicaFileHandler, "renew", lambda self: None),
    (move, LogFile, "_is_at_its_path", lambda self: True),
    (plant_link, LogFiles, "_open_or_create", _follow),
]


@pytest.mark.parametrize("check", [rotate, mix, die, interrupt, fill, fork, move, plant_link])
def test_the_handler_as_it_is_passes(tmp_path: Path, check: Callable[[Path], None]) -> None:
    check(tmp_path)


@pytest.mark.parametrize(("check", "where", "name", "fault"), PLANTED, ids=[f"{p[0].__name__}-{p[2]}" for p in PLANTED])
def test_a_planted_fault_is_seen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Path], None],
    where: object,
    name: str,
    fault: object,
) -> None:
    monkeypatch.setattr(where, name, fault, raising=name != "torn")  # which only objects have
    with pytest.raises(AssertionError):
        check(tmp_path)
