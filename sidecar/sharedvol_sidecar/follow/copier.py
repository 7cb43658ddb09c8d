"""Copy what a log has grown by."""

from __future__ import annotations

import os

from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.follow.store import FollowedLog
from sharedvol_sidecar.fs.holes import next_data, next_hole
from sharedvol_sidecar.monitor.liveness import Liveness

_CHECKED = 4096  # bytes before the checkpoint that are compared: a log's last lines, which hold times
_AT_A_TIME = 8 * 1024 * 1024


class LogCopier:
    """Copies logs into their live copies, which are open.

    Args:
        destination: knows how much space is left.
        liveness: receives a sign of life for each part that is copied.
        min_free: bytes that are to stay free in the destination.
    """

    def __init__(self, destination: Destination, liveness: Liveness, min_free: int) -> None:
        self._destination, self._liveness, self._min_free = destination, liveness, min_free

    def agrees(self, log: FollowedLog, have: int, fd: int = -1) -> bool:
        """Return whether the log still holds, before the checkpoint, what was copied."""
        length = min(_CHECKED, have)
        source = log.fd if fd < 0 else fd
        return os.pread(log.live, length, have - length) == os.pread(source, length, have - length)

    def copy(self, log: FollowedLog, have: int, size: int) -> int:
        """Copy a log from the checkpoint to its end, and return how far the copy grew."""
        offset = have
        while offset < size:
            data = next_data(log.fd, offset, size)
            if data > offset:  # a hole, which takes no space: one call can make it as long as a disk
                os.ftruncate(log.live, data)
                offset = data
                continue
            if self._destination.is_short(self._min_free):
                log.short = True
                break
            end = min(size, offset + _AT_A_TIME, next_hole(log.fd, offset, size))
            os.lseek(log.live, offset, os.SEEK_SET)
            self._liveness.beat()
            sent = os.sendfile(log.live, log.fd, offset, end - offset)
            if not sent:
                break
            offset += sent
        return offset - have
