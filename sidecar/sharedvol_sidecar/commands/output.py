"""What the commands print. JSON is one object per line.

Names are escaped as in the catalog (``%XX`` for what cannot be printed), so every line is valid UTF-8.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sharedvol.cli.terminal import Progress, write_error, write_line
from sharedvol.text import message
from sharedvol_sidecar.catalog.encoding import escape
from sharedvol_sidecar.humanize import plain, size, time_words

if TYPE_CHECKING:  # they load SQLAlchemy, which a health check does not need
    from sharedvol_sidecar.catalog.catalog import Row
    from sharedvol_sidecar.catalog.verify import Finding

PROGRESS_EVERY = 0.2
"""Seconds between two texts of a command's progress."""


def say(line: str) -> None:
    """Print a line on standard output. Unprintable characters are escaped.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: its reader went away (``ls | head``).
    """
    write_line(line)
    sys.stdout.flush()


def say_json(record: Any) -> None:
    """Print a record as a line of JSON. Unprintable characters become escapes of JSON."""
    text = json.dumps(record, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
    say(text)


def report(line: str) -> None:
    """Print a line about a problem on standard error."""
    write_line(message(line), sys.stderr)


def report_error(text: str) -> None:
    """Print in one line on standard error why the command failed."""
    write_error(plain(text), "sharedvol-sidecar")


def finding_reporter(progress: Progress, as_json: bool) -> Callable[[Finding], None]:
    """Return a function that prints a finding of ``verify`` or a change of ``rebuild``."""

    def report_finding(finding: Finding) -> None:
        progress.end()
        if as_json:
            say_json({"problem": finding.problem, "path": escape(finding.path), "detail": finding.detail})
        else:
            say(f"{finding.problem}: {escape(finding.path)}: {plain(finding.detail)}")

    return report_finding


def byte_counter(progress: Progress, total: int | None = None) -> Callable[[int], None]:
    """Return a function that adds bytes and shows the sum as progress; ``total`` is the sum at the end, if known."""
    done = 0
    end = "" if total is None else f" of {size(total)}"

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(f"read {size(done)}{end}")

    return add


def as_json_row(row: Row) -> dict[str, Any]:
    """Return a row as ``ls --json`` prints it."""
    return {
        "path": escape(row.path),
        "kind": escape(row.kind),
        "container": escape(row.container),
        "original": escape(row.original),
        "size": row.size,
        "sha256": row.sha256,
        "mtime_ns": row.mtime_ns,
        "collected_at": time_words(row.collected_at),
        "collected_at_ns": row.collected_at,
        "encoding": row.encoding,
        "original_size": row.original_size,
    }
