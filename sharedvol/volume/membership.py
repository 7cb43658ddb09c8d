"""What a process has after it joined a volume: a name and a slot."""

from __future__ import annotations

from types import TracebackType

from sharedvol.identity import worker_token
from sharedvol.volume.registry import LifetimeLock


class Membership:
    """A process's membership of a volume, from `Volume.join`.

    It ends with `leave`, at the end of a ``with`` block, or with the process.

    Attributes:
        name: the replica's name.
        slot: its slot, which was the lowest free one when its first process joined.
    """

    def __init__(self, name: str, slot: int, locks: tuple[LifetimeLock, ...]) -> None:
        self.name, self.slot = name, slot
        self._locks = locks
        self._worker = worker_token()

    @property
    def active(self) -> bool:
        """Whether this process is a member. False after `leave` and in a forked child."""
        return bool(self._locks) and self._worker == worker_token()

    def leave(self) -> None:
        """End the membership. The replica's record stays.

        A second call, or a call in a forked child, does nothing.
        """
        if self.active:
            locks, self._locks = self._locks, ()
            for lock in locks:
                lock.release()

    def __enter__(self) -> Membership:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def __repr__(self) -> str:
        return f"<Membership {self.name!r} slot {self.slot}{'' if self.active else ', ended'}>"
