"""When the service does what."""

from __future__ import annotations

from dataclasses import dataclass

from sharedvol_sidecar.config.settings import Settings


@dataclass(frozen=True, slots=True)
class Timing:
    """The intervals of `run`.

    Attributes:
        interval: seconds between scans when no event comes.
        follow_interval: seconds between two checks of the followed logs.
        grace: seconds in which it ends after a signal.
    """

    interval: float = 5.0
    follow_interval: float = 1.0
    grace: float = 8.0

    @classmethod
    def of(cls, settings: Settings) -> Timing:
        """Return what the settings say."""
        return cls(settings.interval, settings.follow_interval, settings.grace)
