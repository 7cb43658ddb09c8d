"""The queries of a MariaDB or MySQL server, read from its general log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

# MySQL:   "2026-01-31T10:20:30.123456Z\t    8 Query\tselect 1"
# MariaDB: "260131 10:20:30\t     8 Query\tselect 1", and "\t\t     8 Query\t..." for more in the same second.
# A text spans several lines. A line of it that looks like a head counts as one.
_HEAD = re.compile(
    rb"^(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(?:Z|[+-]\d\d:\d\d)\t|\d{6} [ \d]\d:\d\d:\d\d\t|\t\t)"
    rb" *(?P<connection>\d+) (?P<command>[A-Z][A-Za-z ]*)\t",
    re.MULTILINE,
)


class Entry(NamedTuple):
    """One command that the server received."""

    connection: int
    """As ``CONNECTION_ID()`` and ``Connection.thread_id()`` say it."""
    command: str
    """``Query``, ``Connect``, ``Quit``, ``Ping``, ``Init DB`` and so on."""
    text: str
    """The statement as it was sent, of one line or many; but servers trim blanks and semicolons at either end, and
    leave out passwords."""


class GeneralLog:
    """The general log of a server since `Server.log` turned it on."""

    def __init__(self, path: Path, own_connection: int) -> None:
        self.path = path
        self._own = own_connection

    def entries(self, connection: int | None = None) -> list[Entry]:
        """What was logged until now, in order: by ``connection``, or by all but the one that turned the log on."""
        return [
            entry
            for entry in parse(self.path.read_bytes())
            if (entry.connection != self._own if connection is None else entry.connection == connection)
        ]

    def statements(self, connection: int | None = None) -> list[str]:
        """The texts of the entries that are a ``Query``."""
        return [entry.text for entry in self.entries(connection) if entry.command == "Query"]


def parse(data: bytes) -> list[Entry]:
    """The entries of a general log; the three lines that a server writes when it opens the file are left out."""
    heads = list(_HEAD.finditer(data))
    ends = [head.start() for head in heads[1:]] + [len(data)]
    return [
        Entry(
            int(head["connection"]),
            head["command"].decode(),
            data[head.end() : end].removesuffix(b"\n").decode(errors="surrogateescape"),
        )
        for head, end in zip(heads, ends, strict=True)
    ]
