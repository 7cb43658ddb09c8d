"""One replica of the demo: typical writers, and a record of what they wrote.

Run as ``python -m sharedvol_sidecar.demo.replica SPOOL RECORDS STOP [HOSTNAME]``. The host name is set if the process
has its own UTS namespace. Each file or line is recorded outside the spool after it is complete. The verdict compares
these records with the destination.
"""

from __future__ import annotations

import hashlib
import json
import logging
import logging.handlers
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sharedvol import AlreadyPublishedError, container_id, container_path, publish, unique_path, worker_token

JSON_DUMP = "json.dump to an open file"
PUBLISH = "publish, one name for all workers"
RENAME = "rename into place, R's names"
ROTATING = "RotatingFileHandler (lines)"
SHELL = "a shell's >> (lines)"

WORKERS = 2

_SHELL_LOOP = """
i=0
while [ ! -e "$STOP" ]; do
    i=$((i + 1))
    echo "$ID-$i" >> "$LOG" && echo "$ID-$i" >> "$RECORD"
    sleep 0.01
done
"""


class Record:
    """The record of what one writer wrote.

    Args:
        directory: the directory of the records.
        writer: its title in the table.
        lines: it writes lines instead of files.
    """

    def __init__(self, directory: Path, writer: str, *, lines: bool) -> None:
        name = hashlib.sha256(writer.encode()).hexdigest()[:8]
        self.path = directory / f"{name}-{container_id()}-{worker_token()}{'.lines' if lines else '.files'}"
        (directory / f"{name}.title").write_text(writer)
        self._file = self.path.open("a", buffering=1)

    def add(self, entry: str) -> None:
        """Add a line, or a file's digest and name, and flush it."""
        self._file.write(entry + "\n")


def _result(number: int) -> dict[str, Any]:
    """Return a result that differs from every other."""
    return {"container": container_id(), "worker": worker_token(), "number": number, "values": list(range(200))}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def dump_results(home: Path, spool: Path, records: Path, stopped: Callable[[], bool]) -> None:
    """Write each result under its own name, piece by piece to an open file."""
    record = Record(records, JSON_DUMP, lines=False)
    number = 0
    while not stopped():
        number += 1
        path = unique_path(home / "results", "job.json")
        text = json.dumps(_result(number))
        with path.open("w") as file:
            file.write(text[:100])
            file.flush()
            # Sometimes longer than the quiet time, so that only the open file shows that it is not finished.
            time.sleep(0.8 if number % 40 == 1 else 0.005)
            file.write(text[100:])
        record.add(f"{_digest(text)} {path.name}")


def publish_results(home: Path, spool: Path, records: Path, stopped: Callable[[], bool]) -> None:
    """Publish under one name in all workers, again as soon as the last file was collected."""
    record = Record(records, PUBLISH, lines=False)
    number = 0
    while not stopped():
        number += 1
        text = json.dumps(_result(-number))
        while not stopped():
            try:
                with publish(home / "results" / "summary.json") as file:
                    file.write(text)
            except AlreadyPublishedError:
                time.sleep(0.002)
            else:
                record.add(f"{_digest(text)} summary.json")
                break


def rename_results(home: Path, spool: Path, records: Path, stopped: Callable[[], bool]) -> None:
    """Write to the flat directory that all replicas share, under R's names, and rename into place."""
    record = Record(records, RENAME, lines=False)
    number = 0
    while not stopped():
        number += 1
        path = container_path(spool / "results", f"job_{number}.json")
        text = json.dumps(_result(number))
        hidden = path.with_name(f".{path.name}")
        hidden.write_text(text)
        hidden.rename(path)
        record.add(f"{_digest(text)} {path.name}")
        time.sleep(0.01)


def rotate_logs(home: Path, spool: Path, records: Path, stopped: Callable[[], bool]) -> None:
    """Log with the standard library's rotating handler, which keeps enough files until they are collected."""
    record = Record(records, ROTATING, lines=True)
    failed: list[logging.LogRecord] = []
    handler = logging.handlers.RotatingFileHandler(home / "logs" / "app.log", maxBytes=8_000, backupCount=500)
    # The handler checks that a rotated file exists and then renames it. If the file was collected in between, the
    # handler drops the log record. Such a record was never written, so it is not added to ours.
    handler.handleError = failed.append  # type: ignore[assignment, method-assign]
    number = 0
    while not stopped():
        number += 1
        line = f"{container_id()}-app-{number}"
        failed.clear()
        handler.emit(logging.LogRecord("app", logging.INFO, "", 0, line, None, None))
        if not failed:
            record.add(line)
        time.sleep(0.002)
    handler.close()


def shell_log(home: Path, spool: Path, records: Path, stop: Path) -> subprocess.Popen[bytes]:
    """Start a shell that opens and closes the log for every line."""
    record = Record(records, SHELL, lines=True)
    name = f"{container_id()}-shell"
    log = home / "logs" / "shell.log"
    return subprocess.Popen(
        ["sh", "-c", _SHELL_LOOP],
        env={**os.environ, "STOP": str(stop), "ID": name, "LOG": str(log), "RECORD": str(record.path)},
    )


def main() -> int:
    """Write until the stop file appears."""
    if len(sys.argv) > 4:
        socket.sethostname(sys.argv[4])
    spool, records, stop = (Path(argument) for argument in sys.argv[1:4])
    home = spool / container_id()
    (home / "results").mkdir(parents=True)
    (home / "logs").mkdir()
    children = []
    for writer in (*[dump_results, publish_results] * WORKERS, rename_results, rotate_logs):
        child = os.fork()
        if child == 0:
            writer(home, spool, records, stop.exists)
            os._exit(0)
        children.append(child)
    shell = shell_log(home, spool, records, stop)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    codes.append(shell.wait())
    return max(abs(code) for code in codes)


if __name__ == "__main__":
    sys.exit(main())
