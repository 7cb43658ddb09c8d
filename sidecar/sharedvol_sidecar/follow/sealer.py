"""Give live copies their final names, or take these back from logs that change again."""

from __future__ import annotations

import os

from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.follow.ended import EndedLogs
from sharedvol_sidecar.follow.live_copies import LiveCopies
from sharedvol_sidecar.follow.live_names import claim_path, name_of
from sharedvol_sidecar.follow.seals import parse
from sharedvol_sidecar.follow.store import FollowedLog
from sharedvol_sidecar.fs.content import encoding_of
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.container_locks import ContainerLocks
from sharedvol_sidecar.spool.scanner import Candidate
from sharedvol_sidecar.transfer.admission import Logs
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker
from sharedvol_sidecar.transfer.mover import Mover


class Sealer:
    """Seals live copies: they get their final names, and are not written any more.

    Args:
        copies: the live copies.
        destination: where they are.
        locks: the locks on the containers.
        ended: remembers logs that were sealed and still exist.
        mover: moves the copies to their final names.
        linker: takes final names back.
        logs: how logs are compressed.
    """

    def __init__(
        self,
        copies: LiveCopies,
        destination: Destination,
        locks: ContainerLocks,
        ended: EndedLogs,
        mover: Mover,
        linker: Linker,
        logs: Logs,
    ) -> None:
        self._copies, self._destination, self._locks = copies, destination, locks
        self._ended, self._mover, self._linker, self._logs = ended, mover, linker, logs
        self._records, self._seals = copies.records, copies.seals

    def seal(self, log: FollowedLog, *, ended: bool = False) -> bool:
        """Give a live copy its final name, and write the note first. Return whether it has the name and the row."""
        if not self._copies.has_copy(log):
            return True
        self._seals.begin(log, ended)
        return self._name(log, remember=ended and not self._copies.is_deleted(log))

    def _name(self, log: FollowedLog, *, remember: bool) -> bool:
        """Give a live copy its final name, and remember that if the log may come back. Return whether it has it."""
        item = self._item_of(log)
        if item is None:
            return True
        if remember:
            item.ended = log.id
        item.encoding = self._logs.encoding_of(item)
        self._settle_encoding(item)
        self._mover.move([item])
        return item.done

    def reopen(self, log: FollowedLog) -> FollowedLog | None:
        """Follow a log again that a sidecar had begun to end. Return None if its copy has only the final name now."""
        item = self._item_of(log)
        if item is None:
            self._copies.drop(log.id)
            return None
        try:
            item.encoding = self._logs.encoding_of(item)
            self._withdraw(item)
        finally:
            item.close()
        self._ended.forget(log.id)
        self._seals.remove(log)
        return log

    def finish_all(self) -> None:
        """Give their final names to the copies of earlier generations that could not have them before."""
        self._records.refresh()
        for id, generation in parse(self._records.seals):
            seal = self._seals.read(id, generation)
            if seal is None:
                continue
            with self._locks.holding(seal.state.unit, wait=False) as mine, self._copies.guarded(seal.state.source):
                if mine:
                    self._finish_seal(id, generation)

    def _finish_seal(self, id: str, generation: int) -> None:
        known = self._records.logs.get(id)
        current = self._records.current(known) if known is not None else None
        seal = self._seals.read(id, generation)
        if seal is None or not self._locks.holds(seal.state.unit):
            return
        if current is not None and current.state.generation == generation:
            return  # that is left to the steps for the log itself
        log = FollowedLog.of(id, seal.state)
        try:
            if self._name(log, remember=seal.ended):
                self._copies.end_seal(log)
        finally:
            log.close()

    def _item_of(self, log: FollowedLog) -> Item | None:
        """Return the live copy as an item that can be moved to its final name; None where nothing was copied.

        Raises:
            OSError: the destination fails.
        """
        if not self._copies.open_live(log, create=False):
            return None
        assert log.directory is not None
        name = name_of(log)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=log.directory.fd)
        candidate = Candidate(log.directory, name, log.state.source, log.state.origin, claimed=True)
        item = Item(candidate, fd, os.fstat(fd), leased=False)
        item.claim = log.directory
        item.claim_path = claim_path(log)
        item.day = log.state.day
        item.in_destination = True
        item.final = self._copies.names.final(log)
        return item

    def _settle_encoding(self, item: Item) -> Directory | None:
        """Keep the encoding that a sidecar which died had begun with: its final name is found by that.

        Args:
            item: a live copy, with the encoding that this sidecar's settings give it.

        Returns:
            The place of its copy that has, or gets, the final name; None without such a copy.
        """
        staging = self._copies.staging()
        try:
            fd = os.open(item.staging_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=staging.fd)
        except FileNotFoundError:
            if item.info.st_nlink > 1:
                item.encoding = ""  # it has its final name, as it is
            return None
        try:
            item.encoding = encoding_of(fd) or item.encoding
        finally:
            os.close(fd)
        return staging

    def _withdraw(self, item: Item) -> None:
        """Take back the final name that a live copy may have, durably: its log has changed, and is followed again.

        Args:
            item: the live copy, with the encoding that this sidecar's settings give it.

        Raises:
            OSError: the destination fails; the copy must not be written then.
        """
        item.staged = self._settle_encoding(item)
        self._destination.begin()
        self._linker.withdraw(item)
        for error in self._destination.sync().values():
            raise error
