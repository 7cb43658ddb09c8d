"""Why two containers can have one name: the words of `sharedvol.DuplicateReplicaError`."""

from __future__ import annotations

import os
import socket
from typing import Final

from sharedvol.volume.record import ReplicaRecord

_ID_LENGTH: Final = 12  # of the short container id, which engines give as host name


def describe_duplicate(known: ReplicaRecord, volume: str, *, given: bool) -> str:
    """What is known of the live replica that has the name, why that can be, and what to change.

    Args:
        known: what it wrote.
        volume: the volume's path.
        given: whether the name was passed to ``join``.
    """
    taken = f"replica name {known.name!r} is taken on {volume!r} by a live replica"
    if known.slot is None or known.mount_namespace is None:
        return (
            f"{taken} whose information cannot be read, so that it counts as another container: end its processes, "
            f"and join again; or, {_cause(given)}"
        )
    about = [f"slot {known.slot}"]
    about += [f"since {known.joined_at:%Y-%m-%d %H:%M:%S %Z}"] if known.joined_at else []
    about += [f"process {known.pid} in its container"] if known.pid is not None else []
    about += [f"purpose {known.purpose!r}"] if known.purpose else []
    return f"{taken} of another container ({', '.join(about)}): {_cause(given)}"


def _cause(given: bool) -> str:
    """Why two containers have one name, the likeliest first, and what to change."""
    if given:
        return "the name was passed to join(): pass another in each replica, or none"
    host = socket.gethostname()
    environment = os.environ.get("HOSTNAME", "")
    if environment and environment != host:
        return (
            f"HOSTNAME={environment} is set in the environment of several replicas (`environment:` or `env_file:` in "
            "the compose file): leave it out"
        )
    if len(host) == _ID_LENGTH and all(letter in "0123456789abcdef" for letter in host):
        return (
            "this container shares another's host name (`network_mode: service:...` or `container:...` in the compose "
            "file): leave that out, or set HOSTNAME to a name of its own in each"
        )
    return (
        "the replicas share a host name (`hostname:`, `network_mode: host` or `uts: host` in the compose file): leave "
        "that out, so that each is named by its container id"
    )
