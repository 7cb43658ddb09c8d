"""`Cache`: compute once, share."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO, Final, ParamSpec, TypeVar, cast, overload

from sharedvol.arguments import check_seconds
from sharedvol.cache import single_flight as computing
from sharedvol.cache import versioning as versions
from sharedvol.cache.codecs import JSON, Codec
from sharedvol.cache.entries import Absent
from sharedvol.cache.given import awaitable, check_max_age, limit_of, plain_key, value
from sharedvol.cache.keys import NAME, Key, name_of
from sharedvol.cache.statistics import Statistics, Trimmed
from sharedvol.cache.store import FILE, EntryStore, words
from sharedvol.errors import CacheError, LockError, describe
from sharedvol.locks.file import linux as kernel
from sharedvol.network import NetworkPolicy
from sharedvol.publishing import remove_stale_temporaries

T = TypeVar("T")
P = ParamSpec("P")


class _Default:
    def __repr__(self) -> str:
        return "the cache's own"


_DEFAULT: Final = _Default()


class Cache:
    """Values that replicas compute once and share, in a directory of its own on a volume.

    ::

        cache = Cache("/app/shared/cache", version="2", max_bytes=10**9, max_age=3600)
        report = cache.get(("report", user), lambda: make_report(user))

    Of all processes, threads and tasks that ask for a missing entry, in any container, one computes; the others wait in
    the kernel, without polling, and read. When the computer is killed, the next takes its place. When it fails, its
    exception goes to its own caller, nothing is stored, and the others try in turn.

    A cache must not stop a service. Once it was made, a volume that is full or read-only or a lock that cannot be
    had means that everyone computes for himself, said once in the log (``sharedvol.cache``). A damaged entry is never
    returned: it is computed anew. What can go wrong for good (see Raises) is told here.

    It may be used by threads and tasks at once, and by forked children; it can be pickled.

    Args:
        directory: made where missing; its parent must exist. It must be empty, or a cache.
        version: of the code that computes. Of all replicas that start with another one than before, exactly one
            removes the old entries; replicas of the old version go on, without storing.
        max_bytes: the most that all entries may have together, headers included, as a number or as ``"500M"``; the
            least recently used go first. Give every replica the same.
        max_age: seconds after which an entry is computed anew, by the clock. One from the future is too old.
        codec: `JSON`, `BYTES`, `TEXT`, or `PICKLE`, which is only for volumes that nobody else can write: reading a
            pickle runs whatever code its writer wants.
        timeout: seconds to wait while another one computes; None waits for ever. The computation itself is not
            limited by it.
        allow_network: accept a network file system without a warning.
        strict: refuse one; None as the environment variable ``SHAREDVOL_STRICT`` says.

    Attributes:
        purged: whether making this object put the directory into the hands of a new version, the first included.

    Raises:
        CacheError: the directory cannot be used: missing parent, no permission, read-only, not a cache; not Linux.
        CacheTimeout: another one removes the old entries, and is not ready in time.
        NetworkFileSystemError: it is on a network file system, and the cache is ``strict``.
        TypeError, ValueError: an argument is of another type, or makes no sense.
    """

    def __init__(
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
        if not kernel.AVAILABLE:
            raise CacheError("the cache needs open file description locks, which only Linux has: run it on Linux")
        versions.check_version(version)
        check_seconds(timeout)
        limit = limit_of(max_bytes)
        check_max_age(max_age)
        if codec.name == FILE:
            raise ValueError(f"codec name {codec.name!r}: give another, under this one lie the entries of open")
        directory = os.path.abspath(os.fspath(directory))
        self.purged = versions.enter(directory, version, timeout, NetworkPolicy(allow_network, strict))
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

    def get(self, key: Key, compute: Callable[[], T], *, timeout: float | _Default | None = _DEFAULT) -> T:
        """The value of ``key``; computed where it is missing.

        Args:
            key: a str, bytes, or a tuple of such.
            compute: called without arguments, by one of all who ask. It may get other entries, but not so that two
                wait for each other: in one process that is refused, between processes only ``timeout`` ends it.
            timeout: seconds to wait while another one computes, None for ever, 0 not at all; else the cache's.

        Returns:
            The value as it is read back from bytes, for him who computed it, too.

        Raises:
            CacheTimeout: another one computed and was not ready in time.
            CacheValueError: the codec cannot put the value into bytes.
            LockDeadlockError: this very computation, or one that waits for it, computes the entry; or a task of the
                event loop that this would block.
            TypeError: ``key`` is none.
            Exception: whatever ``compute`` raised here.
        """
        job = self._storage.value(key)
        found = self._storage.find(job)
        if not isinstance(found, Absent):
            return cast(T, found)
        steps = self._storage.steps(job, self._limit(timeout))
        return cast(T, computing.run(steps, job.counted(lambda: value(compute()))))

    async def get_async(
        self, key: Key, compute: Callable[[], Awaitable[T]], *, timeout: float | _Default | None = _DEFAULT
    ) -> T:
        """As `get`, waiting without blocking the event loop. An entry that is there is read at once, on the loop.

        Cancelling it cancels the computation, if it is this task's: the next takes its place. What has been computed is
        stored before the cancelled task ends.

        Raises:
            CacheTimeout, CacheValueError, LockDeadlockError, Exception: as `get`.
            TypeError: ``key`` is none, or ``compute`` returns what cannot be awaited.
        """
        job = self._storage.value(key)
        found = self._storage.find(job)
        if not isinstance(found, Absent):
            return cast(T, found)
        steps = self._storage.steps(job, self._limit(timeout))
        return cast(T, await computing.run_async(steps, job.counted(lambda: awaitable(compute()))))

    def open(
        self, key: Key, write: Callable[[BinaryIO], object], *, timeout: float | _Default | None = _DEFAULT
    ) -> BinaryIO:
        """The entry of ``key`` as a file, for what is too large for `get`; written where it is missing.

        ::

            with cache.open("model", download_to) as file:
                model = load(file)

        The entry is verified from end to end each time it is opened. It stays whole while the file is open, whatever
        happens to the entry. These entries and those of `get` are apart, whatever their keys.

        Args:
            key: as for `get`.
            write: called with a binary file that can seek, which it fills.
            timeout: as for `get`.

        Returns:
            A buffered binary file to read, which can seek; close it. It has no ``fileno``.

        Raises:
            OSError: a file can be written neither on the volume nor in a temporary directory.
            CacheTimeout, LockDeadlockError, TypeError, Exception: as `get`.
        """
        job = self._storage.file(key)
        found = self._storage.find(job)
        if not isinstance(found, Absent):
            return cast(BinaryIO, found)
        fill = job.counted(lambda: self._storage.filled(job.name, write))
        return cast(BinaryIO, computing.run(self._storage.steps(job, self._limit(timeout)), fill))

    def peek(self, key: Key, default: Any = None) -> Any:
        """The value of ``key`` if it is there, else ``default``. Waits for nobody.

        Raises:
            TypeError: ``key`` is none.
        """
        found = self._storage.find(self._storage.value(key))
        return default if isinstance(found, Absent) else found

    def delete(self, key: Key) -> bool:
        """Remove the entries of ``key``, of `get` and of `open`. One that is computed just now is stored all the same.

        Returns:
            Whether there was any.

        Raises:
            CacheError: it cannot be removed.
            TypeError: ``key`` is none.
        """
        try:
            removed = [self._storage.entries.remove(name_of(key, kind)) for kind in (self._codec.name, FILE)]
        except OSError as error:
            raise CacheError(
                f"cannot remove the entry of {key!r} in cache {self._directory!r}: {describe(error)}"
            ) from error
        return any(removed)

    def trim(self) -> Trimmed:
        """Remove what is too old, too much, or was left by killed processes. Call it now and then.

        Entries make room for new ones without it; nothing is removed for its age alone without it.

        Raises:
            CacheError: the limit cannot be kept: a file cannot be removed or written.
        """
        temporaries = locks = 0
        try:
            for digits in self._storage.entries.fans():
                with contextlib.suppress(OSError), self._storage.entries.fan(digits) as opened:  # purged since
                    fan = f"/proc/self/fd/{opened}"  # by the descriptor, as the path may lead elsewhere meanwhile
                    temporaries += len(remove_stale_temporaries(fan, allow_network=True))
                    locks += sum(computing.sweep(f"{fan}/{name}") for name in os.listdir(opened) if _is_lock(name))
            expired = sum(self._storage.expire(found.name) for found in self._storage.entries.scan())
            evicted = self._storage.limits.trim()
        except (OSError, LockError) as error:
            raise CacheError(f"cannot trim cache {self._directory!r}: {words(error)}") from error
        return Trimmed(expired, evicted, temporaries, locks)

    def statistics(self) -> Statistics:
        """What is stored, counted one by one, and what this process did.

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
        """A decorator: what the function returns comes from `get`, or from `get_async` for a coroutine function.

        ::

            @cache.memoize(lambda user: ("report", user.id))
            def report(user): ...

            @cache.memoize
            def prices(day: str): ...

        Without a function that makes the key, the key is the name of the function and its arguments. They must be text,
        bytes, numbers, booleans, None, or tuples of them.

        Args:
            key: returns the key for the arguments. Name the function in it: the keys of all are in one space.

        Raises:
            TypeError: at a call: an argument cannot be part of a key.
        """
        if key is None:
            return self._memoized
        if inspect.iscoroutinefunction(key):  # a key is not awaited: this is the function itself
            return self._memoized(key)

        @functools.wraps(key)
        def either(*args: Any, **options: Any) -> Any:
            # Written without parentheses, the decorator gets the function itself. A function is not part of a key, so
            # only a call with one function asks to decorate it.
            if len(args) == 1 and not options and inspect.isroutine(args[0]):
                return self._memoized(args[0], key)
            return plain(*args, **options)

        plain = self._memoized(key)
        return either

    def _memoized(self, function: Callable[..., Any], key: Callable[..., Key] | None = None) -> Callable[..., Any]:
        make = key if key is not None else functools.partial(plain_key, function)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def call_async(*args: Any, **options: Any) -> Any:
                return await self.get_async(make(*args, **options), lambda: function(*args, **options))

            return call_async

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            return self.get(make(*args, **options), lambda: function(*args, **options))

        return call

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

    def _limit(self, timeout: float | _Default | None) -> float | None:
        if isinstance(timeout, _Default):
            return self._timeout
        check_seconds(timeout)
        return timeout


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
    """Without asking whose the directory is: that was done, and an old version that is sent must not take it back."""
    cache = Cache.__new__(Cache)
    cache.purged = False
    cache._use(directory, version, max_bytes, max_age, codec, timeout)
    return cache
