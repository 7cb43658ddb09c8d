"""The logs of one replica, one process: their names, days and sizes, and every record once and whole."""

from __future__ import annotations

import gc
import logging
import logging.config
import os
import stat
import tempfile
import time
import weakref
from datetime import date as Date
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.logged import contents, lines, log, once, opened
from support.processes import descriptors

from sharedvol import InvalidNameError, container_id, log_path, parse_name
from sharedvol.logs import ReplicaFileHandler
from sharedvol.logs import writer as log_writer

NOON = datetime(2026, 3, 14, 12).timestamp()
DAY = 86_400.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall clock: its only element is the time."""
    now = [NOON]
    monkeypatch.setattr(log_writer.time, "time", lambda: now[0])
    return now


def test_the_first_file_of_a_day_has_the_name_that_r_gives_it(tmp_path: Path) -> None:
    with opened(tmp_path / "logs") as handler:
        log(handler, "hello")
        assert handler.path is not None
        assert Path(handler.path) == log_path(tmp_path / "logs")
        assert Path(handler.path).read_text() == "hello\n"  # before anything is closed or flushed


@pytest.mark.parametrize("name", [None, "api", "my_api.v2"])
@pytest.mark.parametrize("at_midnight", [True, False])
def test_every_name_tells_its_container(tmp_path: Path, name: str | None, at_midnight: bool) -> None:
    with opened(tmp_path, name=name, at_midnight=at_midnight, max_bytes=1) as handler:
        for number in range(4):
            log(handler, str(number))
    names = sorted(contents(tmp_path))
    assert len(names) == 4
    assert {parse_name(path, containers=[container_id()]).container for path in names} == {container_id()}
    assert all(path.startswith(name) for path in names if name)


def test_names_of_more_files_than_are_numbered_are_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharedvol.logs.files.MAX_NUMBER", 3)
    with opened(tmp_path, max_bytes=1) as handler:
        for number in range(6):
            log(handler, str(number))
    assert lines(tmp_path) == once([str(number) for number in range(6)])
    assert [parse_name(path).form for path in contents(tmp_path)].count("unique") == 4


def test_container_stands_for_the_replica_and_braces_mean_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path / "{container}" / "{0}" / "logs") as handler:
        log(handler, "hello")
    assert lines(tmp_path / container_id() / "{0}" / "logs") == once(["hello"])


def test_nothing_is_made_before_the_first_record(tmp_path: Path) -> None:
    with opened(tmp_path / "{container}" / "logs") as handler:
        assert handler.path is None
    assert os.listdir(tmp_path) == []


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=60), max_size=40),
    max_bytes=st.integers(0, 150),
    lives=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_rotation_by_size_keeps_every_record_in_order_and_every_file_in_bounds(
    texts: list[str], max_bytes: int, lives: int
) -> None:
    written = [f"{number} {text}" for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as place:
        for life in range(lives):
            with opened(Path(place), max_bytes=max_bytes) as handler:
                for text in written[life::lives]:
                    log(handler, text)
        found = contents(Path(place))
        assert lines(Path(place)) == once(written)
    for text in found.values():
        numbers = [int(line.split(" ")[0]) for line in text.split("\n")[:-1]]
        for life in range(lives):
            mine = [number for number in numbers if number % lives == life]
            assert mine == sorted(mine)
        assert not max_bytes or len(text.encode()) <= max_bytes or text.count("\n") == 1


@given(st.lists(st.floats(-3 * DAY, 3 * DAY), max_size=30))
@settings(max_examples=50, deadline=None)
def test_each_record_is_in_the_file_of_its_day_wherever_the_clock_jumps(jumps: list[float]) -> None:
    now = NOON
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as place,
        opened(Path(place)) as handler,
    ):
        patch.setattr(log_writer.time, "time", lambda: now)
        expected: dict[str, list[str]] = {}
        for number, jump in enumerate(jumps):
            now += jump
            log(handler, str(number))
            expected.setdefault(log_path("", date=Date.fromtimestamp(now)).name, []).append(str(number))
        assert {path: text.split("\n")[:-1] for path, text in contents(Path(place)).items()} == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut", "Pacific/Apia"])
def test_days_change_at_local_midnight_in_every_hour_of_a_year(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    """Where a clock change takes midnight away, and where a whole day was left out."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        clock[0] = datetime(2011, 1, 1, 0, 30).timestamp()
        days = set()
        with opened(tmp_path) as handler:
            for _ in range(366 * 24):
                days.add(Date.fromtimestamp(clock[0]).isoformat())
                log(handler, Date.fromtimestamp(clock[0]).isoformat())
                clock[0] += 3600
        found = contents(tmp_path)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert len(found) == len(days) > 360
    for path, text in found.items():
        assert set(text.split()) == {parse_name(path).date.isoformat()}  # type: ignore[union-attr]


