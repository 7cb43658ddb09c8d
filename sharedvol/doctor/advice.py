"""The title of each line of the doctor, why it matters to sharedvol, and what to do if it is not ok."""

from __future__ import annotations

from typing import Final, NamedTuple


class Meaning(NamedTuple):
    """The title of a line, the part of sharedvol that depends on it, and what to do."""

    title: str
    why: str
    todo: str


_MOVE = "keep locks on a named volume of a local file system, or use the MySQL or Redis lock (sharedvol.open_lock)"
_LOCAL = "use a named volume on a local file system (ext4, xfs, btrfs)"
_USER = "run all containers of the volume, including the sidecar, as one user (UID:GID)"

CATALOGUE: Final[dict[str, Meaning]] = {
    "mount.type": Meaning(
        "file system", "the file system implements locks, leases and events, and network file systems differ", _LOCAL
    ),
    "mount.writable": Meaning(
        "mounted for writing",
        "results, logs, the cache and locks are written here; reference data is only read",
        "mount the volume read-write, unless it holds only reference data",
    ),
    "mount.subdirectories": Meaning(
        "one mount for all subdirectories",
        "the sidecar claims a file by rename and gives it its name by link; neither works "
        "across mounts, so it copies instead, which is slower",
        "mount one parent volume instead of a volume for each subdirectory",
    ),
    "owner.write": Meaning(
        "may this user write",
        "a replica that may not create files here cannot publish, and notices only when it has a result",
        f"give the directory to the service's user (chown in an init container), and {_USER}",
    ),
    "owner.identity": Meaning(
        "files belong to their writer",
        "only a file's owner gets a lease, and cleaners recognize their own files by the owner",
        "switch off user mapping (root_squash, all_squash, uid=) for this volume, or run as the user that it maps to",
    ),
    "owner.mode": Meaning(
        "modes are kept",
        "replicas of every user open a lock file for writing, so its mode is set when it is created",
        _LOCAL,
    ),
    "owner.umask": Meaning(
        "umask",
        "the sidecar and the replicas of other users read the files that are created with it",
        f"set umask 022 or 002, or {_USER}",
    ),
    "owner.directory": Meaning(
        "mode of the directory",
        "it decides which users may rename or remove files, and the sidecar claims a file by rename",
        f"{_USER}; use mode 0750 or 2770, neither open to all users nor sticky",
    ),
    "owner.foreign": Meaning(
        "files of other users",
        "the sidecar needs the owner's UID (or CAP_LEASE) to see that a file is finished, and "
        "write permission to move it",
        f"{_USER}; or give the sidecar --cap-add=LEASE",
    ),
    "locks.flock": Meaning(
        "flock between processes", "one half of every file lock: it excludes users of Python and flock(1)", _MOVE
    ),
    "locks.posix": Meaning("fcntl (POSIX) between processes", "R's lock packages and fasteners use it", _MOVE),
    "locks.ofd": Meaning("fcntl (OFD) between processes", "one half of every file lock: it excludes users of R", _MOVE),
    "locks.both": Meaning(
        "both families on one descriptor", "a FileLock holds both, so it excludes users of either family", _MOVE
    ),
    "locks.families": Meaning(
        "the two families are independent",
        "if the file system implements flock with fcntl locks, closing any descriptor may release both",
        _MOVE,
    ),
    "locks.count": Meaning(
        "nothing is lost under the lock",
        "a lock must protect a counter that two processes increment",
        _MOVE,
    ),
    "locks.kill": Meaning(
        "a killed holder's lock is freed",
        "sharedvol detects dead replicas, free slots and stale files by locks that the kernel frees",
        _MOVE,
    ),
    "locks.wake": Meaning("a waiter is woken", "a FileLock waits in the kernel and does not poll", _MOVE),
    "publish.link": Meaning(
        "link does not overwrite", "publish and the sidecar give a file its name by link and rely on EEXIST", _LOCAL
    ),
    "publish.rename": Meaning(
        "rename replaces at once",
        "publish(replace=True), the cache and the records of locks replace files by rename",
        _LOCAL,
    ),
    "publish.noreplace": Meaning(
        "rename can refuse to replace",
        "the sidecar claims a file by RENAME_NOREPLACE in one step; without it, by link and unlink",
        _LOCAL,
    ),
    "publish.unnamed": Meaning(
        "files without a name (O_TMPFILE)",
        "a lock file gets its name once it has its mode, and a copy once it is whole",
        "nothing, if all replicas run as one user; otherwise " + _LOCAL,
    ),
    "publish.visible": Meaning(
        "others see what was published",
        "other replicas must see a result, a cache entry or a purged version at once",
        "switch off attribute caching (noac, actimeo=0), or " + _LOCAL,
    ),
    "durable.file": Meaning(
        "fsync of a file",
        "publish and the sidecar sync a file before they name it, so that it survives a power cut",
        _LOCAL + "; check the disk",
    ),
    "durable.directory": Meaning("fsync of a directory", "the name of a published file survives a power cut", _LOCAL),
    "data.append": Meaning(
        "appends do not mix",
        "log handlers, including ReplicaFileHandler, write a record by one O_APPEND write",
        "write one file per replica (ReplicaFileHandler), or " + _LOCAL,
    ),
    "data.mmap": Meaning(
        "shared memory maps",
        "SQLite in WAL mode (the sidecar's catalog) shares its index in mapped memory",
        "keep the catalog on a local volume, or on MySQL",
    ),
    "events.inotify": Meaning(
        "events of other processes arrive",
        "events wake the sidecar; without them it finds files at its next scan",
        "lower the scan interval; raise fs.inotify.max_user_instances and max_user_watches",
    ),
    "events.lease": Meaning(
        "a lease detects writers",
        "the sidecar takes a file only when no process has it open for writing",
        "publish by rename or with sharedvol.publish, and increase the sidecar's quiet time; or " + _LOCAL,
    ),
    "names.case": Meaning(
        "case matters in names",
        "two names that differ in case are two results",
        "write names in lower case only, or " + _LOCAL,
    ),
    "names.unicode": Meaning(
        "names are kept as they are written",
        "a name that comes back in another form is not found again",
        "use only A-Z a-z 0-9 . _ - in names, as sharedvol does, or " + _LOCAL,
    ),
    "names.long": Meaning(
        "names of 255 bytes",
        "unique names are long, because they contain the container, the worker and a counter",
        "keep job names short, or " + _LOCAL,
    ),
    "names.special": Meaning(
        "colons and other special characters in names",
        "services put times into names; the names that sharedvol makes have no such characters",
        "use only A-Z a-z 0-9 . _ - in names, or " + _LOCAL,
    ),
    "names.symlink": Meaning(
        "symbolic links are not followed",
        "sharedvol opens files with O_NOFOLLOW, so that it never follows a planted link",
        _LOCAL,
    ),
    "space.bytes": Meaning(
        "free space",
        "on a full volume, results are refused and log lines are counted and dropped",
        "free some space, or enlarge the volume; see retention in the sidecar's documentation",
    ),
    "space.inodes": Meaning(
        "free inodes",
        "without a free inode no file can be created, however much space is free",
        "remove small files, or create the file system with more inodes",
    ),
    "clock.precision": Meaning(
        "times to the nanosecond",
        "publish marks a finished file for the sidecar by the microseconds of its time",
        "nothing: the sidecar waits for its quiet time instead; or " + _LOCAL,
    ),
    "clock.skew": Meaning(
        "file times match this machine's clock",
        "the quiet time, retention and the ages in the cache compare the two",
        "set both clocks by NTP",
    ),
    "clock.order": Meaning(
        "file times do not go back",
        "rotation, retention and purging order files by their times",
        "set the file server's clock by NTP, slewing",
    ),
    "peer.identity": Meaning(
        "two containers, two names, one user",
        "paths are unique because container names are; one user lets each container read the other's files",
        f"remove hostname: and container_name:; {_USER}",
    ),
    "peer.kernel": Meaning(
        "one kernel",
        "between machines, locks, leases and events depend on the file system, not on one kernel",
        "nothing on one host; across hosts use the MySQL or Redis lock",
    ),
    "through.same": Meaning(
        "the other path is the same directory",
        "otherwise the lines that follow prove nothing",
        "name another path to the same directory",
    ),
}
"""The meanings by id. The prefix ``through.`` or ``peer.`` marks an experiment across mounts or containers."""

WHERE: Final = {"through.": " through the other mount", "peer.": " between the containers"}


def known(id: str) -> bool:
    """Return whether the doctor has a line with this id."""
    return id in CATALOGUE or any(id.startswith(where) and id.removeprefix(where) in CATALOGUE for where in WHERE)


def meaning(id: str) -> Meaning:
    """Return the meaning of a line.

    Raises:
        KeyError: the doctor has no line with this id.
    """
    if id in CATALOGUE:
        return CATALOGUE[id]
    where = next(where for where in (*WHERE, "") if id.startswith(where))
    base = CATALOGUE[id.removeprefix(where)]
    return base._replace(title=base.title + WHERE.get(where, ""))
