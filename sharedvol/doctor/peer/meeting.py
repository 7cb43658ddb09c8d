"""The meeting of two doctors: how they find each other and exchange messages (see peer.py)."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from sharedvol.doctor.agent.limits import PREFIX
from sharedvol.doctor.examination import DoctorError, Progress
from sharedvol.doctor.side import Gone, Hung, Process, do
from sharedvol.errors import describe

SILENCE: Final = 30.0
"""Seconds, in addition to the patience, after which the other doctor counts as dead."""

SLOWEST_POLL: Final = 0.02

_POLL: Final = 0.002
_BEAT: Final = 0.1
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")


class PeerError(DoctorError):
    """No second doctor came, or it ended early."""


class Meeting:
    """The directory of the messages.

    Args:
        directory: the examined directory.
        name: the name of the meeting.
        patience: seconds that a step may take.
    """

    def __init__(self, directory: str, name: str, patience: float) -> None:
        self.directory, self.name, self.patience = directory, name, patience
        self.token = secrets.token_hex(16)
        self.warden = Process("warden", patience)
        try:
            do(self.warden, "inspect", path=directory)
            self._try("meet", name=f"{PREFIX}peer-{name}")
        except BaseException:
            self.warden.leave()
            raise

    def find(self, wait: float, progress: Progress) -> str:
        """Find another doctor, and return its token once each has named the other."""
        end, beat, partner = time.monotonic() + wait, 0, ""
        seen: dict[str, object] = {}
        alive: set[str] = set()
        while True:
            progress(f"to meet a second doctor --peer {self.name}")
            beat += 1
            self._hello({"partner": partner, "beat": beat})
            hellos = {token: hello for token in self._tokens() if (hello := self.read(f"hello-{token}"))}
            for token, hello in hellos.items():
                if seen.setdefault(token, hello.get("beat")) != hello.get("beat"):
                    alive.add(token)  # the hello of a dead run does not change
            choosers = {token for token in alive & hellos.keys() if hellos[token].get("partner") == self.token}
            if partner in choosers:
                self._hello({"partner": partner, "beat": beat + 1})
                return partner
            free = {token for token in alive & hellos.keys() if hellos[token].get("partner") == ""}
            if partner not in free:
                partner = min(choosers or free, default="")
            elif choosers:
                partner = min(choosers)
            if time.monotonic() > end:
                raise PeerError(
                    f"no second doctor came within {wait:g} s: run 'sharedvol doctor DIR --peer {self.name}' in the "
                    "other container at the same time, with DIR on the same volume, as a user who may write to it"
                )
            time.sleep(_BEAT)

    def _hello(self, content: dict[str, Any]) -> None:
        try:
            self.write(f"hello-{self.token}", content)
        except FileNotFoundError:  # an earlier meeting removed the directory
            self._try("meet", name=f"{PREFIX}peer-{self.name}")
            self.write(f"hello-{self.token}", content)

    def _tokens(self) -> list[str]:
        names = [name.removeprefix("hello-") for name in self._try("listing") if name.startswith("hello-")]
        return [token for token in names if _TOKEN.fullmatch(token) and token != self.token][:20]

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write or replace a message."""
        self._try("put", name=name, text=json.dumps(content))

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a message, or None if it is missing or not valid."""
        found = self._try("get", name=name)
        try:
            content = json.loads(found or "")
        except (ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) else None

    def drop(self, name: str) -> None:
        """Remove a message of ours."""
        self._try("drop", name=name)

    def await_message(self, name: str, seconds: float, meanwhile: Callable[[], bool] = lambda: False) -> Any:
        """Poll for a message. Return None if ``meanwhile`` returns true first, or if no message comes in time."""
        end, pause = time.monotonic() + seconds, _POLL
        while True:
            found = self.read(name)
            if found is not None:
                return found
            if meanwhile() or time.monotonic() > end:
                return None
            time.sleep(pause)
            pause = min(pause * 1.5, SLOWEST_POLL)

    def _try(self, step: str, **arguments: Any) -> Any:
        try:
            return do(self.warden, step, **arguments)
        except FileNotFoundError:
            raise
        except (Hung, Gone) as error:
            raise PeerError(f"cannot meet in {self.directory!r}: {error}") from error
        except OSError as error:
            raise PeerError(
                f"cannot meet in {self.directory!r}: {describe(error)}; both doctors must be allowed to write there"
            ) from error
