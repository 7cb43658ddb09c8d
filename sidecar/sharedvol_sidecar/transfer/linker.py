"""Give claimed files their final names, never one that is taken, and take them back by inode."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterable, Iterator

from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.destination.template import Template, alternatives, fit
from sharedvol_sidecar.fs.content import SUFFIXES
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.monitor.liveness import Liveness
from sharedvol_sidecar.spool.layout import LIVE
from sharedvol_sidecar.transfer.catalog_writer import CatalogWriter
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.staging import already_staged, stage

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class Linker:
    """Links claims, or copies of them, into the destination.

    Args:
        destination: where files go.
        template: their names there.
        spool_id: tells this spool from others with the same destination.
        catalog: takes back the row of a final name before that is withdrawn.
        linked: whether spool and destination are one file system, so that copies are the exception.
        floor: bytes that are to stay free in the destination.
        liveness: receives a sign of life while files are copied.
    """

    def __init__(
        self,
        destination: Destination,
        template: Template,
        spool_id: str,
        catalog: CatalogWriter,
        linked: bool,
        floor: int,
        liveness: Liveness,
    ) -> None:
        self._destination, self._template, self._spool_id = destination, template, spool_id
        self._catalog, self._linked, self._floor = catalog, linked, floor
        self._liveness = liveness

    def stage(self, items: list[Item]) -> list[Item]:
        """What can be published: all, or of those that must be copied the ones that were."""
        if not items:
            return items
        copied = [item for item in items if self.is_copied(item)]
        claimed = any(item.candidate.claimed for item in items)
        if not copied and not claimed:
            return items
        staging = self._destination.staging(
            self._spool_id, items[0].slot
        )  # one slot: a batch is our own, or of one claim directory
        ready = {id(item) for item in self._stage(copied, staging)}
        asked = {id(item) for item in copied}
        for item in items:
            if id(item) not in asked:
                # A file that could not be linked may have been copied, and the copy have its final name already.
                if item.candidate.claimed and not item.in_destination:
                    already_staged(item, staging, self.withdraw, self._destination, self._liveness)
                ready.add(id(item))
        return [item for item in items if id(item) in ready]

    def is_copied(self, item: Item) -> bool:
        """Whether a copy of it gets the final name, compressed or as it is; else the file itself."""
        if item.encoding or item.shared:
            return True
        return not (item.in_destination or (self._linked and self._fits(item)))

    def is_as_promised(self, item: Item) -> bool:
        """Whether what has the final name still has the owner and mode that are promised.

        Only the owner of a linked file can have changed that since; a copy was checked when it was made.
        """
        if item.staged is not None or item.in_destination:
            return True
        return self._destination.ownership.fits(item.fd, os.fstat(item.fd))

    def _fits(self, item: Item) -> bool:
        if item.fits is None:
            item.fits = self._destination.ownership.fits(item.fd, item.info)
        return item.fits

    def _stage(self, items: list[Item], staging: Directory) -> list[Item]:
        if not items:
            return []
        return stage(items, staging, self.withdraw, self._destination, self._liveness, self._floor)

    def publish(self, item: Item) -> None:
        """Link a claim, or its copy, to its final name; where that is taken by another file, to another name.

        Raises:
            BlockingIOError: it had to be copied, and its writer came back meanwhile.
            OSError: it cannot have a name.
        """
        directory, name, above = self._target(item)
        if item.candidate.claimed and self._published_before(item, directory, name, above):
            return
        self._withdraw_claim(item, directory, name, above)
        if item.staged is None and not item.in_destination and self._needs_a_copy(item):
            self._copy_instead(item)
        for final in _names(name, item):
            try:
                self.link(item, directory, final)
            except FileExistsError:
                item.kept_both = True
            else:
                item.published, item.target = (directory, final), above + final
                return

    def directory_of(self, item: Item) -> str:
        """The directory of its final name, relative to the destination."""
        return self._name_of(item).rpartition("/")[0]

    def _name_of(self, item: Item) -> str:
        return item.final or (item.template or self._template).target(item.candidate.origin, item.day)

    def _target(self, item: Item) -> tuple[Directory, str, str]:
        """The directory of its final name, that name, and the directory's path with a slash at the end."""
        target = self._name_of(item)
        if item.encoding:
            above, slash, name = target.rpartition("/")
            target = above + slash + fit(name + SUFFIXES[item.encoding])
        if target.endswith(LIVE):  # it would be taken for the copy of a log that is followed
            above, slash, name = target.rpartition("/")
            target = above + slash + fit(f"{name}~")
        directory, name = self._destination.locate(target)
        wanted = target[: len(target) - len(name)]
        above = self._destination.actual(wanted[:-1])
        item.kept_both = item.kept_both or above != wanted[:-1]
        return directory, name, f"{above}/" if above else ""

    def link(self, item: Item, directory: Directory, final: str) -> None:
        """One try: FileExistsError where the name is another file's."""
        place, name = item.source
        try:
            os.link(name, final, src_dir_fd=place.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except OSError as error:
            if _is_one(directory, final, place, name):
                # Linked by an earlier run, or the same file under two names in the spool; or just now,
                # and only the answer was lost.
                return
            if error.errno not in _NO_LINK or item.staged is not None:
                raise
            # A mount below the spool's root, a file of another user (fs.protected_hardlinks,
            # proc_sys_fs(5)), or one with too many links: copy this one.
            self._copy_instead(item)
            self.link(item, directory, final)

    def _needs_a_copy(self, item: Item) -> bool:
        """Whether the mover of a claim was to copy it, as it has other names (`Item.shared`)."""
        return item.candidate.claimed and item.info.st_nlink > 1

    def _copy_instead(self, item: Item) -> None:
        if not self._stage([item], self._destination.staging(self._spool_id, item.slot)):
            if item.problem:
                raise OSError(errno.EFBIG, item.problem)
            raise OSError(errno.EAGAIN, "its writer came back")

    def withdraw(self, item: Item) -> None:
        """Take back what a mover that died had published of a claim that has changed since."""
        if self._published_before(item, *self._target(item)):
            self._catalog.remove(item.target)
        item.withdraw_from_destination()

    def _withdraw_claim(self, item: Item, directory: Directory, name: str, above: str) -> None:
        """Take the final name back from a claim that its mover linked as it was, and that a copy now replaces."""
        if not item.candidate.claimed or item.staged is None or item.in_destination or item.info.st_nlink == 1:
            return
        copy, item.staged = item.staged, None
        try:
            if self._published_before(item, directory, name, above):
                self._catalog.remove(item.target)
                assert item.published is not None
                os.unlink(item.published[1], dir_fd=item.published[0].fd)
                item.published, item.target = None, ""
        finally:
            item.staged = copy

    def hide(self, item: Item) -> None:
        """A claim that a late writer got hold of when its mover died: its final name must not show it growing."""
        with contextlib.suppress(OSError):
            self._destination.begin()
            self.withdraw(item)

    def _published_before(self, item: Item, directory: Directory, name: str, above: str) -> bool:
        """Find the final name that a mover which died had given a claim. Return whether it had given one."""
        known = self._name_in(directory, name, item)
        if known is None and item.source[0].links(item.source[1]) > 1:
            # A directory on the way may have had another name at that time, because a file had its own.
            wanted = self.directory_of(item)
            for other, path in self._destination.existing(wanted):
                if other.key != directory.key and (known := self._name_in(other, name, item)) is not None:
                    directory, above = other, f"{path}/" if path else ""
                    self._destination.touch(other, path)
                    break
        if known is None:
            return False
        item.published, item.target = (directory, known), above + known
        return True

    def _name_in(self, directory: Directory, name: str, item: Item) -> str | None:
        """The name of a claim, or of its copy, in a directory of the destination, found by inode."""
        place, source = item.source
        ours = place.inode(source)
        for final in (name, *alternatives(name, item.info.st_mtime_ns, item.info.st_ino)):
            if directory.inode(final) == ours:
                return final
        if place.links(source) == 1:
            return None
        # Its time, and so its alternative name, may have changed since: a late writer was let in when
        # the mover died. Rare, so a look at the whole directory is cheap enough.
        with os.scandir(directory.fd) as entries:
            for entry in entries:
                if item.in_destination and entry.name == item.candidate.name:
                    continue  # the live copy itself, which is to be removed
                if ours is not None and entry.inode() == ours[1] and directory.inode(entry.name) == ours:
                    return entry.name
        return None


def _is_one(directory: Directory, name: str, other: Directory, other_name: str) -> bool:
    """Whether two names are of one file."""
    with contextlib.suppress(OSError):
        found = directory.inode(name)
        return found is not None and found == other.inode(other_name)
    return False


def _names(name: str, item: Item) -> Iterator[str]:
    """The names to try, without end: its own, those that are a function of the file, then numbered ones."""
    yield name
    others = alternatives(name, item.info.st_mtime_ns, item.info.st_ino)
    yield from others
    for number in itertools.count(2):
        yield fit(others[-1], f"-{number}")


def is_within(path: str, directories: Iterable[str]) -> bool:
    """Return whether a path is one of the directories, or below one."""
    return any(not above or path == above or path.startswith(f"{above}/") for above in directories)
