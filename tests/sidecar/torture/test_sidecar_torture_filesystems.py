"""Killed, and with failing calls, on each file system and across each pair of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
from support.torture.filesystems import KINDS
from support.torture.isolated import isolated
from support.torture.layouts import LIMIT, Directories, sample, timeout
from support.torture.sweeps import FAULTS, fail_everywhere, kill_everywhere

Points = Callable[[str, int], None]

pytestmark = timeout

PAIRS = [
    *(f"{kind}-{kind}" for kind in KINDS),
    "ext4-xfs",
    "xfs-btrfs",
    "btrfs-tmpfs",
    "tmpfs-ext4",
    "overlay-ext4",
    "machine-overlay",
]


@pytest.mark.parametrize("pair", PAIRS)
def test_killed_before_every_effect(torture: Directories, pair: str, points: Points) -> None:
    chosen = sample(113, pair)
    kills = isolated(lambda: kill_everywhere(torture.scene(pair), chosen), LIMIT)
    assert (kills + 1) * chosen.step > 150
    points("kill points", kills)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_failing_call(torture: Directories, pair: str, points: Points) -> None:
    """With an error, and for as long, as depend on the pair."""
    number = zlib.crc32(pair.encode())
    fault, lasting, chosen = FAULTS[number % len(FAULTS)], bool(number & 64), sample(173, pair)
    faults = isolated(lambda: fail_everywhere(torture.scene(pair), chosen, fault, lasting=lasting), LIMIT)
    assert (faults + 1) * chosen.step > 80
    points("faults", faults)
