"""Rules: the volumes themselves, and what several services make of one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY, Node
from sharedvol.lint.project import SIDECAR_USER, Project, Service
from sharedvol.lint.rule import Found, Rule, Severity, of_each, rule
from sharedvol.mounts import is_network

_SQLITE: Final = re.compile(r"(?:(?:sqlite|file)[a-z+]*:/{0,2})?(/[^\s?'\"]+\.(?:db|sqlite3?|db3))\b", re.IGNORECASE)
_FIXED: Final = re.compile(
    r"(?:^|[=\s:'\"])(/[^\s:;,'\"=]+\.(log|txt|out|err|pid|sock|json|csv|parquet|rds|feather))(?=$|[\s;,'\"])"
)
_APART: Final = re.compile(r"HOSTNAME|\{|\$|%|\*")
_LOGS: Final = {"log", "out", "err"}
_ALWAYS: Final = {"pid", "sock"}
# What else a setting names may only be read: unless its name says that it is written.
_WRITTEN: Final = re.compile(r"out|result|export|dump|writ|report|save|store|target|dest", re.IGNORECASE)


@rule(
    "SV016",
    "different users on one volume",
    Severity.warning,
    why="""Files of one user cannot be replaced, locked or collected by another: EACCES when a lock file of mode
    0600 is opened, EPERM when the file is linked (`protected_hardlinks`), and the kernel grants the lease by
    which the sidecar knows that a file is closed to the file's owner only.""",
    mend="Give every service on the volume one `user: UID:GID`; the sidecar's image runs as 65532:65532.",
)
def different_users(project: Project) -> Iterator[Found]:
    for volume in project.volumes:
        users: dict[tuple[str, str], Service] = {}
        for service, mount in project.users_of(volume):
            user = _user(service)
            if user is None or mount.read_only or service.ends:  # who gives the files to their user has ended
                continue
            clash = next((one for known, one in users.items() if _differ(known, user)), None)
            if clash is not None:
                told = (
                    f"writes the volume {volume!r} as {_shown(user)}, service {clash.name!r} as {_shown(_user(clash))}"
                )
                at = service.node.get("user").at if service.node.get("user").present else mount.at
                yield Found(at, f"service {service.name!r} {told}", service.name)
            users.setdefault(user, service)


def _user(service: Service) -> tuple[str, str] | None:
    text = service.node.get("user").text or (SIDECAR_USER if "sharedvol-sidecar" in service.image else "")
    if not text:
        return None
    user, _, group = text.partition(":")
    return user, group


def _shown(user: tuple[str, str] | None) -> str:
    return ":".join(part for part in user or () if part)


