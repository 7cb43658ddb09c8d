"""Bugs to plant in a mover: what each does is a way to lose data that the harness must find."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

import sharedvol_sidecar.fs.content as contents
import sharedvol_sidecar.transfer.linker as publisher
import sharedvol_sidecar.transfer.staging as staging
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.errors import DestinationError, SpoolError
from sharedvol_sidecar.follow.copier import LogCopier
from sharedvol_sidecar.follow.live_copies import LiveCopies
from sharedvol_sidecar.follow.store import FollowedLog
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.catalog_writer import CatalogWriter
from sharedvol_sidecar.transfer.claimer import Claimer
from sharedvol_sidecar.transfer.claims import Batch, Claims
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker
from sharedvol_sidecar.transfer.mover import Mover
from sharedvol_sidecar.transfer.placer import Placer
from sharedvol_sidecar.transfer.release import ClaimRelease
from sharedvol_sidecar.transfer.retries import FailedFiles


def overwrite() -> None:
    """The final name is given by rename, over what is there."""

    def link(self: Linker, item: Item, directory: Directory, final: str) -> None:
        place, name = item.source
        os.link(name, f".{final}.new", src_dir_fd=place.fd, dst_dir_fd=directory.fd)
        os.replace(f".{final}.new", final, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)

    Linker.link = link  # type: ignore


def no_claim() -> None:
    """Files are taken from where they lie, so whoever comes after a death does not know how far it got."""

    def claim(self: Claimer, item: Item, batch: Batch) -> bool:
        item.claim = item.candidate.directory
        item.claim_path = batch.prefix(item.day) + item.candidate.path
        return True

    Claimer.claim = claim  # type: ignore


def claims_of_the_living() -> None:
    """Claims are taken over though their mover lives."""

    def left_behind(self: Claims) -> Iterator[tuple[str, Directory]]:
        for slot in sorted(os.listdir(self._root.fd)):
            yield slot, self._root.open(slot)

    Claims.left_behind = left_behind  # type: ignore


def forgets_copies() -> None:
    """The one that recovers makes every copy anew, whatever name the first has by now."""

    def already_staged(item: Item, directory: Directory, *others: object) -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(item.staging_name, dir_fd=directory.fd)
        return False

    staging.already_staged = publisher.already_staged = already_staged


def claims_not_synced() -> None:
    """A power cut of the spool alone gives a file its name there back, beside the copy's."""
    staging._sync_claims = lambda items: None


def row_after_the_claim() -> None:
    """The catalog's row is written when the claim is gone: who dies between the two leaves none for ever."""
    add, let_go = CatalogWriter.add, ClaimRelease._remove
    CatalogWriter.add = lambda self, items: True  # type: ignore

    def late(self: ClaimRelease, confirmed: Iterable[Item]) -> None:
        items = list(confirmed)
        let_go(self, items)
        add(self._catalog, items)

    ClaimRelease._remove = late  # type: ignore


def no_row_of_the_recovered() -> None:
    """What a dead mover had claimed gets no row."""
    add = CatalogWriter.add
    CatalogWriter.add = lambda self, items: add(self, [item for item in items if not item.candidate.claimed])  # type: ignore


def row_of_another_name() -> None:
    """The row says the name that was wished for, not the one that was given."""
    add = CatalogWriter.add

    def wished(self: CatalogWriter, items: Sequence[Item]) -> bool:
        for item in items:
            item.target = f"{item.candidate.origin.kind}/{item.candidate.name}"
        return add(self, items)

    CatalogWriter.add = wished  # type: ignore


