"""The helpers of the other tests are the soak's too."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[1]
for _folder in (_TESTS, _TESTS / "sidecar", _TESTS / "soak"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
