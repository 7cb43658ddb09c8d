"""Explain why two containers have the same name: the message of `sharedvol.DuplicateReplicaError`."""

from __future__ import annotations

import os
import socket
from typing import Final

from sharedvol.volume.record import ReplicaRecord

_ID_LENGTH: Final = 12  # of the short container id, which engines use as host name


def describe_duplicate(known: ReplicaRecord, volume: str, *, given: bool) -> str:
    """Describe the live replica that has the name, the likely reason, and what to change.

    Args:
        known: the replica's record.
        volume: the volume's path.
        given: whether the caller passed the name to ``join``.
    """
    taken = f"replica name {known.name!r} is taken on {volume!r} by a live replica"
    if known.slot is None or known.mount_namespace is None:
        return (
            f"{taken} whose record cannot be read, so it counts as another container: end its processes and join "
            f"again; or: {_cause(given)}"
        )
    about = [f"slot {known.slot}"]
    about += [f"since {known.joined_at:%Y-%m-%d %H:%M:%S %Z}"] if known.joined_at else []
    about += [f"process {known.pid} in its container"] if known.pid is not None else []
    about += [f"purpose {known.purpose!r}"] if known.purpose else []
    return f"{taken} of another container ({', '.join(about)}): {_cause(given)}"


def _cause(given: bool) -> str:
    """Return the likeliest reason why two containers have the same name, and what to change."""
    if given:
        return "the name was passed to join(): pass a different name in each replica, or none"
    host = socket.gethostname()
    environment = os.environ.get("HOSTNAME", "")
    if environment and environment != host:
        return (
            f"HOSTNAME={environment} is set in the environment of several replicas (`environment:` or `env_file:` in "
            "the compose file): remove it"
        )
    if len(host) == _ID_LENGTH and all(letter in "0123456789abcdef" for letter in host):
        return (
            "this container shares the host name of another (`network_mode: service:...` or `container:...` in the "
            "compose file): remove that, or set HOSTNAME to a different name in each container"
        )
    return (
        "the replicas share a host name (`hostname:`, `network_mode: host` or `uts: host` in the compose file): remove "
        "that, so that each is named after its container id"
    )
