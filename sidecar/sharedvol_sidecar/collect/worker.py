"""The process that helps with a backlog: one pass over half of the files. Started by the collector.

Its job comes on standard input as JSON, its counts go to standard output. It has a mover's slot of its
own, so when it is killed its claims are found like any other mover's.
"""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType

from sharedvol_sidecar.collect.collector import Collector, tune_memory
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.events import Events


def main() -> int:
    """Do half of a pass."""
    job = json.load(sys.stdin)
    job["kinds"], job["follow"] = tuple(job["kinds"]), tuple(job["follow"])
    job["workers"] = 1
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)

    tune_memory()
    events = Events()  # the collector finds, and reports, the same in its next pass
    collector = Collector(CollectorConfig(**job), events, CollectorOptions(shard=(1, 2)))
    try:
        collector.run_pass(lambda: stopping)
    finally:
        json.dump(events.counts.as_dict(), sys.stdout)  # also of a pass that fails: what it moved is counted
    return 0


if __name__ == "__main__":
    sys.exit(main())
