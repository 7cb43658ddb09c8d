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

from sharedvol_sidecar.directories import Directory

# A file was closed by a writer, renamed into place, or linked or made there (a directory is made, too).
_MASK = flags.CLOSE_WRITE | flags.MOVED_TO | flags.CREATE | flags.ONLYDIR | flags.EXCL_UNLINK


class Watch:
    """Waits for an event in a directory that was added, for a signal, or for time to pass.

    Usable as a context manager, in the main thread: signals must wake it.
    """

    def __init__(self) -> None:
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poked = False
        self.unwatched: str | None = None
        """Why some directories are not watched: then only the interval finds what appears in them."""
        try:
            self._inotify: INotify | None = INotify()
        except OSError as error:
            self._inotify = None
            self.unwatched = f"no inotify: {error.strerror}; raise fs.inotify.max_user_instances"

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
        try:
            self._inotify.add_watch(f"/proc/self/fd/{directory.fd}", _MASK)
        except OSError as error:
            self.unwatched = f"cannot watch every directory: {error.strerror}; raise fs.inotify.max_user_watches"

    def poke(self) -> None:
        """End the wait as an event would; from any thread."""
        self._poked = True
        with contextlib.suppress(OSError):  # full of wake-ups, or closed by now
            os.write(self._woken, b"\0")

    def wait(self, seconds: float) -> bool:
        """Wait, at most so long. Whether there was an event."""
        if self._poked:
            self._poked = False
            return True
        sources = [self._wake] + ([self._inotify.fileno()] if self._inotify is not None else [])
        ready, _, _ = select.select(sources, [], [], max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        if self._poked:
            self._poked = False
            return True
        if self._inotify is None or self._inotify.fileno() not in ready:
            return False
        self._inotify.read(timeout=0)
        return True

    def wait_for_signal(self, seconds: float) -> None:
        """Wait, at most so long, and leave the events for `wait`."""
        select.select([self._wake], [], [], max(0.0, seconds))
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
