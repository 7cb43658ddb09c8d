"""Rules: what the mounts of replicas hold, and who may write there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY
from sharedvol.lint.project import Mount, Project, Service
from sharedvol.lint.rule import Found, Rule, Severity, of_each, of_replicated, rule

_DEVELOPMENT: Final = re.compile(r"override|dev|local|test|debug", re.IGNORECASE)
_CODE: Final = re.compile(
    r"/(?:app|src|code|srv|opt/app|usr/src(?:/app)?|usr/app|home/[^/]+/app|var/www(?:/html)?)(?:/.*)?"
)
_CODE_FILE: Final = re.compile(r".+\.(?:py|R|r|js|ts|rb|php|jar|go|pl|sh)")
# What lies below the code's directory and is none.
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
    why="""All replicas write the same directory of the host, without one knowing of the other, and the host's
    people and programs write there, too. Its files belong to whoever made them on the host, not to the image's
    user. On Docker Desktop a bind mount goes through a network file system, where two containers can both hold
    an exclusive lock.""",
    mend="Use a named volume for what replicas share; mount what they only read with `read_only: true`.",
)
@of_each
def writable_bind(project: Project, service: Service) -> Iterator[Found]:
    for mount in service.mounts:
        if mount.kind == "bind" and not mount.read_only and not _is_socket(mount) and not _is_code(service, mount):
            yield Found(mount.at, f"all replicas write {mount.raw!r} of the host, at {mount.target!r}")


@rule(
    "SV011",
    "code bind-mounted in production",
    Severity.warning,
    why="""The code comes from the host's directory, not from the image. An edit or a `git pull` there changes
    all running replicas at once, a worker that restarts runs other code than its neighbours, and a roll-back to
    the old image does not bring the old code back.""",
    mend="""Copy the code into the image. Keep the bind mount in `compose.override.yaml`, which production does
    not name, or use `develop.watch`. Files whose names say development (override, dev, local, test) are not
    looked at.""",
)
@of_replicated
def code_bind(project: Project, service: Service) -> Iterator[Found]:
    for mount in service.mounts:
        if _is_code(service, mount) and not _DEVELOPMENT.search(mount.at.file.rpartition("/")[2]):
            yield Found(mount.at, f"the code at {mount.target!r} is that of {mount.raw!r} on the host")


def _is_socket(mount: Mount) -> bool:
    return mount.source.endswith(".sock") or mount.source.startswith(("/dev", "/sys", "/proc", "/run"))


def _is_code(service: Service, mount: Mount) -> bool:
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
    why="""Every replica writes the same directories: two write one file name, a reader sees half a file,
    rotation of one loses the other's lines, and nobody clears away what a dead replica left. Nothing here says
    who keeps them apart.""",
    mend="""Let each replica write below a directory of its own and let `sharedvol-sidecar` collect, mounted on
    the same volume. Where something else keeps the writers apart, say so at the volume: `x-sharedvol: {writes:
    per-replica}`, or `cache` (sharedvol's Cache), `locked` (under a lock) or `append`. Mount it `read_only:
    true` where it is only read.""",
)
@of_each
def unguarded_volume(project: Project, service: Service) -> Iterator[Found]:
    if service.is_sidecar:
        return
    collected = {mount.source for one in project.services if one.is_sidecar for mount in one.mounts}
    for mount in service.mounts:
        declared = project.volumes.get(mount.source, EMPTY).get("x-sharedvol", "writes").text
        apart = mount.source in collected or declared in _OWN
        if mount.kind == "volume" and mount.source and not mount.read_only and not apart:
            told = f"all replicas write the volume {mount.source!r}, and nothing says who keeps them apart"
            # What is called a cache can be made again: whether its writers are kept apart is still to be said.
            yield Found(mount.at, told, severity=Severity.note if _is_cache(service, mount) else None)


def _is_cache(service: Service, mount: Mount) -> bool:
    return any("CACHE" in name and mount.holds(value.text) for name, value in service.environment.items())


@rule(
    "SV013",
    "volume of replicas without nocopy",
    Severity.warning,
    why="""The engine copies what the image has at the mount's path into a volume that is empty. Several
    replicas that start together copy at the same time: a start fails ("failed to mkdir …: file exists"), one
    reads files that another's copy is still writing, and what the first one made there is mixed with the
    image's. After an update the image's newer files are not copied, and the old ones hide them.""",
    mend="""Use the long syntax with `volume: {nocopy: true}`, and let one service that runs once make the
    directories and give them their owner, while the replicas wait for it (`condition:
    service_completed_successfully`).""",
)
@of_replicated
def missing_nocopy(project: Project, service: Service) -> Iterator[Found]:
    for mount in service.mounts:
        if mount.kind == "volume" and mount.source and not mount.nocopy:
            yield Found(
                mount.at, f"the volume {mount.source!r} is filled from the image by each replica that finds it empty"
            )


@rule(
    "SV014",
    "tmpfs for what must last",
    Severity.warning,
    why="""A tmpfs belongs to one container and is gone with it: results and logs that wait to be collected are
    lost when a replica ends, no other replica or sidecar sees them, and they count as the container's memory.""",
    mend="Write results, logs and uploads to a named volume. Keep tmpfs for `/tmp` and `/run`.",
)
@of_each
def tmpfs_results(project: Project, service: Service) -> Iterator[Found]:
    for mount in service.mounts:
        if mount.kind == "tmpfs" and _RESULTS & set(mount.target.lower().split("/")):
            yield Found(mount.at, f"what is written to {mount.target!r} is lost with the container")


@rule(
    "SV015",
    "anonymous volume on a replicated service",
    Severity.warning,
    why="""A volume without a name is another one for each container. Replicas do not share it; when one is
    removed by scaling down its files stay in a volume with a random name that nobody looks into.""",
    mend="Give the volume a name to share it, or use `tmpfs:` for what may go.",
)
@of_replicated
def anonymous_volume(project: Project, service: Service) -> Iterator[Found]:
    for mount in service.mounts:
        if mount.kind == "volume" and not mount.source:
            yield Found(mount.at, f"each replica has a nameless volume of its own at {mount.target!r}")


RULES: Final[tuple[Rule, ...]] = (
    writable_bind,
    code_bind,
    unguarded_volume,
    missing_nocopy,
    tmpfs_results,
    anonymous_volume,
)