def _differ(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return one[0] != other[0] or bool(one[1] and other[1] and one[1] != other[1])


@rule(
    "SV017",
    "SQLite database on a shared volume",
    Severity.error,
    why="""SQLite lets one process write at a time and answers the others "database is locked". Its write-ahead
    log is shared memory, which works between containers of one kernel only; on Docker Desktop's bind mounts and
    on network file systems its locks do not hold, and the file is damaged.""",
    mend="Use a server (MySQL, PostgreSQL) for what several replicas write. For one writer take one replica.",
)
@of_each
def sqlite_shared(project: Project, service: Service) -> Iterator[Found]:
    for _, node in _settings(service):
        match = _SQLITE.search(node.text)
        mount = service.mount_of(re.sub("^/+", "/", match[1])) if match else None
        if match and mount and mount.shared and not mount.read_only:
            yield Found(node.at, f"all replicas open one SQLite file, {match[1]!r}")


@rule(
    "SV018",
    "volume on a network file system",
    Severity.warning,
    why="""On NFS, CIFS and FUSE `flock` and `fcntl` locks may be one, may be local to the machine or may not
    exist; leases and inotify are missing, rename may be seen late, and a lock is not freed at once when its
    holder dies. Nothing of this shows in the compose file.""",
    mend="""Run `sharedvol doctor DIR` in a container that mounts it, and one more with `--peer`. Use a local
    volume where the replicas are on one machine.""",
)
def network_volume(project: Project) -> Iterator[Found]:
    for name, volume in project.volumes.items():
        kind = volume.get("driver_opts", "type")
        driver = volume.get("driver")
        used = [service for service, _ in project.users_of(name) if service.replicated]
        if not used:
            continue
        if is_network(kind.text.lower()):
            yield Found(kind.at, f"volume {name!r} is on {kind.text}: its locks are not those of a local disk")
        elif driver.present and driver.text not in {"", "local"}:
            yield Found(driver.at, f"volume {name!r} is of the driver {driver.text!r}: nobody knows its locks")


@rule(
    "SV019",
    "fixed log name on a shared volume",
    Severity.error,
    why="""All replicas write one log. Each has its own place in it: without O_APPEND they write over each
    other's lines, and with it the first that rotates renames the file under the others, which go on writing to
    the old one; a second rotation deletes what they wrote.""",
    mend="""Give each replica its own: `sharedvol.logs.ReplicaFileHandler` with `{container}` in the directory,
    or log to standard output.""",
)
@of_each
def fixed_log(project: Project, service: Service) -> Iterator[Found]:
    for node, _, path, kind in _fixed_files(service):
        if kind in _LOGS:
            yield Found(node.at, f"all replicas write the log {path!r}")


@rule(
    "SV020",
    "fixed file name on a shared volume",
    Severity.warning,
    why="""All replicas write one file. The last one wins, a reader sees one half of each, and a pid file or a
    socket of one replica is taken for another's: a PID means nothing in another container, and a second `bind`
    takes the first one's socket away.""",
    mend="""Build the name with `unique_path` or `container_path` and write with `publish`; keep pid files and
    sockets in `/run`, out of the volume.""",
)
@of_each
def fixed_file(project: Project, service: Service) -> Iterator[Found]:
    for node, name, path, kind in _fixed_files(service):
        if kind in _ALWAYS or (kind not in _LOGS and _WRITTEN.search(name)):
            yield Found(node.at, f"all replicas write {path!r}")


def _fixed_files(service: Service) -> Iterator[tuple[Node, str, str, str]]:
    """Files whose names are settled in the compose file and lie on a writable mount that replicas share.

    With the name of what sets them, the path and its ending.
    """
    for name, node in _settings(service):
        for path, kind in _FIXED.findall(node.text):
            mount = service.mount_of(path)
            if mount and mount.shared and not mount.read_only and mount.target != path and not _APART.search(path):
                yield node, name, path, kind.lower()


def _settings(service: Service) -> Iterator[tuple[str, Node]]:
    """Where a compose file tells a program what to write: variables by name, words of the command by the one before."""
    yield from ((name, node) for name, node in service.environment.items() if node.text)
    option = ""
    for word in service.words:
        yield (word.text.partition("=")[0] if word.text.startswith("-") else option), word
        option = word.text


@rule(
    "SV021",
    "spool and collected files on two mounts",
    Severity.warning,
    why="""The sidecar moves a file by link(2), whatever its size, where spool and destination are under one
    mount. Two volumes, or two mounts of one, are two mounts even of one file system (EXDEV): every file is
    copied, which takes its time, its space twice, and the directory's disk.""",
    mend="Mount one volume that holds both directories, as a whole.",
)
def two_mounts(project: Project) -> Iterator[Found]:
    for service in project.services:
        start = service.environment.get("SHAREDVOL_FROM", EMPTY)
        end = service.environment.get("SHAREDVOL_TO", EMPTY)
        if start.text and end.text and service.mount_of(start.text) != service.mount_of(end.text):
            told = (
                f"service {service.name!r}: {end.text!r} is under another mount than {start.text!r}: files are copied"
            )
            yield Found(end.at, told, service.name)


RULES: Final[tuple[Rule, ...]] = (
    different_users,
    sqlite_shared,
    network_volume,
    fixed_log,
    fixed_file,
    two_mounts,
)
