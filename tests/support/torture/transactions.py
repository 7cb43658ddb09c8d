"""Kill a mover inside the catalog's transactions, where a file of SQLite's is half-written."""

from __future__ import annotations

from collections import Counter

from support.torture.judge import CATALOG, JOURNALS
from support.torture.scene import Scene
from support.torture.sweeps import Sample
from support.torture.tracer import Traced

_WRITTEN = frozenset({CATALOG, f"{CATALOG}{JOURNALS[0]}"})
"""What a commit writes page by page: the database with a rollback journal, else the WAL."""


def kill_in_transactions(scene: Scene, sample: Sample) -> Counter[str]:
    """Kill a mover between two pages of a commit; look; let another recover; look.

    Returns:
        The number of kills, by the name of the file that was half-written.
    """
    kills: Counter[str] = Counter()
    for number in sample:
        with scene.stand() as stand:
            traced = stand.traced()
            written = _run_to(traced, number)
            where = f"killed in commit {number}, half of {written}"
            if written:
                traced.kill()
                kills[written] += 1
                stand.check_moment(where)
            stand.recover(where if written else "undisturbed")
            if not written:
                return kills
    raise AssertionError("endless")


def _run_to(traced: Traced, number: int) -> str:
    """To the second of two writes in a row, of the commit with that number, from 0. Returns the file's name, or ""."""
    before, left = "", number
    while traced.next():
        now = traced.file if traced.call == "pwrite64" else ""
        if now and now == before and now in _WRITTEN:
            if left == 0:
                return now
            left -= 1
        before = now
    return ""
