"""What a replica does: it writes files of every kind, and records each before it begins and when it is done."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from multiprocessing.connection import Connection
from pathlib import Path

from sharedvol import publish
from support.members import joined
from support.processes import Child
from support.sidecar.volume import Volume


class Replica:
    """One life of one replica.

    Args:
        spool: where it writes, in a container directory and in flat ones.
        records: where it records.
        name: of its container, the same in each life.
        life: its number, so that no life repeats what another wrote.
    """

    def __init__(self, spool: Path, records: Path, name: str, life: int) -> None:
        self._name, self._prefix = name, f"{name}.{life}"
        self._results, self._logs = spool / name / "results", spool / name / "logs"
        self._flat = spool / "results"
        for directory in (self._results, self._logs, self._flat):
            directory.mkdir(parents=True, exist_ok=True)
        self._record = os.open(records / self._prefix, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._random = random.Random(f"{name}-{life}")
        self._handler = _Handler(self._logs / f"rotated-{name}.log", maxBytes=400, backupCount=10_000)

    def run(self, connection: Connection) -> None:
        """Until it is told to stop, or killed."""
        kinds = [self._publish, self._slowly, self._append, self._append, self._rename, self._rotate, self._reuse]
        number = 0
        while not connection.poll():
            number += 1
            unique = f"{self._prefix}.{number}"
            os.write(self._record, f"begun {unique}\n".encode())
            if self._random.choice(kinds)(unique):
                os.write(self._record, f"done {unique}\n".encode())

    def _publish(self, unique: str) -> bool:
        with publish(self._flat / f"job-{unique}_{self._name}.json") as file:
            json.dump(_result(unique), file)
        return True

    def _slowly(self, unique: str) -> bool:
        with open(self._results / f"slow-{unique}.json", "w") as file:
            for part in json.JSONEncoder().iterencode(_result(unique)):
                file.write(part)
                file.flush()
        return True

    def _append(self, unique: str) -> bool:
        with open(self._logs / "appended.log", "a") as file:
            file.write(f"{unique}\n")
        return True

    def _rename(self, unique: str) -> bool:
        temporary = self._results / f".{unique}.part"
        temporary.write_text(json.dumps(_result(unique)))
        temporary.rename(self._results / f"renamed-{unique}.json")
        return True

    def _rotate(self, unique: str) -> bool:
        self._handler.failed = False
        self._handler.emit(logging.LogRecord("x", logging.INFO, "", 0, unique, (), None))
        return not self._handler.failed

    def _reuse(self, unique: str) -> bool:
        """The same name again and again, as soon as it is free."""
        with contextlib.suppress(FileExistsError), open(self._results / "reused.json", "x") as file:
            json.dump(_result(unique), file)
            return True
        return False


class _Handler(RotatingFileHandler):
    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        # A backup that was collected between its check and its rename: the line was not written.
        self.failed = True


def _result(unique: str) -> dict[str, object]:
    return {"id": unique, "values": list(range(40))}


def read_records(records: Path) -> tuple[set[str], set[str]]:
    """What was begun, and what was done."""
    begun, done = set(), set()
    for path in records.iterdir():
        for line in path.read_text().splitlines():
            word, unique = line.split(" ")
            (done if word == "done" else begun).add(unique)
    return begun, done


def read_collected(files: dict[str, str]) -> tuple[Counter[str], set[str]]:
    """How often each result and line is there, and which results are only a part."""
    whole: Counter[str] = Counter()
    parts: set[str] = set()
    for path, text in files.items():
        if ".log" in path:
            whole.update(_lines(text))
            continue
        try:
            result = json.loads(text)
            assert result == _result(result["id"]), path
            whole[result["id"]] += 1
        except ValueError:
            found = re.match(r'\{"id": "([^"]*)"', text)
            parts.add(found[1] if found else "")
    return whole, parts


def _lines(text: str) -> Iterator[str]:
    assert text == "" or text.endswith("\n"), "half a line"
    yield from text.splitlines()


def dead(volume: Volume, name: str = "c1") -> None:
    """A container of that name joined, and died."""
    with Child(joined(volume.spool, name)) as child:
        child.receive()
        child.kill()
