"""What a replica writes about itself, beside the lock that says whether it is alive.

Anybody may have written what is read here.
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
    """What lies beside the lock of a name. Every field but the name may be unknown.

    Attributes:
        name: the replica's name.
        slot: its slot.
        joined_at: when its first process joined, in UTC, by that machine's clock: for people.
        purpose: what it said that it is for. Anything may stand here.
        pid: the process that joined first, in its own PID namespace.
        worker: that process's token.
        boot_id: the boot of the kernel that it ran on.
        mount_namespace: what tells containers of one boot from each other.
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
        """Whether it is of the caller's container, if it is alive: a mount namespace ends with its last process."""
        boot_id, mount_namespace = here()
        known = None not in (boot_id, mount_namespace)
        return known and (self.boot_id, self.mount_namespace) == (boot_id, mount_namespace)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the time as text."""
        return {**asdict(self), "joined_at": self.joined_at.isoformat() if self.joined_at else None}

    @staticmethod
    def parse(name: str, text: bytes | None) -> ReplicaRecord:
        """The information about ``name`` in a file. Each field for itself: one that is damaged leaves the others."""
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


def is_name(name: str) -> bool:
    """Whether a replica can have this name."""
    return bool(_NAME.fullmatch(name)) and len(name) <= MAX_CONTAINER_BYTES


def _time(text: str | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
