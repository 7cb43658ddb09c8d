"""Many processes and threads of one replica: no record is lost, cut, doubled or mixed with another."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from support.logged import contents, lines, log, once, opened
from support.processes import LIMIT, Child, reaped, run_forked

from sharedvol.logs import ReplicaFileHandler
from sharedvol.logs import writer as log_writer
from sharedvol_sidecar.fs import lease

BIG = "x" * 9_000
"""More than the pages that a write takes at once."""


def _texts(who: str, count: int) -> Iterator[str]:
    return (f"{who}.{number} {BIG if number % 10 == 7 else ''}" for number in range(count))


def _in_threads(handler: logging.Handler, who: str, threads: int, count: int) -> None:
    def work(number: int) -> None:
        for text in _texts(f"{who}.{number}", count):
            log(handler, text)

    started = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(LIMIT)


def _hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a day lasts some thousandths of a second."""
    real = time.time
    monkeypatch.setattr(log_writer.time, "time", lambda: 1.8e9 + (real() % 10_000) * 86_400 * 200)


@pytest.mark.parametrize("rotation", ["size", "day", "both"])
def test_forked_after_the_handler_was_used_with_threads_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotation: str
) -> None:
    """As gunicorn forks its workers."""
    if rotation != "size":
        _hasten(monkeypatch)
    with opened(tmp_path, max_bytes=0 if rotation == "day" else 12_000) as handler, ExitStack() as stack:
        log(handler, "master")
        for who in ("a", "b", "c"):

            def work(_connection: Connection, who: str = who) -> None:
                _in_threads(handler, who, 3, 40)

            stack.enter_context(Child(work))
        _in_threads(handler, "m", 2, 40)
    expected = [
        text for who in ("a.0", "a.1", "a.2", "b.0", "b.1", "b.2", "c.0", "c.1", "c.2") for text in _texts(who, 40)
    ]
    expected += [text for who in ("m.0", "m.1") for text in _texts(who, 40)]
    assert lines(tmp_path) == once(["master", *expected])
    if rotation == "size":
        assert len(contents(tmp_path)) > 4


