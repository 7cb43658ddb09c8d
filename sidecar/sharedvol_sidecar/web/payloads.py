"""The bodies of the answers in JSON. Times are in UTC (RFC 3339), or null."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sharedvol
from sharedvol_sidecar.monitor.snapshot import ALL, Entry, Snapshot


def moment(seconds: float | None) -> str | None:
    """Seconds since the epoch as a time in UTC: ``2026-01-31T14:25:30.123Z``."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # a clock that was set to nonsense must not take the page away
        return None


def health(picture: Snapshot) -> dict[str, Any]:
    """The body of ``/healthz``."""
    return {
        "status": "alive" if picture.alive else "stalled",
        "heard_seconds_ago": round(picture.heard, 3),
        "timestamp": moment(picture.at),
    }


def readiness(picture: Snapshot) -> dict[str, Any]:
    """The body of ``/readyz``."""
    found = _notes(picture)
    notes = {"notes": found} if found else {}
    if picture.ready:
        return {"status": "ready", "reasons": [], **notes, "timestamp": moment(picture.at)}
    return {
        "status": "not_ready",
        "reason": picture.faults[0].reason,
        "reasons": _faults(picture),
        **notes,
        "timestamp": moment(picture.at),
    }


def status(picture: Snapshot) -> dict[str, Any]:
    """The body of ``/status.json``: all that the page shows."""
    rest = picture.backlog_rest
    return {
        "version": sharedvol.__version__,
        "timestamp": moment(picture.at),
        "started": moment(picture.started),
        "uptime_seconds": round(picture.uptime, 3),
        "alive": picture.alive,
        "ready": picture.ready,
        "reasons": _faults(picture),
        "warnings": [
            {"reason": one.reason, "detail": one.detail, "since": moment(one.since)} for one in picture.warnings
        ],
        **{section: _counts(picture, section) for section in ("collected", "removed", "left")},
        "followed": {"logs": picture.followed_logs, "bytes": picture.moved.followed},
        "errors": picture.errors,
        "dropped": picture.dropped,
        "events": dict(picture.happened),
        "passes": {
            "count": picture.passes.count,
            "seconds": round(picture.passes.seconds, 6),
            "last": moment(picture.passes.last),
        },
        "backlog": {
            "files": picture.backlog_files,
            "bytes": picture.backlog_bytes,
            "containers": [asdict(one) for one in picture.backlog],
            "other": None if rest is None else {"files": rest.files, "bytes": rest.bytes},
        },
        "replicas": {
            "alive": picture.replicas_alive,
            "dead": picture.replicas_dead,
            "unknown": picture.replicas_unknown,
            "known": [{**asdict(one), "since": moment(one.since)} for one in picture.replicas],
        },
        "log": {"lines_lost": picture.log.lost, "problem": picture.log.problem},
        "minutes": [asdict(one) for one in picture.minutes],
        "recent": [_entry(one) for one in picture.recent],
        "recent_errors": [_entry(one) for one in picture.recent_errors],
        "recent_dropped": [_entry(one) for one in picture.recent_dropped],
        "notes": [_entry(one) for one in picture.notes],
    }


def _counts(picture: Snapshot, section: str) -> dict[str, int]:
    return {one.name: picture.value(one) for one in ALL if one.section == section}


def _faults(picture: Snapshot) -> list[dict[str, Any]]:
    return [{"reason": one.reason, "detail": one.detail, "since": moment(one.since)} for one in picture.faults]


def _notes(picture: Snapshot) -> list[dict[str, Any]]:
    """What a person should look at, and does not make the service unready."""
    notes = [{"note": one.reason, "detail": one.detail, "since": moment(one.since)} for one in picture.warnings]
    if picture.log.problem:
        detail = f"the log cannot be written: {picture.log.problem}; {picture.log.lost} lines are lost"
        notes.append({"note": "log_unwritable", "detail": detail, "since": moment(picture.log.since)})
    return notes


def _entry(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "at": moment(entry.at)}
