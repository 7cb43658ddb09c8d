"""The status page: plain HTML that needs no script, and in which no file name is ever markup."""

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
"""Seconds after which a browser asks again."""

_LONGEST = 400  # letters of a name: more would be the page
_ROWS = 5  # minutes in a row of the table that tells what the plots show


class Page:
    """The page and the style that its policy allows.

    Attributes:
        style_hash: of the inlined style, as a Content-Security-Policy wants it.
    """

    def __init__(self) -> None:
        folder = resources.files("sharedvol_sidecar.web")
        css = folder.joinpath("status.css").read_text("utf-8")
        digest = hashlib.sha256(css.encode()).digest()
        self.style_hash = f"sha256-{base64.b64encode(digest).decode()}"
        # Every value is made plain first and escaped then, whichever it is: no template can forget it.
        made = Environment(autoescape=True, undefined=StrictUndefined, finalize=_finalize, trim_blocks=True)
        made.filters.update(size=size, duration=duration, clock=_clock, moment=moment, number=_number)
        made.globals.update(css=Markup(css), version=sharedvol.__version__, reasons=REASONS, refresh_seconds=REFRESH)
        self._template = made.from_string(folder.joinpath("status.html").read_text("utf-8"))

    def render(self, picture: Snapshot, *, refresh: bool = True) -> str:
        """The page as HTML.

        Args:
            picture: what to show.
            refresh: whether the browser is to ask again by itself.
        """
        return self._template.render(
            picture=picture,
            refresh=refresh,
            plots=(files_plot(picture.minutes), bytes_plot(picture.minutes)),
            rows=_rows(picture.minutes),
            counters=[(one, picture.value(one)) for one in ALL],
            errors=sum(picture.errors.values()),
            dropped=sum(picture.dropped.values()),
        )


def _finalize(value: Any) -> Any:
    return plain(value, _LONGEST) if type(value) is str else value


def _clock(seconds: float | None) -> str:
    """A time in UTC to the second; the page says that it is UTC."""
    told = moment(seconds)
    return "never" if told is None else told[:19].replace("T", " ")


def _number(number: int) -> str:
    return f"{number:,}"


def _rows(minutes: Sequence[Minute]) -> list[tuple[str, int, int]]:
    """Five minutes each, the newest first: minutes ago, files, bytes."""
    rows = []
    for end in range(len(minutes), 0, -_ROWS):
        part = minutes[max(0, end - _ROWS) : end]
        ago = len(minutes) - end
        rows.append((f"{ago} to {ago + len(part)}", sum(one.files for one in part), sum(one.bytes for one in part)))
    return rows
