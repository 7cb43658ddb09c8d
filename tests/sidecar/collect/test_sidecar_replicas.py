"""Eight replicas and two sidecars on one spool, killed and started again: everything is there once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.processes import LIMIT, Child, reaped, wait_until
from support.sidecar.replica import Replica, read_collected, read_records
from support.sidecar.volume import CLI, Volume

REPLICAS = 8
SEEDS = range(8) if os.environ.get("SHAREDVOL_EXHAUSTIVE") == "1" else range(2)
KILLS = 16 if os.environ.get("SHAREDVOL_EXHAUSTIVE") == "1" else 5
BETWEEN = 12_000  # bytes of records: the moments depend on what was done, not on the clock


class Service:
    """The replicas and the sidecars, of which any can be killed and started again."""

    def __init__(self, volume: Volume, records: Path, stack: ExitStack) -> None:
        self._volume, self._records, self._stack = volume, records, stack
        self._lives = 0
        self._logs = records.with_name("logs-of-sidecars")
        self._logs.mkdir()
        self._log: dict[int, Path] = {}
        self.replicas = [self._replica(number) for number in range(REPLICAS)]
        self.sidecars = [self._sidecar() for _ in range(2)]

    def _replica(self, number: int) -> Child:
        self._lives += 1
        life = self._lives
        volume, records = self._volume, self._records

        def work(connection: object) -> None:
            Replica(volume.spool, records, f"c{number}", life).run(connection)  # type: ignore

        return self._stack.enter_context(Child(work))

    def _sidecar(self) -> subprocess.Popen[bytes]:
        directories = ("--from", str(self._volume.spool), "--to", str(self._volume.collected))
        command = [*CLI, "run", *directories, "--quiet", "0.05", "--interval", "0.2", "--listen", "off", "--verbose"]
        self._lives += 1
        with open(self._logs / f"{self._lives}", "wb") as log:
            process = subprocess.Popen(command, stdout=log)
        self._log[process.pid] = Path(log.name)
        return self._stack.enter_context(reaped(process))

    def kill_replica(self, number: int) -> None:
        self.replicas[number].kill()
        self.replicas[number] = self._replica(number)

    def kill_sidecar(self, number: int) -> None:
        self.sidecars[number].kill()
        assert self.sidecars[number].wait(LIMIT) == -signal.SIGKILL
        self.sidecars[number] = self._sidecar()

    def progress(self) -> int:
        return sum(path.stat().st_size for path in self._records.iterdir())

    def collecting(self) -> bool:
        """Whether each sidecar has collected something since it was started."""
        return all('"collected"' in self._log[sidecar.pid].read_text() for sidecar in self.sidecars)

    def run_until(self, moment: int) -> None:
        wait_until(lambda: self.progress() >= moment and self.collecting(), "replicas and sidecars to go on")

    def stop(self) -> None:
        for replica in self.replicas:
            replica.send("stop")
            assert replica.wait() == 0
        for sidecar in self.sidecars:
            sidecar.terminate()
        assert [sidecar.wait(LIMIT) for sidecar in self.sidecars] == [0, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_once(volume: Volume, tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    records = tmp_path / "records"
    records.mkdir()
    with ExitStack() as stack:
        service = Service(volume, records, stack)
        for _ in range(KILLS):
            service.run_until(service.progress() + choose.randrange(BETWEEN // 2, BETWEEN))
            if choose.random() < 0.5:
                service.kill_replica(choose.randrange(REPLICAS))
            else:
                service.kill_sidecar(choose.randrange(2))
        service.run_until(0)
        collected_before = [name for name in os.listdir(volume.collected) if not name.startswith(".")]
        service.stop()
    done = volume.cli("once", "--json", "--quiet", "0")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["writing"], counts["settling"], counts["failed"], counts["put_back"]) == (0, 0, 0, 0)

    assert collected_before, "the sidecars collected nothing while the replicas wrote"
    assert volume.claims() == [] and volume.waiting() == {}
    begun, finished = read_records(records)
    whole, parts = read_collected(volume.files())
    assert len(finished) > 200
    assert finished - whole.keys() == set(), "lost"
    assert {unique: count for unique, count in whole.items() if count != 1} == {}, "doubled"
    assert whole.keys() <= begun
    assert parts.isdisjoint(finished), "a part of a file that was finished"
