"""What each line of the doctor is about: why it matters to sharedvol, and what to do where it is not ok."""

from __future__ import annotations

from typing import Final, NamedTuple


class Meaning(NamedTuple):
    """A line's title, which part of sharedvol depends on it, and what to do."""

    title: str
    why: str
    todo: str


_MOVE = "keep locks on a named volume of a local file system, or use the MySQL or Redis lock (sharedvol.open_lock)"
_LOCAL = "use a named volume on a local file system (ext4, xfs, btrfs)"
_USER = "run all containers of the volume, the sidecar too, with one user: UID:GID"

CATALOGUE: Final[dict[str, Meaning]] = {
    "mount.type": Meaning(
        "file system", "locks, leases and events are the work of the file system, and network ones differ", _LOCAL
    ),
    "mount.writable": Meaning(
        "mounted for writing",
        "results, logs, cache and locks are written here; reference data needs no writing",
        "mount the volume read-write, unless it holds reference data only",
    ),
    "mount.subdirectories": Meaning(
        "one mount for all subdirectories",
        "the sidecar claims a file by rename and gives it its name by link, neither "
        "of which crosses mounts; it copies then, which is slower",
        "mount one parent volume instead of one for each subdirectory",
    ),
    "owner.write": Meaning(
        "may this user write",
        "a replica that may not create files here publishes nothing, and finds out when it has a result",
        f"give the directory to the service's user (chown in an init container), and {_USER}",
    ),
    "owner.identity": Meaning(
        "files belong to their writer",
        "leases need the file's owner, and cleaners tell their own files by it",
        "switch off user mapping (root_squash, all_squash, uid=) for this volume, or run as the user that it maps to",
    ),
    "owner.mode": Meaning(
        "modes are kept",
        "a lock file is opened for writing by every user's replica: its mode is set when it is made",
        _LOCAL,
    ),
    "owner.umask": Meaning(
        "umask", "the sidecar and other users' replicas read what is written with it", f"umask 022 or 002, or {_USER}"
    ),
    "owner.directory": Meaning(
        "mode of the directory",
        "who may rename or remove whose files: the sidecar claims by rename",
        f"{_USER}; mode 0750 or 2770, neither open to all nor sticky",
    ),
    "owner.foreign": Meaning(
        "files of other users",
        "the sidecar needs the owner's UID (or CAP_LEASE) to see that a file is finished, and "
        "write permission to move it",
        f"{_USER}; or give the sidecar --cap-add=LEASE",
    ),
    "locks.flock": Meaning(
        "flock between processes", "half of every file lock: excludes Python's and flock(1)'s users", _MOVE
    ),
    "locks.posix": Meaning("fcntl (POSIX) between processes", "R's lock packages and fasteners use it", _MOVE),
    "locks.ofd": Meaning("fcntl (OFD) between processes", "half of every file lock: excludes R's users", _MOVE),
    "locks.both": Meaning(
        "both families on one descriptor", "what a FileLock holds: it excludes users of either family", _MOVE
    ),
    "locks.families": Meaning(
        "the two families are independent",
        "where flock is made of fcntl locks, closing any descriptor may drop both",
        _MOVE,
    ),
    "locks.count": Meaning(
        "nothing is lost under the lock", "what locks are for: a counter that both processes raise", _MOVE
    ),
    "locks.kill": Meaning(
        "a killed holder's lock is freed",
        "who is alive, slots and stale files are told by locks that the kernel frees",
        _MOVE,
    ),
    "locks.wake": Meaning("a waiter is woken", "a FileLock waits in the kernel and is not polled", _MOVE),
    "publish.link": Meaning(
        "link does not overwrite", "publish and the sidecar give a file its name by link, and rely on EEXIST", _LOCAL
    ),
    "publish.rename": Meaning(
        "rename replaces at once", "publish(replace=True), the cache and the lock's records replace by rename", _LOCAL
    ),
    "publish.noreplace": Meaning(
        "rename can refuse to replace",
        "the sidecar claims a file by RENAME_NOREPLACE in one step, else by link and unlink",
        _LOCAL,
    ),
    "publish.unnamed": Meaning(
        "files without a name (O_TMPFILE)",
        "lock files get their name when they have their mode; copies when they are whole",
        "nothing, if all replicas have one user; else " + _LOCAL,
    ),
    "publish.visible": Meaning(
        "others see what was published",
        "a result, a cache entry, a purged version is seen at once",
        "switch off attribute caching (noac, actimeo=0), or " + _LOCAL,
    ),
    "durable.file": Meaning(
        "fsync of a file",
        "publish and the sidecar sync before they name: a published file outlives a power cut",
        _LOCAL + "; look after the disk",
    ),
    "durable.directory": Meaning("fsync of a directory", "the name of a published file outlives a power cut", _LOCAL),
    "data.append": Meaning(
        "appends do not mix",
        "the replica log handler and others write a record by one O_APPEND write",
        "a file per replica (ReplicaFileHandler), or " + _LOCAL,
    ),
    "data.mmap": Meaning(
        "shared memory maps",
        "SQLite in WAL mode (the sidecar's catalog) shares its index so",
        "keep the catalog on a local volume, or on MySQL",
    ),
    "events.inotify": Meaning(
        "events of other processes arrive",
        "the sidecar wakes by them; without them it finds files at its next scan",
        "lower the scan interval; raise fs.inotify.max_user_instances and max_user_watches",
    ),
    "events.lease": Meaning(
        "a lease tells whether somebody writes",
        "the sidecar takes a file only when nobody writes it",
        "publish by rename or with sharedvol.publish, and lengthen the sidecar's quiet time; or " + _LOCAL,
    ),
    "names.case": Meaning(
        "case matters in names",
        "two names that differ in case are two results",
        "write names in one case, or " + _LOCAL,
    ),
    "names.unicode": Meaning(
        "names are kept as they are written",
        "a name that comes back in another form is not found again",
        "names of A-Z a-z 0-9 . _ - only, as sharedvol's own, or " + _LOCAL,
    ),
    "names.long": Meaning(
        "names of 255 bytes",
        "unique names are long: container, worker and counter are in them",
        "keep job names short, or " + _LOCAL,
    ),
    "names.special": Meaning(
        "colons and other signs in names",
        "services put times into names; sharedvol's own names have no such signs",
        "names of A-Z a-z 0-9 . _ - only, or " + _LOCAL,
    ),
    "names.symlink": Meaning(
        "symbolic links are not followed",
        "everything here is opened with O_NOFOLLOW, so that a planted link leads nowhere",
        _LOCAL,
    ),
    "space.bytes": Meaning(
        "free space",
        "a full volume: results are refused, log lines counted and dropped",
        "free some space, or give the volume more; see retention in the sidecar's documentation",
    ),
    "space.inodes": Meaning(
        "free inodes",
        "no inode, no file, whatever space is free",
        "remove small files, or make the file system with more inodes",
    ),
    "clock.precision": Meaning(
        "times to the nanosecond",
        "publish marks a finished file by the microseconds of its time, for the sidecar",
        "nothing: the sidecar waits its quiet time instead; or " + _LOCAL,
    ),
    "clock.skew": Meaning(
        "the file system's clock is ours",
        "quiet time, retention and the cache's ages compare the two",
        "set both clocks by NTP",
    ),
    "clock.order": Meaning(
        "times of files do not go back",
        "newest last: rotation, retention and purging go by them",
        "set the file server's clock by NTP, slewing",
    ),
    "peer.identity": Meaning(
        "two containers, two names, one user",
        "paths are unique because container names are; one user so that each may read the other's files",
        f"remove hostname: and container_name:; {_USER}",
    ),
    "peer.kernel": Meaning(
        "one kernel",
        "locks, leases and events of another machine are the file system's promise, not the kernel's",
        "nothing on one host; over several hosts use the MySQL or Redis lock",
    ),
    "through.same": Meaning(
        "the other path is the same directory",
        "else what follows says nothing",
        "name another path to the same directory",
    ),
}
"""By id. An id with ``through.`` or ``peer.`` before it is the same experiment across mounts or containers."""

WHERE: Final = {"through.": " through the other mount", "peer.": " between the containers"}


def known(id: str) -> bool:
    """Whether an id is one of ours."""
    return id in CATALOGUE or any(id.startswith(where) and id.removeprefix(where) in CATALOGUE for where in WHERE)


def meaning(id: str) -> Meaning:
    """The meaning of a line.

    Raises:
        KeyError: there is none with that id.
    """
    if id in CATALOGUE:
        return CATALOGUE[id]
    where = next(where for where in (*WHERE, "") if id.startswith(where))
    base = CATALOGUE[id.removeprefix(where)]
    return base._replace(title=base.title + WHERE.get(where, ""))
