"""`run`: collect until a signal stops it, and recover from every fault."""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from collections.abc import Callable
from types import FrameType

import structlog

from sharedvol import SharedVolError
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.config.network_mounts import NETWORK, NetworkWarning, network_warnings
from sharedvol_sidecar.config.settings import Settings
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.errors import ConfigError, SidecarError, explaining_descriptors, forget_frames
from sharedvol_sidecar.event import Event
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.follow.open_logs import OpenLogs
from sharedvol_sidecar.fs.mounts import MountGuard
from sharedvol_sidecar.monitor.deduplicator import Deduplicator
from sharedvol_sidecar.monitor.log_output import LogState
from sharedvol_sidecar.monitor.minute_summary import MinuteSummary
from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.service.peers import Peers
from sharedvol_sidecar.service.prune_schedule import PruneSchedule
from sharedvol_sidecar.service.reporting import clear_up, in_words, reason_of
from sharedvol_sidecar.service.timing import Timing
from sharedvol_sidecar.service.views import show_backlog, show_replicas
from sharedvol_sidecar.spool.watcher import Watch
from sharedvol_sidecar.transfer.batch import connections

BACKOFF = (1.0, 60.0)
"""Seconds after a fault until the next try: the first, and the longest, doubling in between."""

SHORTEST_GAP = 0.05
"""Seconds between two passes at least, however many events there are."""

_REPEAT = 1.0  # seconds after which what ends us at once is raised again
_TAKEOVERS = 20  # passes in quick succession after the death of another sidecar, until nothing is held any more
_BEAT = 5.0  # seconds without a sign of life at most, while nothing happens


