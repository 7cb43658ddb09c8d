"""A large backlog: a second process helps, and neither memory nor descriptors grow with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.processes import wait_until
from support.sidecar.volume import Volume

from sharedvol_sidecar.collect import collector as collecting
from sharedvol_sidecar.counters import PassCounts

SMALL = """
import json, os, resource, sys
if sys.argv[3] != "-":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]),) * 2)
from sharedvol_sidecar.collect.once import once
from sharedvol_sidecar.config.collector_config import CollectorConfig
told = []
tally = once(CollectorConfig(sys.argv[1], sys.argv[2], quiet=0.0, workers=1), told.append)
print(json.dumps([tally.as_dict(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, [e.detail for e in told]]))
"""


def once_in_child(volume: Volume, descriptors: str = "-") -> tuple[dict[str, int], int, list[str]]:
    """`once` in a process of its own: its counts, its peak memory in KiB, and what it told."""
    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(volume.spool), str(volume.collected), descriptors],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts, peak, told = json.loads(done.stdout)
    return counts, peak, told


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "HELP_AFTER", 20)
    monkeypatch.setattr("sharedvol_sidecar.transfer.batch.MAX_BATCH", 10)


def backlog(volume: Volume, count: int) -> Counter[str]:
    for number in range(count):
        volume.write(f"c{number % 7}/results/{number}.json", str(number))
    return Counter(map(str, range(count)))


@pytest.mark.usefixtures("small_batches")
def test_a_helper_takes_part_and_all_is_moved_once(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = backlog(volume, 400)
    collector = volume.collector(workers=2)
    helpers: list[subprocess.Popen[bytes]] = []

    def after_batch(tally: PassCounts) -> None:
        if collector._helper is not None and collector._helper.process not in helpers:
            helpers.append(collector._helper.process)

    tally = collector.run_pass(after_batch=after_batch)
    assert len(helpers) == 1 and helpers[0].returncode == 0
    assert tally.collected == 400
    assert collector.run_pass().collected == 0
    collector.close()
    assert volume.bag() == expected


@pytest.mark.usefixtures("small_batches")
def test_helper_that_is_killed_loses_nothing(volume: Volume) -> None:
    expected = backlog(volume, 400)
    collector = volume.collector(workers=2)
    killed: list[int] = []

    def after_batch(tally: PassCounts) -> None:
        if collector._helper is not None and not killed:
            claims = volume.spool / ".sharedvol" / "claims" / "1"
            helper = collector._helper.process
            wait_until(lambda: claims.is_dir() or helper.poll() is not None, "the helper's slot")
            helper.send_signal(signal.SIGKILL)
            killed.append(helper.pid)

    collector.run_pass(after_batch=after_batch)
    assert killed
    while collector.run_pass().collected:
        pass
    collector.close()
    assert volume.bag() == expected
    assert volume.claims() == [] and volume.waiting() == {}


@pytest.mark.usefixtures("small_batches")
def test_stop_while_the_helper_works_ends_it(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    backlog(volume, 100)
    collector = volume.collector(workers=2)
    real = subprocess.Popen
    endless = [sys.executable, "-c", "import sys, time; sys.stdin.read(); time.sleep(1000)"]
    started: list[Any] = []

    def popen(command: list[str], **options: Any) -> Any:
        started.append(real(endless, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    collector.run_pass(stop=lambda: bool(started) and collector._helper is None)
    assert started[0].returncode == -signal.SIGTERM
    collector.close()


@pytest.mark.usefixtures("small_batches")
def test_leaving_at_once_does_not_wait_for_the_helper(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    backlog(volume, 100)
    collector = volume.collector(workers=2)
    real = subprocess.Popen
    endless = [sys.executable, "-c", "import signal, sys, time; sys.stdin.read(); time.sleep(1000)"]
    started: list[Any] = []

    def popen(command: list[str], **options: Any) -> Any:
        started.append(real(endless, **options))
        return started[-1]

    def stop() -> bool:
        if started and collector._helper is None:
            raise SystemExit(143)  # as the handler of a second signal
        return False

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(SystemExit):
        collector.run_pass(stop=stop)
    assert started[0].returncode == -signal.SIGKILL
    collector.close()


@pytest.mark.parametrize("where", ["volume", "across"])
@pytest.mark.parametrize("depth", [0, 1, 12])
def test_few_descriptors_are_enough(where: str, depth: int, request: pytest.FixtureRequest) -> None:
    """Also where each file is in a directory of its own, or deep."""
    volume: Volume = request.getfixturevalue(where)
    for number in range(300):
        own = f"d{number}/" * min(depth, 1) + "x/" * max(0, depth - 1)
        volume.write(f"c1/results/{own}{number}", str(number))
    counts, _, told = once_in_child(volume, "256")
    assert (counts["collected"], counts["failed"], told) == (300, 0, [])
    assert volume.bag() == Counter(map(str, range(300)))


def test_a_directory_for_each_file_does_not_exhaust_the_usual_limit(volume: Volume) -> None:
    for number in range(3000):
        volume.write(f"c1/results/job{number}/out.json", str(number))
    counts, _, told = once_in_child(volume)
    assert (counts["collected"], told) == (3000, [])


def test_memory_does_not_grow_with_the_backlog(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 20_000):
        volume = Volume(tmp_path / str(count) / "spool", tmp_path / str(count) / "collected")
        for container in range(10):
            directory = volume.write(f"c{container}/results/0", "x").parent
            fd = os.open(directory, os.O_RDONLY)
            for number in range(1, count // 10):
                os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.close(fd)
        counts, peak, _ = once_in_child(volume)
        assert counts["collected"] == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 8 * 1024, f"{peaks} KiB"
