"""Test whether a file system takes files, to distinguish one file's error from a fault that stops every file.

Error numbers do not distinguish the two: a file may be too long for its new file system, have a name that is not
allowed there, or have a bad sector. So a small test file decides: if the file system takes it, the error concerns only
the one file.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from sharedvol_sidecar.fs.directory import Directory

HOLDS = 2.0
"""Seconds for which a success is valid, so that a thousand bad files do not cause a thousand tests."""


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_BYTES = bytes(4096)


class Probe:
    """A test that is repeated when its last success is too old.

    Args:
        test: raises OSError while the file system takes no files.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, test: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._test, self._clock = test, clock
        self._worked_at = float("-inf")

    def failure(self) -> OSError | None:
        """Return the error with which the file system refuses every file; None if it takes files."""
        if self._clock() - self._worked_at < HOLDS:
            return None
        try:
            self._test()
        except OSError as error:
            return error.with_traceback(None)  # or its frames keep the caller's open files alive
        self._worked_at = self._clock()
        return None


def try_to_store(directory: Directory, name: str, apply: Callable[[int], None]) -> None:
    """Make a small file durable in a directory of ours, link it to a second name and remove it.

    Args:
        directory: the directory.
        name: the file's name. What a killed process left under it is removed first.
        apply: gives the file its owner and mode.

    Raises:
        OSError: a step fails.
    """
    second = f"{name}-2"
    _remove(directory, name, second)
    try:
        fd = os.open(name, _NEW, 0o600, dir_fd=directory.fd)
        try:
            os.write(fd, _BYTES)
            apply(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.link(name, second, src_dir_fd=directory.fd, dst_dir_fd=directory.fd, follow_symlinks=False)
        os.unlink(second, dir_fd=directory.fd)
        os.unlink(name, dir_fd=directory.fd)
        directory.sync()
    except OSError:
        _remove(directory, name, second)
        raise


def try_to_rename(directory: Directory, name: str) -> None:
    """Rename an empty file into a new directory and remove both, as a claim does.

    Raises:
        OSError: a step fails.
    """
    made = f"{name}.d"
    with contextlib.suppress(OSError):
        _remove(directory.open(made), name)
    with contextlib.suppress(OSError):
        os.rmdir(made, dir_fd=directory.fd)
    _remove(directory, name)
    inside = directory.make(made, 0o700)[0]
    try:
        os.close(os.open(name, _NEW, 0o600, dir_fd=directory.fd))
        os.rename(name, name, src_dir_fd=directory.fd, dst_dir_fd=inside.fd)
        os.unlink(name, dir_fd=inside.fd)
    except OSError:
        _remove(directory, name)
        _remove(inside, name)
        raise
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(made, dir_fd=directory.fd)


def try_to_name(directory: Directory, name: str) -> None:
    """Make an empty file in a directory and remove it.

    Raises:
        OSError: the directory takes no name.
    """
    _remove(directory, name)
    os.close(os.open(name, _NEW, 0o600, dir_fd=directory.fd))
    os.unlink(name, dir_fd=directory.fd)


def _remove(directory: Directory, *names: str) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory.fd)
