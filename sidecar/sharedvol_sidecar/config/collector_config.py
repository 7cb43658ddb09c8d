"""What to collect, and how: in plain values, that a helper process gets as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from sharedvol_sidecar.destination.template import DEFAULT


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """What to collect, and how; the settings in plain values.

    Attributes:
        spool: the directory that the replicas write below.
        collected: the directory that files go to.
        template: their names there.
        quiet: the quiet time, in seconds.
        kinds: the names of the sources' directories.
        pattern: how a flat directory's file names tell the container, or None for the known forms.
        workers: processes that work on a backlog, at most.
        follow: the kinds whose files are followed while they are open.
        seal_after: where no lease can be had, seconds without a change after which a log is finished.
        compress: what finished logs are compressed by: ``gzip``, ``zstd`` or empty.
        catalog: its URL; empty for the one beside the destination, None for none.
        digests: whether to take every file's digest.
        uid, gid, file_mode, directory_mode: whose collected files are; None as they were.
        min_free: bytes that copies leave free in the destination.
        rate: bytes a second that are moved at most; 0 is no limit.
        orphans: whether the empty directories of dead containers are removed.
    """

    spool: str
    collected: str
    template: str = DEFAULT
    quiet: float = 2.0
    kinds: tuple[str, ...] = ("results", "logs")
    pattern: str | None = None
    workers: int = 2
    follow: tuple[str, ...] = ("logs",)
    seal_after: float = 60.0
    compress: str = ""
    catalog: str | None = ""
    digests: bool = True
    uid: int | None = None
    gid: int | None = None
    file_mode: int | None = None
    directory_mode: int | None = None
    min_free: int = 0
    rate: float = 0.0
    orphans: bool = True
