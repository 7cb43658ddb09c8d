"""Keep a log that cannot be followed from stopping the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sharedvol.errors import describe
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.errors import OUT_OF_DESCRIPTORS, DestinationError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.store import FollowedLog


class FollowGuard:
    """Tells the failure of one log from that of the destination.

    Args:
        destination: where the live copies are.
        events: receives the logs that cannot be followed.
    """

    def __init__(self, destination: Destination, events: Events) -> None:
        self._destination, self._events = destination, events

    @contextlib.contextmanager
    def guarded(self, path: str, log: FollowedLog | None = None) -> Iterator[None]:
        """Report a log that cannot be followed, so that it does not stop the others.

        Raises:
            DestinationError: the destination takes nothing now.
        """
        try:
            yield
        except OSError as error:
            failure = self._failure(error)
            if failure is not None:
                kept = "nothing was lost, it stays in the spool"
                if log is not None and log.is_hidden:
                    kept = "it was deleted or moved, so only this process can read the rest of it: keep it running"
                shown = self._destination.root.shown
                message = f"cannot follow {path!r} into {shown!r}: {describe(failure)}; {kept}"
                raise DestinationError(message) from failure
            self._events.failed(path, f"cannot be followed: {describe(error)}")

    def _failure(self, error: OSError) -> OSError | None:
        """Return what keeps the destination from taking any file, or None if an error is of one log alone."""
        if error.errno in OUT_OF_DESCRIPTORS:
            return None
        try:
            self._destination.blame(error)
        except OSError as failure:
            return failure
        return None
