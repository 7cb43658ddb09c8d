"""Collect all that is finished, once."""

from __future__ import annotations

import time
from collections.abc import Callable

from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.errors import explaining_descriptors
from sharedvol_sidecar.event import Listener
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.monitor.deduplicator import Deduplicator

PATIENCE = 30.0
"""Seconds to wait for a container that another sidecar is working on."""


def once(
    job: CollectorConfig, listener: Listener, after_batch: Callable[[PassCounts], None] | None = None
) -> PassCounts:
    """Collect all that is finished, or will be when its quiet time ends; leave what is being written.

    Args:
        job: what to collect.
        listener: receives each problem once.
        after_batch: called after each batch with the counts so far.

    Raises:
        DestinationError: the destination takes nothing.
        SpoolError: the spool gives nothing.
        DescriptorsError: too many files are open.
        OSError: a directory cannot be used.
    """
    with explaining_descriptors():
        return _drain(job, listener, after_batch)


def _drain(job: CollectorConfig, listener: Listener, after_batch: Callable[[PassCounts], None] | None) -> PassCounts:
    deduplicator = Deduplicator(listener)
    collector = Collector(job, Events(deduplicator), CollectorOptions(wait=PATIENCE))
    total = PassCounts()

    def progress(counts: PassCounts) -> None:
        if after_batch is None:
            return
        so_far = PassCounts()
        so_far.add(total)
        so_far.add(counts)
        after_batch(so_far)

    # Files that were written before this began are quiet by then. Files that still change after it have a writer.
    deadline = time.monotonic() + job.quiet
    last_passes = 2
    try:
        while True:
            # Bounded, because writers may never stop. The second of the last passes counts what is left after a
            # backlog: with a helper, each of two processes saw only a half.
            last_passes -= time.monotonic() >= deadline
            counts = collector.run_pass(after_batch=progress)
            deduplicator.end_pass(collector.saw)
            total.add(counts)
            if last_passes == 0 or (not counts.collected and (last_passes == 1 or collector.due is None)):
                collector.prepare_catalog()
                return total
            if not counts.collected and collector.due is not None:
                time.sleep(min(collector.due, max(0.0, deadline - time.monotonic())) + 0.005)
    finally:
        collector.close()
