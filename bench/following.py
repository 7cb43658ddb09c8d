"""Logs that stay open: what following them costs, and how far it is behind. And what a status page costs."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

from bench.figures import Figure, at_least, at_most, note
from bench.spool import LIMIT, cpu, make, running, until, until_logged, volume

LOGS = 100
RATE = 10_000_000
"""Bytes a second, all logs together."""

_BEAT = 0.02
_LINE = 100
_TICK = 1.0


def following(directory: Path, scale: float) -> Iterator[Figure]:
    """Many logs that one writer keeps open, appending lines to each in turn."""
    spool, collected = volume(directory / "following")
    sources = [spool / f"c{number}" / "logs" / "app.log" for number in range(LOGS)]
    for path in sources:
        path.parent.mkdir(parents=True)
    ours, theirs = multiprocessing.Pipe()
    writer = multiprocessing.get_context("fork").Process(target=_write, args=(sources, theirs))
    writer.start()
    try:
        flags = ("--follow-interval", str(_TICK), "--template", "{kind}/{container}/{name}")
        with running(spool, collected, *flags) as (process, _):
            until(lambda: len(_live(collected)) == LOGS, "the live files of all logs")
            seconds = 12 * scale
            lags, before, size, begun = [], cpu(process.pid), _total(sources), time.monotonic()
            while (left := begun + seconds - time.monotonic()) > 0:
                time.sleep(min(0.1, left))
                lags.append(_total(sources) - _total(_live(collected)))
            took = time.monotonic() - begun
            share, rate = (cpu(process.pid) - before) / took, (_total(sources) - size) / took
            ours.send("stop")  # it writes no more, and keeps the files open
            if not ours.poll(LIMIT):
                raise TimeoutError("the writer did not stop")
            ours.recv()
            until(lambda: _total(sources) == _total(_live(collected)), "the last bytes")
            copies = {path.parent.name: path for path in _live(collected)}
            exact = sum(path.read_bytes() == copies[path.parts[-3]].read_bytes() for path in sources)
    finally:
        writer.kill()
        writer.join()
    what = f"{LOGS} followed logs"
    written = f"{rate / 1e6:.1f} MB/s written, {took:.1f} s"
    yield at_most(f"{what}, {RATE / 1e6:g} MB/s: cores", share, 1.0, written)
    yield at_least(f"{what}: share of the copies that are exact", exact / LOGS, 1, f"{_total(sources) / 1e6:.0f} MB")
    yield note(
        f"{what}: behind at most, in ticks of {_TICK:g} s", max(lags) / rate / _TICK, f"{max(lags) / 1e6:.1f} MB"
    )


def http_cost(directory: Path, scale: float) -> Iterator[Figure]:
    """The page and the metrics of a sidecar that knows 200 containers."""
    containers = max(5, int(200 * scale))
    spool, collected = volume(directory / "http")
    for number in range(containers):
        make(spool / f"c{number}" / "results", 3)
    with running(spool, collected, "--quiet", "0", listen="127.0.0.1:0") as (_, log):
        until_logged(log, 3 * containers)
        started = (json.loads(line) for line in log.read_text().splitlines())
        address = urlsplit(next(line["url"] for line in started if line["event"] == "listening"))
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=LIMIT)
        for path in ("/metrics", "/"):
            times = []
            for _ in range(max(5, int(50 * scale))):
                begun = time.perf_counter()
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
                times.append(time.perf_counter() - begun)
                assert answer.status == 200, body
            detail = f"{len(body) / 1000:.0f} kB, worst {max(times) * 1e3:.1f} ms, {containers} containers"
            yield note(f"HTTP {path}: ms", statistics.median(times) * 1e3, detail, (took * 1e3 for took in times))
        connection.close()


def _write(paths: list[Path], connection: Connection) -> None:
    """Append to each log at each beat, until told to stop; then keep them open until killed."""
    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) for path in paths]
    lines = RATE * _BEAT / LOGS / _LINE
    begun, written, beat = time.monotonic(), 0, 0
    while not connection.poll():
        beat += 1
        count = int(beat * lines) - written
        for number, fd in enumerate(files):
            os.write(fd, b"".join(b"%05d %093d\n" % (number, written + turn) for turn in range(count)))
        written += count
        time.sleep(max(0.0, begun + beat * _BEAT - time.monotonic()))
    connection.recv()
    connection.send("stopped")
    connection.recv()


def _live(collected: Path) -> list[Path]:
    return list(collected.glob("logs/*/*.live"))


def _total(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
