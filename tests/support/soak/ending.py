"""The processes of a soak end with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import sharedvol
import sharedvol_sidecar

_PARENT_DEATH_SIGNAL = 1


def end_with(parent: int) -> None:
    """Get SIGKILL when ``parent``, which started this process, ends."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that started this one has ended")


def check_release(directory: str) -> None:
    """End unless the library is the one in that directory: so no release is tested against itself."""
    wanted = Path(directory).resolve()
    for package in (sharedvol, sharedvol_sidecar):
        found = Path(str(package.__file__)).resolve().parents[1]
        if found not in (wanted, wanted / "sidecar"):
            sys.exit(f"{package.__name__} is imported from {found}, not from {wanted}")