def test_midnight_can_be_left_out(tmp_path: Path, clock: list[float]) -> None:
    with opened(tmp_path, name="api", at_midnight=False) as handler:
        for _ in range(3):
            log(handler, "x")
            clock[0] += DAY
    assert contents(tmp_path) == {f"api_{container_id()}.log": "x\nx\nx\n"}


def test_a_restarted_process_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for life in range(3):
        with opened(tmp_path) as handler:
            log(handler, str(life))
    assert list(contents(tmp_path).values()) == ["0\n1\n2\n"]


def test_two_handlers_have_two_files(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as other:
        log(one, "1")
        log(other, "2")
        log(one, "1 again")
    assert sorted(contents(tmp_path).values()) == ["1\n1 again\n", "2\n"]


def test_a_record_of_many_lines_stays_together(tmp_path: Path) -> None:
    with opened(tmp_path) as handler:
        log(handler, "one\n  two\n  three")
        log(handler, "next")
    assert list(contents(tmp_path).values()) == ["one\n  two\n  three\nnext\n"]


def test_a_record_beyond_every_buffer_is_one_piece(tmp_path: Path) -> None:
    big = "x" * 3_000_000
    with opened(tmp_path, max_bytes=1_000_000) as handler:
        for text in ("before", big, "after"):
            log(handler, text)
    assert lines(tmp_path) == once(["before", big, "after"])


@given(st.text(st.characters(exclude_characters="\n\r", exclude_categories=())))
@settings(max_examples=50, deadline=None)
def test_no_text_is_refused(text: str) -> None:
    """Surrogates, NUL and what a terminal would obey included."""
    with tempfile.TemporaryDirectory() as place, opened(Path(place), encoding="latin-1") as handler:
        log(handler, text)
        assert handler.path is not None and handler.lost == 0
        assert Path(handler.path).read_bytes() == f"{text}\n".encode("latin-1", "backslashreplace")


def test_a_record_that_cannot_be_formatted_harms_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path) as handler:
        log(handler, "before")
        handler.handle(logging.LogRecord("test", logging.INFO, __file__, 1, "%d", ("no number",), None))
        log(handler, "after")
    assert lines(tmp_path) == once(["before", "after"])
    assert "no number" in capsys.readouterr().err


@pytest.mark.parametrize("permissions", [0o600, "0640", 0o666, None])
def test_permissions_are_what_was_asked_for(tmp_path: Path, permissions: int | str | None) -> None:
    before = os.umask(0o027)
    try:
        with opened(tmp_path, permissions=permissions) as handler:
            log(handler, "x")
            assert handler.path is not None
            mode = stat.S_IMODE(os.stat(handler.path).st_mode)
    finally:
        os.umask(before)
    wanted = int(permissions, 8) if isinstance(permissions, str) else permissions
    assert mode == (0o640 if wanted is None else wanted)


