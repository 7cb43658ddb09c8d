"""Make the register of replicas: a skeleton under another name, which is renamed into place when it is complete.

Any process that may write the volume can rename or replace the skeleton at any moment. So each step is relative to a
descriptor of a directory that was empty when it was opened, and a skeleton is only removed if it is empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Final

from sharedvol.filesystem import open_subdirectory
from sharedvol.identity import worker_token
from sharedvol.locks.file import linux

MODE: Final = 0o1777
PARTS: Final = ("names", "slots")
GATE: Final = "join.lock"


def make_register(root: int, name: str) -> None:
    """Make the register with its modes. Neither a umask nor a kill leaves half of it.

    Args:
        root: a descriptor of the volume.
        name: the register's name.

    Raises:
        OSError: it cannot be made; ENOTEMPTY or EEXIST if there is one already.
    """
    made = f"{name}.{worker_token()}.new"
    os.mkdir(made, 0o700, dir_fd=root)
    try:
        _fill(root, made)
        os.rename(made, name, src_dir_fd=root, dst_dir_fd=root)
    except BaseException:
        remove_skeleton(root, made)
        raise


def remove_skeletons(root: int, name: str) -> None:
    """Remove the skeletons of killed processes. A process that is alive makes its skeleton again."""
    for found in os.listdir(root):
        if found.startswith(f"{name}.") and found.endswith(".new"):
            remove_skeleton(root, found)


def remove_skeleton(root: int, name: str) -> None:
    """Remove a skeleton if it is a directory that contains only what `make_register` puts there."""
    with contextlib.suppress(OSError):
        made = open_subdirectory(name, root)
        try:
            if not all(_is_empty_part(made, part) for part in os.listdir(made)):
                return
            for part in PARTS:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(part, dir_fd=made)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(GATE, dir_fd=made)
        finally:
            os.close(made)
        os.rmdir(name, dir_fd=root)


def _fill(root: int, name: str) -> None:
    made = open_subdirectory(name, root)
    try:
        if os.listdir(made):  # another process put its directory there
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        for part in PARTS:
            os.mkdir(part, 0o700, dir_fd=made)
            inside = open_subdirectory(part, made)
            try:
                os.fchmod(inside, MODE)
            finally:
                os.close(inside)
        os.close(linux.open_lock_file(GATE, 0o666, made))
        os.fchmod(made, MODE)
    finally:
        os.close(made)


def _is_empty_part(made: int, part: str) -> bool:
    info = os.stat(part, dir_fd=made, follow_symlinks=False)
    if part == GATE:
        return stat.S_ISREG(info.st_mode) and not info.st_size
    if part not in PARTS:
        return False
    inside = open_subdirectory(part, made)
    try:
        return not os.listdir(inside)
    finally:
        os.close(inside)
