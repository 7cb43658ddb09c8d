"""How an entry of a key is found, computed once and stored; and what happens where that cannot be."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TypeVar

from sharedvol.cache import entries
from sharedvol.cache import single_flight as computing
from sharedvol.cache import versioning as versions
from sharedvol.cache.codecs import Codec
from sharedvol.cache.entries import Absent, Entries
from sharedvol.cache.eviction import SizeLimit
from sharedvol.cache.keys import Key, name_of
from sharedvol.cache.statistics import Counts
from sharedvol.cache.temporary import Temporary
from sharedvol.errors import CacheError, CacheTimeout, CacheValueError, LockError, SharedVolError, describe

T = TypeVar("T")

FILE: Final = "file"
"""The kind of what `Cache.open` stores."""

_log: Final = logging.getLogger("sharedvol.cache")
_MANY: Final = 10_000


class Lookup:
    """How one entry is found and stored."""

    __slots__ = ("computed", "keep", "key", "look", "name")

    def __init__(self, key: Key, name: str, look: Callable[[], Any], keep: Callable[[Any], Any]) -> None:
        self.key, self.name, self.look, self.keep = key, name, look, keep
        self.computed = False

    def counted(self, compute: Callable[[], T]) -> Callable[[], T]:
        """``compute``, and it is known that it was called."""

        def call() -> T:
            self.computed = True
            return compute()

        return call


class EntryStore:
    """The entries of one version, their limits, and the computing of what is missing.

    Args:
        directory: the cache's directory.
        version: of the entries.
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
        self.entries = Entries(directory, versions.directory_name(version), max_age, max_bytes)
        self.limits = SizeLimit(self.entries, max_bytes)
        self.counts = Counts()
        self._said: set[str] = set()
        self._too_large: set[str] = set()

    # What follows finds and computes.

    def find(self, job: Lookup) -> Any:
        """The entry of a job, or an `Absent`."""
        found = job.look()
        if not isinstance(found, Absent):
            self.counts.add(hits=1)
        return found

    def steps(self, job: Lookup, limit: float | None) -> computing.Steps:
        """The steps to an entry that was not found; see `computing.once`."""
        try:
            value = yield from self._once(job, limit)
        finally:
            self.counts.add(computed=job.computed)
        self.counts.add(waits=not job.computed)
        return value

    def _once(self, job: Lookup, limit: float | None) -> computing.Steps:
        if self._is_ready(job.name):
            path = self.entries.lock_path(job.name)
            try:
                return (
                    yield from computing.single_flight(path, job.look, lambda: self._clear(job.name), job.keep, limit)
                )
            except computing.Unlockable as error:
                self._say("nothing can be locked", error.__cause__)
            except computing.OutOfTime:
                raise CacheTimeout(
                    f"entry {job.key!r} of cache {self._directory!r} is being computed by another process, thread or "
                    f"task: gave up after {limit or 0:g} s; allow a longer timeout",
                    job.key,
                    limit or 0.0,
                ) from None
        return (yield from computing.unlocked(job.keep))

    def _is_ready(self, name: str) -> bool:
        """Whether there is a place for an entry's lock file. None is needed for what cannot be stored."""
        if name in self._too_large:
            return False
        try:
            try:
                self.entries.make_fan(name[:2])
            except FileNotFoundError:
                if not versions.renew(self._directory, self._version):
                    self._say(f"another version has taken over from {self._version!r}", None)
                    return False
                self.entries.make_fan(name[:2])
        except (OSError, LockError, CacheError) as error:
            self._say("nothing can be stored", error)
            return False
        return True

    def _clear(self, name: str) -> None:
        self._say("an entry was damaged, and is computed anew", None)
        with contextlib.suppress(OSError):  # told when it cannot be replaced
            self.entries.remove(name)

    def expire(self, name: str) -> bool:
        """Remove an entry that is too old; nobody is computing it meanwhile."""
        if not self.entries.is_expired(name):
            return False
        with computing.alone(self.entries.lock_path(name)) as granted, contextlib.suppress(OSError):
            return granted and self.entries.is_expired(name) and self.entries.remove(name)
        return False

    # What follows stores.

    def value(self, key: Key) -> Lookup:
        """What `Cache.get` wants."""
        name = name_of(key, self._codec.name)
        return Lookup(key, name, lambda: self._load(name), lambda value: self._store(key, name, value))

    def file(self, key: Key) -> Lookup:
        """What `Cache.open` wants."""
        name = name_of(key, FILE)
        return Lookup(key, name, lambda: self.entries.open(name), lambda filled: self._store_file(name, filled))

    def _load(self, name: str) -> Any:
        payload = self.entries.load(name)
        if isinstance(payload, Absent):
            return payload
        try:
            return self._codec.loads(payload)
        except Exception:
            return Absent.DAMAGED

    def _store(self, key: Key, name: str, value: Any) -> Any:
        try:
            payload = self._codec.dumps(value)
            value = self._codec.loads(payload)  # what all others will read, he who computed it gets, too
        except Exception as error:
            raise CacheValueError(
                f"the value of {key!r} cannot be stored as {self._codec.name} in cache {self._directory!r}: {error}; "
                "return what the codec knows, or give the cache another codec"
            ) from error
        if self._may_store(name, entries.HEADER_BYTES + len(payload)):
            with self._storing():
                temporary = self.entries.temporary(name)
                try:
                    self.limits.place(temporary, name, entries.write_payload(temporary, name, payload))
                finally:
                    temporary.drop()
        return value

    def filled(self, name: str, write: Callable[[BinaryIO], object]) -> Temporary:
        """A temporary with what ``write`` writes."""
        try:
            temporary = self.entries.temporary(name)
        except OSError as error:
            self._say_unstorable(error)
            temporary = Temporary(os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            temporary.unname()
        try:
            with entries.payload_writer(temporary) as file:
                write(file)
            if not temporary.ours:
                raise CacheError(f"a forked child cannot end what its parent writes for cache {self._directory!r}")
        except BaseException:
            temporary.drop()
            raise
        return temporary

    def _store_file(self, name: str, filled: Temporary) -> BinaryIO:
        try:
            file = entries.payload_reader(filled)
            if filled.named:
                with self._storing():
                    size = entries.seal(filled, name)
                    if self._may_store(name, size):
                        self.limits.place(filled, name, size)
            return file
        finally:
            filled.drop()

    def _may_store(self, name: str, size: int) -> bool:
        if self.limits.fits(size):
            self._too_large.discard(name)
            return True
        self._say(f"an entry of {size} bytes is larger than max_bytes", None)
        if len(self._too_large) >= _MANY:
            self._too_large.clear()
        self._too_large.add(name)  # next time nobody needs to wait for nothing
        return False

    @contextlib.contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, LockError) as error:
            self._say_unstorable(error)

    def _say_unstorable(self, error: BaseException) -> None:
        if getattr(error, "errno", None) != errno.ENOENT:  # purged by another version, which is told elsewhere
            self._say("nothing can be stored", error)

    def _say(self, what: str, error: BaseException | None) -> None:
        """Once in the life of this object: a full disk must not fill the log."""
        text = f"{what}: {words(error)}" if error is not None else what
        kind = re.sub(r"\d+|'[^']*'", "", text)
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("cache %r: %s; values are computed and returned all the same", self._directory, text)


def words(error: BaseException | None) -> str:
    """What went wrong, in words."""
    if isinstance(error, OSError) and not isinstance(error, SharedVolError):
        return describe(error)
    return str(error)
