"""Rules for volumes: their file systems, and how several services use one volume."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY, Node
from sharedvol.lint.project import SIDECAR_USER, ComposeService, Project
from sharedvol.lint.rule import Rule, Severity, Violation, of_each, rule
from sharedvol.mounts import is_network

_SQLITE: Final = re.compile(r"(?:(?:sqlite|file)[a-z+]*:/{0,2})?(/[^\s?'\"]+\.(?:db|sqlite3?|db3))\b", re.IGNORECASE)
_FIXED: Final = re.compile(
    r"(?:^|[=\s:'\"])(/[^\s:;,'\"=]+\.(log|txt|out|err|pid|sock|json|csv|parquet|rds|feather))(?=$|[\s;,'\"])"
)
_APART: Final = re.compile(r"HOSTNAME|\{|\$|%|\*")
_LOGS: Final = {"log", "out", "err"}
_ALWAYS: Final = {"pid", "sock"}
# A program may only read the file that another setting names, unless the setting's name indicates output.
_WRITTEN: Final = re.compile(r"out|result|export|dump|writ|report|save|store|target|dest", re.IGNORECASE)


@rule(
    "SV016",
    "different users on one volume",
    Severity.warning,
    why="""A user cannot replace, lock or collect the files of another: opening a lock file of mode 0600 fails with
    EACCES, and linking a file fails with EPERM (`protected_hardlinks`). The sidecar detects by a lease that a file
    is closed, and the kernel grants a lease only to the file's owner.""",
    mend="Give every service on the volume one `user: UID:GID`; the sidecar's image runs as 65532:65532.",
)
def different_users(project: Project) -> Iterator[Violation]:
    for volume in project.volumes:
        users: dict[tuple[str, str], ComposeService] = {}
        for service, mount in project.users_of(volume):
            user = _user(service)
            if user is None or mount.read_only or service.ends:  # a service that sets the owner has ended by then
                continue
            clash = next((one for known, one in users.items() if _differ(known, user)), None)
            if clash is not None:
                message = (
                    f"writes to volume {volume!r} as {_shown(user)}, service {clash.name!r} as {_shown(_user(clash))}"
                )
                at = service.node.get("user").at if service.node.get("user").present else mount.at
                yield Violation(at, f"service {service.name!r} {message}", service.name)
            users.setdefault(user, service)


def _user(service: ComposeService) -> tuple[str, str] | None:
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
    why="""SQLite lets one process write at a time, and the others get "database is locked". Its write-ahead log
    needs shared memory, which works only between containers of one kernel. On Docker Desktop's bind mounts and on
    network file systems its locks do not work, and the file gets corrupted.""",
    mend="Use a server (MySQL, PostgreSQL) if several replicas write. For one writer use one replica.",
)
@of_each
def sqlite_shared(service: ComposeService) -> Iterator[Violation]:
    for _, node in _settings(service):
        match = _SQLITE.search(node.text)
        mount = service.mount_of(re.sub("^/+", "/", match[1])) if match else None
        if match and mount and mount.shared and not mount.read_only:
            yield Violation(node.at, f"all replicas open one SQLite file, {match[1]!r}")


@rule(
    "SV018",
    "volume on a network file system",
    Severity.warning,
    why="""On NFS, CIFS and FUSE, `flock` and `fcntl` locks may be the same lock, may be local to the machine or may
    not exist. Leases and inotify are missing, a rename may be visible late, and a lock is not freed at once when
    its holder dies. The compose file does not show any of this.""",
    mend="""Run `sharedvol doctor DIR` in a container that mounts it, and another one with `--peer`. Use a local
    volume if the replicas are on one machine.""",
)
def network_volume(project: Project) -> Iterator[Violation]:
    for name, volume in project.volumes.items():
        kind = volume.get("driver_opts", "type")
        driver = volume.get("driver")
        used = [service for service, _ in project.users_of(name) if service.replicated]
        if not used:
            continue
        if is_network(kind.text.lower()):
            yield Violation(kind.at, f"volume {name!r} is on {kind.text}: its locks differ from those of a local disk")
        elif driver.present and driver.text not in {"", "local"}:
            yield Violation(driver.at, f"volume {name!r} uses the driver {driver.text!r}, whose locks are unknown")


@rule(
    "SV019",
    "fixed log name on a shared volume",
    Severity.error,
    why="""All replicas write to one log, each at its own position. Without O_APPEND they overwrite each other's
    lines. With it, the first replica that rotates renames the file while the others keep writing to it, and a
    second rotation deletes their lines.""",
    mend="""Give each replica its own log: use `sharedvol.logs.ReplicaFileHandler` with `{container}` in the
    directory, or log to standard output.""",
)
@of_each
def fixed_log(service: ComposeService) -> Iterator[Violation]:
    for node, _, path, kind in _fixed_files(service):
        if kind in _LOGS:
            yield Violation(node.at, f"all replicas write to the log {path!r}")


@rule(
    "SV020",
    "fixed file name on a shared volume",
    Severity.warning,
    why="""All replicas write one file. The last one wins, a reader may see half of each, and replicas confuse each
    other's PID files and sockets: a PID means nothing in another container, and a second `bind` replaces the
    socket of the first replica.""",
    mend="""Build the name with `unique_path` or `container_path` and write with `publish`. Keep PID files and
    sockets in `/run`, outside the volume.""",
)
@of_each
def fixed_file(service: ComposeService) -> Iterator[Violation]:
    for node, name, path, kind in _fixed_files(service):
        if kind in _ALWAYS or (kind not in _LOGS and _WRITTEN.search(name)):
            yield Violation(node.at, f"all replicas write {path!r}")


def _fixed_files(service: ComposeService) -> Iterator[tuple[Node, str, str, str]]:
    """Find files on writable shared mounts whose names are fixed in the compose file.

    Yields:
        The node, the name of the setting, the path and its extension.
    """
    for name, node in _settings(service):
        for path, kind in _FIXED.findall(node.text):
            mount = service.mount_of(path)
            if mount and mount.shared and not mount.read_only and mount.target != path and not _APART.search(path):
                yield node, name, path, kind.lower()


def _settings(service: ComposeService) -> Iterator[tuple[str, Node]]:
    """Yield the environment variables by name, and the words of the command by the option before them."""
    yield from ((name, node) for name, node in service.environment.items() if node.text)
    option = ""
    for word in service.words:
        yield (word.text.partition("=")[0] if word.text.startswith("-") else option), word
        option = word.text


@rule(
    "SV021",
    "spool and collected files on two mounts",
    Severity.warning,
    why="""If the spool and the destination are on one mount, the sidecar moves a file of any size by link(2). Two
    volumes, or two mounts of one volume, are different mounts even on one file system (EXDEV). Then every file is
    copied, which takes time and needs its space twice.""",
    mend="Mount one whole volume that contains both directories.",
)
def two_mounts(project: Project) -> Iterator[Violation]:
    for service in project.services:
        start = service.environment.get("SHAREDVOL_FROM", EMPTY)
        end = service.environment.get("SHAREDVOL_TO", EMPTY)
        if start.text and end.text and service.mount_of(start.text) != service.mount_of(end.text):
            message = (
                f"service {service.name!r}: {end.text!r} and {start.text!r} are on different mounts: files are copied"
            )
            yield Violation(end.at, message, service.name)


RULES: Final[tuple[Rule, ...]] = (
    different_users,
    sqlite_shared,
    network_volume,
    fixed_log,
    fixed_file,
    two_mounts,
)
