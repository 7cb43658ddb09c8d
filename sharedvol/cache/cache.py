"""`Cache`: values that replicas compute once and share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO, Final, ParamSpec, TypeVar, cast, overload

from sharedvol.arguments import check_seconds
from sharedvol.cache import single_flight, versioning
from sharedvol.cache.arguments import awaitable, check_max_age, max_bytes_of, value
from sharedvol.cache.codecs import JSON, Codec
from sharedvol.cache.entries import Absent
from sharedvol.cache.keys import NAME, Key, name_of
from sharedvol.cache.memoize import memoize
from sharedvol.cache.statistics import Statistics, Trimmed
from sharedvol.cache.store import FILE, EntryStore, words
from sharedvol.errors import CacheError, LockError, describe
from sharedvol.locks.arguments import Default, limit_of
from sharedvol.locks.file import linux
from sharedvol.network import NetworkPolicy
from sharedvol.publishing import remove_stale_temporaries

T = TypeVar("T")
P = ParamSpec("P")


_DEFAULT: Final = Default("the cache's own")


class Cache:
    """Values that replicas compute once and share, in a directory of its own on a volume.

    ::

        cache = Cache("/app/shared/cache", version="2", max_bytes=10**9, max_age=3600)
        report = cache.get(("report", user), lambda: make_report(user))

    Of all processes, threads and tasks that get a missing entry, in any container, one computes it. The others wait in
    the kernel, without polling, and then read it. If the process that computes is killed, the next one computes. If a
    computation fails, its exception is raised in its own caller, nothing is stored, and the others try in turn.

    A cache must not stop a service. So if the volume is full or read-only, or a lock cannot be taken, each process
    computes its own value, and one warning is logged (``sharedvol.cache``). A damaged entry is never returned, but
    computed again. Permanent problems are raised when the object is made (see Raises).

    A cache can be used by threads and tasks at once, and by forked children. It can be pickled.

    Args:
        directory: created if it is missing; its parent must exist. It must be empty, or a cache.
        version: the version of the code that computes. When replicas start with a new version, exactly one of them
            removes the old entries. Replicas of the old version continue without storing.
        max_bytes: the most that all entries may have together, including headers, as a number or as ``"500M"``. The
            least recently used entries are removed first. Give every replica the same.
        max_age: seconds after which an entry is computed again, by the clock. An entry from the future is too old.
        codec: `JSON`, `BYTES`, `TEXT`, or `PICKLE`. `PICKLE` is only for volumes that no other user can write to,
            because reading a pickle runs any code that its writer put into it.
        timeout: seconds to wait while another process computes; None to wait indefinitely. It does not limit the
            computation itself.
        allow_network: accept a network file system without a warning.
        strict: refuse a network file system. None uses the environment variable ``SHAREDVOL_STRICT``.

    Attributes:
        purged: making this object changed the directory's version, or set its first one.

    Raises:
        CacheError: the directory cannot be used: missing parent, no permission, read-only, not a cache; or not on
            Linux.
        CacheTimeout: another process removes the old entries, and is not ready in time.
        NetworkFileSystemError: it is on a network file system, and the cache is ``strict``.
        TypeError, ValueError: an argument has a wrong type or value.
    """

    def __init__(  # noqa: PLR0913 # keyword options of a public class
        self,
        directory: str | os.PathLike[str],
        *,
        version: str,
        max_bytes: int | str | None = None,
        max_age: float | None = None,
        codec: Codec = JSON,
        timeout: float | None = None,
        allow_network: bool = False,
        strict: bool | None = None,
    ) -> None:
        if not linux.AVAILABLE:
            raise CacheError("the cache needs open file description locks, which only Linux has: run it on Linux")
        versioning.check_version(version)
        check_seconds(timeout)
        limit = max_bytes_of(max_bytes)
        check_max_age(max_age)
        if codec.name == FILE:
            raise ValueError(f"codec name {codec.name!r}: choose another name, which the entries of open do not use")
        directory = os.path.abspath(os.fspath(directory))
        self.purged = versioning.enter(directory, version, timeout, NetworkPolicy(allow_network, strict))
        self._use(directory, version, limit, max_age, codec, timeout)

    def _use(
        self,
        directory: str,
        version: str,
        max_bytes: int | None,
        max_age: float | None,
        codec: Codec,
        timeout: float | None,
    ) -> None:
        self._directory, self._version = directory, version
        self._codec, self._timeout = codec, timeout
        self._max_bytes, self._max_age = max_bytes, max_age
        self._storage = EntryStore(directory, version, max_bytes, max_age, codec)

    def get(self, key: Key, compute: Callable[[], T], *, timeout: float | Default | None = _DEFAULT) -> T:
        """Return the value of ``key``. Compute it if it is missing.

        Args:
            key: a str, bytes, or a tuple of these.
            compute: called without arguments, by one of all callers. It may get other entries, but two computations
                must not wait for each other. Within a process that is refused; between processes only ``timeout`` ends
                it.
            timeout: seconds to wait while another process computes; None to wait indefinitely, 0 not to wait. By
                default the cache's timeout.

        Returns:
            The value as it is read back from bytes, also if it was computed here.

        Raises:
            CacheTimeout: another process computed and was not ready in time.
            CacheValueError: the codec cannot turn the value into bytes.
            LockDeadlockError: the entry is computed by this computation, by one that waits for it, or by a task of the
                event loop that this call would block.
            TypeError: ``key`` is not a key.
            Exception: whatever ``compute`` raised here.
        """
        lookup = self._storage.value(key)
        found = self._storage.find(lookup)
        if not isinstance(found, Absent):
            return cast(T, found)
        steps = self._storage.steps(lookup, limit_of(timeout, self._timeout))
        return cast(T, single_flight.run(steps, lookup.counted(lambda: value(compute()))))

    async def get_async(
        self, key: Key, compute: Callable[[], Awaitable[T]], *, timeout: float | Default | None = _DEFAULT
    ) -> T:
        """Return the value as `get` does, without blocking the event loop. An existing entry is read on the loop.

        Cancelling it also cancels the computation, if this task computes. Then the next caller computes. A value that
        was already computed is stored before the cancelled task ends.

        Raises:
            CacheTimeout, CacheValueError, LockDeadlockError, Exception: as `get`.
            TypeError: ``key`` is not a key, or ``compute`` returns a value that cannot be awaited.
        """
        # The first lines repeat those of `get`, because a hit must cost no call more.
        lookup = self._storage.value(key)
        found = self._storage.find(lookup)
        if not isinstance(found, Absent):
            return cast(T, found)
        steps = self._storage.steps(lookup, limit_of(timeout, self._timeout))
        return cast(T, await single_flight.run_async(steps, lookup.counted(lambda: awaitable(compute()))))

    def open(
        self, key: Key, write: Callable[[BinaryIO], object], *, timeout: float | Default | None = _DEFAULT
    ) -> BinaryIO:
        """Return the entry of ``key`` as a file, for data that is too large for `get`. Write it if it is missing.

        ::

            with cache.open("model", download_to) as file:
                model = load(file)

        The whole entry is verified each time it is opened. The open file stays complete, whatever happens to the entry.
        An entry of `open` and an entry of `get` with the same key are separate.

        Args:
            key: as for `get`.
            write: called with a binary file that can seek, and writes the data to it.
            timeout: as for `get`.

        Returns:
            A buffered binary file to read, which can seek and has no ``fileno``. Close it after use.

        Raises:
            OSError: a file can be written neither on the volume nor in a temporary directory.
            CacheTimeout, LockDeadlockError, TypeError, Exception: as `get`.
        """
        lookup = self._storage.file(key)
        found = self._storage.find(lookup)
        if not isinstance(found, Absent):
            return cast(BinaryIO, found)
        fill = lookup.counted(lambda: self._storage.filled(lookup.name, write))
        return cast(BinaryIO, single_flight.run(self._storage.steps(lookup, limit_of(timeout, self._timeout)), fill))

    def peek(self, key: Key, default: Any = None) -> Any:
        """Return the value of ``key`` if it is stored, otherwise ``default``. Never waits.

        Raises:
            TypeError: ``key`` is not a key.
        """
        found = self._storage.find(self._storage.value(key))
        return default if isinstance(found, Absent) else found

    def delete(self, key: Key) -> bool:
        """Remove the entries of ``key``, both of `get` and of `open`. An entry that is being computed is still stored.

        Returns:
            Whether there was any.

        Raises:
            CacheError: it cannot be removed.
            TypeError: ``key`` is not a key.
        """
        try:
            removed = [self._storage.entries.remove(name_of(key, kind)) for kind in (self._codec.name, FILE)]
        except OSError as error:
            raise CacheError(
                f"cannot remove the entry of {key!r} in cache {self._directory!r}: {describe(error)}"
            ) from error
        return any(removed)

    def trim(self) -> Trimmed:
        """Remove expired entries, entries beyond the limit, and what killed processes left. Call it now and then.

        New entries make room for themselves without it. Expired entries are only removed by it.

        Raises:
            CacheError: the limit cannot be enforced, because a file cannot be removed or written.
        """
        temporaries = locks = 0
        try:
            for digits in self._storage.entries.fans():
                with contextlib.suppress(OSError), self._storage.entries.fan(digits) as opened:  # purged since
                    fan = f"/proc/self/fd/{opened}"  # because the path may lead elsewhere by now
                    temporaries += len(remove_stale_temporaries(fan, allow_network=True))
                    locks += sum(single_flight.sweep(f"{fan}/{name}") for name in os.listdir(opened) if _is_lock(name))
            expired = sum(self._storage.expire(found.name) for found in self._storage.entries.scan())
            evicted = self._storage.limits.trim()
        except (OSError, LockError) as error:
            raise CacheError(f"cannot trim cache {self._directory!r}: {words(error)}") from error
        return Trimmed(expired, evicted, temporaries, locks)

    def statistics(self) -> Statistics:
        """Count the entries, and return what this process did.

        Raises:
            CacheError: a directory of the entries cannot be read.
        """
        try:
            sizes = [found.size for found in self._storage.entries.scan() if found.regular]
        except OSError as error:
            raise CacheError(f"cannot count the entries of cache {self._directory!r}: {words(error)}") from error
        return Statistics(len(sizes), sum(sizes), *self._storage.counts.values())

    @overload
    def memoize(  # type: ignore[overload-overlap] # a function that returns text is taken for one that makes a key
        self, key: Callable[P, Key]
    ) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    @overload
    def memoize(self, key: None = None) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
    @overload
    def memoize(self, key: Callable[P, T]) -> Callable[P, T]: ...
    def memoize(self, key: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Decorate a function, so that `get`, or `get_async` for a coroutine function, returns its results.

        ::

            @cache.memoize(lambda user: ("report", user.id))
            def report(user): ...

            @cache.memoize
            def prices(day: str): ...

        Without ``key``, the key consists of the function's name and its arguments. They must be text, bytes, numbers,
        booleans, None, or tuples of these.

        Args:
            key: returns the key for the arguments. Include the function's name, because all functions share the keys.

        Raises:
            TypeError: when it is called: an argument cannot be part of a key.
        """
        return memoize(self, key)

    def __repr__(self) -> str:
        return f"<Cache {self._directory!r} version {self._version!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (
            self._directory,
            self._version,
            self._max_bytes,
            self._max_age,
            self._codec,
            self._timeout,
        )


def _is_lock(name: str) -> bool:
    return name.endswith(".lock") and NAME.fullmatch(name.removesuffix(".lock")) is not None


def _rebuild(
    directory: str,
    version: str,
    max_bytes: int | None,
    max_age: float | None,
    codec: Codec,
    timeout: float | None,
) -> Cache:
    """Make a cache again from its pickle. The version is not compared, so that an old one cannot purge a newer one."""
    cache = Cache.__new__(Cache)
    cache.purged = False
    cache._use(directory, version, max_bytes, max_age, codec, timeout)
    return cache
