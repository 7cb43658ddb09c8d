"""Killed before each system call, alone or beside another, in recovery too: every file is there once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.torture.isolated import isolated
from support.torture.layouts import LIMIT, Directories, exhaustive, sample, timeout
from support.torture.sweeps import calls_of, effects_of, kill_beside_another, kill_everywhere, kill_the_recovery

Points = Callable[[str, int], None]

pytestmark = timeout
layouts = pytest.mark.parametrize("layout", ["linked", "copied", "refused"])


@layouts
def test_every_call_of_a_pass_is_known(torture: Directories, layout: str) -> None:
    calls = isolated(lambda: calls_of(torture.scene(layout)), LIMIT)
    assert calls.total() > 500
    assert {"renameat", "linkat", "unlinkat", "mkdirat", "fsync", "fcntl", "flock", "close"} <= set(calls)


@layouts
def test_killed_before_every_effect(torture: Directories, layout: str, points: Points) -> None:
    def sweep() -> tuple[int, int]:
        scene = torture.scene(layout)
        return len(effects_of(scene)), kill_everywhere(scene, chosen)

    chosen = sample(41, layout)
    effects, kills = isolated(sweep, LIMIT)
    assert effects > 150
    # A mover that gets little of the processor makes some calls fewer or more: it ends by itself after the last kill.
    assert (kills + 1) * chosen.step >= 0.95 * effects
    points("kill points", kills)


@exhaustive
@pytest.mark.parametrize("layout", ["linked", "copied"])
def test_killed_before_every_call_with_effect_or_without(torture: Directories, layout: str, points: Points) -> None:
    kills = isolated(lambda: kill_everywhere(torture.scene(layout), sample(1, ""), every_call=True), LIMIT)
    assert kills > 500
    points("kill points", kills)


@layouts
@pytest.mark.parametrize("dies", [True, False], ids=["killed", "stopped"])
def test_another_works_meanwhile(torture: Directories, layout: str, dies: bool, points: Points) -> None:
    chosen = sample(97, f"{layout} {dies}")
    stops = isolated(lambda: kill_beside_another(torture.scene(layout), chosen, dies=dies), LIMIT)
    assert (stops + 1) * chosen.step > 150
    points("kill points beside another" if dies else "stops beside another", stops)


@pytest.mark.parametrize("layout", ["linked", "copied"])
def test_killed_again_in_recovery(torture: Directories, layout: str, points: Points) -> None:
    # The square of all would take hours.
    first, second = sample(151, layout, thorough=17), sample(131, layout, thorough=13)
    kills = isolated(lambda: kill_the_recovery(torture.scene(layout), first, second), LIMIT)
    assert kills >= 4
    points("kill points in recovery", kills)
