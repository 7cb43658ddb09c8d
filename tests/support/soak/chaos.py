"""What disturbs a soak. Each disturbance ends by itself, and lasts as long as some records take."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from support.processes import LIMIT, wait_until
from support.soak.cast import Cast, Process
from support.soak.places import Places
from support.soak.records import progress
from support.soak.resources import Sample, lowest
from support.soak.sidecar import OFFSET

STEP = 1_500
"""Bytes of accounts between two disturbances: about 120 records. So a slow machine has no fewer."""

_POLL = 0.02

_OFFSETS = [0.0, 0.0, -1.0, 1.0, -60.0, 60.0, -3600.0, 3600.0, -40 * 86_400.0, 40 * 86_400.0]


class Chaos:
    """Disturbs the processes of a run.

    Args:
        cast: the processes.
        places: the volume.
        choose: makes its choices.
        note: gets a line for each disturbance.
        long: whether a stopped sidecar may be stopped for longer than the kernel keeps a lease.

    Attributes:
        counts: of disturbances, by kind.
        samples: what the sidecar that stays held at its least, after each disturbance.
    """

    def __init__(
        self, cast: Cast, places: Places, choose: random.Random, note: Callable[[str], None], long: bool
    ) -> None:
        self._cast, self._places, self._choose, self._note, self._long = cast, places, choose, note, long
        self.counts: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self._events: dict[str, tuple[int, Callable[[], None]]] = {
            "sidecar killed": (5, self._kill_sidecar),
            "sidecar stopped": (3, self._stop_sidecar),
            "sidecar stopped and killed": (1, self._kill_stopped_sidecar),
            "sidecar replaced": (3, self._replace_sidecar),
            "writer killed": (4, self._kill_writer),
            "writer stopped": (2, self._stop_writer),
            "disk full": (2, self._fill_disk),
            "clock set": (2, self._set_clock),
            "catalog locked": (2, self._lock_catalog),
            "once": (1, self._once),
        }

    def disturb(self) -> None:
        """One disturbance, and then some time to work."""
        names = list(self._events)
        (name,) = self._choose.choices(names, [weight for weight, _ in self._events.values()])
        self._note(f"{name} …")
        self._events[name][1]()
        self.counts[name] += 1
        self.pause()

    def each(self, part: int, parts: int) -> Iterator[str]:
        """Make every kind of disturbance of one part of the list once, in random order."""
        names = list(self._events)[part::parts]
        self._choose.shuffle(names)
        for name in names:
            self._note(f"{name} …")
            self._events[name][1]()
            self.counts[name] += 1
            self.pause()
            yield name

    def calm(self) -> None:
        """The clock is right again."""
        self._turn_clock(0.0)

    def pause(self) -> Sample:
        """Until the writers got on, and every sidecar runs. Returns what the one that stays held at its least."""
        end = progress(self._cast.records) + int(self._choose.uniform(0.5, 1.5) * STEP)
        samples: list[Sample] = []

        def passed() -> bool:
            time.sleep(_POLL)
            samples.append(Sample.of(self._cast.witness.running.pid))
            return self._cast.is_collecting() and progress(self._cast.records) >= end

        wait_until(passed, "writers and sidecars to work")
        self.samples.append(lowest(samples))
        return self.samples[-1]

    def _kill_sidecar(self) -> None:
        number = self._choose.choice(self._cast.others())
        self._end(self._cast.sidecars, number, Process.kill)

    def _replace_sidecar(self) -> None:
        number = self._choose.choice(self._cast.others())
        self._end(self._cast.sidecars, number, Process.terminate)

    def _kill_stopped_sidecar(self) -> None:
        number = self._choose.choice(self._cast.others())
        with self._stopped(self._cast.sidecars[number]):
            self._wait(0.5)
            self._end(self._cast.sidecars, number, Process.kill)

    def _stop_sidecar(self) -> None:
        with self._stopped(self._choose.choice(self._cast.sidecars)):
            if self._long and self._choose.random() < 0.1:
                self._outlast_leases()
            else:
                self._wait(self._choose.uniform(0.2, 2))

    def _kill_writer(self) -> None:
        self._cast.writers_killed += 1
        self._end(self._cast.writers, self._choose.randrange(len(self._cast.writers)), Process.kill)

    def _stop_writer(self) -> None:
        with self._stopped(self._choose.choice(self._cast.writers)):
            self._wait(self._choose.uniform(0.2, 2))

    def _fill_disk(self) -> None:
        with self._places.full(self._choose.choice(self._places.mounts)):
            self._wait(self._choose.uniform(0.5, 1.5))

    def _set_clock(self) -> None:
        self._turn_clock(self._choose.choice(_OFFSETS))

    def _turn_clock(self, offset: float) -> None:
        with open(self._cast.clock, "r+b", buffering=0) as file:  # never shorter: it is mapped
            file.write(OFFSET.pack(offset))

    def _lock_catalog(self) -> None:
        """As a backup or a query that takes its time."""
        path = self._places.collected / ".sharedvol" / "catalog.db"
        with contextlib.closing(sqlite3.connect(path, timeout=LIMIT, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._wait(self._choose.uniform(0.5, 6))

    def _once(self) -> None:
        done = self._cast.once()
        assert done.returncode in (0, 1), done.stderr.decode()

    def _end(self, processes: list[Process], number: int, how: Callable[[Process], None]) -> None:
        ended = processes[number]
        how(ended)
        processes[number] = ended.restart()
        self._note(f"  {ended.name} became {processes[number].name}")

    @contextlib.contextmanager
    def _stopped(self, process: Process) -> Iterator[None]:
        self._note(f"  {process.name}")
        process.signal(signal.SIGSTOP)
        with ExitStack() as stack:
            stack.callback(process.running.send_signal, signal.SIGCONT)
            yield

    def _wait(self, share: float) -> None:
        """As long as it takes the writers to write so much, whatever the sidecars do."""
        end = progress(self._cast.records) + int(share * STEP)

        def passed() -> bool:
            time.sleep(_POLL)
            return progress(self._cast.records) >= end

        wait_until(passed, "writers to work")

    def _outlast_leases(self) -> None:
        limit = int(Path("/proc/sys/fs/lease-break-time").read_text())
        time.sleep(limit + 2)
