"""The rate limit, and retention while the service runs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import wait_until
from support.sidecar.service_process import service, settled
from support.sidecar.volume import Volume

from sharedvol_sidecar.catalog.catalog import Catalog
from sharedvol_sidecar.event import Event
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.monitor.deduplicator import Deduplicator
from sharedvol_sidecar.retention import pruner as retention
from sharedvol_sidecar.service.prune_schedule import EVERY, PORTION, PruneSchedule
from sharedvol_sidecar.transfer.rate import Rate


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    st.floats(1, 1e9),
    st.lists(st.tuples(st.integers(0, 2**33), st.floats(0, 1000)), min_size=1, max_size=50),
)
def test_bytes_never_outrun_the_rate(rate: float, moves: list[tuple[int, float]]) -> None:
    """Who waits as told has moved at most the rate times the time, whatever the quiet times."""
    clock = Clock()
    limit = Rate(rate, clock)
    moved = 0
    for count, idle in moves:
        clock.now += idle
        began = clock.now
        moved += count
        wait = limit.spend(count)
        assert wait == pytest.approx(
            count / rate, abs=1e-6 + 4 * math.ulp(began + wait)
        )  # nothing is saved up, and nothing is owed twice
        clock.now += wait
        assert clock.now - began >= count / rate * (1 - 1e-9) - 1e-6 - 4 * math.ulp(clock.now)
    assert moved <= rate * clock.now * (1 + 1e-6) + 1


def test_without_a_rate_nothing_waits() -> None:
    limit = Rate(0, Clock())
    assert limit.spend(10**15) == 0.0 and limit.at_once == float("inf")
    assert Rate(500, Clock()).at_once == 500


def test_spending_again_before_the_wait_is_over_adds_up() -> None:
    limit = Rate(100, Clock())
    assert [limit.spend(100), limit.spend(50), limit.spend(0)] == [1.0, 1.5, 1.5]


def pruned_by(volume: Volume, mode: str, clock: Clock, told: list[Event]) -> PruneSchedule:
    return PruneSchedule(("results=0s",), mode, Events(Deduplicator(told.append)), clock)  # type: ignore[arg-type]


def test_retention_is_said_first_and_done_once_an_hour(volume: Volume) -> None:
    told: list[Event] = []
    clock = Clock()
    collector = volume.collector()
    dry, real = (pruned_by(volume, mode, clock, told) for mode in ("dry-run", "apply"))
    off = pruned_by(volume, "off", clock, told)
    volume.write("c1/results/a", "1")
    collector.run_pass()
    off.advance(collector)
    assert told == []
    dry.advance(collector)
    assert [event.name for event in told] == ["would_prune"] and len(volume.files()) == 1
    real.advance(collector)
    assert [event.name for event in told] == ["would_prune", "pruned"] and volume.files() == {}
    volume.write("c1/results/b", "2")
    collector.run_pass()
    clock.now += EVERY - 1
    real.advance(collector)
    dry.advance(collector)
    assert len(told) == 2 and len(volume.files()) == 1
    clock.now += 1
    real.advance(collector)
    assert [event.name for event in told[2:]] == ["pruned"] and volume.files() == {}
    catalog = Catalog.open("", Path(volume.collected))
    assert catalog.count() == 0
    catalog.close()
    collector.close()


def test_retention_without_a_catalog_does_nothing_and_a_broken_one_stops_nothing(volume: Volume) -> None:
    told: list[Event] = []
    without = volume.collector(catalog=None)
    pruned_by(volume, "apply", Clock(), told).advance(without)
    without.close()
    assert told == []
    (volume.collected / ".sharedvol").mkdir(exist_ok=True, mode=0o700)
    (volume.collected / ".sharedvol" / "catalog.db").mkdir()
    broken = volume.collector()
    pruned_by(volume, "apply", Clock(), told).advance(broken)
    broken.close()
    assert [event.name for event in told] == ["catalog"] and "nothing is pruned" in told[0].detail


@pytest.mark.parametrize("mode", ["apply", "dry-run"])
def test_retention_of_many_files_is_done_a_portion_at_a_time(
    volume: Volume, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each query of ``stop`` is a sign of life, and between two portions new files are collected."""
    monkeypatch.setattr(retention, "_BATCH", 3)
    told: list[Event] = []
    clock = Clock()
    collector = volume.collector()
    for number in range(20):
        volume.write(f"c1/results/{number}", "x")
    collector.run_pass()
    pruning = pruned_by(volume, mode, clock, told)
    beats = 0

    def beat() -> bool:
        nonlocal beats
        beats += 1
        clock.now += PORTION / 2
        return False

    portions = 0
    while portions == 0 or pruning.unfinished:
        pruning.advance(collector, beat)
        portions += 1
        volume.write(f"c1/results/new{portions}", "x")
        assert collector.run_pass().collected == 1
    assert portions >= 4 and beats >= 7
    if mode == "apply":
        assert [event.name for event in told] == ["pruned"] * 20
        assert len(volume.files()) == portions
    else:
        assert [(event.name, event.detail.partition(",")[0]) for event in told] == [("would_prune", "20 files")]
    before = len(told)
    pruning.advance(collector, beat)
    assert not pruning.unfinished and len(told) == before  # not before the next hour
    collector.close()


def test_a_dry_run_for_a_full_destination_gives_signs_of_life(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 3)
    for number in range(10):
        volume.write(f"c1/results/{number}", "x")
    volume.drain()
    told: list[Event] = []
    beats: list[int] = []
    pruned_by(volume, "dry-run", Clock(), told).relieve(volume.job(), lambda: beats.append(1) is not None)
    assert len(beats) == 4 and [event.name for event in told] == ["would_prune"]


def test_retention_stops_between_two_steps_and_begins_again_with_a_new_collector(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BATCH", 3)
    told: list[Event] = []
    clock = Clock()
    collector = volume.collector()
    for number in range(10):
        volume.write(f"c1/results/{number}", "x")
    collector.run_pass()
    pruning = pruned_by(volume, "apply", clock, told)
    pruning.advance(collector, lambda: True)
    assert pruning.unfinished and len(told) == 3
    collector.close()
    collector = volume.collector()
    pruning.advance(collector)
    assert not pruning.unfinished and len(told) == 10 and volume.files() == {}
    collector.close()


def found(volume: Volume) -> set[str]:
    """Names of the collected files, while some of them are deleted."""
    return {name for _, _, names in os.walk(volume.collected / "results") for name in names}


def test_a_service_collects_between_two_portions_without_a_pause(volume: Volume) -> None:
    """Its interval is an hour: only retention that is unfinished lets it look again."""
    shim = """
import sharedvol_sidecar.service.prune_schedule as pruning, sharedvol_sidecar.retention.pruner as retention
pruning.PORTION = 0.0
retention._BATCH = 1
real = pruning.PruneSchedule.advance
def look(self, collector, stop):
    real(self, collector, stop)
    if self.unfinished:
        say("portion")
        wait_for(sys.argv[sys.argv.index("--from") + 1] + "/../go")
pruning.PruneSchedule.advance = look
"""
    for number in range(5):
        volume.write(f"c1/results/{number}", "x")
    volume.drain()
    with service(volume, "--keep", "results=0s", "--prune", "apply", shim=shim, first="portion") as served:
        volume.write("c1/results/late", "late")
        (volume.spool.parent / "go").touch()
        wait_until(lambda: found(volume) == {"late"}, "the late one, and the old ones to go")
        assert settled(served)["files"] == 1
