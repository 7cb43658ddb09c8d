"""The tables of the report: their order, their words, their units, and in which direction a figure is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: with the unit.
        better: whether ``more`` or ``less`` of it is better: the best is printed bold, whoever has it.
    """

    title: str
    better: Literal["more", "less", ""] = ""


@dataclass(frozen=True)
class Table:
    """One table of readings; ``at`` of a reading finds its column."""

    title: str
    columns: Mapping[str, Column]
    row: str = ""
    notes: Literal["", "cell", "list"] = ""
    """Where the notes of readings go: into their cells, or below the table."""


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    words: str
    tables: Mapping[str, Table]
    plots: Mapping[str, str] = field(default_factory=dict)
    """Names of pictures, and what is seen there."""


_CROWD = {
    "rate": Column("turns/s", "more"),
    "p50": Column("median wait, ms", "less"),
    "p99": Column("p99 wait, ms", "less"),
    "worst": Column("longest wait, ms", "less"),
    "even": Column("fewest turns / most", "more"),
}
_BESIDE = {
    "itself": Column("among themselves, %", "less"),
    "fcntl": Column("beside fcntl(2), as R locks, %", "less"),
    "flock": Column("beside flock(2), %", "less"),
}
_SIZES = ("100 B", "1 kB", "10 kB", "100 kB", "1 MB")

SECTIONS = (
    Section(
        "Lost increments",
        "Eight processes add 1 to one number, each under the lock: read, wait 0.2 ms, write. Four take the lock of\n"
        "the row, and four that of the column on the same file. Linux has two families of file locks that do not see\n"
        "each other; R's packages use fcntl, shells use flock. A lock of one family loses the others' increments,\n"
        "and no call fails.",
        {
            "lost": Table("Share of the increments that were lost", _BESIDE, notes="cell"),
            "lost-turns": Table(
                "Share of the turns that the row's four processes had beside four others (50 is even)",
                {"fcntl": Column("beside fcntl(2), %"), "flock": Column("beside flock(2), %")},
            ),
        },
        {"lost": "share of lost increments of each lock among itself, beside fcntl and beside flock"},
    ),
    Section(
        "Locks",
        "Each with its defaults, but for portalocker's time-out (120 s, not 5); the lock object is kept. *Blocking\n"
        "flock* is the bare system call, which waits in the kernel. In the crowds each process holds the lock for 1\n"
        "ms and is then away for 2 ms. A turn that has begun is waited for, and counts; a wait is that of one turn,\n"
        "so that a process which is passed over shows in the longest wait and in fewest turns / most.",
        {
            "alone": Table(
                "Nobody else there: acquire and release", {"rate": Column("acquire + release, per second", "more")}
            ),
            "crowd-2": Table("2 processes", _CROWD),
            "crowd-8": Table("8 processes", _CROWD),
            "crowd-32": Table("32 processes", _CROWD),
            "greedy": Table("8 processes that take the lock again at once", _CROWD),
        },
        {
            "lock-rate": "turns a second of 2, 8 and 32 processes",
            "lock-waits": "median, p99 and longest wait of 8 and 32 processes",
        },
    ),
    Section(
        "Start-up of N replicas",
        "N processes start at once on one empty MariaDB schema and apply the same 20 migrations. One that fails is\n"
        "started again after 0.1 s, then 0.2, 0.4 …, as `restart: on-failure` does; here it is given up after its\n"
        "sixth start. What a start imports is not counted, and nothing uses TLS. *GET_LOCK, fixed name* is the\n"
        "bare scheme that R services use; Alembic runs as `alembic init` makes it, without a lock; yoyo takes its own\n"
        "lock, whose time-out is 10 s. A migration is counted as run when its first statement was executed. Four of\n"
        "them add 1 to a number: *data wrong by* is how far that number is from 4 in the end.",
        {
            f"startup-{count}": Table(
                f"{count} replicas" if count > 1 else "1 replica",
                {
                    "seconds": Column("s until all are ready", "less"),
                    "failed": Column("failed starts", "less"),
                    "twice": Column("migrations run more than once", "less"),
                    "wrong": Column("data wrong by", "less"),
                    "never": Column("replicas never ready", "less"),
                },
                notes="list",
            )
            for count in (1, 4, 16)
        },
        {"startup": "seconds until 1, 4 and 16 replicas are ready, and how many starts failed"},
    ),
    Section(
        "Cache",
        "Hits are reads by one process of values that are there, bytes as they are. Ours reads a file on the volume\n"
        "and checks its digest; diskcache reads SQLite and checks none. In the stampede 32 processes ask for one\n"
        "missing value at once, which takes 1 s to compute.",
        {
            "hits": Table("Hits per second, by size", {size: Column(size, "more") for size in _SIZES}),
            "stampede": Table(
                "Stampede: 32 processes, one missing value",
                {
                    "computations": Column("computations", "less"),
                    "seconds": Column("s until all have it", "less"),
                },
            ),
        },
        {"cache-hits": "hits a second by size of the value"},
    ),
    Section(
        "Log handlers",
        "Records of 100 characters. Four processes of one replica share one configuration, as uvicorn's workers do.\n"
        "Files are full at 1 MB, and no old one is removed. A record is lost when no file has its whole line\n"
        "afterwards.",
        {
            "logs-alone": Table("One process, no rotation", {"rate": Column("records/s", "more")}),
            "logs-together": Table(
                "4 processes", {"rate": Column("records/s, all together", "more"), "lost": Column("lost, %", "less")}
            ),
        },
        {"logs": "records a second of four processes, and how many were lost"},
    ),
    Section(
        "Moving",
        "100,000 files of 1 KiB from one directory to another of one file system. The sidecar's time is that of the\n"
        "whole command, with claim, digest, catalog and everything durable before the source is removed. The bare\n"
        "loop and `mv` only change names, and rsync copies; none of these keeps a record, and a power cut may leave\n"
        "files empty. Where a row says *then sync*, the file system is synced once at the end, and the time counts.",
        {"moving": Table("Files per second", {"rate": Column("files/s", "more")})},
        {"moving": "files moved a second"},
    ),
)
