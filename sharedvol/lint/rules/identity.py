"""Rules for names, addresses and ports that replicas cannot share."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.project import ComposeService
from sharedvol.lint.rule import Rule, Severity, Violation, of_each, rule

# These parts name a replica. In an address of a site (a label, a URL) the name of the machine may be right.
_NAMING: Final = ("environment", "command", "entrypoint", "volumes", "tmpfs", "healthcheck", "post_start", "pre_stop")
_ADDRESS: Final = re.compile(r"HOST|URL|URI|DOMAIN|ORIGIN|SITE|ADDR")
_HOSTNAME: Final = re.compile(r"(?<!\$)(?:\$\$)*\$(?:HOSTNAME\b|\{HOSTNAME\b)")


@rule(
    "SV001",
    "fixed host port on a replicated service",
    Severity.error,
    why="""A port of the host belongs to one container. The first replica gets it; each further one fails to
    start with "port is already allocated". An update that starts the new container before it stops the old one
    fails as well.""",
    mend="""Remove the port and let a proxy find the replicas on the network (`expose:` only documents a port), or
    publish a range with a port for each replica, such as `8000-8003:8000`.""",
)
@of_each
def fixed_port(service: ComposeService) -> Iterator[Violation]:
    seen = set()
    for port in service.node.get("ports").items:
        published = port.get("published")
        low, _, high = published.text.partition("-")
        if not low.isdigit() or int(low[:6]) == 0:
            continue
        room = int(high[:6]) - int(low[:6]) + 1 if high.isdigit() else 1
        if room < max(service.replicas, 2) and port.at not in seen:
            seen.add(port.at)  # report a range once, although it means several ports
            named = f"port {published.text}" if room == 1 else f"{room} ports {published.text}"
            yield Violation(port.at, f"the host's {named} cannot be published by {_several(service)}")


@rule(
    "SV002",
    "container_name on a replicated service",
    Severity.error,
    why="""A container's name is unique on its engine. Compose refuses to scale a service that fixes it, and
    scripts that use the name reach one container only.""",
    mend="""Remove `container_name`. Reach the service by its name on the network, and a replica by `docker
    compose exec --index N SERVICE`.""",
)
@of_each
def container_name(service: ComposeService) -> Iterator[Violation]:
    name = service.node.get("container_name")
    if name.present:
        yield Violation(name.at, f"only one container can have the container_name {name.text!r}")


@rule(
    "SV003",
    "hostname on a replicated service",
    Severity.error,
    why="""`hostname:` gives every replica the same HOSTNAME instead of its own container id. Names built from it
    (`results/job_7_<HOSTNAME>.json`, `logs/<HOSTNAME>_20260131.log`) are then the same in all replicas: they
    overwrite each other's files, and a replica that joins the volume is refused because a live one has its
    name.""",
    mend="Remove `hostname`: the engine gives each container its own id as host name.",
)
@of_each
def hostname(service: ComposeService) -> Iterator[Violation]:
    name = service.node.get("hostname")
    if name.present:
        yield Violation(name.at, f"all replicas get the host name {name.text!r}")


@rule(
    "SV004",
    "HOSTNAME set in the environment of a replicated service",
    Severity.error,
    why="""The engine sets HOSTNAME to the container's id. A value in `environment:` or in an `env_file:`
    replaces it in every replica; `- HOSTNAME` without a value passes on the host's. All replicas then build the
    same file names.""",
    mend="Remove HOSTNAME from `environment:` and from the env files. For a readable name, use another variable.",
)
@of_each
def environment_hostname(service: ComposeService) -> Iterator[Violation]:
    if "HOSTNAME" in service.environment:
        value = service.environment["HOSTNAME"]
        shown = repr(value.text) if value.present else "the host's"
        yield Violation(value.at, f"all replicas get HOSTNAME {shown}")


@rule(
    "SV005",
    "network_mode shared with the host or another container",
    Severity.error,
    why="""With `network_mode: host` or `service:…` a container has no network of its own. The replicas share
    one set of ports, so all but the first fail with "address already in use". With `host` they also have the
    host's name, so the names they build are the same. A proxy cannot distinguish them.""",
    mend="Remove `network_mode` and attach the service to a network.",
)
@of_each
def network_mode(service: ComposeService) -> Iterator[Violation]:
    mode = service.node.get("network_mode")
    if mode.text == "host" or mode.text.startswith(("service:", "container:")):
        yield Violation(mode.at, f"all replicas share the network of {mode.text!r}")


@rule(
    "SV006",
    "fixed address on a replicated service",
    Severity.error,
    why="""An address on a network, and a MAC address, belong to one container: the second replica fails with
    "Address already in use".""",
    mend="Remove the address; other containers find the replicas by the service's name.",
)
@of_each
def fixed_address(service: ComposeService) -> Iterator[Violation]:
    places = [service.node, *service.node.get("networks").map.values()]
    for node in places:
        for name in ("mac_address", "ipv4_address", "ipv6_address"):
            address = node.get(name)
            if address.present:
                yield Violation(address.at, f"only one container can have the {name} {address.text!r}")


@rule(
    "SV007",
    "${HOSTNAME} filled in by Compose, not by the container",
    Severity.error,
    why="""Compose replaces `${HOSTNAME}` when it reads the file: with the name of the machine where `docker
    compose` runs, with nothing, or with the default after `:-`, which is the same for every replica. The
    container's own HOSTNAME does not exist yet.""",
    mend="""Write `$$HOSTNAME` to let a shell in the container replace it. Better, let the program call
    `sharedvol.whoami()` or `container_path`.""",
)
@of_each
def interpolated_hostname(service: ComposeService) -> Iterator[Violation]:
    addresses = [node for name, node in service.environment.items() if _ADDRESS.search(name)]  # HOSTNAME: SV004
    for part in _NAMING:
        for node in service.node.get(part).scalars():
            if _HOSTNAME.search(node.raw) and not any(node is address for address in addresses):
                yield Violation(node.at, f"{node.raw[:100]!r} becomes the same text for all replicas")


@rule(
    "SV008",
    "host name, IPC or processes shared with the host or another container",
    Severity.error,
    why="""With `uts: host` every replica has the host's name as its own. With `ipc: host` or `ipc: service:…`
    replicas share one `/dev/shm` and one set of named semaphores, and confuse each other's with their own. With
    `pid: host` or `pid: service:…` a PID file of one replica names a process of the others, which they then
    signal.""",
    mend="Remove `uts`, `ipc` and `pid`: a container has its own.",
)
@of_each
def shared_namespace(service: ComposeService) -> Iterator[Violation]:
    for name in ("uts", "ipc", "pid"):
        mode = service.node.get(name)
        if mode.text == "host" or mode.text.startswith(("service:", "container:")):
            yield Violation(mode.at, f"all replicas have {name}: {mode.text}")


def _several(service: ComposeService) -> str:
    return f"{service.replicas} replicas" if service.replicated else "several replicas"


RULES: Final[tuple[Rule, ...]] = (
    fixed_port,
    container_name,
    hostname,
    environment_hostname,
    network_mode,
    fixed_address,
    interpolated_hostname,
    shared_namespace,
)
