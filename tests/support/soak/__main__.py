"""``make soak``: each mode for a third of SHAREDVOL_SOAK_SECONDS, with the choices of SHAREDVOL_SOAK_SEED."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from support.soak.places import MODES
from support.soak.run import Plan, Report, run
from support.torture.isolated import isolated

_SECONDS = 1800.0


def main() -> int:
    seconds = float(os.environ.get("SHAREDVOL_SOAK_SECONDS") or _SECONDS)
    seed = int(os.environ.get("SHAREDVOL_SOAK_SEED") or time.time())
    modes = (os.environ.get("SHAREDVOL_SOAK_MODES") or ",".join(MODES)).split(",")
    print(f"SHAREDVOL_SOAK_SEED={seed}, {seconds:.0f} seconds, modes {', '.join(modes)}", flush=True)
    good = True
    for mode in modes:
        place = Path(tempfile.mkdtemp(prefix=f"sharedvol-soak-{mode}-"))
        for name in ("outside", "mounts"):
            (place / name).mkdir()
        plan = Plan(mode, seed, seconds / len(modes), copies=2)
        report: Report = isolated(lambda: run(plan, place / "outside", place / "mounts"), 2 * seconds + 600)  # noqa: B023
        print(f"{mode}: {report}", flush=True)
        if report.problems:
            good = False
            print(f"what there is to look at: {place}/outside", flush=True)
        else:
            shutil.rmtree(place)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