def test_records_of_the_sync_level_are_on_the_disk_and_so_is_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(b"directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else os.pread(fd, 100, 0))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with opened(tmp_path, sync_level="ERROR") as handler:
        log(handler, "info")
        assert synced == [b"directory"]
        log(handler, "error", logging.ERROR)
        log(handler, "critical", logging.CRITICAL)
    assert synced == [b"directory", b"info\nerror\n", b"info\nerror\ncritical\n"]


def test_shutdown_closes_and_what_is_logged_after_it_is_not_lost(tmp_path: Path) -> None:
    handler = ReplicaFileHandler(tmp_path)
    log(handler, "before")
    logging.shutdown([weakref.ref(handler)])
    assert handler.path is None
    log(handler, "after")
    handler.close()
    handler.close()
    assert list(contents(tmp_path).values()) == ["before\nafter\n"]


@pytest.mark.parametrize("late", [False, True], ids=["open", "closed-and-opened-by-a-late-record"])
@pytest.mark.parametrize("cycle", [False, True])
def test_a_handler_that_is_dropped_gives_up_its_file_as_that_of_logging_does(
    tmp_path: Path, late: bool, cycle: bool
) -> None:
    gc.disable()
    try:
        for number in range(3):
            handler = ReplicaFileHandler(tmp_path)
            log(handler, f"record {number}")
            if late:
                handler.close()
                log(handler, "late")
            if cycle:
                handler.itself = handler  # type: ignore[attr-defined]
            path = handler.path
            assert path is not None and descriptors(path) == 1
            del handler
            if cycle:
                gc.collect()
            assert descriptors(path) == 0
    finally:
        gc.enable()
    ((_, text),) = contents(tmp_path).items()  # each found it unlocked and continued in it
    assert text.count("\n") == (6 if late else 3)


def test_dictconfig_while_others_log_leaves_one_file_open(tmp_path: Path) -> None:
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"file": {"class": "sharedvol.logs.ReplicaFileHandler", "directory": f"{tmp_path}/logs"}},
        "loggers": {"test.replica.log": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    logger = logging.getLogger("test.replica.log")
    logging.config.dictConfig(config)
    for life in range(5):
        replaced = logger.handlers[0]
        logging.config.dictConfig(config)
        log(replaced, f"late {life}")  # of a thread that had looked the handler up before
        logger.info("hello %d", life)
    del replaced
    gc.collect()  # dictConfig itself leaves its handlers in a cycle
    assert sum(descriptors(path) for path in (tmp_path / "logs").iterdir()) == 1
    logger.handlers.clear()
    assert sum(descriptors(path) for path in (tmp_path / "logs").iterdir()) == 0
    expected = [*(f"late {life}" for life in range(5)), *(f"hello {life}" for life in range(5))]
    assert sorted(lines(tmp_path).elements()) == sorted(expected)


def test_dictconfig_takes_every_option_as_json_gives_it_and_may_be_called_again(tmp_path: Path) -> None:
    options = {
        "class": "sharedvol.logs.ReplicaFileHandler",
        "directory": f"{tmp_path}/{{container}}/logs",
        "name": "api",
        "max_bytes": 1_000,
        "at_midnight": False,
        "encoding": "utf-8",
        "errors": "replace",
        "permissions": "0640",
        "sync_level": "ERROR",
        "level": "INFO",
        "formatter": "plain",
    }
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
        "handlers": {"file": options},
        "loggers": {"test.replica.log": {"handlers": ["file"], "level": "DEBUG", "propagate": False}},
    }
    logger = logging.getLogger("test.replica.log")
    for life in range(2):
        logging.config.dictConfig(config)
        logger.info("hello %d", life)
        logger.debug("not this")
    logger.handlers[0].close()
    logger.handlers.clear()
    assert list(contents(tmp_path).values()) == ["INFO hello 0\nINFO hello 1\n"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "a/b"}, InvalidNameError),
        ({"name": ""}, InvalidNameError),
        ({"name": ".hidden"}, InvalidNameError),
        ({"name": "x" * 240}, InvalidNameError),
        ({"encoding": "utf-16"}, ValueError),
        ({"encoding": "utf-8-sig"}, ValueError),
        ({"encoding": "no such"}, LookupError),
        ({"errors": "no such"}, LookupError),
        ({"max_bytes": -1}, ValueError),
        ({"permissions": "rw-r-----"}, ValueError),
        ({"permissions": 640}, ValueError),
        ({"permissions": 0o440}, ValueError),
        ({"sync_level": "LOUD"}, ValueError),
    ],
)
def test_what_cannot_be_used_is_said_at_once(tmp_path: Path, options: dict[str, object], error: type) -> None:
    with pytest.raises(error):
        ReplicaFileHandler(tmp_path, **options)  # type: ignore[arg-type]


def test_no_directory_of_the_application_is_followed_when_it_changes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(Path("logs")) as handler:
        monkeypatch.chdir("/")
        log(handler, "hello")
    assert lines(tmp_path / "logs") == once(["hello"])


def test_midnight_in_two_processes_needs_no_word_between_them(tmp_path: Path, clock: list[float]) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as other:
        for number in range(3):
            log(one, f"one {number}")
            log(other, f"other {number}")
            clock[0] += timedelta(days=1).total_seconds()
    assert len(contents(tmp_path)) == 6
    assert lines(tmp_path) == once([f"{who} {number}" for who in ("one", "other") for number in range(3)])


def test_another_error_handler_may_be_chosen(tmp_path: Path) -> None:
    with opened(tmp_path, errors="surrogatepass") as handler:
        log(handler, "\udc80")
        assert handler.path is not None
        assert Path(handler.path).read_bytes() == b"\xed\xb2\x80\n"
