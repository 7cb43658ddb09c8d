"""Killed inside a commit of the catalog, with each kind of journal on each file system that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.torture import judge
from support.torture.filesystems import KINDS
from support.torture.isolated import isolated
from support.torture.layouts import LIMIT, Directories, sample, timeout
from support.torture.transactions import kill_in_transactions

Points = Callable[[str, int], None]

pytestmark = timeout

WAL, ROLLBACK = "catalog.db-wal", "catalog.db"
"""The file that is half-written inside a commit."""
SMALL_BLOCKS = ["ext4", "xfs_1k", "overlay"]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_between_two_pages_of_a_commit(torture: Directories, tmp_path: Path, kind: str, points: Points) -> None:
    chosen = sample(3, kind)
    kills = isolated(lambda: kill_in_transactions(torture.scene(f"{kind}-{kind}"), chosen), LIMIT)
    small = kind in SMALL_BLOCKS or (kind == "machine" and tmp_path.stat().st_blksize < 4096)
    assert kills[WAL if not small else ROLLBACK] > 0
    assert kills[WAL] == 0 or not small
    points("kill points in a commit", kills.total())


@pytest.mark.parametrize("kind", SMALL_BLOCKS)
def test_a_judge_that_leaves_the_rollback_journal_out_finds_the_catalog_damaged(
    torture: Directories, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """So the kills are inside of commits."""
    monkeypatch.setattr(judge, "JOURNALS", ("-wal",))
    with pytest.raises(AssertionError, match="malformed"):
        isolated(lambda: kill_in_transactions(torture.scene(f"{kind}-{kind}"), sample(1, "")), LIMIT)
