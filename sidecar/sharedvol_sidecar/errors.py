"""Errors of the sidecar."""

from __future__ import annotations

import contextlib
import errno
import resource
import traceback
from collections.abc import Iterator

from sharedvol import SharedVolError

OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors that this process causes, and not a file or a file system."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

DENIED = frozenset({errno.EACCES, errno.EPERM})


class SidecarError(SharedVolError):
    """The base of the sidecar's errors."""


class ConfigError(SidecarError):
    """A setting or a directory cannot be used. Ends the sidecar with exit code 2."""


class DestinationError(SidecarError):
    """The destination takes no files now: it is full, missing or forbidden. Every file stays in the spool."""


class SpoolError(SidecarError):
    """No file can be claimed in the spool now: it is read-only, full or missing. Every file stays where it is."""


RAISE_LIMIT = "raise the limit of open files (ulimit -n, or ulimits: nofile in a compose file)"
"""The remedy for too many open files."""


class DescriptorsError(SidecarError):
    """This process has too many open files. Every file stays where it is, or is a claim that the next pass finds."""

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        super().__init__(
            f"too many open files: this process may have {soft}; {RAISE_LIMIT}; nothing is lost, the files wait in "
            "the spool"
        )


class CatalogError(SidecarError):
    """The catalog cannot be read or written now. Nothing was changed in it. The next call tries again.

    Attributes:
        full: its disk is full.
    """

    full = False


def errno_of(error: BaseException) -> int | None:
    """Return the error number of the failed system call, from the error itself or from its cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            return cause.errno
        cause = cause.__cause__
    return None


@contextlib.contextmanager
def explaining_descriptors() -> Iterator[None]:
    """Raise `DescriptorsError` instead of any error that too many open files have caused."""
    try:
        yield
    except (SharedVolError, OSError) as error:
        if errno_of(error) not in OUT_OF_DESCRIPTORS or isinstance(error, DescriptorsError):
            raise
        raise DescriptorsError from error


def forget_frames(error: BaseException) -> None:
    """Drop the local variables of every frame that an error, or a cause of it, has passed through.

    A library may keep its error in a local variable of such a frame. Error and frame then keep each other alive, and
    with them whatever the frame has open.
    """
    left, known = [error], set[int]()
    while left:
        one = left.pop()
        if id(one) not in known:
            known.add(id(one))
            traceback.clear_frames(one.__traceback__)
            left += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
