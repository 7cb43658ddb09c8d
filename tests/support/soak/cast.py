"""The processes of a soak: replicas that write, and sidecars that collect."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.processes import LIMIT, wait_until
from support.soak.places import Mode, Places
from support.soak.releases import Release
from support.soak.writers import KINDS

QUIET = 0.3
PAUSE = 0.015
"""Seconds between two records of one writer."""

_SETTINGS: dict[str, list[str]] = {
    "--interval": ["0.2", "0.5", "2"],
    "--workers": ["1", "2"],
    "--follow-interval": ["0.05", "0.5", "1"],
    "--min-free": ["0", "1M"],
    "--quiet": [str(QUIET), "1"],
    "--listen": ["off", "127.0.0.1:0"],
}
"""What may differ from one start of a sidecar to the next. Names and compression stay: so do final names."""


@dataclass
class Process:
    """A process that may be stopped, killed and started again.

    Attributes:
        name: for people.
        running: the process.
        restart: starts its successor.
    """

    name: str
    running: subprocess.Popen[bytes]
    restart: Callable[[], Process]

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.running.kill()
        status = self.running.wait(LIMIT)
        assert status == -signal.SIGKILL, f"{self.name} had ended with status {status}"

    def terminate(self) -> None:
        """SIGTERM, and reap: it must end well, or not have begun."""
        self.running.terminate()
        status = self.running.wait(LIMIT)
        assert status in (0, -signal.SIGTERM), f"{self.name} ends with status {status} after SIGTERM"

    def signal(self, number: int) -> None:
        self.running.send_signal(number)


class Cast:
    """Starts processes, and knows those that run.

    Args:
        places: the volume.
        mode: how files get into the destination.
        outside: a directory outside the volume.
        choose: makes its choices.
        copies: replicas of each kind.
        sidecars: how many.
        releases: which release a process runs is chosen from these; the sidecar that stays runs the first.
    """

    def __init__(
        self,
        places: Places,
        mode: Mode,
        outside: Path,
        choose: random.Random,
        copies: int,
        sidecars: int,
        releases: Sequence[Release],
    ) -> None:
        self._places, self._mode, self._choose, self._releases = places, mode, choose, releases
        self.records, self._logs, self.clock = outside / "records", outside / "logs", outside / "clock"
        self.records.mkdir()
        self._logs.mkdir()
        self.clock.write_bytes(bytes(8))
        self._lives = 0
        self._started: set[str] = set()
        self.writers_killed = 0
        self.sidecars = [self._sidecar(f"sidecar-{number}") for number in range(sidecars)]
        self.writers: list[Process] = []
        wait_until(self.is_collecting, "the sidecars to start")
        self.writers = [self._writer(kind, f"{kind}{number}") for kind in KINDS for number in range(copies)]

    @property
    def witness(self) -> Process:
        """The sidecar that lives from the beginning to the end."""
        return self.sidecars[0]

    def others(self) -> list[int]:
        """The numbers of the sidecars that may be killed."""
        return list(range(1, len(self.sidecars)))

    def is_collecting(self) -> bool:
        """Whether each sidecar has started. One that has ended by itself is a fault."""
        for process in (*self.sidecars, *self.writers):
            status = process.running.poll()
            assert status is None, f"{process.name} ended by itself with status {status}: {self.words(process)}"
        return all(self._has_started(one) for one in self.sidecars)

    def once(self) -> subprocess.CompletedProcess[bytes]:
        """A sidecar that collects what is finished now, run to its end."""
        release = self._choose.choice(self._releases)
        return subprocess.run(
            self._command(release, ["once", *self._volume(), "--quiet", "0", "--json"]),
            env=release.environment(),
            capture_output=True,
            timeout=LIMIT * 5,
            check=False,
        )

    def words(self, process: Process) -> str:
        """The end of what a process printed."""
        return (self._logs / process.name).read_bytes()[-2000:].decode(errors="replace")

    def end_writers(self) -> None:
        """All, well."""
        for writer in self.writers:
            writer.terminate()

    def end_sidecars(self) -> None:
        """All, well."""
        for sidecar in self.sidecars:
            sidecar.terminate()

    def _sidecar(self, title: str) -> Process:
        release = self._choose.choice(self._releases) if self._lives else self._releases[0]
        self._lives += 1
        settings = [part for flag, values in _SETTINGS.items() for part in (flag, self._choose.choice(values))]
        verbose = ["--verbose"] * self._choose.randrange(2)
        name = f"{title}.{self._lives}.{release.name}"
        command = self._command(release, ["run", *self._volume(), *settings, *verbose])
        return Process(name, self._start(name, command, release.environment()), lambda: self._sidecar(title))

    def _writer(self, kind: str, host: str) -> Process:
        self._lives += 1
        release = self._choose.choice(self._releases)
        command = [sys.executable, "-P", "-m", "support.soak.writers", str(os.getpid()), str(release.directory), kind]
        command += [str(self._places.spool), str(self.records), str(self._lives), str(PAUSE)]
        name = f"{host}.{self._lives}"

        def restart() -> Process:
            """The same container again, or another one instead."""
            return self._writer(kind, self._choose.choice([host, f"{kind}{self._choose.getrandbits(24):06x}"]))

        return Process(name, self._start(name, command, {**release.environment(), "HOSTNAME": host}), restart)

    def _volume(self) -> list[str]:
        directories = ["--from", str(self._places.spool), "--to", str(self._places.collected)]
        return [*directories, "--compress", self._mode.compress]

    def _command(self, release: Release, arguments: list[str]) -> list[str]:
        shim = [str(os.getpid()), str(release.directory), str(self.clock)]
        return [sys.executable, "-P", "-m", "support.soak.sidecar", *shim, *arguments]

    def _start(self, name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(self._logs / name, "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def _has_started(self, sidecar: Process) -> bool:
        if sidecar.name not in self._started:
            with open(self._logs / sidecar.name, "rb") as log:
                if b'"started"' in log.read(10_000):
                    self._started.add(sidecar.name)
        return sidecar.name in self._started
