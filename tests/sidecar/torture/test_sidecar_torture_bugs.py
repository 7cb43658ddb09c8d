"""The harness finds the bugs that are planted, each by the check that is meant for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.torture import bugs
from support.torture.filesystems import LOG_FLUSHED, LOG_LOST, LoopFileSystem
from support.torture.isolated import isolated
from support.torture.judge import Violation
from support.torture.layouts import LIMIT, Directories, timeout
from support.torture.logs import STORIES, kill_the_follower
from support.torture.power import cut_power_everywhere
from support.torture.scene import Scene
from support.torture.sweeps import Sample, fail_everywhere, kill_beside_another, kill_everywhere

pytestmark = timeout

Bug = Callable[[], None]
MOVING = Sample(3, start=100)
"""Past the calls with which a mover begins."""
CLAIMING = Sample(3, start=70)
"""From before the first claim: how many calls come before it is not always the same. Writes are every second call."""
LATER = Sample(7, start=170)
NAMED = {"ids": lambda value: getattr(value, "__name__", None)}


@pytest.mark.parametrize(
    ("bug", "layout", "word"),
    [
        (bugs.overwrite, "linked", "overwritten"),
        (bugs.no_claim, "copied", "doubled"),
        (bugs.forgets_copies, "copied", "doubled"),
        (bugs.unlink_first, "linked", "lost"),
        (bugs.name_before_content, "linked", "half-written"),
        (bugs.row_after_the_claim, "linked", "catalog"),
        (bugs.no_row_of_the_recovered, "copied", "catalog"),
        (bugs.row_of_another_name, "linked", "catalog"),
        (bugs.row_stays, "linked", "catalog"),
    ],
    **NAMED,
)
def test_found_by_a_kill(torture: Directories, bug: Bug, layout: str, word: str) -> None:
    with pytest.raises(Violation, match=word):
        isolated(lambda: kill_everywhere(torture.scene(layout, bug), MOVING), LIMIT)


@pytest.mark.parametrize(
    ("bug", "story", "word"),
    [
        (bugs.live_after_the_claim, "closed", "left behind|doubled"),
        (bugs.live_file_begins_anew, "grows", "wrong"),
        (bugs.cut_is_not_seen, "cut-and-grown-beyond", "wrong|lost"),
    ],
    **NAMED,
)
def test_found_by_a_kill_of_a_logs_follower(torture: Directories, bug: Bug, story: str, word: str) -> None:
    with pytest.raises(Violation, match=word):
        isolated(lambda: kill_the_follower(torture.scene("linked", bug, {}), STORIES[story], MOVING), LIMIT)


@pytest.mark.parametrize(("bug", "layout", "word"), [(bugs.claims_of_the_living, "copied", "doubled|lost")], **NAMED)
def test_found_by_another_that_works_meanwhile(torture: Directories, bug: Bug, layout: str, word: str) -> None:
    with pytest.raises(Violation, match=word):
        isolated(lambda: kill_beside_another(torture.scene(layout, bug), MOVING, dies=False), LIMIT)


@pytest.mark.parametrize(
    ("bug", "layout", "lasting", "word"),
    [
        (bugs.full_disk_ends_the_copy, "copied", False, "half-written"),
        (bugs.failure_not_told, "linked", False, "reported as success"),
        (bugs.failure_not_caught, "linked", False, "died of an exception"),
    ],
    **NAMED,
)
def test_found_by_a_failing_call(torture: Directories, bug: Bug, layout: str, lasting: bool, word: str) -> None:
    with pytest.raises(Violation, match=word):
        isolated(lambda: fail_everywhere(torture.scene(layout, bug), CLAIMING, "ENOSPC", lasting=lasting), LIMIT)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize(
    ("bug", "synced", "journal", "word"),
    [
        (bugs.no_sync_of_content, False, LOG_FLUSHED, "half-written"),
        (bugs.no_sync_of_directories, True, LOG_LOST, "lost"),
    ],
    **NAMED,
)
def test_found_by_a_power_cut(tmp_path: Path, bug: Bug, kind: str, synced: bool, journal: int, word: str) -> None:
    def sweep() -> int:
        system = LoopFileSystem(kind, tmp_path / kind)
        return cut_power_everywhere(Scene(system.path, system.path, bug, synced), [system], journal, LATER)

    with pytest.raises(Violation, match=word):
        isolated(sweep, LIMIT)


@pytest.mark.parametrize(
    ("bug", "word"),
    [(bugs.no_sync_of_content, "half-written|lost"), (bugs.unlink_before_durable, "lost")],
    **NAMED,
)
def test_found_by_a_power_cut_of_the_destination_alone(tmp_path: Path, bug: Bug, word: str) -> None:
    def sweep() -> int:
        system = LoopFileSystem("ext4", tmp_path / "ext4")
        spool = tmp_path / "spool"
        spool.mkdir()
        return cut_power_everywhere(Scene(spool, system.path, bug, True), [system], LOG_LOST, LATER)

    with pytest.raises(Violation, match=word):
        isolated(sweep, LIMIT)


def test_a_claim_that_is_not_on_the_disk_is_found_by_a_power_cut_of_the_spool_alone(tmp_path: Path) -> None:
    def sweep() -> int:
        system = LoopFileSystem("ext4", tmp_path / "ext4")
        collected = tmp_path / "collected"
        collected.mkdir()
        scene = Scene(system.path, collected, bugs.claims_not_synced, True)
        return cut_power_everywhere(scene, [system], LOG_LOST, LATER)

    with pytest.raises(Violation, match="doubled"):
        isolated(sweep, LIMIT)
