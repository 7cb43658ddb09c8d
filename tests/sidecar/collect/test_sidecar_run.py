"""`run` as a process: what wakes it, what ends it, and what it does when the destination fails."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.processes import LIMIT, has_permission_to_mount, reaped, wait_until
from support.sidecar.running import Running
from support.sidecar.volume import CLI, Volume


@contextmanager
def running(volume: Volume, *args: str, prefix: tuple[str, ...] = (), interval: str = "3600") -> Iterator[Running]:
    """With an interval so long that only an event explains what is collected."""
    directories = ("--from", str(volume.spool), "--to", str(volume.collected), "--interval", interval)
    process = subprocess.Popen(
        [*prefix, *CLI, "run", *directories, "--listen", "off", "--verbose", *(args or ("--quiet", "0"))],
        stdout=subprocess.PIPE,
        text=True,
    )
    with reaped(process):
        sidecar = Running(process)
        sidecar.until("started")
        yield sidecar
        if process.poll() is None:
            sidecar.end(signal.SIGKILL)


def test_events_are_enough(volume: Volume) -> None:
    volume.write("c1/results/before", "0")
    with running(volume) as sidecar:
        wait_until(lambda: len(volume.files()) == 1, "what was there before")
        volume.write("c1/results/closed", "1")
        wait_until(lambda: len(volume.files()) == 2, "a file that was closed")
        temporary = volume.write("c1/results/.tmp", "2")
        temporary.rename(temporary.with_name("renamed"))
        wait_until(lambda: len(volume.files()) == 3, "a file that was renamed into place")
        volume.write("c1/results/new/deeper/file", "3")
        wait_until(lambda: len(volume.files()) == 4, "a file in new directories")
        volume.write("c2/logs/file", "4")
        wait_until(lambda: len(volume.files()) == 5, "a file of a new container")
        assert sidecar.end() == 0
    sidecar.until("stopped")
    assert sidecar.seen[-1]["files"] == 5
    assert volume.bag() == Counter("01234")


def test_quiet_time_ends_without_an_event(volume: Volume) -> None:
    with running(volume, "--quiet", "0.3") as sidecar:
        volume.write("c1/results/a", "x")
        wait_until(lambda: len(volume.files()) == 1, "the end of the quiet time")
        assert sidecar.end(signal.SIGINT) == 0


def test_verbose_tells_every_file_and_names_stay_json(volume: Volume) -> None:
    volume.write(b"c1/results/\xff\n\x1b[31m", "x")
    with running(volume, "--quiet", "0", "--verbose") as sidecar:
        line = sidecar.until("file")
        assert os.fsencode(line["path"]) == b"c1/results/\xff\n\x1b[31m"
        assert sidecar.end() == 0


def test_second_signal_ends_at_once_and_loses_nothing(volume: Volume) -> None:
    """The first signal lets the batch end, and here it never does."""
    slow = (
        "import os, sys, threading\n"
        "import sharedvol_sidecar.transfer.contents as contents\n"
        "def sync(root):\n"
        '    print(\'{"event": "syncing"}\', flush=True)\n'
        "    threading.Event().wait()\n"
        "contents.sync_filesystem = sync\n"
        "import sharedvol_sidecar.service.service as service\n"
        "real = service.Service.stop\n"
        "def stop(self, *args):\n"
        '    os.write(1, b\'{"event": "signal"}\\n\')\n'
        "    real(self, *args)\n"
        "service.Service.stop = stop\n"
        "from sharedvol_sidecar.cli import main\n"
        "sys.exit(main())\n"
    )
    for number in range(20):
        volume.write(f"c1/results/{number}", str(number))
    args = (
        "run",
        "--from",
        str(volume.spool),
        "--to",
        str(volume.collected),
        "--quiet",
        "0",
        "--listen",
        "off",
        "--verbose",
    )
    with reaped(subprocess.Popen([CLI[0], "-c", slow, *args], stdout=subprocess.PIPE, text=True)) as process:
        sidecar = Running(process)
        sidecar.until("syncing")
        process.send_signal(signal.SIGTERM)
        sidecar.until("signal")  # sent too early, the second would merge with it
        assert sidecar.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert volume.drain().collected == 20
    assert volume.bag() == Counter(map(str, range(20)))


def watched(pid: int) -> int:
    """The directories that a process has inotify watches on."""
    count = 0
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # closed meanwhile
            count += path.read_text().count("inotify wd:")
    return count


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def test_claims_of_a_killed_sidecar_are_taken_over(volume: Volume) -> None:
    dying = (
        "import os, sys\n"
        "from sharedvol_sidecar.transfer.release import ClaimRelease\n"
        "ClaimRelease._remove = lambda self, done: os.kill(os.getpid(), 9)\n"
        "from sharedvol_sidecar.cli import main\n"
        "sys.exit(main())\n"
    )
    with running(volume, interval="0.2") as living:
        with living_stopped(living):
            volume.write("c1/results/a", "x")
            directories = ("--from", str(volume.spool), "--to", str(volume.collected))
            with reaped(subprocess.Popen([CLI[0], "-c", dying, "once", *directories, "--quiet", "0"])) as process:
                assert process.wait(LIMIT) == -signal.SIGKILL
            assert len(volume.claims()) == 1
        wait_until(lambda: not volume.claims(), "the living one to take them over")
        assert living.until("collected")["recovered"] == 1
        assert living.end() == 0
    assert volume.bag() == Counter(["x"])


@contextmanager
def living_stopped(sidecar: Running) -> Iterator[None]:
    sidecar.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "State:\tT" in _status(sidecar.process.pid), "it to stop")
    try:
        yield
    finally:
        sidecar.process.send_signal(signal.SIGCONT)


FAILING = """
import errno, os, sys
import sharedvol_sidecar.service.service as service
from sharedvol_sidecar.transfer.release import ClaimRelease
from sharedvol_sidecar.destination.destination import Destination
service.BACKOFF = (0.01, 0.04)
flag = sys.argv.pop(1)
real = Destination.sync
def sync(self):
    if os.path.exists(flag):
        raise OSError(errno.ENOSPC, "No space left on device")
    real(self)
