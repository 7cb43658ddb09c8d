"""``/metrics``: the board in the words of Prometheus. The names are an interface; docs/monitoring.md lists them."""

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


def registry(picture: Callable[[], Snapshot]) -> CollectorRegistry:
    """A registry of its own, with the board and the process; nothing is shared with the global one."""
    made = CollectorRegistry(auto_describe=False)
    made.register(BoardCollector(picture))
    ProcessCollector(registry=made)
    return made


class BoardCollector(Collector):
    """Makes the metrics from one picture at a time, so that they agree with each other.

    Args:
        picture: makes the picture.
    """

    def __init__(self, picture: Callable[[], Snapshot]) -> None:
        self._picture = picture

    def collect(self) -> Iterable[Metric]:
        """All metrics of the service."""
        picture = self._picture()
        yield from _counters(picture)
        yield from _passes(picture)
        yield from _gauges(picture)
        yield from _backlog(picture)


def _counters(picture: Snapshot) -> Iterator[Metric]:
    for counter in ALL:
        if isinstance(counter.metric, str):
            made = CounterMetricFamily if counter.kind == "done" else GaugeMetricFamily
            yield made(PREFIX + counter.metric, counter.help, picture.value(counter))
    values = {"left_files": picture.by_reason("left_files"), "errors": picture.errors, "dropped": picture.dropped}
    for name, text in LABELLED.items():
        labelled = GaugeMetricFamily if name == "left_files" else CounterMetricFamily
        yield _labelled(labelled(PREFIX + name, text, labels=["reason"]), values[name])
    lost = picture.log.lost
    yield CounterMetricFamily(PREFIX + "log_lines_lost", "Lines of the log that could not be written.", lost)


def _passes(picture: Snapshot) -> Iterator[Metric]:
    passes = picture.passes
    yield CounterMetricFamily(PREFIX + "passes", "Passes over the spool that ended well.", passes.count)
    bounds = [*(str(bound) for bound in PASS_BUCKETS), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(passes.buckets)), strict=True))
    yield HistogramMetricFamily(
        PREFIX + "pass_duration_seconds", "How long passes took.", buckets=buckets, sum_value=passes.seconds
    )
    yield GaugeMetricFamily(
        PREFIX + "last_pass_timestamp_seconds", "When the last pass ended; 0 before the first.", passes.last or 0.0
    )


def _gauges(picture: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(PREFIX + "ready", "Whether nothing is the matter: 1 or 0, as /readyz.", picture.ready)
    yield GaugeMetricFamily(PREFIX + "alive", "Whether the main loop was heard of: 1 or 0, as /healthz.", picture.alive)
    now = {one.reason for one in picture.faults}
    reasons = {reason: float(reason in now) for reason in (*REASONS, *now)}
    yield _labelled(GaugeMetricFamily(PREFIX + "fault", "Why it is not ready: 1 or 0.", labels=["reason"]), reasons)
    yield GaugeMetricFamily(PREFIX + "followed_logs", "Logs that are followed now.", picture.followed_logs)
    states = {"alive": picture.replicas_alive, "dead": picture.replicas_dead, "unknown": picture.replicas_unknown}
    yield _labelled(GaugeMetricFamily(PREFIX + "replicas", "Replicas, by what is known.", labels=["state"]), states)
    build = GaugeMetricFamily(PREFIX + "build_info", "The version; always 1.", labels=["version"])
    build.add_metric([sharedvol.__version__], 1)
    yield build


def _backlog(picture: Snapshot) -> Iterator[Metric]:
    rest = () if picture.backlog_rest is None else (picture.backlog_rest,)
    files = [(one.container, one.files) for one in (*picture.backlog, *rest)]
    sizes = [(one.container, one.bytes) for one in (*picture.backlog, *rest)]
    text = f"waiting, of the containers with the largest backlogs; the rest is {OTHER}."
    yield _labelled(GaugeMetricFamily(PREFIX + "backlog_files", f"Files {text}", labels=["container"]), files)
    yield _labelled(GaugeMetricFamily(PREFIX + "backlog_bytes", f"Bytes {text}", labels=["container"]), sizes)


def _labelled(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float] | Iterable[tuple[str, float]]
) -> Metric:
    # Names that look alike once they are plain would be one series twice, and the whole scrape refused.
    sums: dict[str, float] = defaultdict(float)
    for value, count in values.items() if isinstance(values, Mapping) else values:
        sums[plain(value)] += count
    for value, count in sums.items():
        family.add_metric([value], count)
    return family
