"""`once`: drain and end. `run`: go on until a signal says stop."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType

import structlog

from sharedvol_sidecar.collector import Collector, Job
from sharedvol_sidecar.errors import DestinationError
from sharedvol_sidecar.report import Event, Once, Tally
from sharedvol_sidecar.watch import Watch

BACKOFF = (1.0, 60.0)
"""Seconds after a fault until the next try: the first, and the longest, doubling in between."""

SHORTEST_GAP = 0.05
"""Seconds between two passes at least, however many events there are."""


def once(job: Job, tell: Callable[[Event], None], after_batch: Callable[[Tally], None] = lambda tally: None) -> Tally:
    """Collect all that is finished, or will be when its quiet time ends; leave what is being written.

    Args:
        job: what to collect.
        tell: told of each problem once.
        after_batch: called after each batch with the counts so far.

    Raises:
        DestinationError: the destination takes nothing.
        OSError: a directory cannot be used.
    """
    collector = Collector(job, Once(tell))
    total = Tally()

    def progress(tally: Tally) -> None:
        so_far = Tally()
        so_far.add(total)
        so_far.add(tally)
        after_batch(so_far)

    # What was written before we began is quiet by then; what is still changed after that has a writer.
    deadline = time.monotonic() + job.quiet
    last_passes = 2
    try:
        while True:
            # Bounded, though writers may go on for ever. The second of the last passes counts what is left
            # after a backlog, of which each of two processes saw a half.
            last_passes -= time.monotonic() >= deadline
            tally = collector.run_pass(after_batch=progress)
            total.add(tally)
            if last_passes == 0 or (not tally.collected and (last_passes == 1 or collector.due is None)):
                return total
            if not tally.collected and collector.due is not None:
                time.sleep(min(collector.due, max(0.0, deadline - time.monotonic())) + 0.005)
    finally:
        collector.close()


class Service:
    """`run`, with what its signals change.

    Args:
        job: what to collect.
        interval: seconds between scans when no event tells.
        tell_collected: log every collected file.
    """

    def __init__(self, job: Job, interval: float, tell_collected: bool = False) -> None:
        self._job, self._interval, self._tell_collected = job, interval, tell_collected
        self._log = structlog.get_logger()
        self._stopping = False
        self.total = Tally()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: the batch under way is finished, then `run` ends; at a second signal, at once."""
        if self._stopping:
            # Safe at any point: whatever is half-way is a claim, and the next mover finds it.
            raise SystemExit(128 + number)
        self._stopping = True

    def run(self) -> None:
        """Collect until stopped by SIGTERM or SIGINT.

        Raises:
            OSError: a directory cannot be used at the start; later faults are logged and tried again.
        """
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with Watch() as watch:
                self._run(watch)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, watch: Watch) -> None:
        collector = Collector(self._job, Once(self._tell), watch.add, tell_collected=self._tell_collected)
        self._log.info(
            "started",
            spool=self._job.spool,
            collected=self._job.collected,
            by="link" if collector.linked else "copy",
            quiet=self._job.quiet,
            interval=self._interval,
        )
        backoff = BACKOFF[0]
        scan_only: str | None = None
        while not self._stopping:
            began = time.monotonic()
            try:
                tally = collector.run_pass(lambda: self._stopping)
            except (DestinationError, OSError) as error:
                self._log.error("fault", error=str(error), retry_in=backoff)
                self._sleep(watch, backoff)
                backoff = min(2 * backoff, BACKOFF[1])
                continue
            backoff = BACKOFF[0]
            self._account(tally)
            if watch.unwatched != scan_only:
                scan_only = watch.unwatched
                self._log.warning("scan_only", detail=scan_only, interval=self._interval)
            # Events come in crowds, and a pass over a large backlog takes its time: one pass for many.
            took = time.monotonic() - began
            # What could not be moved was put back, which is an event of its own: do not chase it.
            self._sleep(watch, max(SHORTEST_GAP, took, BACKOFF[0] if tally.failed else 0.0))
            if not self._stopping and not tally.collected:
                due = collector.due
                watch.wait(self._interval if due is None else min(due + 0.005, self._interval))
        collector.close()
        self._log.info("stopped", **_moved(self.total))

    def _sleep(self, watch: Watch, seconds: float) -> None:
        """Wait without heed to events, but for signals."""
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            watch.wait_for_signal(left)

    def _account(self, tally: Tally) -> None:
        self.total.add(tally)
        if tally.collected or tally.put_back:
            self._log.info("collected", **_moved(tally), writing=tally.writing, settling=tally.settling)

    def _tell(self, event: Event) -> None:
        level = logging.INFO if event.name in ("collected", "put_back") else logging.WARNING
        name = "file" if event.name == "collected" else event.name
        self._log.log(level, name, path=event.path, detail=event.detail)


def _moved(tally: Tally) -> dict[str, int]:
    counts = tally.as_dict()
    names = ("collected", "bytes", "kept_both", "copied", "recovered", "unleased", "put_back")
    return {("files" if name == "collected" else name): counts[name] for name in names}