Destination.sync = sync
from sharedvol_sidecar.cli import main
sys.exit(main())
"""


def test_fault_is_logged_and_tried_again_less_and_less_often(volume: Volume, tmp_path: Path) -> None:
    flag = tmp_path / "full"
    flag.touch()
    volume.write("c1/results/a", "x")
    args = (
        "run",
        "--from",
        str(volume.spool),
        "--to",
        str(volume.collected),
        "--quiet",
        "0",
        "--listen",
        "off",
        "--verbose",
    )
    command = [CLI[0], "-c", FAILING, str(flag), *args]
    with reaped(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        sidecar = Running(process)
        faults = [sidecar.until("fault") for _ in range(4)]
        assert [fault["retry_in"] for fault in faults] == [0.01, 0.02, 0.04, 0.04]
        assert "ENOSPC" in faults[0]["error"] and "nothing was lost" in faults[0]["error"]
        assert volume.files() == {}
        flag.unlink()
        assert sidecar.until("collected")["files"] == 1
        assert sidecar.end() == 0
    assert volume.bag() == Counter(["x"])


def test_file_that_cannot_be_named_is_not_chased(volume: Volume) -> None:
    """It is put back at each pass, and that is an event: one that must not call for the next pass."""
    (volume.collected / "c1").write_text("in the way")
    volume.write("c1/results/a", "x")
    counting = (
        "import sys\n"
        "import sharedvol_sidecar.service.service as service\n"
        "import sharedvol_sidecar.destination.destination as destination\n"
        "from sharedvol_sidecar.collect.collector import Collector\n"
        "destination._MOST_NAMES = 1\n"
        "service.SHORTEST_GAP, service.BACKOFF = 0.0, (3600.0, 3600.0)\n"
        "real = Collector.run_pass\n"
        "def run_pass(self, *args, **options):\n"
        '    print(\'{"event": "pass"}\', flush=True)\n'
        "    return real(self, *args, **options)\n"
        "Collector.run_pass = run_pass\n"
        "real_sleep = service.Service._sleep\n"
        "def sleep(self, watch, seconds):\n"
        '    print(\'{"event": "sleep", "seconds": %r}\' % seconds, flush=True)\n'
        "    real_sleep(self, watch, seconds)\n"
        "service.Service._sleep = sleep\n"
        "from sharedvol_sidecar.cli import main\n"
        "sys.exit(main())\n"
    )
    args = (
        "run",
        "--from",
        str(volume.spool),
        "--to",
        str(volume.collected),
        "--quiet",
        "0",
        "--listen",
        "off",
        "--verbose",
    )
    command = [CLI[0], "-c", counting, *args, "--template", "{container}/{name}", "--interval", "3600"]
    with reaped(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        sidecar = Running(process)
        assert sidecar.until("sleep")["seconds"] == 3600.0
        assert [line["event"] for line in sidecar.seen].count("pass") == 1
        assert sidecar.end() == 0
    assert volume.waiting() == {"c1/results/a": "x"}


@pytest.mark.skipif(not has_permission_to_mount(), reason="mounts need root")
def test_read_only_destination_is_a_fault_until_it_is_mended(volume: Volume) -> None:
    namespace = ("unshare", "-m", "--propagation", "private", "sh", "-c", 'mount --bind "$0" "$0" && exec "$@"')
    # Without a catalog, which is open for writing: then nobody can remount what it lies on.
    args = ("--quiet", "0", "--catalog", "none")
    with running(volume, *args, prefix=(*namespace, str(volume.collected)), interval="0.1") as sidecar:
        inside = ("nsenter", "-t", str(sidecar.process.pid), "-m", "mount", "-o")
        subprocess.run([*inside, "remount,bind,ro", str(volume.collected)], check=True, timeout=LIMIT)
        volume.write("c1/results/a", "x")
        assert "EROFS" in sidecar.until("fault")["error"]
        assert volume.files() == {}
        subprocess.run([*inside, "remount,bind,rw", str(volume.collected)], check=True, timeout=LIMIT)
        assert sidecar.until("collected")["files"] == 1
        assert sidecar.end() == 0
    assert volume.bag() == Counter(["x"])


def test_a_file_that_is_renamed_in_the_tick_of_its_last_write_is_told_by_the_event(volume: Volume) -> None:
    """Its times are equal then: only the event tells that its writer is done."""
    directory = volume.spool / "c1" / "results"
    directory.mkdir(parents=True)
    with running(volume, "--quiet", "3600") as sidecar:
        wait_until(lambda: watched(sidecar.process.pid) >= 3, "the directory to be watched")
        for number in range(20):
            (directory / ".new").write_text(str(number))
            (directory / ".new").rename(directory / f"{number}.json")
        moved = 0
        while moved < 20:
            moved += sidecar.until("collected")["files"]
        (directory / "written.json").write_text("in place")
        assert sidecar.end() == 0
    assert volume.bag() == Counter(map(str, range(20)))
    assert list(volume.waiting()) == ["c1/results/written.json"]
