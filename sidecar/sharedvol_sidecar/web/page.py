"""The status page: plain HTML without scripts, in which a file name is never markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import sharedvol
from sharedvol_sidecar.humanize import duration, plain, size
from sharedvol_sidecar.monitor.snapshot import ALL, REASONS, Snapshot
from sharedvol_sidecar.monitor.throughput import Minute
from sharedvol_sidecar.web.payloads import moment
from sharedvol_sidecar.web.plot import bytes_plot, files_plot

REFRESH = 10
"""Seconds after which a browser loads the page again."""

_LONGEST = 400  # characters that are shown of a name
_ROWS = 5  # minutes in a row of the table that lists what the plots show


class Page:
    """The page and its style.

    Attributes:
        style_hash: the hash of the inlined style for the Content-Security-Policy.
    """

    def __init__(self) -> None:
        folder = resources.files("sharedvol_sidecar.web")
        css = folder.joinpath("status.css").read_text("utf-8")
        digest = hashlib.sha256(css.encode()).digest()
        self.style_hash = f"sha256-{base64.b64encode(digest).decode()}"
        # Every value is made printable and then escaped here, so that no template can forget it.
        made = Environment(autoescape=True, undefined=StrictUndefined, finalize=_finalize, trim_blocks=True)
        made.filters.update(size=size, duration=duration, clock=_clock, moment=moment, number=_number)
        made.globals.update(css=Markup(css), version=sharedvol.__version__, reasons=REASONS, refresh_seconds=REFRESH)
        self._template = made.from_string(folder.joinpath("status.html").read_text("utf-8"))

    def render(self, snapshot: Snapshot, *, refresh: bool = True) -> str:
        """Return the page as HTML.

        Args:
            snapshot: the state to show.
            refresh: the browser loads the page again by itself.
        """
        return self._template.render(
            snapshot=snapshot,
            refresh=refresh,
            plots=(files_plot(snapshot.minutes), bytes_plot(snapshot.minutes)),
            rows=_rows(snapshot.minutes),
            counters=[(one, snapshot.value(one)) for one in ALL],
            errors=sum(snapshot.errors.values()),
            dropped=sum(snapshot.dropped.values()),
        )


def _finalize(value: Any) -> Any:
    return plain(value, _LONGEST) if type(value) is str else value


def _clock(seconds: float | None) -> str:
    """Format a time in UTC to the second. The page says that it is UTC."""
    time = moment(seconds)
    return "never" if time is None else time[:19].replace("T", " ")


def _number(number: int) -> str:
    return f"{number:,}"


def _rows(minutes: Sequence[Minute]) -> list[tuple[str, int, int]]:
    """Return rows of five minutes, newest first: minutes ago, files, bytes."""
    rows = []
    for end in range(len(minutes), 0, -_ROWS):
        part = minutes[max(0, end - _ROWS) : end]
        ago = len(minutes) - end
        rows.append((f"{ago} to {ago + len(part)}", sum(one.files for one in part), sum(one.bytes for one in part)))
    return rows
