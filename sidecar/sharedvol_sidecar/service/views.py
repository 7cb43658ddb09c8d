"""What the board shows of the spool."""

from __future__ import annotations

import contextlib
from collections import Counter

from sharedvol import SharedVolError
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.monitor.state import ServiceState

FORGOTTEN = 200
"""Dead replicas that are forgotten after one pass."""


def show_backlog(board: ServiceState, collector: Collector) -> None:
    """Show what the last pass left in the spool, by container; and how many logs are followed."""
    board.backlog({name: (files, size) for name, (files, size) in collector.parts.admission.backlog.items()})
    board.followed(len(collector.parts.follower))


def show_replicas(board: ServiceState, collector: Collector) -> None:
    """Show the replicas that joined the volume, and forget some of those that are dead and not shown."""
    with contextlib.suppress(SharedVolError):  # the pass reports what is wrong with the volume
        found = collector.replicas.look()
        board.replicas(found.views, Counter({True: found.alive, False: found.dead, None: found.unknown}))
        collector.forget_dead(FORGOTTEN)