class Service:
    """`run`, with what its signals change.

    Args:
        job: what to collect.
        timing: when to do what.
        settings: what else is set: retention and HTTP.
        log: returns how well the log is written.
    """

    def __init__(
        self, job: CollectorConfig, timing: Timing, settings: Settings, log: Callable[[], LogState] = LogState
    ) -> None:
        self._job, self._timing, self._settings = job, timing, settings
        self._log = structlog.get_logger()
        self._stopping = False
        self._exit: int | None = None
        self._backoff = BACKOFF[0]
        self._watch: Watch | None = None
        self._deduplicator = Deduplicator(self._report)
        self._events = Events(self._deduplicator, each_file=True)
        self._pruning = PruneSchedule(settings.keep, settings.prune, self._events)
        self._summary = MinuteSummary()
        self._mounts = MountGuard(job.spool, job.collected)
        self._open_logs = OpenLogs()
        self._network: list[NetworkWarning] = []
        self._started = False
        self._takeovers = 0
        self.board = ServiceState(log=log)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: the batch under way is finished, then `run` ends; at a second signal, at once.

        So it does when the grace period is over: whatever is half-way is a claim, and the next mover finds it.
        """
        if self._stopping:
            if self._exit is None:
                self._exit = 0 if number == signal.SIGALRM else 128 + number
            # What is raised here can be swallowed, by a destructor or by a `finally` that raises: so again.
            signal.setitimer(signal.ITIMER_REAL, _REPEAT, _REPEAT)
            raise SystemExit(self._exit)
        self._stopping = True
        self.board.stopping()
        signal.setitimer(signal.ITIMER_REAL, self._timing.grace)

    def _is_to_stop(self) -> bool:
        self.board.beat()  # asked often, also while a helper is waited for
        if self._exit is not None:
            raise SystemExit(self._exit)
        return self._stopping

    def run(self) -> None:
        """Collect until stopped by SIGTERM or SIGINT.

        Raises:
            ConfigError: the address is taken; or a directory of ours is another user's, at the start. Any other
                fault is logged, told by readiness, and tried again.
        """
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
        before = {number: signal.signal(number, self.stop) for number in numbers}
        try:
            with contextlib.ExitStack() as stack:
                self._serve(stack)
                self._watch = stack.enter_context(Watch())
                self._run(self._watch)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _serve(self, stack: contextlib.ExitStack) -> None:
        from sharedvol_sidecar.config.listen import parse_listen  # here: half a second that `once` can do without

        address = parse_listen(self._settings.listen)
        if address is None:
            return
        from sharedvol_sidecar.web.server import Server

        allowed = self._settings.allowed_hosts
        server = Server(self.board, *address, allowed_hosts=allowed, connections=connections())
        server.start()
        stack.callback(server.stop)
        self._log.info("listening", url=server.url)

    def _run(self, watch: Watch) -> None:
        self._peers = Peers(watch.poke)
        try:
            while not self._stopping:
                fault = self._collect(watch)
                if fault is not None:
                    self._fault(*fault, watch)
        finally:
            self._open_logs.close()
        self._summarize(at_once=True)
        self._log.info("stopped", **self.board.picture().moved.done())

    def _collect(self, watch: Watch) -> tuple[str, str] | None:
        """Collect until the end, and return None; or until a fault, and return its reason and text.

        Everything is closed then but the followed logs. A volume that is open could not be unmounted, one that is
        mounted again is another directory under the same path, and what is claimed is for others to take over. The logs
        are closed too where the spool itself is the fault.

        Raises:
            ConfigError: at the start; later it is a fault.
        """
        collector: Collector | None = None
        try:
            with explaining_descriptors():
                collector = self._collector(watch)
                collector.parts.follower.resume(self._open_logs)
                self._passes(collector, watch)
        except (SharedVolError, OSError) as error:
            if isinstance(error, ConfigError) and not self._started:
                raise
            if collector is not None:
                collector.parts.follower.leave_open(self._open_logs)
            _close(collector)
            forget_frames(error)
            reason = reason_of(error, self._job)
            return reason, in_words(error) + self._release_volume(reason, watch)
        _close(collector)
        return None

    def _release_volume(self, reason: str, watch: Watch) -> str:
        """Close what would keep a volume from being unmounted. Return what to add to the text of the fault."""
        hidden = 0
        if reason == "spool_unavailable":
            watch.forget()
            hidden = self._open_logs.close()
        elif reason == "destination_unavailable":
            self._open_logs.close_copies()
        lost = "what was not copied of them, and what is written to them from now on, is not collected"
        return f"; logs that were deleted or moved while open: {hidden}; {lost}" if hidden else ""

    def _collector(self, watch: Watch) -> Collector:
        self._mounts.remember()
        self._warn_of_network()
        collector = Collector(
            self._job,
            self._events,
            CollectorOptions(watch=watch, pause=lambda seconds: self._sleep(watch, seconds), liveness=self.board),
        )
        try:
            collector.prepare_catalog(self._is_to_stop)
        except BaseException:
            _close(collector)  # otherwise its slot, and the claims in it, stay taken while this process lives
            raise
        if not self._started:
            self._started = True
            self._log.info(
                "started",
                spool=self._job.spool,
                collected=self._job.collected,
                by="link" if collector.parts.linked else "copy",
                quiet=self._job.quiet,
                interval=self._timing.interval,
            )
        return collector

    def _warn_of_network(self) -> None:
        """Log the directories on network file systems, each once, and show them on the status page.

        Raises:
            ConfigError: the settings refuse network file systems.
        """
        found = network_warnings(self._job, self._settings)
        self.board.warn(NETWORK, (f"{one.path} {one.detail}" for one in found))
        for one in found:
            if one not in self._network:
                self._log.warning(NETWORK, path=one.path, detail=one.detail)
        self._network = found

    def _fault(self, reason: str, text: str, watch: Watch) -> None:
        self.board.fault(reason, text)
        self._log.error("fault", reason=reason, error=text, retry_in=self._backoff)
        gc.collect()  # the memory of libraries' reference cycles; `tune_memory` all but stops the collection
        if reason == "destination_full" and self._relieve():
            return
        self._sleep(watch, self._backoff)
        self._backoff = min(2 * self._backoff, BACKOFF[1])

    def _relieve(self) -> bool:
        """Make room in the destination. Return whether that is worth another try at once."""
        with contextlib.suppress(SidecarError):  # another volume has the path now, or none
            self._mounts.check()
            return self._pruning.relieve(self._job, self._is_to_stop)
        return False

    def _passes(self, collector: Collector, watch: Watch) -> None:
        """Passes until a fault, or the end."""
        scan_only: str | None = None
        while not self._stopping:
            began = time.monotonic()
            self._mounts.check()
            if self._peers.have_ended():
                self._takeovers = _TAKEOVERS
            self._peers.watch(collector.parts.claims)
            if collector.parts.catalog.problem:
                collector.prepare_catalog(self._is_to_stop)  # no file may come whose row would show that it works again
            self.board.pass_began()
            counts = collector.run_pass(self._is_to_stop, self._progress)
            took = time.monotonic() - began
            self._backoff = BACKOFF[0]
            self._deduplicator.end_pass(collector.saw)
            if counts.collected or counts.put_back:
                self._log.debug("collected", **counts.done(), writing=counts.writing, settling=counts.settling)
            self.board.left(counts, collector.is_whole)
            clear_up(self.board, collector, counts)
            self.board.passed(counts, took)
            self._summarize()
            show_backlog(self.board, collector)
            show_replicas(self.board, collector)
            if (collector.short_of_space or collector.parts.catalog.full or counts.no_room) and self._relieve():
                collector.parts.catalog.try_again()
            self._pruning.advance(collector, self._is_to_stop)
            if watch.unwatched != scan_only:
                scan_only = watch.unwatched
                self._log.warning("scan_only", detail=scan_only, interval=self._timing.interval)
            # Events come in crowds, and a pass over a large backlog takes its time: one pass for many.
            # What could not be moved was put back, which is an event of its own: do not chase it.
            # No longer than the interval: the others' files would wait as long as one container's backlog took.
            rest = min(took, self._timing.interval)
            self._sleep(watch, max(SHORTEST_GAP, rest, BACKOFF[0] if counts.failed else 0.0))
            if not self._stopping and not counts.collected and not self._pruning.unfinished:
                self._wait(collector, watch, self._due(collector, counts))

    def _due(self, collector: Collector, counts: PassCounts) -> float:
        """Seconds until the next pass, if no event comes."""
        dues = [self._timing.interval]
        if collector.due is not None:
            dues.append(collector.due + 0.005)
        if collector.parts.catalog.problem:
            dues.append(collector.parts.catalog.rest + 0.005)
        if counts.elsewhere and self._takeovers:
            self._takeovers -= 1
            dues.append(SHORTEST_GAP)  # of one that is killed the kernel frees the locks one after the other
        return min(dues)

    def _wait(self, collector: Collector, watch: Watch, seconds: float) -> None:
        """Wait for an event, at most so long or for the interval, and follow logs meanwhile."""
        end = time.monotonic() + min(seconds, self._timing.interval)
        tick = time.monotonic() + self._timing.follow_interval
        while not self._stopping and (left := end - time.monotonic()) > 0:
            pause = min(left, _BEAT)
            if collector.parts.follower:
                pause = min(pause, tick - time.monotonic())
            if watch.wait(pause):
                return
            self.board.beat()
            self._summarize()
            if collector.parts.follower and time.monotonic() >= tick:
                collector.tick(self._ticked)
                self.board.followed(len(collector.parts.follower))
                tick = time.monotonic() + self._timing.follow_interval

    def _sleep(self, watch: Watch, seconds: float) -> None:
        """Wait without heed to events, but for signals."""
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            watch.wait_for_signal(min(left, _BEAT))
            self.board.beat()

    def _progress(self, counts: PassCounts) -> None:
        """Count what a pass has done so far, which stays counted if the pass fails."""
        self._summary.add(self.board.progress(counts))

    def _ticked(self, counts: PassCounts) -> None:
        """Count what was done between two passes."""
        self.board.moved(counts)
        self._summary.add(counts)

    def _summarize(self, at_once: bool = False) -> None:
        found = self._summary.take(at_once)
        if found is not None:
            done, lag = found
            left = {name: count for name, count in self.board.picture().left.left().items() if count}
            self._log.info("summary", **done.done(), lag_seconds=round(lag, 3), left=left)

    def _report(self, event: Event) -> None:
        self.board.event(event)
        self._summary.event(event)
        kind = event.kind
        self._log.log(kind.level, kind.log_name or kind.name, path=event.path, detail=event.detail)


def _close(collector: Collector | None) -> None:
    if collector is not None:
        with contextlib.suppress(SharedVolError, OSError):  # every part is closed all the same
            collector.close()
