"""The record that a replica writes about itself, next to the lock that shows whether it is alive.

Any process that may write the volume may have written it, so every field is checked.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sharedvol.host import here
from sharedvol.identity import MAX_CONTAINER_BYTES
from sharedvol.locks.arguments import MAX_PURPOSE

MAX_SLOTS: Final = 10_000

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """The record of a replica. Every field except the name may be unknown.

    Attributes:
        name: the replica's name.
        slot: its slot.
        joined_at: when its first process joined, in UTC, by the clock of its machine. It is only shown.
        purpose: what the replica is for, in its own words. It may contain any text.
        pid: the id of its first process, in that process's PID namespace.
        worker: the token of that process.
        boot_id: the boot of the kernel that it runs on.
        mount_namespace: which differs between the containers of a boot.
    """

    name: str
    slot: int | None = None
    joined_at: datetime | None = None
    purpose: str = ""
    pid: int | None = None
    worker: str | None = None
    boot_id: str | None = None
    mount_namespace: int | None = None

    def in_this_container(self) -> bool:
        """Return whether a live replica is of the caller's container.

        A mount namespace ends with its last process, so a live replica with the same one is in the same container.
        """
        boot_id, mount_namespace = here()
        known = None not in (boot_id, mount_namespace)
        return known and (self.boot_id, self.mount_namespace) == (boot_id, mount_namespace)

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object, with the time as text."""
        return {**asdict(self), "joined_at": self.joined_at.isoformat() if self.joined_at else None}

    @staticmethod
    def parse(name: str, text: bytes | None) -> ReplicaRecord:
        """Parse the record of ``name``. Each field is read separately, so a damaged one does not affect the others."""
        try:
            fields = json.loads(text or b"")
        except (ValueError, RecursionError):
            return ReplicaRecord(name)
        if not isinstance(fields, dict) or fields.get("name") != name:
            return ReplicaRecord(name)

        def text_of(key: str, longest: int) -> str | None:
            value = fields.get(key)
            return value if isinstance(value, str) and len(value) <= longest else None

        def number_of(key: str, limit: int) -> int | None:
            value = fields.get(key)
            return value if type(value) is int and 0 <= value < limit else None

        return ReplicaRecord(
            name=name,
            slot=number_of("slot", MAX_SLOTS),
            joined_at=_time(text_of("joined_at", 64)),
            purpose=text_of("purpose", MAX_PURPOSE) or "",
            pid=number_of("pid", 1 << 31),
            worker=text_of("worker", 64),
            boot_id=text_of("boot_id", 64),
            mount_namespace=number_of("mount_namespace", 1 << 64),
        )


@dataclass(frozen=True, slots=True)
class Replica(ReplicaRecord):
    """A replica that joined a volume.

    Only ``alive`` is certain. The replica wrote the rest, and fields that cannot be read are None or empty. ``purpose``
    may contain any text, including control characters that a terminal would obey.

    Attributes:
        alive: whether one of its processes is alive, even if that is stopped or hangs.
    """

    alive: bool = False

    @staticmethod
    def of(record: ReplicaRecord, alive: bool) -> Replica:
        """Return the replica with this record."""
        return Replica(**asdict(record), alive=alive)


def is_name(name: str) -> bool:
    """Return whether a replica can have this name."""
    return bool(_NAME.fullmatch(name)) and len(name) <= MAX_CONTAINER_BYTES


def _time(text: str | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
