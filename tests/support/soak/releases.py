"""Which release of sharedvol a process of the soak runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import sharedvol

_TESTS = Path(__file__).parents[2]


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes:
        name: for people.
        directory: from which it is imported; a working copy has the sidecar's package in a directory of its own.
    """

    name: str
    directory: Path

    def environment(self) -> dict[str, str]:
        """What its processes get, without settings of ours."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SHAREDVOL_")}
        path = [self.directory, self.directory / "sidecar", _TESTS]
        return {**clean, "PYTHONPATH": os.pathsep.join(str(place) for place in path if place.is_dir())}


HERE = Release("here", Path(sharedvol.__file__).resolve().parents[1])
"""The one that is tested."""