@pytest.mark.usefixtures("any_fork")
def test_a_child_that_was_forked_while_another_thread_wrote_can_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That thread holds the handler's lock, and is not there in the child."""
    real, inside, go_on = os.write, threading.Event(), threading.Event()

    def write(fd: int, data: bytes) -> int:
        if threading.current_thread() is thread:
            inside.set()
            assert go_on.wait(LIMIT)
        return real(fd, data)

    with opened(tmp_path) as handler:
        log(handler, "before")
        thread = threading.Thread(target=log, args=(handler, "of the thread"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            thread.start()
            assert inside.wait(LIMIT)
            try:
                with Child(lambda connection: log(handler, "of the child")):
                    pass
            finally:
                go_on.set()
            thread.join(LIMIT)
    assert sorted(contents(tmp_path).values()) == ["before\nof the thread\n", "of the child\n"]


def test_a_child_that_never_logs_does_not_keep_its_parents_file_open(tmp_path: Path) -> None:
    """Else no sidecar could tell that it is finished, as long as the child lives."""
    handler = ReplicaFileHandler(tmp_path)
    log(handler, "before")
    path = handler.path
    assert path is not None

    def work(connection: Connection) -> None:
        connection.send("forked")
        connection.recv()

    with Child(work) as child:
        child.receive()
        handler.close()
        fd = os.open(path, os.O_RDONLY)
        assert lease.query(fd) is lease.Lease.HELD
        os.close(fd)
        child.send("end")


def test_processes_that_come_and_go_use_few_files(tmp_path: Path) -> None:
    """As workers that are replaced after some requests."""
    for number in range(20):
        run_forked(lambda number=number: _log_once(tmp_path, str(number)))
    assert len(contents(tmp_path)) <= 2  # two at midnight
    assert lines(tmp_path) == once([str(number) for number in range(20)])


def _log_once(place: Path, text: str) -> None:
    with opened(place) as handler:
        log(handler, text)


def test_fresh_interpreters_that_start_at_once(tmp_path: Path) -> None:
    """As uvicorn starts its workers."""
    code = (
        "import sys\n"
        "from sharedvol.logs import ReplicaFileHandler\n"
        "from logging import makeLogRecord\n"
        "handler = ReplicaFileHandler(sys.argv[1], max_bytes=500)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for number in range(100):\n"
        "    handler.handle(makeLogRecord({'msg': f'{sys.argv[2]}.{number}', 'levelno': 20}))\n"
    )
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                reaped(
                    subprocess.Popen(
                        [sys.executable, "-c", code, str(tmp_path), str(number)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                    )
                )
            )
            for number in range(3)
        ]
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in started:
            assert process.wait(LIMIT) == 0
    assert lines(tmp_path) == once([f"{who}.{number}" for who in range(3) for number in range(100)])


def test_a_writer_that_is_killed_within_a_record_costs_that_record_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process to start continues its file, on a new line."""
    real = os.write

    def write(fd: int, data: bytes) -> int:
        real(fd, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("lives")

    def work(connection: Connection) -> None:
        with opened(tmp_path) as handler:
            log(handler, "whole")
            connection.send(handler.path)
            connection.recv()
            monkeypatch.setattr(os, "write", write)
            log(handler, "0123456789")

    with opened(tmp_path) as other:
        log(other, "before")
        with Child(work) as child:
            path = child.receive()
            child.send("go")
            assert child.wait() == -signal.SIGKILL
            child.kill()
        log(other, "after")
        with opened(tmp_path) as next_one:
            log(next_one, "continued")
            assert next_one.path == path
    assert sorted(contents(tmp_path).values()) == ["before\nafter\n", "whole\n01234\ncontinued\n"]


def killed_and_restarted(place: Path, make: Callable[[], logging.Handler], rounds: int = 12) -> None:
    """Processes log, are killed at any moment and others take their places: what was acknowledged is there once.

    Raises:
        AssertionError: a record is lost, doubled, cut or mixed with another.
    """
    logs, acknowledged = place / "logs", place / "acknowledged"
    logs.mkdir()
    acknowledged.mkdir()

    def work(connection: Connection, who: str) -> None:
        said = os.open(acknowledged / who, os.O_WRONLY | os.O_CREAT)  # its own: in a shared one, kills mix lines
        handler = make()
        for number in range(1_000_000):
            text = f"<{who}.{number}{'.' * (number % 7 * 800)}>"
            log(handler, text)
            os.write(said, f"{text}\n".encode())
            if number == 30:
                connection.send("at work")

    with ExitStack() as stack:
        running: list[Child] = []
        for number in range(rounds):
            running.append(stack.enter_context(Child(lambda connection, who=str(number): work(connection, who))))
            if len(running) == 3:
                victim = running.pop(0)
                assert victim.receive() == "at work"
                victim.kill()
        for victim in running:
            assert victim.receive() == "at work"
            victim.kill()
    said = {line for path in acknowledged.iterdir() for line in path.read_text().split("\n")[:-1]}
    found = Counter(text for file in contents(logs).values() for text in file.splitlines())
    whole = {text for text in found if text.startswith("<") and text.endswith(">") and text.count("<") == 1}
    assert said <= whole, f"lost: {list(said - whole)[:3]}"
    assert max(found.values()) == 1, f"doubled: {found.most_common(2)}"
    parts = set(found) - whole
    assert len(parts) <= rounds and all(text.count("<") <= 1 for text in parts), f"cut or mixed: {list(parts)[:3]}"
    assert len(whole - said) <= rounds  # written, and killed before it was acknowledged


def test_killed_at_any_moment_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    killed_and_restarted(tmp_path, lambda: ReplicaFileHandler(tmp_path / "logs", max_bytes=20_000))


def test_two_containers_with_one_name_do_not_share_a_file(tmp_path: Path) -> None:
    """With ``hostname:`` in a compose file: nothing tells them apart but the lock."""

    def work(connection: Connection) -> None:
        with opened(tmp_path) as handler:
            log(handler, "one")
            connection.send("logged")
            connection.recv()
            log(handler, "one again")

    with Child(work) as child:
        child.receive()
        run_forked(lambda: _log_once(tmp_path, "other"))
        child.send("continue")
    assert sorted(contents(tmp_path).values()) == ["one\none again\n", "other\n"]


def test_emitting_in_threads_without_end_leaves_no_descriptor_of_old_files(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with opened(tmp_path, max_bytes=100) as handler:
        _in_threads(handler, "t", 4, 50)
        assert handler.path is not None
        assert len(set(os.listdir("/proc/self/fd")) - before) <= 2
    assert len(lines(tmp_path)) == 200
