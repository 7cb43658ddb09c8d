"""Fencing tokens over a real power cut: the next is above every one that was given."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.torture.filesystems import LOG_FLUSHED, LOG_LOST, LoopFileSystem
from support.torture.isolated import isolated
from support.torture.layouts import LIMIT, timeout

from sharedvol import FileLock
from sharedvol.locks.file import token_file

pytestmark = timeout

BOOTS = [f"{number:08}-0000-4000-8000-000000000000" for number in range(100)]


def take(path: Path, boot: str, count: int) -> list[int]:
    """Tokens that are given under a boot; nothing stays open."""
    token_file.boot_id = lambda: boot
    lock, tokens = FileLock(path, fenced=True), []
    for _ in range(count):
        with lock:
            tokens.append(lock.token)
    return tokens


@pytest.mark.parametrize("journal", [LOG_LOST, LOG_FLUSHED], ids=["journal-lost", "journal-flushed"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_tokens_grow_over_power_cuts(tmp_path: Path, kind: str, journal: int) -> None:
    def sweep() -> list[int]:
        token_file.RESERVED = 4  # type: ignore[misc]
        system = LoopFileSystem(kind, tmp_path / kind)
        given: list[int] = []
        for count, boot in enumerate(BOOTS[:12]):
            given += take(system.path / "a.lock", boot, 1 + count)
            system.cut_power(journal)
            system.come_back()
        return given

    given = isolated(sweep, LIMIT)
    assert len(given) == 78
    assert given == sorted(set(given))


def test_without_a_sync_a_power_cut_takes_tokens_back(tmp_path: Path) -> None:
    """So the cut is one."""

    def sweep() -> list[int]:
        token_file.RESERVED = 4  # type: ignore[misc]
        system = LoopFileSystem("ext4", tmp_path / "ext4")
        given = take(system.path / "a.lock", BOOTS[0], 1)
        token_file.os.fdatasync = token_file.os.fsync = lambda _: None
        given += take(system.path / "a.lock", BOOTS[0], 20)
        system.cut_power(LOG_LOST)
        system.come_back()
        return given + take(system.path / "a.lock", BOOTS[1], 1)

    given = isolated(sweep, LIMIT)
    assert given[-1] <= given[-2]
