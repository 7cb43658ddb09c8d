"""Events as a hint: something in the spool changed, so scan it soon.

Only a hint. Queues overflow, watches run out, and some mounts report nothing: the scan at its interval
is what finds every file. See inotify(7), "Limitations and caveats".
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from types import TracebackType

from inotify_simple import INotify, flags

from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.spool.renames import RenameLog

# A file was closed by a writer, renamed into place, or linked or created there. A directory was created there.
_MASK = flags.CLOSE_WRITE | flags.MOVED_TO | flags.CREATE | flags.ONLYDIR | flags.EXCL_UNLINK


MOST = 20_000
"""Directories that are watched at most: each takes about a kilobyte of memory of the kernel."""


class Watch:
    """Waits for an event in a directory that was added, for a signal, or for time to pass.

    Usable as a context manager, in the main thread: signals must wake it.
    """

    def __init__(self) -> None:
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poked = self._unreported = False
        self._watched: dict[int, tuple[int, int]] = {}
        self._keys: set[tuple[int, int]] = set()
        self._inotify: INotify | None = None
        self.placed = RenameLog(self._read_waiting)
        """What was renamed into the directories."""
        self.unwatched: str | None = None
        """Why some directories are not watched: then only the interval finds what appears in them."""
        self.forget()

    def __enter__(self) -> Watch:
        # Python's own handler only sets a flag; the byte that it writes here ends the wait.
        self._before = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._before)
        # Another thread may poke still: never into a descriptor that got the number since.
        wake, woken, self._wake, self._woken = self._wake, self._woken, -1, -1
        os.close(wake)
        os.close(woken)
        if self._inotify is not None:
            self._inotify.close()

    def add(self, directory: Directory) -> None:
        """Watch a directory. Adding it again is cheap: the kernel knows it by its inode."""
        if self._inotify is None:
            return
        if len(self._watched) >= MOST and directory.key not in self._keys:
            self.unwatched = f"more than {MOST} directories: only the first are watched"
            return
        try:
            watch = self._inotify.add_watch(f"/proc/self/fd/{directory.fd}", _MASK)
            self._watched[watch] = directory.key
            self._keys.add(directory.key)
            self.placed.watch(directory.key, watch)
        except OSError as error:
            self.unwatched = f"cannot watch every directory: {error.strerror}; raise fs.inotify.max_user_watches"

    def forget(self) -> None:
        """Watch no directory any more. Call it where the spool may be another one: the number of watches is limited."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify, self.unwatched = None, None
        self._watched.clear()
        self._keys.clear()
        self.placed.forget()
        try:
            self._inotify = INotify()
        except OSError as error:
            self.unwatched = f"no inotify: {error.strerror}; raise fs.inotify.max_user_instances"

    def poke(self) -> None:
        """End the wait as an event would; from any thread."""
        self._poked = True
        with contextlib.suppress(OSError):  # full of wake-ups, or closed by now
            os.write(self._woken, b"\0")

    def wait(self, seconds: float) -> bool:
        """Wait for an event, at most so long. Return whether there was one since the last call."""
        if self._poked or self._unreported:
            self._poked = self._unreported = False
            return True
        ready = _ready([self._wake] + ([self._inotify.fileno()] if self._inotify is not None else []), seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        if self._poked:
            self._poked = False
            return True
        if self._inotify is None or self._inotify.fileno() not in ready:
            return False
        self._read(self._inotify)
        return True

    def _read_waiting(self) -> None:
        """Read the events that wait, in the middle of a pass. The next `wait` reports them."""
        if self._inotify is not None:
            self._unreported = self._read(self._inotify) or self._unreported

    def _read(self, inotify: INotify) -> bool:
        events = inotify.read(timeout=0)
        for event in events:
            if event.mask & flags.Q_OVERFLOW:
                self.placed.lost()
            elif event.mask & flags.IGNORED:  # the directory was removed
                directory = self._watched.pop(event.wd, None)
                if directory is not None:
                    self._keys.discard(directory)
                    self.placed.unwatch(directory, event.wd)
            elif event.mask & flags.ISDIR:
                continue
            elif event.mask & flags.MOVED_TO:
                self.placed.renamed(event.wd, event.name)
            elif event.mask & (flags.CLOSE_WRITE | flags.CREATE):
                self.placed.written(event.wd, event.name)
        return bool(events)

    def wait_for_signal(self, seconds: float) -> None:
        """Wait, at most so long, and leave the events for `wait`."""
        _ready([self._wake], seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)


def _ready(descriptors: list[int], seconds: float) -> list[int]:
    """Return those that can be read, waiting at most so long. Not by select(2), which takes no number above 1,023."""
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)]
