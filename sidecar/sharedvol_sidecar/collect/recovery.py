"""Finish what movers that died had claimed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from sharedvol_sidecar.collect.wiring import Parts
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.spares import is_spare
from sharedvol_sidecar.spool.scanner import Scanner
from sharedvol_sidecar.transfer.claims import day_of_batch
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.staging import purge


class Recovery:
    """Moves the files that dead movers had claimed.

    Args:
        parts: the collector's parts.
        events: counts and reports what happens.
    """

    def __init__(self, parts: Parts, events: Events) -> None:
        self._parts, self._events = parts, events

    def run(self) -> None:
        """Finish the claims of every slot that no living mover holds."""
        with contextlib.closing(self._parts.claims.left_behind()) as left_behind:
            for slot, root in left_behind:
                # The mover that died may have begun to follow logs since this pass began.
                self._parts.follower.refresh()
                if not self._recover_slot(slot, root):
                    return  # published files wait for their rows, and checking each again would change nothing

    def _recover_slot(self, slot: str, root: Directory) -> bool:
        """Finish what a mover of a slot had claimed. Return False if the catalog takes no rows now."""
        parts = self._parts
        for name in os.listdir(root.fd):
            if is_spare(name):
                continue
            try:
                directory = root.open(name)
            except NotADirectoryError:
                continue  # nothing of ours
            batch = parts.new_batch()
            for item in self._left_in(directory, f"{slot}/{name}"):
                batch.add(item)
                if batch.full:
                    parts.mover.move(batch.items)
                    batch = parts.new_batch()
            if batch.items:
                parts.mover.move(batch.items)
            if parts.catalog.resting:
                return False
        if parts.claims.tidy(root):
            purge(parts.destination.staging(parts.spool_id, slot))  # a slot without claims needs none of its copies
        return True

    def _left_in(self, directory: Directory, path: str) -> Iterator[Item]:
        """Yield the claims in a claim directory that can be finished, by the settings that made them."""
        parts = self._parts
        day, naming = day_of_batch(path), parts.namings.of_batch(path)
        for candidate in Scanner(parts.spool, naming.layout, self._events).claimed(directory):
            item = parts.admission.admit(candidate, f"{path}/{candidate.path}", day)
            if item is None:
                continue
            if naming is not parts.namings.own:
                item.template, item.encoding = naming.names, naming.logs.encoding_of(item)
            if not parts.ended.discard(item) and (
                not item.followed
                # Its live copy is touched, for which a log has one sidecar at a time.
                or (parts.locks.acquire(candidate.path.partition("/")[0]) and parts.follower.is_as_it_was(item))
            ):
                yield item
            else:
                item.close()
