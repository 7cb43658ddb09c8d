"""Give claimed files their final names, never one that is taken, and take them back by inode."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator

from sharedvol_sidecar.destination import Destination
from sharedvol_sidecar.directories import Directory
from sharedvol_sidecar.items import Item
from sharedvol_sidecar.staging import already_staged, stage
from sharedvol_sidecar.template import Template, alternatives, fit

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP})


class Publisher:
    """Links claims, or copies of them, into the destination.

    Args:
        destination: where files go.
        template: their names there.
        staging: gives the directory for the copies of a slot's claims.
        linked: whether spool and destination are one file system, so that copies are the exception.
    """

    def __init__(
        self, destination: Destination, template: Template, staging: Callable[[str], Directory], linked: bool
    ) -> None:
        self._destination, self._template = destination, template
        self._staging, self._linked = staging, linked

    def stage(self, items: list[Item]) -> list[Item]:
        """What can be published: all, or of those that must be copied the ones that were."""
        claimed = next((item for item in items if item.candidate.claimed), None)
        if not items or (self._linked and claimed is None):
            return items
        staging = self._staging(items[0].slot)  # one slot: a batch is our own, or of one claim directory
        if not self._linked:
            return stage(items, staging, self.withdraw)
        for item in items:
            # A file that could not be linked may have been copied, and the copy have its final name already.
            already_staged(item, staging, self.withdraw)
        return items

    def publish(self, item: Item) -> None:
        """Link a claim, or its copy, to its final name; where that is taken by another file, to another name.

        Raises:
            BlockingIOError: it had to be copied, and its writer came back meanwhile.
            OSError: it cannot have a name.
        """
        directory, name = self._destination.locate(self._template.target(item.candidate.origin, item.info.st_mtime_ns))
        if item.candidate.claimed:
            known = self._published_before(item, directory, name)
            if known is not None:
                item.published = directory, known
                return
        for final in _names(name, item):
            try:
                self.link(item, directory, final)
            except FileExistsError:
                item.kept_both = True
            else:
                item.published = directory, final
                return

    def link(self, item: Item, directory: Directory, final: str) -> None:
        """One try: FileExistsError where the name is another file's."""
        place, name = item.source
        try:
            os.link(name, final, src_dir_fd=place.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EEXIST and directory.inode(final) == place.inode(name):
                return  # linked by an earlier run, or the same file under two names in the spool
            if error.errno not in _NO_LINK or item.staged is not None:
                raise
            # A mount below the spool's root, a file of another user (fs.protected_hardlinks,
            # proc_sys_fs(5)), or one with too many links: copy this one.
            if not stage([item], self._staging(item.slot), self.withdraw):
                raise OSError(errno.EAGAIN, "its writer came back") from error
            self.link(item, directory, final)

    def withdraw(self, item: Item) -> None:
        """Take back what a mover that died had published of a claim that has changed since."""
        directory, name = self._destination.locate(self._template.target(item.candidate.origin, item.info.st_mtime_ns))
        known = self._published_before(item, directory, name)
        if known is not None:
            item.published = directory, known
        item.withdraw_from_destination()

    def hide(self, item: Item) -> None:
        """A claim that a late writer got hold of when its mover died: its final name must not show it growing."""
        with contextlib.suppress(OSError):
            self._destination.begin()
            self.withdraw(item)

    def _published_before(self, item: Item, directory: Directory, name: str) -> str | None:
        """The final name that a mover which died had given a claim, found by inode."""
        place, source = item.source
        ours = place.inode(source)
        for final in (name, *alternatives(name, item.info.st_mtime_ns, item.info.st_ino)):
            if directory.inode(final) == ours:
                return final
        if os.stat(source, dir_fd=place.fd, follow_symlinks=False).st_nlink == 1:
            return None
        # Its time, and so its alternative name, may have changed since: a late writer was let in when
        # the mover died. Rare, so a look at the whole directory is cheap enough.
        with os.scandir(directory.fd) as entries:
            for entry in entries:
                if ours is not None and entry.inode() == ours[1] and directory.inode(entry.name) == ours:
                    return entry.name
        return None


def _names(name: str, item: Item) -> Iterator[str]:
    """The names to try, without end: its own, those that are a function of the file, then numbered ones."""
    yield name
    others = alternatives(name, item.info.st_mtime_ns, item.info.st_ino)
    yield from others
    for number in itertools.count(2):
        yield fit(others[-1], f"-{number}")
