"""Bodies of the JSON responses. Times are in UTC (RFC 3339), or null."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sharedvol
from sharedvol_sidecar.monitor.snapshot import ALL, Entry, Snapshot


def moment(seconds: float | None) -> str | None:
    """Format seconds since the epoch as a time in UTC: ``2026-01-31T14:25:30.123Z``."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):  # a wrong clock must not break the page
        return None


def health(snapshot: Snapshot) -> dict[str, Any]:
    """Return the body of ``/healthz``."""
    return {
        "status": "alive" if snapshot.alive else "stalled",
        "heard_seconds_ago": round(snapshot.heard, 3),
        "timestamp": moment(snapshot.at),
    }


def readiness(snapshot: Snapshot) -> dict[str, Any]:
    """Return the body of ``/readyz``."""
    found = _notes(snapshot)
    notes = {"notes": found} if found else {}
    if snapshot.ready:
        return {"status": "ready", "reasons": [], **notes, "timestamp": moment(snapshot.at)}
    return {
        "status": "not_ready",
        "reason": snapshot.faults[0].reason,
        "reasons": _faults(snapshot),
        **notes,
        "timestamp": moment(snapshot.at),
    }


def status(snapshot: Snapshot) -> dict[str, Any]:
    """Return the body of ``/status.json``: everything that the page shows."""
    rest = snapshot.backlog_rest
    return {
        "version": sharedvol.__version__,
        "timestamp": moment(snapshot.at),
        "started": moment(snapshot.started),
        "uptime_seconds": round(snapshot.uptime, 3),
        "alive": snapshot.alive,
        "ready": snapshot.ready,
        "reasons": _faults(snapshot),
        "warnings": [
            {"reason": one.reason, "detail": one.detail, "since": moment(one.since)} for one in snapshot.warnings
        ],
        **{section: _counts(snapshot, section) for section in ("collected", "removed", "left")},
        "followed": {"logs": snapshot.followed_logs, "bytes": snapshot.moved.followed},
        "errors": snapshot.errors,
        "dropped": snapshot.dropped,
        "events": dict(snapshot.happened),
        "passes": {
            "count": snapshot.passes.count,
            "seconds": round(snapshot.passes.seconds, 6),
            "last": moment(snapshot.passes.last),
        },
        "backlog": {
            "files": snapshot.backlog_files,
            "bytes": snapshot.backlog_bytes,
            "containers": [asdict(one) for one in snapshot.backlog],
            "other": None if rest is None else {"files": rest.files, "bytes": rest.bytes},
        },
        "replicas": {
            "alive": snapshot.replicas_alive,
            "dead": snapshot.replicas_dead,
            "unknown": snapshot.replicas_unknown,
            "known": [{**asdict(one), "since": moment(one.since)} for one in snapshot.replicas],
        },
        "log": {"lines_lost": snapshot.log.lost, "problem": snapshot.log.problem},
        "minutes": [asdict(one) for one in snapshot.minutes],
        "recent": [_entry(one) for one in snapshot.recent],
        "recent_errors": [_entry(one) for one in snapshot.recent_errors],
        "recent_dropped": [_entry(one) for one in snapshot.recent_dropped],
        "notes": [_entry(one) for one in snapshot.notes],
    }


def _counts(snapshot: Snapshot, section: str) -> dict[str, int]:
    return {one.name: snapshot.value(one) for one in ALL if one.section == section}


def _faults(snapshot: Snapshot) -> list[dict[str, Any]]:
    return [{"reason": one.reason, "detail": one.detail, "since": moment(one.since)} for one in snapshot.faults]


def _notes(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return what an operator should check although the service is ready."""
    notes = [{"note": one.reason, "detail": one.detail, "since": moment(one.since)} for one in snapshot.warnings]
    if snapshot.log.problem:
        detail = f"the log cannot be written: {snapshot.log.problem}; {snapshot.log.lost} lines are lost"
        notes.append({"note": "log_unwritable", "detail": detail, "since": moment(snapshot.log.since)})
    return notes


def _entry(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "at": moment(entry.at)}
