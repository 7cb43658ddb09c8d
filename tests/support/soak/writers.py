"""One replica with one kind of writer: ``python -m soak.writers PARENT RELEASE KIND SPOOL RECORDS LIFE PAUSE``.

Its container's name is in HOSTNAME. It writes until SIGTERM. A record is acknowledged when its writer's promise holds:
a result when `publish`, rename or close has returned, a log record when write(2) has returned.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sharedvol import (
    AlreadyPublishedError,
    Membership,
    SharedVolError,
    Volume,
    container_id,
    container_path,
    publish,
    unique_path,
)
from sharedvol.logs import ReplicaFileHandler
from support.soak.ending import check_release, end_with
from support.soak.records import Acknowledgements, content, line

_DAY = 86_400


class Writer:
    """One life of one replica.

    Args:
        spool: the volume.
        records: where it acknowledges.
        choose: makes its choices.
    """

    kind = ""

    def __init__(self, spool: Path, records: Acknowledgements, choose: random.Random) -> None:
        self.spool, self.records, self.choose = spool, records, choose
        self.home = spool / container_id()
        self.count = 0
        self.open()

    def open(self) -> None:
        """Before the first record."""
        for name in ("results", "logs"):
            (self.home / name).mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """One record, acknowledged if it is written."""
        raise NotImplementedError

    def close(self) -> None:
        """After the last record."""


class Published(Writer):
    """`publish`, under unique names and under one that comes again as soon as it is free."""

    kind = "published"

    def write(self) -> None:
        self.count += 1
        again = self.count % 3 == 0
        path = self.home / "results" / "summary.json" if again else unique_path(self.home / "results", "job.json")
        if again and path.exists():
            return
        id = self.records.begin()
        with contextlib.suppress(AlreadyPublishedError):
            with publish(path, "wb") as file:
                file.write(content(id))
            self.records.done()


class Renamed(Writer):
    """Write under a hidden name and rename, into the flat directory and under R's names."""

    kind = "renamed"

    def open(self) -> None:
        (self.spool / "results").mkdir(exist_ok=True)

    def write(self) -> None:
        id = self.records.begin()
        target = Path(container_path(self.spool / "results", f"job_{id}.json"))
        hidden = target.with_name(f".{id}.part")
        try:
            hidden.write_bytes(content(id))
            if self.choose.random() < 0.2:  # what keeps the times of its source, as `cp -p` and tar do
                when = time.time() + self.choose.choice([-400, -3, -1, 1, 3]) * _DAY
                os.utime(hidden, (when, when))
            hidden.rename(target)
        except OSError:
            hidden.unlink(missing_ok=True)
            raise
        self.records.done()


class Plain(Writer):
    """Write in parts under the final name, and close: what a shell's ``>`` does."""

    kind = "plain"

    def write(self) -> None:
        id = self.records.begin()
        data = content(id)
        with open(self.home / "results" / f"plain-{id}.json", "xb", buffering=0) as file:
            for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                write_all(file.fileno(), part)
                time.sleep(self.choose.random() * 0.02)
        self.records.done()


class Handler(Writer):
    """`ReplicaFileHandler`, whose files are full soon."""

    kind = "handler"

    def open(self) -> None:
        self.handler = ReplicaFileHandler(self.spool / "{container}" / "logs", max_bytes=20_000)
        self.handler.setFormatter(logging.Formatter("%(message)s"))

    def write(self) -> None:
        text = line(self.records.begin()).decode()[:-1]
        lost = self.handler.lost
        self.handler.handle(logging.LogRecord("soak", logging.INFO, "", 0, text, None, None))
        if self.handler.lost == lost:
            self.records.done()

    def close(self) -> None:
        self.handler.close()


class Appended(Writer):
    """A log that stays open and is rotated by rename; its writer may write into it a little longer."""

    kind = "appended"

    def open(self) -> None:
        super().open()
        self.path = self.home / "logs" / "app.log"
        self.left = 0
        self.log = Log(self.path)

    def write(self) -> None:
        self.log.append(self.records)
        self.left = max(self.left - 1, -1)
        if self.left == 0:
            rotated, self.log = self.log, Log(self.path)
            rotated.close()
        elif self.left < 0 and self.choose.random() < 0.02:
            self.path.rename(self.path.with_name(f"app-{self.choose.getrandbits(40):010x}.log"))
            self.left = self.choose.choice([1, 1, 5])

    def close(self) -> None:
        self.log.close()


class Shell(Writer):
    """A log that is opened and closed for every record: a shell's ``>>``."""

    kind = "shell"

    def write(self) -> None:
        log = Log(self.home / "logs" / "shell.log")
        try:
            log.append(self.records)
        finally:
            log.close()


class Cut(Writer):
    """A log that stays open and is rotated by copy and truncation, with no record written in between."""

    kind = "cut"

    def open(self) -> None:
        super().open()
        self.path = self.home / "logs" / "cut.log"
        self.log = Log(self.path)

    def write(self) -> None:
        self.log.append(self.records)
        if self.choose.random() < 0.02:
            copy = self.path.with_name(f"cut-{self.choose.getrandbits(40):010x}.log")
            hidden = copy.with_name(f".{copy.name}")
            try:
                hidden.write_bytes(self.log.read())
                hidden.rename(copy)
            except OSError:
                hidden.unlink(missing_ok=True)
                raise
            self.log.truncate()

    def close(self) -> None:
        self.log.close()


class Log:
    """A file that records are appended to, each as a line of its own whatever was cut short before it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, records: Acknowledgements) -> None:
        """One record, in one write(2)."""
        id = records.begin()
        if self._torn:
            write_all(self._fd, b"\n")
            self._torn = False
        try:
            write_all(self._fd, line(id))
        except OSError:
            self._torn = True
            raise
        records.done()

    def read(self) -> bytes:
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def truncate(self) -> None:
        os.ftruncate(self._fd, 0)
        self._torn = False

    def close(self) -> None:
        os.close(self._fd)


def write_all(fd: int, data: bytes) -> None:
    """write(2) until all is written, or until it fails."""
    while data:
        data = data[os.write(fd, data) :]


KINDS: dict[str, type[Writer]] = {
    kind.kind: kind for kind in (Published, Renamed, Plain, Handler, Appended, Shell, Cut)
}


def work(make: Callable[[], Writer], pause: float) -> None:
    """Write until SIGTERM. A full disk fails single records, which are not acknowledged."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    writer = None
    while not stopping:
        try:
            writer = writer or make()
            writer.write()
        except (OSError, SharedVolError) as error:
            print(f"{time.monotonic():.3f} {error!r}", file=sys.stderr, flush=True)
            time.sleep(0.05)
        time.sleep(pause)
    if writer is not None:
        writer.close()


def main() -> None:
    parent, release, kind, spool, records, life, pause = sys.argv[1:]
    end_with(int(parent))
    check_release(release)
    name = container_id()
    acknowledgements = Acknowledgements(Path(records), f"{kind}.{name}.{life}")
    choose = random.Random(f"{kind} {name} {life}")
    volume = Volume(spool)
    joined: list[Membership] = []

    def make() -> Writer:
        if not joined:
            joined.append(volume.join(purpose=kind))
        return KINDS[kind](Path(spool), acknowledgements, choose)

    work(make, float(pause))


if __name__ == "__main__":
    main()
