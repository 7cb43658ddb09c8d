"""A pooler between us and the server gives each question to another session: a lock there keeps nobody out."""

from __future__ import annotations

from typing import Final

from sharedvol.errors import DatabaseError, LockUnsafeError
from sharedvol.locks.mysql.get_lock import NamedLockRequest

_RELEASE_TRIES: Final = 20  # until one meets the session that has the lock


def refuse_pooler(claim: NamedLockRequest, *seen: int | None) -> None:
    """Unless all was said on one session: the first question, the last one, the log-in, the lock's grant.

    Args:
        claim: what was asked for; freed before the error, if it was granted.
        seen: the sessions that answered, first to last.

    Raises:
        LockUnsafeError: there was more than one.
    """
    told = claim.database.driver_session
    granted, left = "", ""
    if claim.in_doubt:
        seen = (*seen, claim.session)
        granted = f"granted to connection {claim.session}, "
    if len(set(seen)) == 1 and told in (None, *seen):
        return
    if claim.in_doubt:
        left = _take_back(claim)
        claim.in_doubt = False
    first, now = seen[0], seen[1] if len(seen) > 1 else seen[0]
    raise LockUnsafeError(
        f"lock {claim.name!r} would not be kept: something between us and the server shares connections "
        f"({granted}first on {first}, now on {now}, logged in as {told}); connect to the server itself, or "
        f"say allow_unsafe=True{left}"
    )


def _take_back(claim: NamedLockRequest) -> str:
    """Free a lock that was granted through a pooler; what to add to the message.

    A pooler keeps its sessions, so a lock that stays on one would keep everybody out until it is restarted.
    """
    session = claim.session
    try:
        if any(claim.free() for _ in range(_RELEASE_TRIES)):
            return ""
        ((holder,),) = claim.database.query("SELECT IS_USED_LOCK(:name)", name=claim.name)
        if holder is not None and holder == session:  # not somebody else, on a server that did not grant it to us
            claim.database.run(f"KILL {int(holder)}")
            return f"; connection {holder} was killed, because nothing else would free the lock"
    except DatabaseError as error:
        return f"; connection {session} may still have it, so KILL {session} on the server: {error}"
    return f"; connection {session} of a server that does not answer now may still have it"
