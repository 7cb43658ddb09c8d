"""Rules for the mounts of replicas: what they contain, and who may write to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY
from sharedvol.lint.project import ComposeService, ServiceMount
from sharedvol.lint.rule import Rule, Severity, Violation, of_each, of_replicated, rule

_DEVELOPMENT: Final = re.compile(r"override|dev|local|test|debug", re.IGNORECASE)
_CODE: Final = re.compile(
    r"/(?:app|src|code|srv|opt/app|usr/src(?:/app)?|usr/app|home/[^/]+/app|var/www(?:/html)?)(?:/.*)?"
)
_CODE_FILE: Final = re.compile(r".+\.(?:py|R|r|js|ts|rb|php|jar|go|pl|sh)")
# Directories below that of the code that contain data.
_NO_CODE: Final = re.compile(
    r"/(?:data|shared|uploads?|config|conf|etc|logs?|results?|outputs?|exports?|spool|cache|tmp|media|backups?|locks)"
    r"(?:/|$)",
    re.IGNORECASE,
)
_RESULTS: Final = {
    "result",
    "results",
    "log",
    "logs",
    "spool",
    "output",
    "outputs",
    "upload",
    "uploads",
    "shared",
    "export",
}
_OWN: Final = ("per-replica", "cache", "locked", "append")


@rule(
    "SV010",
    "writable bind mount shared by replicas",
    Severity.warning,
    why="""All replicas write to the same directory of the host without coordination, and so do the host's users
    and programs. Its files belong to the users that created them on the host, not to the image's user. On Docker
    Desktop a bind mount goes through a network file system, where two containers can both hold an exclusive
    lock.""",
    mend="Use a named volume for shared data, and mount data that replicas only read with `read_only: true`.",
)
@of_each
def writable_bind(service: ComposeService) -> Iterator[Violation]:
    for mount in service.mounts:
        if mount.kind == "bind" and not mount.read_only and not _is_socket(mount) and not _is_code(service, mount):
            yield Violation(mount.at, f"all replicas write to {mount.raw!r} on the host, at {mount.target!r}")


@rule(
    "SV011",
    "code bind-mounted in production",
    Severity.warning,
    why="""The code comes from the host's directory, not from the image. An edit or a `git pull` there changes
    all running replicas at once, a worker that restarts runs other code than its neighbors, and a rollback to
    the old image does not restore the old code.""",
    mend="""Copy the code into the image. Keep the bind mount in `compose.override.yaml`, which production does
    not use, or use `develop.watch`. This rule skips files whose names indicate development (override, dev, local,
    test).""",
)
@of_replicated
def code_bind(service: ComposeService) -> Iterator[Violation]:
    for mount in service.mounts:
        if _is_code(service, mount) and not _DEVELOPMENT.search(mount.at.file.rpartition("/")[2]):
            yield Violation(mount.at, f"the code at {mount.target!r} comes from {mount.raw!r} on the host")


def _is_socket(mount: ServiceMount) -> bool:
    return mount.source.endswith(".sock") or mount.source.startswith(("/dev", "/sys", "/proc", "/run"))


def _is_code(service: ComposeService, mount: ServiceMount) -> bool:
    if mount.kind != "bind" or _is_socket(mount):
        return False
    inside = service.node.get("working_dir").text
    return bool(
        _CODE.fullmatch(mount.target) or (inside and mount.target == inside) or _CODE_FILE.fullmatch(mount.target)
    ) and not _NO_CODE.search(mount.target)


@rule(
    "SV012",
    "shared writable volume without the sidecar or per-replica paths",
    Severity.warning,
    why="""Every replica writes to the same directories. Two replicas use one file name, a reader sees half a file,
    a rotation by one replica loses the lines of another, and the files of a dead replica stay. Nothing in these
    files shows how the writers are kept apart.""",
    mend="""Let each replica write below its own directory, and let `sharedvol-sidecar` collect the files from the
    same volume. If something else keeps the writers apart, declare it at the volume: `x-sharedvol: {writes:
    per-replica}`, or `cache` (sharedvol's Cache), `locked` (under a lock) or `append`. Mount the volume
    `read_only: true` if the service only reads it.""",
)
@of_each
def unguarded_volume(service: ComposeService) -> Iterator[Violation]:
    if service.is_sidecar:
        return
    collected = {mount.source for one in service.project.services if one.is_sidecar for mount in one.mounts}
    for mount in service.mounts:
        declared = service.project.volumes.get(mount.source, EMPTY).get("x-sharedvol", "writes").text
        apart = mount.source in collected or declared in _OWN
        if mount.kind == "volume" and mount.source and not mount.read_only and not apart:
            message = f"all replicas write to the volume {mount.source!r}, and nothing keeps them apart"
            # A cache can be rebuilt, so this is only a note. How its writers are kept apart must still be declared.
            yield Violation(mount.at, message, severity=Severity.note if _is_cache(service, mount) else None)


def _is_cache(service: ComposeService, mount: ServiceMount) -> bool:
    return any("CACHE" in name and mount.holds(value.text) for name, value in service.environment.items())


@rule(
    "SV013",
    "volume of replicas without nocopy",
    Severity.warning,
    why="""The engine copies the image's files at the mount's path into an empty volume. Several replicas that start
    together copy at the same time: a start fails ("failed to mkdir …: file exists"), one replica reads files that
    another is still copying, and files that the first replica created are mixed with those of the image. After an
    update the image's newer files are not copied, and the old ones hide them.""",
    mend="""Use the long syntax with `volume: {nocopy: true}`. Let a service that runs once create the directories
    and set their owner, and let the replicas wait for it (`condition: service_completed_successfully`).""",
)
@of_replicated
def missing_nocopy(service: ComposeService) -> Iterator[Violation]:
    for mount in service.mounts:
        if mount.kind == "volume" and mount.source and not mount.nocopy:
            yield Violation(
                mount.at, f"the volume {mount.source!r} is filled from the image by each replica that finds it empty"
            )


@rule(
    "SV014",
    "tmpfs for files that must last",
    Severity.warning,
    why="""A tmpfs belongs to one container and is lost with it. Results and logs that wait to be collected are
    lost when a replica ends, no other replica or sidecar sees them, and they count as the container's memory.""",
    mend="Write results, logs and uploads to a named volume. Keep tmpfs for `/tmp` and `/run`.",
)
@of_each
def tmpfs_results(service: ComposeService) -> Iterator[Violation]:
    for mount in service.mounts:
        if mount.kind == "tmpfs" and _RESULTS & set(mount.target.lower().split("/")):
            yield Violation(mount.at, f"files in {mount.target!r} are lost with the container")


@rule(
    "SV015",
    "anonymous volume on a replicated service",
    Severity.warning,
    why="""Each container gets its own volume without a name. Replicas do not share it. When scaling down removes a
    replica, its files stay in a volume with a random name, where they are forgotten.""",
    mend="Give the volume a name to share it, or use `tmpfs:` for files that may be lost.",
)
@of_replicated
def anonymous_volume(service: ComposeService) -> Iterator[Violation]:
    for mount in service.mounts:
        if mount.kind == "volume" and not mount.source:
            yield Violation(mount.at, f"each replica has its own unnamed volume at {mount.target!r}")


RULES: Final[tuple[Rule, ...]] = (
    writable_bind,
    code_bind,
    unguarded_volume,
    missing_nocopy,
    tmpfs_results,
    anonymous_volume,
)
