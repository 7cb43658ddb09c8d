"""Two sidecars with different settings on one spool, at once or one after the other: each line is collected once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child
from support.sidecar.interleaving import Writer, assert_each_line_once, assert_nothing_left, lines
from support.sidecar.killing import die_at
from support.sidecar.volume import Volume

import sharedvol_sidecar.fs.content as contents

Settings = dict[str, Any]
OURS: Settings = {"pattern": r"^app-(?P<container>c[0-9]+)\.log$"}
OTHERS: dict[str, Settings] = {
    "template": {"template": "{kind}/{container}-{base}"},
    "kinds": {"kinds": ("results",)},
    "pattern": {"pattern": r"^of-(?P<container>c[0-9]+)\.log$"},
    "follow": {"follow": ()},
    "compress": {"compress": "gzip"},
    "quiet": {"quiet": 600.0},
    "everything": {"template": "{base}", "kinds": ("logs",), "pattern": "^(?P<container>x)$", "compress": "zstd"},
}
STEP = 1 if os.environ.get("SHAREDVOL_EXHAUSTIVE") == "1" else 31

each_other = pytest.mark.parametrize("other", [OURS | other for other in OTHERS.values()], ids=list(OTHERS))


@each_other
@pytest.mark.parametrize("path", ["c1/logs/app.log", "logs/app-c9.log"])
@pytest.mark.parametrize("moved", ["", "extra", "old"], ids=["stays", "moves", "leaves"])
def test_once_with_other_settings_next_to_a_service(volume: Volume, other: Settings, path: str, moved: str) -> None:
    """The log stays, is moved into a place that only the service scans, or leaves every place that is scanned."""
    ours = OURS | {"kinds": ("results", "logs", "extra")}
    log = Writer(volume.spool / path)
    service = volume.collector(**ours)
    try:
        for number in range(6):
            log.write()
            service.run_pass()
            if number == 3 and moved:
                log.move(Path(str(log.path).replace("/logs/", f"/{moved}/", 1)))
            for _ in range(3):
                volume.one_pass(**other)
                service.tick()
            assert lines(volume) == Counter(f"{log.name} {number + 1}" for number in range(log.number))
        log.close()
        for _ in range(5):
            volume.one_pass(**other)
            service.run_pass()
    finally:
        log.close()
        service.close()
    assert_each_line_once(volume, log)


@each_other
def test_a_service_with_other_settings_next_to_ours(volume: Volume, other: Settings) -> None:
    log = Writer(volume.spool / "c1/logs/app.log")
    first, second = volume.collector(**OURS), volume.collector(**other)
    try:
        for _ in range(5):
            log.write()
            first.run_pass()
            second.run_pass()
            second.tick()
        log.close()
        for _ in range(6):
            second.run_pass()
            first.run_pass()
    finally:
        log.close()
        first.close()
        second.close()
    assert_each_line_once(volume, log)


def close(log: Writer) -> None:
    log.close()


def cut(log: Writer) -> None:
    os.ftruncate(log.fd, 0)
    log.write()
    log.close()


def delete(log: Writer) -> None:
    log.path.unlink()
    log.close()


def leave(log: Writer) -> None:
    log.move(log.path.parent.parent.parent / "old" / "app.log")
    log.close()


class Update:
    """A sidecar that is killed, and is replaced by one with other settings; then ours come back.

    Args:
        top: below which spools are made.
        collected: below which destinations are made: on the same file system, or not.
        before: the settings of the first.
        after: those of the second.
        finish: what becomes of a log that the first had followed.
    """

    def __init__(
        self, top: Path, collected: Path, before: Settings, after: Settings, finish: Callable[[Writer], None]
    ) -> None:
        self.top, self.collected, self.before, self.after, self.finish = top, collected, before, after, finish

    def killed_at(self, number: int) -> bool:
        """Kill the first at a call, let the others finish, and count. False if it ended before."""
        top, there = Path(tempfile.mkdtemp(dir=self.top)), Path(tempfile.mkdtemp(dir=self.collected))
        try:
            volume = Volume(top / "spool", there / "collected")
            log = Writer(volume.spool / "c1/logs/app.log")
            log.write(3)
            volume.one_pass(**OURS)  # whatever the first's settings are, the log is followed
            self.finish(log)
            volume.write("c1/results/a.json", "a of c1\n")
            volume.write("logs/app-c9.log", "of c9\n")
            child = Child(lambda _: self._die(volume, number))
            status = child.wait()
            child.kill()
            with child:
                pass
            assert status in (0, -signal.SIGKILL), f"the sidecar failed by itself at call {number}: {status}"
            self._passes(volume, self.after)
            self._passes(volume, self.before)
            expected = Counter([*(f"app.log {n + 1}" for n in range(log.number)), "a of c1", "of c9"])
            assert lines(volume) == expected, f"killed at call {number}: {volume.names()}"
            assert_nothing_left(volume)
            assert [path for path in volume.waiting() if not path.startswith("old/")] == []
        finally:
            shutil.rmtree(top)
            shutil.rmtree(there)
        return status != 0

    def _die(self, volume: Volume, number: int) -> None:
        contents.CHUNK = 16
        collector = volume.collector(**self.before)
        die_at(number, after=False)
        for _ in range(3):
            collector.run_pass()
        with contextlib.suppress(BaseException):
            collector.close()

    @staticmethod
    def _passes(volume: Volume, settings: Settings) -> None:
        collector = volume.collector(**settings)
        try:
            for _ in range(4):
                collector.run_pass()
        finally:
            collector.close()


@each_other
@pytest.mark.parametrize("finish", [close, cut, delete, leave])
@pytest.mark.parametrize("forth", [True, False], ids=["to", "from"])
def test_killed_and_replaced_by_one_with_other_settings(
    tmp_path: Path, other: Settings, finish: Callable[[Writer], None], forth: bool
) -> None:
    before, after = (OURS, other) if forth else (other, OURS)
    update = Update(tmp_path, tmp_path, before, after, finish)
    number = 0
    while update.killed_at(number):
        number += STEP
    assert number >= STEP


@each_other
def test_killed_and_replaced_where_files_are_copied(tmp_path: Path, other_file_system: Path, other: Settings) -> None:
    update = Update(tmp_path, other_file_system, OURS, other, close)
    number = 0
    while update.killed_at(number):
        number += STEP
    assert number >= STEP
