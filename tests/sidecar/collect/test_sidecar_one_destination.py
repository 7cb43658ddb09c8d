"""One spool has one destination at a time: a sidecar with another one does not start next to a living one."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Child
from support.sidecar.interleaving import Writer, assert_each_line_once
from support.sidecar.volume import Volume, run_cli

import sharedvol_sidecar.collect.serving as serving
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.collect.wiring import CollectorOptions
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.transfer.claims import Claims


@pytest.fixture
def running(volume: Volume) -> Iterator[Collector]:
    collector = volume.collector()
    yield collector
    collector.close()


@pytest.fixture
def elsewhere(volume: Volume, tmp_path: Path) -> Path:
    other = tmp_path / "elsewhere"
    other.mkdir()
    return other


def start(volume: Volume, collected: Path) -> None:
    job = volume.job()
    Collector(type(job)(job.spool, str(collected), quiet=0.0, workers=1), Events(volume.events.append)).close()


@pytest.mark.usefixtures("running")
def test_another_destination_is_refused_and_both_are_named(volume: Volume, elsewhere: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        start(volume, elsewhere)
    assert str(volume.collected) in str(refused.value) and str(elsewhere) in str(refused.value)
    volume.write("c1/results/a", "a")
    done = run_cli("once", "--from", str(volume.spool), "--to", str(elsewhere), "--quiet", "0")
    assert done.returncode == 2 and str(volume.collected) in done.stderr and len(done.stderr.splitlines()) == 1
    assert volume.waiting() == {"c1/results/a": "a"}
    start(volume, volume.collected)  # what was refused left nothing behind


@pytest.mark.usefixtures("running")
def test_the_same_destination_by_another_path_is_the_same(volume: Volume, elsewhere: Path) -> None:
    (elsewhere / "link").symlink_to(volume.collected)
    start(volume, elsewhere / "link")


def test_a_sidecar_that_ended_or_died_refuses_nothing(volume: Volume, elsewhere: Path) -> None:
    volume.collector().close()
    start(volume, elsewhere)

    def live(child: object) -> None:
        volume.collector()
        os.kill(os.getpid(), signal.SIGKILL)

    child = Child(live)
    assert child.wait() == -signal.SIGKILL
    child.kill()
    with child:
        pass
    start(volume, elsewhere)
    start(volume, volume.collected)


def test_a_slot_of_a_sidecar_that_says_nothing_refuses_nothing(volume: Volume, elsewhere: Path) -> None:
    """A sidecar of another release holds the slot of one that died, and whose note is still there."""
    volume.collector().close()
    assert (volume.spool / ".sharedvol" / "movers" / "0.to").read_text().endswith(str(volume.collected))
    other = Claims(open_root(volume.spool))
    assert other.slot == "0"
    start(volume, elsewhere)
    other.close()


def test_on_a_full_disk_a_sidecar_starts_all_the_same(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, id: str, collected: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(serving.Serving, "_write", full)
    volume.write("c1/results/a", "a")
    assert volume.one_pass().collected == 1


def test_a_helper_of_the_same_job_passes(volume: Volume, running: Collector) -> None:
    job = volume.job()
    Collector(job, Events(volume.events.append), CollectorOptions(shard=(1, 2))).close()


def test_an_update_that_changes_the_destination(volume: Volume, elsewhere: Path) -> None:
    """What was finished stays where it is, and what comes afterwards goes to the new one."""
    log = Writer(volume.spool / "c1" / "logs" / "app.log")
    log.write(2)
    log.close()
    volume.drain()
    volume.write("c1/results/later", "later")
    job = volume.job()
    later = Collector(type(job)(job.spool, str(elsewhere), quiet=0.0, workers=1), Events(volume.events.append))
    assert later.run_pass().collected == 1
    later.close()
    assert_each_line_once(volume, log)
    assert [path.read_text() for path in elsewhere.rglob("later")] == ["later"]
