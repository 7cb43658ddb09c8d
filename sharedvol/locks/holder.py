"""Who holds a lock, in the words that every engine has in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sharedvol.text import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What is known of the holder of a lock. That there is one is certain: the kernel or the server said so.

    The rest is what the holder wrote about itself; None or empty where it wrote nothing, or nothing that can
    be believed.

    Attributes:
        replica: the container's name, as `sharedvol.container_id` gives it.
        pid: the process, in its own PID namespace.
        worker: the process's token, as `sharedvol.worker_token` gives it.
        purpose: what it said that it is for. Anything may stand here, also what a terminal would obey.
        since: when it got the lock, in UTC, by that machine's clock: for people.
        token: its fencing token.
    """

    replica: str | None = None
    pid: int | None = None
    worker: str | None = None
    purpose: str = ""
    since: datetime | None = None
    token: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the time as text."""
        return {**asdict(self), "since": self.since.isoformat() if self.since else None}


def described(who: str, holder: Holder) -> str:
    """``who`` in a message, with what the holder said of itself, made fit for a terminal."""
    if holder.replica:
        who += f", replica {shown(holder.replica)}"
    if holder.pid is not None:
        who += f", process {holder.pid}"
    return who + (f', for "{shown(holder.purpose)}"' if holder.purpose else "")
