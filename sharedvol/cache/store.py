"""Find, compute and store the entry of a key, and continue without storing if that fails."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TypeVar

from sharedvol.cache import single_flight, versioning
from sharedvol.cache.codecs import Codec
from sharedvol.cache.entries import Absent, Entries
from sharedvol.cache.entry_file import HEADER_BYTES, payload_reader, payload_writer, seal, write_payload
from sharedvol.cache.eviction import SizeLimit
from sharedvol.cache.keys import Key, name_of
from sharedvol.cache.statistics import Counts
from sharedvol.cache.temporary import Temporary
from sharedvol.errors import CacheError, CacheTimeout, CacheValueError, LockError, SharedVolError, describe

T = TypeVar("T")

FILE: Final = "file"
"""The kind of the entries of `Cache.open`."""

_log: Final = logging.getLogger("sharedvol.cache")
_MANY: Final = 10_000


class Lookup(ABC):
    """One entry that a caller asks for.

    Args:
        entries: the store of the entry.
        key: the entry's key.
        name: the entry's name.

    Attributes:
        computed: the value was computed here.
    """

    __slots__ = ("_entries", "computed", "key", "name")

    def __init__(self, entries: EntryStore, key: Key, name: str) -> None:
        self._entries, self.key, self.name = entries, key, name
        self.computed = False

    @abstractmethod
    def load(self) -> Any:
        """Return the entry's value, or an `Absent`."""

    @abstractmethod
    def store(self, computed: Any, /) -> Any:
        """Store what was computed. Return the entry's value."""

    def clear(self) -> None:
        """Remove an entry that is damaged."""
        self._entries.clear(self.name)

    def counted(self, compute: Callable[[], T]) -> Callable[[], T]:
        """Return ``compute``, which then records in `computed` that it was called."""

        def call() -> T:
            self.computed = True
            return compute()

        return call


class ValueLookup(Lookup):
    """An entry of `Cache.get`."""

    __slots__ = ()

    def load(self) -> Any:
        """Return the value, or an `Absent`."""
        return self._entries.load(self.name)

    def store(self, value: Any, /) -> Any:
        """Store a value. Return it as it is read back."""
        return self._entries.store(self.key, self.name, value)


class FileLookup(Lookup):
    """An entry of `Cache.open`."""

    __slots__ = ()

    def load(self) -> BinaryIO | Absent:
        """Return the entry as a file, or an `Absent`."""
        return self._entries.entries.open(self.name)

    def store(self, filled: Temporary, /) -> BinaryIO:
        """Store a temporary. Return it as a file to read."""
        return self._entries.store_file(self.name, filled)


