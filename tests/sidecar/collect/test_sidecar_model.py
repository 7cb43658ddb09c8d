"""Any order of writing, moving, dying and restarting, against a bag of contents."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import IO

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from support.processes import Child
from support.sidecar.killing import die_at
from support.sidecar.volume import Volume

from sharedvol import AlreadyPublishedError, publish
from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.errors import DestinationError
from sharedvol_sidecar.transfer import staging

PLACES = st.sampled_from(["c1/results/a", "c2/results/a", "c1/results/d/b", "results/job_c3.json", "c1/logs/app.log"])


class Moving(RuleBasedStateMachine):
    """Contents are unique, so a bag of them tells what was lost, doubled or changed."""

    open_files = Bundle("open_files")

    @initialize(copied=st.booleans())
    def begin(self, copied: bool) -> None:
        self.stack = contextlib.ExitStack()
        top = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        memory = "/dev/shm" if copied and os.path.isdir("/dev/shm") else None
        there = Path(self.stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        self.volume = Volume(top / "spool", there / "collected", template="{kind}/{base}")
        self.expected: Counter[str] = Counter()
        self.held: dict[IO[str], str] = {}
        self.living: list[Collector] = []
        self.next = 0
        self.collected: dict[str, str] = {}

    def teardown(self) -> None:
        if not hasattr(self, "volume"):
            return
        for collector in self.living:
            collector.close()
        self.living.clear()
        for file, content in self.held.items():
            file.close()
            self.expected[content] += 1
        try:
            self.volume.drain()
            assert self.volume.bag() == self.expected
            assert not self.volume.waiting() and not self.volume.claims() and not self.volume.staged()
        finally:
            self.stack.close()

    def _content(self) -> str:
        self.next += 1
        return f"<{self.next}>"

    def _free(self, place: str) -> bool:
        path = self.volume.spool / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return not path.exists()

    @rule(place=PLACES)
    def write_and_close(self, place: str) -> None:
        if self._free(place):
            content = self._content()
            self.volume.write(place, content)
            self.expected[content] += 1

    @rule(place=PLACES)
    def publish_it(self, place: str) -> None:
        self._free(place)
        content = self._content()
        with contextlib.suppress(AlreadyPublishedError):
            with publish(self.volume.spool / place) as file:
                file.write(content)
            self.expected[content] += 1

    @rule(place=PLACES)
    def rename_into_place(self, place: str) -> None:
        if self._free(place):
            content = self._content()
            path = self.volume.write(f"{os.path.dirname(place)}/.part", content)
            path.rename(self.volume.spool / place)
            self.expected[content] += 1

    @rule(target=open_files, place=PLACES)
    def open_and_write_a_part(self, place: str) -> tuple[IO[str], str]:
        self._free(place)
        path = self.volume.spool / place
        before = path.read_text() if path.exists() else ""
        file = open(path, "a")  # noqa: SIM115 - held open over many steps
        content = self._content()
        for other in [other for other in self.held if os.path.samestat(os.fstat(other.fileno()), path.stat())]:
            before = self.held.pop(other)  # two that append to one file
            other.close()
        if before and self.expected[before]:
            self.expected[before] -= 1
            self.expected += Counter()
        file.write(content)
        file.flush()
        self.held[file] = before + content
        return file, before + content

    @rule(opened=consumes(open_files))
    def close(self, opened: tuple[IO[str], str]) -> None:
        file, content = opened
        if file in self.held:
            del self.held[file]
            file.close()
            self.expected[content] += 1

    @rule(number=st.integers(0, 1))
    def a_pass(self, number: int) -> None:
        if number < len(self.living):
            self.living[number].run_pass()
        else:
            self.volume.one_pass()

    @rule()
    def start_another(self) -> None:
        if len(self.living) < 2:
            self.living.append(self.volume.collector())

    @rule()
    def stop_one(self) -> None:
        if self.living:
            self.living.pop(0).close()

    @rule(call=st.integers(0, 150), after=st.booleans())
    def a_mover_is_killed(self, call: int, after: bool) -> None:
        held = list(self.held)

        def work(_: object) -> None:
            for file in held:
                os.close(file.fileno())
            staging._CHUNK = 2
            die_at(call, after)
            with contextlib.suppress(DestinationError):
                self.volume.one_pass()

        child = Child(work)
        assert child.wait() in (0, -signal.SIGKILL)
        child.kill()
        with child:
            pass

    @invariant()
    def what_is_collected_is_whole_and_stays(self) -> None:
        if not hasattr(self, "volume"):
            return
        files = self.volume.files()
        for path, content in files.items():
            assert self.expected[content] == 1, f"{path} holds {content!r}"
        for path, content in self.collected.items():
            assert files.get(path) == content, f"{path} changed"
        self.collected = files


TestMoving = Moving.TestCase
TestMoving.settings = settings(
    max_examples=400 if os.environ.get("SHAREDVOL_EXHAUSTIVE") == "1" else 60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