def row_stays() -> None:
    """A recovered file has another name than the dead mover gave it, whose row stays."""
    publish = Linker.publish

    def anew(self: Linker, item: Item) -> None:
        if item.candidate.claimed and self._published_before(item, *self._target(item)):
            assert item.published is not None
            directory, known = item.published
            os.rename(known, f"{known}-again", src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
            item.published, item.target = (
                (directory, f"{known}-again"),
                f"{item.candidate.origin.kind}/{known}-again",
            )
            return
        publish(self, item)

    Linker.publish = anew  # type: ignore


def live_after_the_claim() -> None:
    """A followed log's live file goes when its claim is gone, so that nobody knows of it any more."""
    let_go = ClaimRelease._remove

    def late(self: ClaimRelease, confirmed: Iterable[Item]) -> None:
        unfollow = LiveCopies.unfollow
        LiveCopies.unfollow = lambda self, item: None  # type: ignore
        items = list(confirmed)
        let_go(self, items)
        LiveCopies.unfollow = unfollow  # type: ignore
        for item in items:
            if item.followed:
                self._follower.unfollow(item)

    ClaimRelease._remove = late  # type: ignore


def live_file_begins_anew() -> None:
    """A mover that finds a live file goes on at its end as if it held nothing."""
    copy = LogCopier.copy
    known: set[str] = set()

    def anew(self: LogCopier, log: FollowedLog, have: int, size: int) -> int:
        if log.id in known:
            return copy(self, log, have, size)
        known.add(log.id)
        os.lseek(log.live, have, os.SEEK_SET)
        return os.sendfile(log.live, log.fd, 0, size)

    LogCopier.copy = anew  # type: ignore
    LogCopier.agrees = lambda self, log, have, fd=-1: True  # type: ignore


def cut_is_not_seen() -> None:
    """Of a log that was cut only the size is looked at."""
    LogCopier.agrees = lambda self, log, have, fd=-1: True  # type: ignore


def unlink_first() -> None:
    """The source goes before the copy has a name."""

    def place(self: Placer, items: list[Item]) -> list[Item]:
        self._destination.begin()
        for item in items:
            directory, name = _named(self, item)
            content = os.pread(item.fd, 1000, 0)
            assert item.claim is not None
            os.unlink(item.candidate.name, dir_fd=item.claim.fd)
            _write(directory, f".{name}", content)
            os.rename(f".{name}", name, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
        return items

    Placer.place = place  # type: ignore


def name_before_content() -> None:
    """The copy is written under its final name."""

    def place(self: Placer, items: list[Item]) -> list[Item]:
        self._destination.begin()
        for item in items:
            directory, name = _named(self, item)
            _write(directory, name, os.pread(item.fd, 1000, 0))
        return items

    Placer.place = place  # type: ignore


def no_sync_of_content() -> None:
    """Files get their names before their contents are on the disk."""
    real = os.fsync

    def fsync(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        ours = "/.sharedvol/" in path and "/staging/" not in path  # such as a volume's id
        if ours or not stat.S_ISREG(os.fstat(fd).st_mode):
            real(fd)

    os.fsync = fsync  # type: ignore


def no_sync_of_directories() -> None:
    """Nobody waits until names are on the disk. A catalog's commit would make them durable by the way."""
    _without_catalog()
    Directory.sync = lambda self: None  # type: ignore


def unlink_before_durable() -> None:
    """The source goes before the destination's names are on the disk, where no catalog's commit sees to that."""
    _without_catalog()
    Destination.sync = lambda self: None  # type: ignore


def full_disk_ends_the_copy() -> None:
    """A copy that does not fit is taken for whole."""
    write_all = contents.write_all

    def as_far_as_it_goes(fd: int, data: bytes) -> None:
        with contextlib.suppress(OSError):
            write_all(fd, data)

    contents.write_all = as_far_as_it_goes


def failure_not_told() -> None:
    """Files that fail, and a destination that takes nothing, are left in silence. A catalog that fails would tell."""
    _without_catalog()
    move = Mover.move

    def silent(self: Mover, items: Sequence[Item]) -> None:
        with contextlib.suppress(DestinationError, SpoolError, OSError):
            move(self, items)

    Mover.move = silent  # type: ignore
    left: set[str] = set()
    FailedFiles.fail = lambda self, item, why: left.add(item.candidate.path)  # type: ignore
    Claimer._cannot_claim = lambda self, candidate, error: left.add(candidate.path)  # type: ignore
    FailedFiles.is_due = lambda self, item: item.candidate.path not in left  # type: ignore


def failure_not_caught() -> None:
    """A failure ends in an exception of another kind than those that are foreseen."""

    def cannot_claim(self: Claimer, candidate: Candidate, error: OSError) -> None:
        raise KeyError(candidate.path)

    Claimer._cannot_claim = cannot_claim  # type: ignore


def _without_catalog() -> None:
    CatalogWriter.add = lambda self, items: True  # type: ignore
    CatalogWriter.prepare = CatalogWriter.remove = lambda *args: None  # type: ignore


def _named(placer: Placer, item: Item) -> tuple[Directory, str]:
    """Where the file goes, under a name that it shares with no other."""
    target = placer._linker._template.target(item.candidate.origin, item.day)
    directory, name = placer._destination.locate(target)
    item.target = f"{target}-{item.info.st_ino}"
    return directory, f"{name}-{item.info.st_ino}"


def _write(directory: Directory, name: str, content: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=directory.fd)
    for start in range(0, len(content), 16):
        os.write(fd, content[start : start + 16])
        os.fsync(fd)
    os.close(fd)
