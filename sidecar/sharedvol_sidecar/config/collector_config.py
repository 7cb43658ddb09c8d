"""The configuration of a collector, in plain values that a helper process receives as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from sharedvol_sidecar.destination.template import DEFAULT


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """The checked settings of one collector.

    Attributes:
        spool: the directory that the replicas write below.
        collected: the destination.
        template: the template of the names in the destination.
        quiet: the quiet time, in seconds.
        kinds: the names of the directories that are collected.
        pattern: the pattern of file names in flat directories, or None for the known forms.
        workers: the largest number of processes that work on a backlog.
        follow: the kinds whose files are followed while they are open.
        seal_after: seconds without a change after which a log is finished where leases do not work.
        compress: how finished logs are compressed: ``gzip``, ``zstd`` or empty.
        catalog: its URL; empty for the file in the destination, None for no catalog.
        digests: compute every file's digest.
        uid, gid, file_mode, directory_mode: owner and mode of collected files; None to keep those of the source.
        min_free: bytes that copies leave free in the destination.
        rate: the largest number of bytes moved per second; 0 for no limit.
        orphans: remove the empty directories of dead containers.
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
