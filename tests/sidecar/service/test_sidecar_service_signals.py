"""Signals at every moment of `run`: it ends in time, with the right code, and nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.processes import LIMIT, wait_until
from support.sidecar.service_process import Served, service, settled
from support.sidecar.volume import Volume

HELD = """
import sharedvol_sidecar.transfer.placer as placer
real = placer.Placer.place
def place(self, items):
    if items and not os.path.exists({gate!r}):
        say("held")
        wait_for({gate!r})
    return real(self, items)
placer.Placer.place = place
"""


STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


def fill(volume: Volume, count: int = 20) -> Counter[str]:
    for number in range(count):
        volume.write(f"c{number % 3}/results/{number}", str(number))
    return Counter(map(str, range(count)))


def assert_nothing_lost(volume: Volume, expected: Counter[str]) -> None:
    """After another sidecar has finished the work."""
    volume.drain()
    assert volume.bag() == expected and volume.waiting() == {} and volume.claims() == []


def end_code(served: Served) -> int:
    return served.process.wait(LIMIT)


def test_readiness_fails_first_then_the_batch_is_finished(volume: Volume, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with service(volume, "--grace", "600", shim=HELD.format(gate=str(gate))) as served:
        served.await_ready()
        expected = fill(volume, 1)
        served.until("held")
        served.process.send_signal(signal.SIGTERM)
        served.await_reason("stopping")
        assert served.ask("/healthz")[0] == 200 and served.process.poll() is None
        gate.touch()
        assert end_code(served) == 0
        assert served.until("stopped")["files"] == 1
    assert volume.bag() == expected and volume.claims() == []


def test_beyond_the_grace_period_it_ends_well_and_the_next_one_goes_on(volume: Volume, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with service(volume, "--grace", "0.2", shim=HELD.format(gate=str(gate))) as served:
        expected = fill(volume)
        served.until("held")
        served.process.send_signal(signal.SIGTERM)
        assert end_code(served) == 0
        assert volume.claims() and not gate.exists()
    with service(volume) as again:
        wait_until(lambda: volume.bag() == expected and not volume.claims(), "what was left")
        settled(again)
    assert_nothing_lost(volume, expected)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once(volume: Volume, tmp_path: Path, second: signal.Signals) -> None:
    gate = tmp_path / "gate"
    with service(volume, "--grace", "600", shim=HELD.format(gate=str(gate))) as served:
        served.await_ready()
        expected = fill(volume)
        served.until("held")
        served.process.send_signal(signal.SIGTERM)
        served.await_reason("stopping")
        assert served.end(second) == 128 + second
    assert_nothing_lost(volume, expected)


@pytest.mark.parametrize(
    "moment", ["sharedvol_sidecar.web.server.Server.start", "sharedvol_sidecar.service.service.Service._collector"]
)
def test_signal_during_the_start(volume: Volume, tmp_path: Path, moment: str) -> None:
    """It ends with 0, and before anything is moved."""
    gate = tmp_path / "gate"
    module, name, method = moment.rsplit(".", 2)
    shim = f"""
import importlib
place = getattr(importlib.import_module({module!r}), {name!r})
real = place.{method}
def held(self, *args):
    say("held")
    wait_for({str(gate)!r})
    return real(self, *args)
place.{method} = held
"""
    expected = fill(volume)
    with service(volume, shim=shim, first="held") as served:
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "SigPnd:\t0000000000000000" in status(served), "the signal to be taken")
        gate.touch()
        assert end_code(served) == 0
        assert volume.files() == {}
    assert_nothing_lost(volume, expected)


def status(served: Served) -> str:
    return Path(f"/proc/{served.process.pid}/status").read_text()


def test_signal_during_the_back_off_of_a_fault(volume: Volume, tmp_path: Path) -> None:
    shim = """
import errno
from sharedvol_sidecar.transfer.placer import Placer
from sharedvol_sidecar.destination.destination import Destination
def sync(self):
    raise OSError(errno.EIO, "Input/output error")
Destination.sync = sync
service.BACKOFF = (600.0, 600.0)
"""
    expected = fill(volume)
    with service(volume, "--grace", "600", shim=shim) as served:
        assert served.until("fault")["retry_in"] == 600.0
        settled(served)
    assert_nothing_lost(volume, expected)


def test_signal_during_the_pause_of_the_rate_limit(volume: Volume) -> None:
    with service(volume, "--grace", "600", "--rate", "1") as served:
        expected = Counter([volume.write("c1/results/a", "x" * 5000).read_text()])
        wait_until(lambda: len(volume.files()) == 1 and not volume.claims(), "the file")
        volume.write("c1/results/b", "y")
        settled(served)
        assert volume.waiting() == {"c1/results/b": "y"}
    assert_nothing_lost(volume, expected + Counter("y"))


@pytest.mark.parametrize("signals", [1, 2])
def test_no_helper_stays_behind(volume: Volume, tmp_path: Path, signals: int) -> None:
    """The helper hangs in its batch; the second signal, or the grace period, ends both."""
    shim = f"""
import sharedvol_sidecar.collect.collector as collecting
import sharedvol_sidecar.transfer.batch as batches
collecting.HELP_AFTER, batches.MAX_BATCH = 20, 10
import subprocess
real = subprocess.Popen
def popen(command, **options):
    if "sharedvol_sidecar.collect.worker" not in command:
        return real(command, **options)
    made = real([sys.executable, "-c", {STUBBORN!r}, {str(tmp_path / "helper")!r}], **options)
    wait_for({str(tmp_path / "helper")!r})
    say("helped")
    return made
subprocess.Popen = popen
"""
    expected = fill(volume, 100)
    grace = "600" if signals == 2 else "0.5"
    with service(volume, "--workers", "2", "--grace", grace, shim=shim, first="listening") as served:
        served.until("helped")
        helper = os.pidfd_open(int((tmp_path / "helper").read_text()))
        served.process.send_signal(signal.SIGTERM)
        if signals == 2:
            served.await_reason("stopping", "starting")
            served.process.send_signal(signal.SIGTERM)
        assert end_code(served) == (128 + signal.SIGTERM if signals == 2 else 0)
        with pytest.raises(ProcessLookupError):
            signal.pidfd_send_signal(helper, 0)
        os.close(helper)
    assert_nothing_lost(volume, expected)


def test_clients_that_hang_do_not_keep_it(volume: Volume) -> None:
    with service(volume) as served, contextlib.ExitStack() as stack:
        found = urlsplit(served.url)
        for sent in (b"", b"GET / HTTP/1.1\r\n", b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n") * 10:
            client = stack.enter_context(socket.create_connection((found.hostname, found.port or 0), LIMIT))
            client.sendall(sent)
        settled(served)
