"""Every call fails, once or for good: it is told, nothing is harmed, and the next pass collects everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.torture.isolated import isolated
from support.torture.layouts import LIMIT, Directories, sample, timeout
from support.torture.sweeps import ANSWERED, FAULTS, fail_everywhere

Points = Callable[[str, int], None]

pytestmark = timeout


@pytest.mark.parametrize("layout", ["linked", "copied", "refused"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_a_failing_call(torture: Directories, layout: str, lasting: bool, points: Points) -> None:
    def sweep() -> dict[str, tuple[int, int]]:
        scene = torture.scene(layout)
        chosen = {fault: sample(229, f"{fault} {layout} {lasting}") for fault in FAULTS}
        return {
            fault: (fail_everywhere(scene, chosen[fault], fault, lasting=lasting), chosen[fault].step)
            for fault in FAULTS
        }

    faults = isolated(sweep, LIMIT)
    assert all((count + 1) * step > 80 for count, step in faults.values()), faults
    points("faults", sum(count for count, _ in faults.values()))


@pytest.mark.parametrize("layout", ["linked", "copied", "refused"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_a_lost_answer(torture: Directories, layout: str, lasting: bool, points: Points) -> None:
    """The call is done, and said to have failed: rename, link, unlink, mkdir, rmdir, fsync."""
    chosen = sample(23, f"lost answer {layout} {lasting}")
    faults = isolated(
        lambda: fail_everywhere(torture.scene(layout), chosen, "EIO", lasting=lasting, though_done=ANSWERED), LIMIT
    )
    assert (faults + 1) * chosen.step > 40
    points("lost answers", faults)
