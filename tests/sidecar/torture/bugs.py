"""Bugs to plant in a mover: what each does is a way to lose data that the harness must find."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

import sharedvol_sidecar.staging as staging
from sharedvol_sidecar.claims import Claims
from sharedvol_sidecar.destination import Destination
from sharedvol_sidecar.directories import Directory
from sharedvol_sidecar.errors import DestinationError
from sharedvol_sidecar.items import Item
from sharedvol_sidecar.mover import Mover
from sharedvol_sidecar.publisher import Publisher
from sharedvol_sidecar.report import Tally
from sharedvol_sidecar.scan import Candidate


def overwrite() -> None:
    """The final name is given by rename, over what is there."""

    def link(self: Publisher, item: Item, directory: Directory, final: str) -> None:
        place, name = item.source
        os.link(name, f".{final}.new", src_dir_fd=place.fd, dst_dir_fd=directory.fd)
        os.replace(f".{final}.new", final, src_dir_fd=directory.fd, dst_dir_fd=directory.fd)

    Publisher.link = link  # type: ignore


def no_claim() -> None:
    """Files are taken from where they lie, so whoever comes after a death does not know how far it got."""

    def claim(self: Mover, item: Item, batch: Any, tally: Tally) -> bool:
        item.claim = item.candidate.directory
        item.claim_path = f"{self._claims.slot}/{batch.name}/{item.candidate.path}"
        return True

    Mover._claim = claim  # type: ignore


def claims_of_the_living() -> None:
    """Claims are taken over though their mover lives."""

    def left_behind(self: Claims) -> Iterator[tuple[str, Directory]]:
        for slot in sorted(os.listdir(self._root.fd)):
            yield slot, self._root.open(slot)

    Claims.left_behind = left_behind  # type: ignore


def forgets_copies() -> None:
    """The one that recovers makes every copy anew, whatever name the first has by now."""

    def already_staged(item: Item, directory: Directory, withdraw: object) -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(item.staging_name, dir_fd=directory.fd)
        return False

    staging.already_staged = already_staged


def unlink_first() -> None:
    """The source goes before the copy has a name."""

    def place(self: Mover, items: list[Item], tally: Tally) -> list[Item]:
        for item in items:
            directory, name = _target(self, item)
            content = os.pread(item.fd, 1000, 0)
            assert item.claim is not None
            os.unlink(item.candidate.name, dir_fd=item.claim.fd)
            _write(directory, f".{name}", content)
            os.rename(f".{name}", _unique(name, item), src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
        return items

    Mover._place = place  # type: ignore


def name_before_content() -> None:
    """The copy is written under its final name."""

    def place(self: Mover, items: list[Item], tally: Tally) -> list[Item]:
        for item in items:
            directory, name = _target(self, item)
            _write(directory, _unique(name, item), os.pread(item.fd, 1000, 0))
        return items

    Mover._place = place  # type: ignore


def no_sync_of_content() -> None:
    """Files get their names before their contents are on the disk."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            real(fd)

    os.fsync = fsync  # type: ignore


def no_sync_of_directories() -> None:
    """Nobody waits until names are on the disk."""
    Directory.sync = lambda self: None  # type: ignore


def unlink_before_durable() -> None:
    """The source goes before the destination's names are on the disk."""
    Destination.sync = lambda self: None  # type: ignore


def full_disk_ends_the_copy() -> None:
    """A copy that does not fit is taken for whole."""
    real = os.sendfile

    def sendfile(*args: Any) -> int:
        with contextlib.suppress(OSError):
            return real(*args)
        return 0

    os.sendfile = sendfile
    copy = staging._copy

    def all_is_well(item: Item, fd: int) -> bool:
        copy(item, fd)
        return True

    staging._copy = all_is_well


def failure_not_told() -> None:
    """A destination that takes nothing is passed over in silence."""
    move = Mover.move

    def silent(self: Mover, items: Sequence[Item], tally: Tally) -> None:
        with contextlib.suppress(DestinationError):
            move(self, items, tally)

    Mover.move = silent  # type: ignore


def failure_not_caught() -> None:
    """A failure ends in an exception of another kind than those that are foreseen."""

    def cannot_claim(self: Mover, candidate: Candidate, error: OSError, tally: Tally) -> None:
        raise KeyError(candidate.path)

    Mover._cannot_claim = cannot_claim  # type: ignore


def _target(mover: Mover, item: Item) -> tuple[Directory, str]:
    return mover._destination.locate(mover._publisher._template.target(item.candidate.origin, item.info.st_mtime_ns))


def _unique(name: str, item: Item) -> str:
    return f"{name}-{item.info.st_ino}"


def _write(directory: Directory, name: str, content: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=directory.fd)
    for start in range(0, len(content), 16):
        os.write(fd, content[start : start + 16])
        os.fsync(fd)
    os.close(fd)