class EntryStore:
    """The entries of one version, with their limits. Missing ones are computed.

    Args:
        directory: the cache's directory.
        version: the version of the entries.
        max_bytes: as for `Cache`.
        max_age: as for `Cache`.
        codec: as for `Cache`.
    """

    def __init__(
        self,
        directory: str,
        version: str,
        max_bytes: int | None,
        max_age: float | None,
        codec: Codec,
    ) -> None:
        self._directory, self._version, self._codec = directory, version, codec
        self.entries = Entries(directory, versioning.directory_name(version), max_age, max_bytes)
        self.limits = SizeLimit(self.entries, max_bytes)
        self.counts = Counts()
        self._warned: set[str] = set()
        self._too_large: set[str] = set()

    def find(self, lookup: Lookup) -> Any:
        """Return the entry, or an `Absent`."""
        found = lookup.load()
        if not isinstance(found, Absent):
            self.counts.add(hits=1)
        return found

    def steps(self, lookup: Lookup, limit: float | None) -> single_flight.Steps:
        """Yield the steps to an entry that was not found, as `single_flight.fill` does."""
        try:
            value = yield from self._fill(lookup, limit)
        finally:
            self.counts.add(computed=lookup.computed)
        self.counts.add(waits=not lookup.computed)
        return value

    def _fill(self, lookup: Lookup, limit: float | None) -> single_flight.Steps:
        if self._is_ready(lookup.name):
            path = self.entries.lock_path(lookup.name)
            try:
                return (yield from single_flight.fill(path, lookup, limit))
            except single_flight.LockUnavailableError as error:
                self._warn_once("nothing can be locked", error.__cause__)
            except single_flight.ComputeTimeoutError:
                raise CacheTimeout(
                    f"entry {lookup.key!r} of cache {self._directory!r} is being computed by another process, thread "
                    f"or task: gave up after {limit or 0:g} s; allow a longer timeout",
                    lookup.key,
                    limit or 0.0,
                ) from None
        return (yield from single_flight.fill_unlocked(lookup))

    def _is_ready(self, name: str) -> bool:
        """Return whether an entry can be locked and stored. Create its directory if necessary."""
        if name in self._too_large:
            return False
        try:
            try:
                self.entries.make_fan(name[:2])
            except FileNotFoundError:
                if not versioning.renew(self._directory, self._version):
                    self._warn_once(f"another version has taken over from {self._version!r}", None)
                    return False
                self.entries.make_fan(name[:2])
        except (OSError, LockError, CacheError) as error:
            self._warn_once("nothing can be stored", error)
            return False
        return True

    def clear(self, name: str) -> None:
        """Remove a damaged entry."""
        self._warn_once("an entry was damaged, and is computed again", None)
        with contextlib.suppress(OSError):  # reported if it cannot be replaced
            self.entries.remove(name)

    def expire(self, name: str) -> bool:
        """Remove an entry that is too old, unless a process computes it again just now."""
        if not self.entries.is_expired(name):
            return False
        with single_flight.alone(self.entries.lock_path(name)) as granted, contextlib.suppress(OSError):
            return granted and self.entries.is_expired(name) and self.entries.remove(name)
        return False

    def value(self, key: Key) -> ValueLookup:
        """Return the lookup of `Cache.get`."""
        return ValueLookup(self, key, name_of(key, self._codec.name))

    def file(self, key: Key) -> FileLookup:
        """Return the lookup of `Cache.open`."""
        return FileLookup(self, key, name_of(key, FILE))

    def load(self, name: str) -> Any:
        """Return a value, or an `Absent`."""
        payload = self.entries.load(name)
        if isinstance(payload, Absent):
            return payload
        try:
            return self._codec.loads(payload)
        except Exception:
            return Absent.DAMAGED

    def store(self, key: Key, name: str, value: Any) -> Any:
        """Store a value if possible. Return it as it is read back.

        Raises:
            CacheValueError: the codec cannot turn it into bytes.
        """
        try:
            payload = self._codec.dumps(value)
            value = self._codec.loads(payload)  # the caller that computed it gets what all others will read
        except Exception as error:
            raise CacheValueError(
                f"the value of {key!r} cannot be stored as {self._codec.name} in cache {self._directory!r}: {error}; "
                "return a value that the codec can hold, or give the cache another codec"
            ) from error
        if self._may_store(name, HEADER_BYTES + len(payload)):
            with self._storing():
                temporary = self.entries.temporary(name)
                try:
                    self.limits.place(temporary, name, write_payload(temporary, name, payload))
                finally:
                    temporary.drop()
        return value

    def filled(self, name: str, write: Callable[[BinaryIO], object]) -> Temporary:
        """Return a temporary with what ``write`` writes."""
        try:
            temporary = self.entries.temporary(name)
        except OSError as error:
            self._warn_unstorable(error)
            temporary = Temporary(os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            temporary.unname()
        try:
            with payload_writer(temporary) as file:
                write(file)
            if not temporary.ours:
                raise CacheError(
                    f"a forked child cannot finish a file that its parent writes for cache {self._directory!r}"
                )
        except BaseException:
            temporary.drop()
            raise
        return temporary

    def store_file(self, name: str, filled: Temporary) -> BinaryIO:
        """Store a temporary if possible. Return it as a file to read."""
        try:
            file = payload_reader(filled)
            if filled.named:
                with self._storing():
                    size = seal(filled, name)
                    if self._may_store(name, size):
                        self.limits.place(filled, name, size)
            return file
        finally:
            filled.drop()

    def _may_store(self, name: str, size: int) -> bool:
        if self.limits.fits(size):
            self._too_large.discard(name)
            return True
        self._warn_once(f"an entry of {size} bytes is larger than max_bytes", None)
        if len(self._too_large) >= _MANY:
            self._too_large.clear()
        self._too_large.add(name)  # the next callers need not wait
        return False

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, LockError) as error:
            self._warn_unstorable(error)

    def _warn_unstorable(self, error: BaseException) -> None:
        if getattr(error, "errno", None) != errno.ENOENT:  # purged by another version, which is reported elsewhere
            self._warn_once("nothing can be stored", error)

    def _warn_once(self, what: str, error: BaseException | None) -> None:
        """Log each kind of warning once in the life of this object, because a full disk must not fill the log."""
        text = f"{what}: {words(error)}" if error is not None else what
        kind = re.sub(r"\d+|'[^']*'", "", text)
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("cache %r: %s; values are still computed and returned", self._directory, text)


def words(error: BaseException | None) -> str:
    """Return what went wrong, in words."""
    if isinstance(error, OSError) and not isinstance(error, SharedVolError):
        return describe(error)
    return str(error)
