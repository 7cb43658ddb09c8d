"""``/metrics``: the state in the format of Prometheus. The names are an interface; docs/monitoring.md lists them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import sharedvol
from sharedvol_sidecar.counters import LABELLED
from sharedvol_sidecar.humanize import plain
from sharedvol_sidecar.monitor.snapshot import ALL, OTHER, PASS_BUCKETS, REASONS, Snapshot

PREFIX = "sharedvol_sidecar_"


def registry(take_snapshot: Callable[[], Snapshot]) -> CollectorRegistry:
    """Return a separate registry with the metrics of the service and the process."""
    made = CollectorRegistry(auto_describe=False)
    made.register(BoardCollector(take_snapshot))
    ProcessCollector(registry=made)
    return made


class BoardCollector(Collector):
    """Makes the metrics from one snapshot at a time, so that they are consistent.

    Args:
        take_snapshot: returns a snapshot of the state.
    """

    def __init__(self, take_snapshot: Callable[[], Snapshot]) -> None:
        self._take_snapshot = take_snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics of the service."""
        snapshot = self._take_snapshot()
        yield from _counters(snapshot)
        yield from _passes(snapshot)
        yield from _gauges(snapshot)
        yield from _backlog(snapshot)


def _counters(snapshot: Snapshot) -> Iterator[Metric]:
    for counter in ALL:
        if isinstance(counter.metric, str):
            made = CounterMetricFamily if counter.kind == "done" else GaugeMetricFamily
            yield made(PREFIX + counter.metric, counter.help, snapshot.value(counter))
    values = {"left_files": snapshot.by_reason("left_files"), "errors": snapshot.errors, "dropped": snapshot.dropped}
    for name, text in LABELLED.items():
        labelled = GaugeMetricFamily if name == "left_files" else CounterMetricFamily
        yield _labelled(labelled(PREFIX + name, text, labels=["reason"]), values[name])
    lost = snapshot.log.lost
    yield CounterMetricFamily(PREFIX + "log_lines_lost", "Lines of the log that could not be written.", lost)


def _passes(snapshot: Snapshot) -> Iterator[Metric]:
    passes = snapshot.passes
    yield CounterMetricFamily(PREFIX + "passes", "Passes over the spool that ended well.", passes.count)
    bounds = [*(str(bound) for bound in PASS_BUCKETS), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(passes.buckets)), strict=True))
    yield HistogramMetricFamily(
        PREFIX + "pass_duration_seconds", "How long passes took.", buckets=buckets, sum_value=passes.seconds
    )
    yield GaugeMetricFamily(
        PREFIX + "last_pass_timestamp_seconds", "When the last pass ended; 0 before the first.", passes.last or 0.0
    )


def _gauges(snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(PREFIX + "ready", "Whether the service is ready: 1 or 0, as /readyz.", snapshot.ready)
    yield GaugeMetricFamily(PREFIX + "alive", "Whether the main loop is alive: 1 or 0, as /healthz.", snapshot.alive)
    now = {one.reason for one in snapshot.faults}
    reasons = {reason: float(reason in now) for reason in (*REASONS, *now)}
    yield _labelled(GaugeMetricFamily(PREFIX + "fault", "Why it is not ready: 1 or 0.", labels=["reason"]), reasons)
    yield GaugeMetricFamily(PREFIX + "followed_logs", "Logs that are followed now.", snapshot.followed_logs)
    states = {"alive": snapshot.replicas_alive, "dead": snapshot.replicas_dead, "unknown": snapshot.replicas_unknown}
    yield _labelled(GaugeMetricFamily(PREFIX + "replicas", "Replicas, by what is known.", labels=["state"]), states)
    build = GaugeMetricFamily(PREFIX + "build_info", "The version; always 1.", labels=["version"])
    build.add_metric([sharedvol.__version__], 1)
    yield build


def _backlog(snapshot: Snapshot) -> Iterator[Metric]:
    rest = () if snapshot.backlog_rest is None else (snapshot.backlog_rest,)
    files = [(one.container, one.files) for one in (*snapshot.backlog, *rest)]
    sizes = [(one.container, one.bytes) for one in (*snapshot.backlog, *rest)]
    text = f"waiting, of the containers with the largest backlogs; the rest is {OTHER}."
    yield _labelled(GaugeMetricFamily(PREFIX + "backlog_files", f"Files {text}", labels=["container"]), files)
    yield _labelled(GaugeMetricFamily(PREFIX + "backlog_bytes", f"Bytes {text}", labels=["container"]), sizes)


def _labelled(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float] | Iterable[tuple[str, float]]
) -> Metric:
    # Names that are equal after escaping would be one series twice, and Prometheus would refuse the whole scrape.
    sums: dict[str, float] = defaultdict(float)
    for value, count in values.items() if isinstance(values, Mapping) else values:
        sums[plain(value)] += count
    for value, count in sums.items():
        family.add_metric([value], count)
    return family
