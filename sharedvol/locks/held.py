"""What the ``acquire`` of a lock returns."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, TypeVar

_Lock = TypeVar("_Lock", bound=Any)


class Held(Generic[_Lock]):
    """A ``with`` on it releases, and does not acquire again."""

    __slots__ = ("_lock",)

    def __init__(self, lock: _Lock) -> None:
        self._lock = lock

    def __enter__(self) -> _Lock:
        return self._lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    async def __aenter__(self) -> _Lock:
        return self._lock

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lock.__aexit__(kind, error, trace)
