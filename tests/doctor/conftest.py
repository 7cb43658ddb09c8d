"""The helpers of the other tests are the doctor's too."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in (Path(__file__).parents[1], Path(__file__).parents[1] / "sidecar"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
