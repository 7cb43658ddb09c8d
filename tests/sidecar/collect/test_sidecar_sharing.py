"""Several sidecars on one spool: they share the containers, and one that dies is taken over at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from support.processes import LIMIT, is_free, reaped, wait_until
from support.sidecar.service_process import MAIN, PREAMBLE, Served, service, settled
from support.sidecar.volume import Volume

from sharedvol import LockTimeout
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.service.peers import Peers
from sharedvol_sidecar.spool.container_locks import ContainerLocks

HELD = """
import sharedvol_sidecar.transfer.placer as placer
real = placer.Placer.place
def place(self, items):
    if items:
        say("held")
        time.sleep(600)
    return real(self, items)
placer.Placer.place = place
"""

LOOKS = """
from sharedvol_sidecar.spool.container_locks import ContainerLocks
real = ContainerLocks.acquire
def take(self, name):
    taken = real(self, name)
    if not taken:
        say("left " + name)
    return taken
ContainerLocks.acquire = take
"""


def wait_collected(volume: Volume, expected: Counter[str]) -> None:
    wait_until(lambda: volume.bag() == expected and not volume.claims(), f"{len(expected)} files")


def test_while_one_holds_a_container_the_other_moves_the_others(volume: Volume) -> None:
    with service(volume, shim=HELD) as slow:
        slow.await_ready()
        volume.write("c1/results/a", "held")
        slow.until("held")
        with service(volume) as quick:
            quick.await_ready()
            volume.write("c1/results/b", "its container is held")
            for number in range(10):
                volume.write(f"d{number}/results/x", str(number))
            wait_collected_of(volume, Counter(map(str, range(10))))
            assert "c1/results/b" in volume.waiting()
            settled(quick)


def wait_collected_of(volume: Volume, expected: Counter[str]) -> None:
    wait_until(lambda: volume.bag() == expected, f"{len(expected)} files")


def test_one_that_is_killed_is_taken_over_at_once(volume: Volume) -> None:
    """No scan is due and no event comes to the others: only the death can tell them. Three, and then two."""
    expected: Counter[str] = Counter()
    with service(volume, shim=LOOKS) as last, service(volume, shim=LOOKS) as third:
        last.await_ready()
        third.await_ready()
        for number in range(3):
            with service(volume, shim=HELD) as dying:
                dying.await_ready()
                stop(last)
                stop(third)
                volume.write(f"c{number}/results/a", f"a{number}")
                dying.until("held")
                volume.write(f"c{number}/results/b", f"b{number}")
                go_on(last)
                go_on(third)
                last.until(f"left c{number}")
                third.until(f"left c{number}")
                dying.end(signal.SIGKILL)
                expected += Counter((f"a{number}", f"b{number}"))
                wait_collected(volume, expected)
        settled(last)
        settled(third)


def stop(served: Served) -> None:
    served.process.send_signal(signal.SIGSTOP)
    path = Path(f"/proc/{served.process.pid}/stat")
    wait_until(lambda: path.read_text().rpartition(")")[2].split()[0] == "T", "it to stop")


def go_on(served: Served) -> None:
    served.process.send_signal(signal.SIGCONT)


def test_three_hundred_containers_and_no_lock_while_idle(volume: Volume) -> None:
    expected = Counter(f"{container}.{number}" for container in range(300) for number in range(2))
    with service(volume) as one, service(volume) as two:
        for text in expected:
            container, number = text.split(".")
            volume.write(f"c{container}/results/{number}", text)
        wait_collected(volume, expected)
        one.await_ready()
        two.await_ready()
        locks = volume.spool / ".sharedvol" / "units"
        assert len(list(locks.glob("*.lock"))) > 100
        wait_until(lambda: all(is_free(path) for path in list(locks.glob("*.lock"))[:20]), "both to be idle")
        both = settled(one)["files"] + settled(two)["files"]
        assert both == 600
    assert volume.bag() == expected


def test_once_beside_run(volume: Volume) -> None:
    expected = Counter(map(str, range(200)))
    with service(volume) as served:
        for number in range(200):
            volume.write(f"c{number % 11}/results/{number}", str(number))
        directories = ("--from", str(volume.spool), "--to", str(volume.collected))
        command = [sys.executable, "-c", PREAMBLE + MAIN, "once", *directories, "--quiet", "0"]
        with reaped(subprocess.Popen(command, stdout=subprocess.DEVNULL)) as process:
            assert process.wait(LIMIT) == 0
        wait_collected(volume, expected)
        settled(served)
    assert volume.bag() == expected


def test_units_of_one_hash_are_held_and_let_go_of_together(volume: Volume) -> None:
    collectors: list[Collector] = [volume.collector(catalog=None), volume.collector(catalog=None)]
    units: list[ContainerLocks] = [collector.parts.locks for collector in collectors]
    assert units[0].acquire("c1") and units[0].acquire("c1") and not units[1].acquire("c1")
    with units[0].holding("c1") as mine:
        assert mine
    assert not units[1].acquire("c1")  # `holding` releases only what it acquired
    units[0].acquire("c2")
    units[0].release(keep="c2")
    assert units[1].acquire("c1") and not units[1].acquire("c2")
    units[0].release()
    with units[1].holding("c2") as mine:
        assert mine
    assert units[0].acquire("c2")
    for collector in collectors:
        collector.close()


def test_peers_are_watched_once_however_often_the_claims_are_opened_anew(volume: Volume) -> None:
    """A fault opens all anew each time: no thread may be left for each."""
    other = volume.collector(catalog=None)
    woken: list[bool] = []
    peers = Peers(lambda: woken.append(True))
    for _ in range(5):
        mine = volume.collector(catalog=None)
        assert peers.watch(mine.parts.claims) == 1
        mine.close()
    assert not peers.have_ended()
    other.close()
    wait_until(lambda: bool(woken), "the end of the other")
    assert woken == [True] and peers.have_ended() and not peers.have_ended()
    again = volume.collector(catalog=None)
    assert peers.watch(again.parts.claims) == 0
    again.close()


def test_a_fault_gives_the_slot_back_so_others_find_the_claims(volume: Volume, tmp_path: Path) -> None:
    """Also where closing the logs fails."""
    shim = """
import errno
from sharedvol_sidecar.destination.destination import Destination
from sharedvol_sidecar.follow.live_copies import LiveCopies
def sync(self):
    raise OSError(errno.EIO, "Input/output error")
Destination.sync = LiveCopies.close = sync
service.BACKOFF = (600.0, 600.0)
"""
    with service(volume, shim=shim) as served:
        volume.write("c1/results/a", "1")
        served.until("fault")
        collector = volume.collector(catalog=None)
        try:
            collector.parts.claims.slot_lock("0").acquire(timeout=0).__enter__()
        except LockTimeout:  # the new one has got it, as the lowest that is free
            assert collector.parts.claims.slot == "0"
        collector.close()
        settled(served)
