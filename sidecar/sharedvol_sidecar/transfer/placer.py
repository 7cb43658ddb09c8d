"""Give claimed files their final names, durably, and put back those that cannot have one."""

from __future__ import annotations

import os

from sharedvol.errors import describe
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.errors import DENIED, FULL, OUT_OF_DESCRIPTORS, RAISE_LIMIT, DestinationError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.monitor.liveness import Liveness
from sharedvol_sidecar.transfer.claimer import Claimer
from sharedvol_sidecar.transfer.claims import Claims
from sharedvol_sidecar.transfer.item import Item
from sharedvol_sidecar.transfer.linker import Linker, is_within
from sharedvol_sidecar.transfer.release import OPENED, put_back
from sharedvol_sidecar.transfer.retries import FailedFiles


class Placer:
    """Places claimed files.

    Args:
        destination: where files go.
        claims: the claim directories.
        claimer: learns which directories of the destination take no name.
        linker: gives the final names.
        failed: counts and reports the files that cannot have one.
        events: receives the files that are put back.
        liveness: receives a sign of life for each file.
    """

    def __init__(
        self,
        destination: Destination,
        claims: Claims,
        claimer: Claimer,
        linker: Linker,
        failed: FailedFiles,
        events: Events,
        liveness: Liveness,
    ) -> None:
        self._destination, self._claims, self._claimer, self._linker = destination, claims, claimer, linker
        self._failed, self._events, self._liveness = failed, events, liveness

    def place(self, items: list[Item]) -> list[Item]:
        """Give the claimed files their final names, durably. Put back what cannot have one.

        Raises:
            DestinationError: the destination takes no file now.
        """
        self._destination.begin()
        placed = []
        try:
            for item in self._linker.stage(items):
                self._liveness.beat()
                try:
                    self._linker.publish(item)
                except BlockingIOError:
                    continue  # its writer came back while it was copied
                except OSError as error:
                    self._cannot_publish(item, error)
                else:
                    placed.append(item)
            placed = self._sync_names(placed)
        except OSError as error:
            for item in items:
                put_back(item, self._claims)
            raise DestinationError(
                f"cannot write to {self._destination.root.shown!r}: {describe(error)}; "
                "nothing was lost, the files wait in the spool"
            ) from error
        for item in items:
            if item.published is None or item.problem:
                put_back(item, self._claims)
                if item.problem:
                    self._failed.fail(item, item.problem)
                else:
                    self._events.put_back(item.candidate.path, OPENED)
        return placed

    def _cannot_publish(self, item: Item, error: OSError) -> None:
        """Note the problem of a file, or of one directory of the destination.

        Raises:
            OSError: it is the whole destination that takes no file now.
        """
        if error.errno in OUT_OF_DESCRIPTORS:
            self._claimer.exhausted = True
            item.problem = f"cannot be named: {describe(error)}; {RAISE_LIMIT}"
            return
        self._destination.blame(error)
        directory = self._linker.directory_of(item)
        # A file that may not be linked is copied, and a copy is ours: what is denied is the directory.
        failure = error if error.errno in DENIED else self._destination.failure_in(directory)
        if failure is None:
            item.problem = item.problem or f"cannot be named: {describe(error)}"
            item.no_room = item.no_room or error.errno in FULL
            return
        self._claimer.closed.add(directory)
        item.problem = f"cannot be put into {self._destination.root.shown}/{directory}: {describe(failure)}"
        if failure.errno in DENIED:
            item.denied = directory or "."
            item.problem += f"; give user {os.geteuid()} write permission there"

    def _sync_names(self, placed: list[Item]) -> list[Item]:
        """Make the final names durable. Return the items whose names are; the others get a problem.

        Raises:
            OSError: the destination takes no file now.
        """
        failed = self._destination.sync()
        if not failed:
            return placed
        for error in failed.values():
            self._destination.blame(error)
        durable = []
        for item in placed:
            path = item.target.rpartition("/")[0]
            if is_within(path, failed):
                error = next(error for above, error in failed.items() if is_within(path, [above]))
                item.problem = f"its name cannot be written to the disk: {describe(error)}"
            else:
                durable.append(item)
        return durable
