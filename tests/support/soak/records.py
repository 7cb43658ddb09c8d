"""Records with unique ids, and what their writers acknowledged about them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BEGUN, DONE = "b", "d"
LARGE = 300_000


def content(id: str) -> bytes:
    """The whole of a result."""
    number = zlib.crc32(id.encode())
    size = LARGE if number % 211 == 0 else 100 + number % 3000
    return json.dumps({"id": id, "fill": f"{number:08x}" * (size // 8)}).encode()


def line(id: str) -> bytes:
    """The whole of a log record."""
    number = zlib.crc32(id.encode())
    return f"{id} {'.' * (number % 160)}{number:08x}\n".encode()


@dataclass
class Account:
    """What one life of one writer says about its records.

    Attributes:
        kind: what kind of writer.
        begun: ids of the records that it began.
        done: ids of the records that it acknowledged.
    """

    kind: str
    begun: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)


class Acknowledgements:
    """The file, outside the volume, in which one life of a writer keeps its account.

    Args:
        directory: where these files are.
        prefix: kind, container and life: the beginning of each id.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self._prefix = prefix
        self._fd = os.open(directory / prefix, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._number = 0

    def begin(self) -> str:
        """The id of the next record."""
        self._number += 1
        self._write(BEGUN)
        return f"{self._prefix}.{self._number}"

    def done(self) -> None:
        """The last record is written as its writer promises it."""
        self._write(DONE)

    def _write(self, word: str) -> None:
        os.write(self._fd, f"{word} {self._number}\n".encode())


def accounts(directory: Path) -> Iterator[Account]:
    """Read them all."""
    for path in sorted(directory.iterdir()):
        account = Account(path.name.partition(".")[0])
        for text in path.read_text().splitlines():
            word, number = text.split()
            id = f"{path.name}.{number}"
            if word == BEGUN:
                account.begun.append(id)
            else:
                account.done.add(id)
        yield account


def progress(directory: Path) -> int:
    """How far all writers got, in bytes of their accounts; it also grows where writing fails."""
    return sum(entry.stat().st_size for entry in os.scandir(directory))
