"""The follower of an open log is killed at each system call, while the log is cut, renamed, deleted or closed.

Every byte that a whole pass had seen is there once, and no live file stays.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.torture.isolated import isolated
from support.torture.layouts import EVERYTHING, LIMIT, Directories, sample, timeout
from support.torture.logs import STORIES, kill_the_follower

Points = Callable[[str, int], None]

pytestmark = timeout


WAYS = [("linked", ""), ("copied", "gzip"), ("linked", "gzip"), ("copied", "")]


@pytest.mark.parametrize(("layout", "compress"), WAYS if EVERYTHING else WAYS[:2], ids=lambda value: value or "plain")
@pytest.mark.parametrize("story", STORIES)
def test_its_follower_is_killed(torture: Directories, story: str, layout: str, compress: str, points: Points) -> None:
    chosen = sample(83, f"{story} {layout} {compress}")
    kills = isolated(
        lambda: kill_the_follower(torture.scene(layout, sources={}), STORIES[story], chosen, compress), LIMIT
    )
    assert (kills + 1) * chosen.step > 60
    points("kill points of followed logs", kills)
