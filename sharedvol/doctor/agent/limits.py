"""Names and limits shared by the doctor and its processes."""

from __future__ import annotations

from typing import Final

PREFIX: Final = ".sharedvol-doctor-"
"""The prefix of every name that the doctor creates in the examined directory."""

MOST_BYTES: Final = 1 << 16
MOST_TIMES: Final = 20_000
MOST_SECONDS: Final = 30.0

ARRIVING: Final = 2.0
"""Seconds that one side waits for the other to be ready."""

COUNTING: Final = 0.1
"""Least number of seconds that both sides count together."""

LOOPING: Final = 2.0
"""Seconds that a loop may take, in addition to `ARRIVING`."""
