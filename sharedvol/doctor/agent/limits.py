"""Names and limits that the doctor and its processes share."""

from __future__ import annotations

from typing import Final

PREFIX: Final = ".sharedvol-doctor-"
"""Of everything that the doctor makes in a directory that it examines."""

MOST_BYTES: Final = 1 << 16
MOST_TIMES: Final = 20_000
MOST_SECONDS: Final = 30.0

ARRIVING: Final = 2.0
"""Seconds that one side waits for the other to be ready."""

COUNTING: Final = 0.1
"""Seconds that two sides count together at least."""

LOOPING: Final = 2.0
"""Seconds that a loop may take, beside that."""
