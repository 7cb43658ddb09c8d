"""The rate limit, and retention while the service runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volume import Volume

from sharedvol_sidecar.catalog import Catalog
from sharedvol_sidecar.limits import Rate
from sharedvol_sidecar.pruning import EVERY, Pruning
from sharedvol_sidecar.report import Event, Once


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


def pruned_by(volume: Volume, mode: str, clock: Clock, told: list[Event]) -> Pruning:
    return Pruning(("results=0s",), mode, Once(told.append), clock)  # type: ignore[arg-type]


def test_retention_is_said_first_and_done_once_an_hour(volume: Volume) -> None:
    told: list[Event] = []
    clock = Clock()
    collector = volume.collector()
    dry, real = (pruned_by(volume, mode, clock, told) for mode in ("dry-run", "apply"))
    off = pruned_by(volume, "off", clock, told)
    volume.write("c1/results/a", "1")
    collector.run_pass()
    off.look(collector)
    assert told == []
    dry.look(collector)
    assert [event.name for event in told] == ["would_prune"] and len(volume.files()) == 1
    real.look(collector)
    assert [event.name for event in told] == ["would_prune", "pruned"] and volume.files() == {}
    volume.write("c1/results/b", "2")
    collector.run_pass()
    clock.now += EVERY - 1
    real.look(collector)
    dry.look(collector)
    assert len(told) == 2 and len(volume.files()) == 1
    clock.now += 1
    real.look(collector)
    assert [event.name for event in told[2:]] == ["pruned"] and volume.files() == {}
    catalog = Catalog.open("", Path(volume.collected))
    assert catalog.count() == 0
    catalog.close()
    collector.close()


def test_retention_without_a_catalog_does_nothing_and_a_broken_one_stops_nothing(volume: Volume) -> None:
    told: list[Event] = []
    without = volume.collector(catalog=None)
    pruned_by(volume, "apply", Clock(), told).look(without)
    without.close()
    assert told == []
    (volume.collected / ".sharedvol").mkdir(exist_ok=True, mode=0o700)
    (volume.collected / ".sharedvol" / "catalog.db").mkdir()
    broken = volume.collector()
    pruned_by(volume, "apply", Clock(), told).look(broken)
    broken.close()
    assert [event.name for event in told] == ["catalog"] and "nothing is pruned" in told[0].detail
