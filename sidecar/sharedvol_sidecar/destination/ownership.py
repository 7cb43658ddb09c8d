"""Owner, mode and other access rights of collected files.

A file gets its final name only with the configured owner and mode. A linked file stays the inode that its writer knows
and may have open, so it is linked only if it already fits. Any other file is copied. Only the sidecar can reach the
copy, which gets owner and mode before its final name.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass

from sharedvol_sidecar.fs.directory import Directory

_ACL, _CAPABILITY = "system.posix_acl_access", "security.capability"
_USER, _MASK, _READ = 0x02, 0x10, 4  # of linux/posix_acl.h
_NO_ATTRIBUTES = frozenset({errno.EOPNOTSUPP, errno.ENODATA, errno.ENOSYS})
_SPECIAL = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


@dataclass(frozen=True, slots=True)
class Ownership:
    """Owner and mode of collected files. None keeps what the source has.

    Attributes:
        uid: the user.
        gid: the group.
        file_mode: the permission bits of files.
        directory_mode: the permission bits of directories that are made for them.
    """

    uid: int | None = None
    gid: int | None = None
    file_mode: int | None = None
    directory_mode: int | None = None

    @property
    def changes_files(self) -> bool:
        """Whether an owner or a mode of files is configured."""
        return (self.uid, self.gid, self.file_mode) != (None, None, None)

    def fits(self, fd: int, info: os.stat_result) -> bool:
        """Return whether a file already fits, so that it may be linked.

        A file with set-user-id bits or capabilities never fits, because its writer is not trusted. If owner or mode are
        configured, a file with an access control list does not fit.
        """
        if info.st_mode & _SPECIAL:
            return False
        if self.changes_files and not self._has_owner_and_mode(info):
            return False
        attributes = _attributes(fd)
        return _CAPABILITY not in attributes and not (self.changes_files and _ACL in attributes)

    def widens_access(self, info: os.stat_result) -> bool:
        """Return whether `apply` would let a user or group read the file that may not read it now."""
        mode = stat.S_IMODE(info.st_mode) if self.file_mode is None else self.file_mode
        return bool(
            mode & ~info.st_mode & (stat.S_IRGRP | stat.S_IROTH)
            or self.uid not in (None, info.st_uid)
            or (self.gid not in (None, info.st_gid) and mode & stat.S_IRGRP)
        )

    def apply(self, fd: int, info: os.stat_result) -> None:
        """Give a new file its owner and mode, without set-user-id and similar bits, because its writer is not trusted.

        The owner is set first, so that the former owner cannot change the access control list or the mode again.

        Args:
            fd: the new file.
            info: the status of the original.

        Raises:
            OSError: the configured owner or mode cannot be given.
        """
        try:
            os.fchown(
                fd,
                info.st_uid if self.uid is None else self.uid,
                info.st_gid if self.gid is None else self.gid,
            )
        except PermissionError as error:  # only root may change the owner of a file
            if self.uid is not None or self.gid is not None:
                raise PermissionError(
                    error.errno,
                    "cannot give files the owner that is set: run the sidecar as the writers' user, or as root",
                ) from error
        if self.changes_files:
            _remove_acl(fd)  # a new file inherits it from its directory
        os.fchmod(fd, stat.S_IMODE(info.st_mode) & 0o777 if self.file_mode is None else self.file_mode)
        if self.changes_files and not self.fits(fd, os.fstat(fd)):
            raise PermissionError(errno.EPERM, "the file system does not keep the owner and mode that are set")

    def apply_to_directory(self, directory: Directory) -> None:
        """Give a new directory its owner and mode."""
        if self.uid is not None or self.gid is not None:
            os.fchown(directory.fd, -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid)
        if self.directory_mode is not None:
            os.fchmod(directory.fd, self.directory_mode)

    def _has_owner_and_mode(self, info: os.stat_result) -> bool:
        return (
            self.uid in (None, info.st_uid)
            and self.gid in (None, info.st_gid)
            and self.file_mode in (None, stat.S_IMODE(info.st_mode))
        )


def acl_lets_read(fd: int, user: int) -> bool:
    """Return whether the file's access control list lets a user read it. See acl(5)."""
    try:
        packed = os.getxattr(fd, _ACL)[4:]
    except OSError:
        return False
    entries = list(struct.iter_unpack("<HHI", packed)) if len(packed) % 8 == 0 else []
    mask = next((allowed for tag, allowed, _ in entries if tag == _MASK), _READ)
    return any(tag == _USER and allowed & mask & _READ and of == user for tag, allowed, of in entries)


def _attributes(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return []
        raise


def _remove_acl(fd: int) -> None:
    try:
        os.removexattr(fd, _ACL)
    except OSError as error:
        if error.errno not in _NO_ATTRIBUTES:
            raise
