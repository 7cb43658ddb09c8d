"""The service's log: what breaks it, how much it writes, and what of it is summed up."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner
from support.processes import LIMIT, reaped, wait_until
from support.sidecar.service_process import service, settled
from support.sidecar.volume import CLI, Volume

from sharedvol_sidecar.cli import main
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.event import Event, Listener
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.monitor.deduplicator import Deduplicator
from sharedvol_sidecar.monitor.log_limit import LineLimit
from sharedvol_sidecar.monitor.log_output import LogOutput
from sharedvol_sidecar.monitor.minute_summary import MinuteSummary


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.EBADF


def drained(fd: int) -> list[str]:
    os.set_blocking(fd, False)
    data = b""
    try:
        while chunk := os.read(fd, 1 << 20):
            data += chunk
    except BlockingIOError:
        pass
    return data.decode().splitlines()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stopped_loses_lines_and_is_told_how_many(pipe: tuple[int, int], blocking: bool) -> None:
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096 * 4)
    os.set_blocking(writer, blocking)
    output = LogOutput(writer, patience=0.01)
    lines = [f"{number} {'x' * 5000}\n" for number in range(20)]
    for line in lines:
        output.write(line)
    lost = output.state.lost
    assert 0 < lost < 20 and output.state.problem == "its reader does not read"
    before = drained(reader)
    output.write("again\n")
    after = drained(reader)
    whole = [line for line in before if f"{line}\n" in lines]
    assert len(whole) == 20 - lost
    if len(whole) < len(before):
        assert after.pop(0) == ""  # the line that was torn ends before the next one begins
    told = json.loads(after[0])
    assert (told["event"], told["lost"], after[1:]) == ("log_lost", lost, ["again"])
    assert (output.state.lost, output.state.problem) == (lost, "")


@pytest.mark.parametrize("how", ["gone", "full", "closed", "none"])
def test_no_error_of_writing_reaches_the_service(pipe: tuple[int, int], how: str) -> None:
    reader, writer = pipe
    full = os.open("/dev/full", os.O_WRONLY)  # before a descriptor is closed, whose number it would get
    if how == "gone":
        os.close(reader)
    elif how == "closed":
        os.close(writer)
    try:
        output = LogOutput({"full": full, "none": None}.get(how, writer))
        for _ in range(3):
            output.write("a line\n")
    finally:
        os.close(full)
    words = {"gone": "(EPIPE)", "full": "(ENOSPC)", "closed": "(EBADF)", "none": "is closed"}[how]
    assert output.state.lost == 3 and words in output.state.problem


def test_a_full_disk_that_has_room_again_is_reported_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    full = os.open("/dev/full", os.O_WRONLY)
    saved = os.dup(fd)
    try:
        output = LogOutput(fd)
        output.write("one\n")
        os.dup2(full, fd)
        output.write("two\nthree\n")
        os.dup2(saved, fd)
        output.write("four\n")
    finally:
        for one in (fd, full, saved):
            os.close(one)
    lines = path.read_text().splitlines()
    assert (lines[0], json.loads(lines[1])["lost"], lines[2:]) == ("one", 2, ["four"])


def test_the_service_collects_on_when_its_reader_is_gone(volume: Volume) -> None:
    reader, writer = os.pipe()
    directories = ("--from", str(volume.spool), "--to", str(volume.collected), "--interval", "3600")
    command = [*CLI, "run", *directories, "--quiet", "0", "--listen", "off", "--verbose"]
    with reaped(subprocess.Popen(command, stdout=writer)) as process:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        for number in range(3):
            volume.write(f"c1/results/b{number}", str(number))
            wait_until(lambda number=number: len(volume.files()) == number + 1, "a file without a log")  # type: ignore
        process.terminate()
        assert process.wait(LIMIT) == 0


def test_a_log_on_a_full_disk_is_counted_and_noted_and_collecting_continues(volume: Volume) -> None:
    shim = (
        "real = os.write\n"
        "def write(fd, data):\n"
        "    if fd == 1 and os.path.exists('/proc/self/cwd/full') and b'event' in bytes(data):\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    return real(fd, data)\n"
        "os.write = write\n"
    )
    full = Path.cwd() / "full"
    assert not full.exists()
    with service(volume, shim=shim) as served:
        served.await_ready()
        try:
            full.touch()
            volume.write("c1/results/a", "1")
            wait_until(lambda: len(volume.files()) == 1, "a file on a full disk")
            wait_until(lambda: json.loads(served.ask("/status.json")[1])["log"]["lines_lost"] > 0, "lost lines")
            wait_until(lambda: served.ask("/readyz")[0] == 200, "readiness")
            body = served.ask("/readyz")[1]
            assert json.loads(body)["notes"][0]["note"] == "log_unwritable"
            assert "ENOSPC" in json.loads(body)["notes"][0]["detail"]
            assert "sharedvol_sidecar_log_lines_lost_total 0" not in served.ask("/metrics")[1]
        finally:
            full.unlink()
        volume.write("c1/results/b", "2")
        assert served.until("log_lost")["lost"] > 0
        wait_until(lambda: "notes" not in json.loads(served.ask("/readyz")[1]), "the note to be removed")
        settled(served)


def test_at_info_there_is_a_summary_and_no_line_of_a_file(volume: Volume) -> None:
    for number in range(50):
        volume.write(f"c1/results/{number}", "12345")
    directories = ("--from", str(volume.spool), "--to", str(volume.collected), "--interval", "3600")
    command = [*CLI, "run", *directories, "--quiet", "0", "--listen", "off"]
    with reaped(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        wait_until(lambda: len(volume.files()) == 50, "the files")
        volume.write("c1/results/one more", "12345")
        wait_until(lambda: len(volume.files()) == 51, "the last file")
        process.terminate()
        lines = [json.loads(line) for line in process.communicate(timeout=LIMIT)[0].splitlines()]
    assert process.returncode == 0
    assert {line["event"] for line in lines} <= {"started", "summary", "stopped", "unleased", "scan_only"}
    summaries = [line for line in lines if line["event"] == "summary"]
    assert sum(line["files"] for line in summaries) == 51 and sum(line["bytes"] for line in summaries) == 255
    assert all(line["lag_seconds"] > 0 for line in summaries) and len(summaries) <= 3


def test_a_summary_comes_once_a_minute_and_only_if_something_happened() -> None:
    clock = Clock()
    summary = MinuteSummary(60.0, clock)
    assert summary.take() is None
    summary.add(PassCounts(collected=2, bytes=10, writing=5))
    summary.event(Event(Events.COLLECTED, "a", "b", age=1.5))
    summary.event(Event(Events.COLLECTED, "a", "b", age=0.5))
    assert summary.take() == (PassCounts(collected=2, bytes=10), 1.5)
    summary.add(PassCounts(collected=1))
    clock.now += 59
    assert summary.take() is None
    clock.now += 1
    assert summary.take() == (PassCounts(collected=1), 0.0)
    clock.now += 600
    assert summary.take() is None and summary.take(at_once=True) is None


def test_lines_of_one_event_are_limited_and_the_dropped_ones_counted() -> None:
    clock = Clock()
    limit = LineLimit(2, clock)

    def passes(name: str, method: str = "warning") -> dict[str, object] | None:
        try:
            return dict(limit(None, method, {"event": name}))
        except structlog.DropEvent:
            return None

    assert [passes("a") is not None for _ in range(5)] == [True, True, False, False, False]
    assert passes("b") == {"event": "b"}
    assert all(passes("a", "debug") for _ in range(10))
    clock.now += 60
    assert passes("a") == {"event": "a", "suppressed": 3}
    assert passes("a") and passes("a") is None
    assert passes("summary", "info") == {"event": "summary", "suppressed": {"a": 1}}
    assert passes("summary", "info") == {"event": "summary"}


def _pass(once: Deduplicator, events: list[Event]) -> None:
    for event in events:
        once(event)
    once.end_pass()


def _links(directory: str, count: int) -> list[Event]:
    return [Event(Events.REFUSED, f"{directory}/results/{number}", "a symbolic link") for number in range(count)]


def test_many_problems_are_a_few_lines_and_their_number_however_often_they_are_found() -> None:
    told: list[Event] = []
    once = Deduplicator(told.append)
    for _ in range(10):
        _pass(once, _links("evil", 12_000))
    assert len(told) == Deduplicator.EACH + 1
    assert told[-1] == Event(Events.REFUSED, "evil", "and 11,980 more")
    _pass(once, _links("evil", 13_000))
    assert len(told) == Deduplicator.EACH + 1  # not a new magnitude
    _pass(once, _links("evil", 30_000))
    assert told[-1] == Event(Events.REFUSED, "evil", "and 29,980 more") and len(told) == Deduplicator.EACH + 2


def test_a_problem_that_comes_back_is_reported_again() -> None:
    told: list[Event] = []
    once = Deduplicator(told.append)
    for events in (_links("c", 1), _links("c", 1), [], _links("c", 1)):
        _pass(once, events)
    assert told == _links("c", 1) * 2


def test_what_a_pass_did_not_read_is_not_forgotten() -> None:
    told: list[Event] = []
    once = Deduplicator(told.append)
    _pass(once, _links("c", 1))
    once.end_pass(lambda directory: directory != "c")
    _pass(once, _links("c", 1))
    assert told == _links("c", 1)


def test_many_directories_with_a_problem_each_are_bounded_as_well() -> None:
    told: list[Event] = []
    once = Deduplicator(told.append)
    for _ in range(3):
        _pass(once, [event for number in range(20_000) for event in _links(f"d{number}", 1)])
    assert len(told) == Deduplicator.ALL + 1 and told[-1] == Event(Events.REFUSED, "", "and 19,800 more")
    _pass(once, [])
    told.clear()
    _pass(once, _links("d7", 1))
    assert told == _links("d7", 1)


def test_a_flood_is_counted_once_and_grows_the_log_by_a_few_lines(volume: Volume) -> None:
    directory = volume.spool / "evil" / "results"
    directory.mkdir(parents=True)
    for number in range(3000):
        (directory / f"{number}").symlink_to("x")
    with service(volume, interval="0.05") as served:

        def refused() -> list[str]:
            return [
                line for line in served.ask("/metrics")[1].splitlines() if 'dropped_total{reason="refused"}' in line
            ]

        def passes() -> int:
            return int(json.loads(served.ask("/status.json")[1])["passes"]["count"])

        wait_until(lambda: passes() >= 4, "four passes")
        assert refused() == ['sharedvol_sidecar_dropped_total{reason="refused"} 3000.0']
        (directory / "one more").symlink_to("x")
        then = passes()
        wait_until(lambda: passes() >= then + 2, "two passes")
        assert refused() == ['sharedvol_sidecar_dropped_total{reason="refused"} 3001.0']
        body = json.loads(served.ask("/status.json")[1])
        assert set(body["left"]) >= {"refused", "no_room", "denied", "elsewhere"}
        assert not set(body["left"]) & set(body["collected"])
        settled(served)
    assert sum(line["event"] == "refused" for line in served.seen) == Deduplicator.EACH + 1


def test_once_prints_a_bounded_list(volume: Volume) -> None:
    directory = volume.spool / "evil" / "results"
    directory.mkdir(parents=True)
    for number in range(500):
        (directory / f"{number}").symlink_to("x")
    done = volume.cli("once", "--quiet", "0", "--json")
    lines = done.stderr.splitlines()
    assert len(lines) == Deduplicator.EACH + 1 and lines[-1] == "refused: evil: and 480 more"
    assert json.loads(done.stdout)["refused"] == 500


def test_once_bounds_what_happens_again_and_again(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def collect(job: object, listener: Listener, after_batch: object) -> PassCounts:
        events = Events(listener)
        for number in range(1000):
            events.put_back(f"c/results/{number}", "a writer opened it again while it was moved")
        return PassCounts()

    monkeypatch.setattr("sharedvol_sidecar.collect.once.once", collect)
    result = CliRunner().invoke(main, ["once", "--from", str(volume.spool), "--to", str(volume.collected)])
    lines = [line for line in result.output.splitlines() if line.startswith("put_back")]
    assert len(lines) == Deduplicator.ALL + 1 and lines[-1] == "put_back: and 800 more"
