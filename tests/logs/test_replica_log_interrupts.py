"""What a signal handler may do, at every line of the handler's code in turn: raise, log, shut down, fork, die.

Each record is then in the log once and whole, or, where its own call was ended, not at all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.logged import contents, disturbed, lines, log, opened, record, steps_of

from sharedvol.logs import ReplicaFileHandler

BEFORE = {
    "first": [],
    "usual": ["before"],
    "rotating": ["before", "x" * 30],
    "torn": ["of one that was killed", "hal"],
    "in-parts": ["before"],
    "after-an-outage": ["before"],
}


class Interrupt(BaseException):
    """As KeyboardInterrupt, or what gunicorn raises in a worker that it ends."""


class Scene:
    """A handler whose next record takes one of the ways through the code."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind, self.place = kind, place
        if kind == "torn":
            with opened(place) as handler:
                log(handler, "earlier")
            next(place.iterdir()).write_text("of one that was killed\nhal")
        self.handler = ReplicaFileHandler(place, max_bytes=40 if kind == "rotating" else 0)
        if kind == "torn":
            return
        for text in BEFORE[kind]:
            log(self.handler, text)
        if kind == "after-an-outage":
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(None):
                patch.setattr(os, "write", _full)
                log(self.handler, "lost")

    def log(self, text: str) -> None:
        log(self.handler, text)

    def check(self, *wanted: str, perhaps: str | None = None) -> None:
        """Close, and look whether all of it is there once, and nothing else but perhaps one more."""
        self.handler.close()
        for path in self.place.iterdir():
            if path.read_text().endswith("\nhal"):  # no process has continued the file of the killed one
                path.write_text(path.read_text() + "\n")
        found = lines(self.place)
        notes = [text for text in found if "1 records since " in text]
        assert len(notes) == (self.kind == "after-an-outage")
        expected = Counter([*BEFORE[self.kind], *notes, *wanted])
        allowed = [expected, expected + Counter([perhaps])] if perhaps else [expected]
        assert found in allowed, contents(self.place)


def _full(fd: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


EVERY = os.environ.get("SHAREDVOL_TEST_KILLS") == "all"
Act = Callable[[], object]
At = Callable[[Act], None]
EachStep = Callable[[Callable[[Scene, At], None]], None]


@pytest.fixture(params=BEFORE)
def each_step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EachStep:
    """Runs a test for each step, with a scene and what logs a record and does something at that step."""
    kind = request.param
    real = os.write
    if kind == "in-parts":
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: max(1, len(data) // 2)]))

    def run(work: Callable[[Scene, At], None]) -> None:
        counted = Scene(kind, tmp_path / "counted")
        steps = steps_of(lambda: counted.handler.emit(record("counted")))
        counted.check("counted")
        assert steps > 15
        # Forks take time: there each run of the tests has some of the steps, and others in each scene.
        stride = 1 if EVERY or request.function in (test_raise, test_log) else 4
        for step in range(1 + list(BEFORE).index(kind) % stride, steps + 1, stride):
            scene = Scene(kind, tmp_path / str(step))
            work(scene, functools.partial(_log_and, scene, step))

    return run


def _log_and(scene: Scene, step: int, act: Act) -> None:
    # Without the lock that `handle` takes: a fork in its own thread makes a new lock, and then the release fails.
    happened = []

    def disturb(number: int) -> None:
        if number == step:
            happened.append(number)
            act()

    try:
        disturbed(lambda: scene.handler.emit(record("disturbed")), disturb)
    finally:
        assert happened == [step]


def test_raise(each_step: EachStep) -> None:
    def work(scene: Scene, at_the_step: At) -> None:
        def act() -> None:
            raise Interrupt

        with pytest.raises(Interrupt):
            at_the_step(act)
        scene.log("after")
        scene.check("after", perhaps="disturbed")

    each_step(work)


def test_log(each_step: EachStep) -> None:
    def work(scene: Scene, at_the_step: At) -> None:
        at_the_step(lambda: scene.log("nested"))
        scene.log("after")
        scene.check("disturbed", "nested", "after")

    each_step(work)


def test_close(each_step: EachStep) -> None:
    def work(scene: Scene, at_the_step: At) -> None:
        at_the_step(scene.handler.close)
        scene.log("after")
        scene.check("disturbed", "after")

    each_step(work)


def test_fork(each_step: EachStep) -> None:
    """The child logs at once, continues what its parent was doing, and logs again."""
    accepted = []

    def work(scene: Scene, at_the_step: At) -> None:
        children = []

        def act() -> None:
            children.append(os.fork())
            if children == [0]:
                scene.log("child, nested")

        try:
            at_the_step(act)
            if children == [0]:
                scene.log("child, after")
                scene.handler.close()
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            if children == [0]:
                os._exit(0)
        assert os.waitpid(children[0], 0)[1] == 0
        scene.log("after")
        scene.handler.close()
        # Before it was accepted it is a record of both: as if the fork had come before the call.
        accepted.append(lines(scene.place)["disturbed"] == 1)
        again = [] if accepted[-1] else ["disturbed"]
        scene.check("disturbed", *again, "child, nested", "child, after", "after")

    each_step(work)
    assert accepted == sorted(accepted) and sum(accepted) > len(accepted) / 2


def test_die(each_step: EachStep, request: pytest.FixtureRequest) -> None:
    """The next process continues the file. What the dead one had not finished is at most one separate line."""

    def work(scene: Scene, at_the_step: At) -> None:
        scene.handler.close()
        place = scene.place.with_name(f"again-{scene.place.name}")
        child = os.fork()
        if child == 0:
            try:
                again = Scene(scene.kind, place)
                _log_and(again, at_the_step.args[1], lambda: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[attr-defined]
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with opened(place) as handler:
            log(handler, "after")
        found = lines(place)
        assert all(found[text] == 1 for text in [*BEFORE[scene.kind], "after"]), found
        rest = set(found) - {*BEFORE[scene.kind], "after"}
        assert all("disturbed".startswith(text) or "1 records since"[:10] in text for text in rest), found
        assert len(rest) <= 1 + (scene.kind == "after-an-outage")

    each_step(work)
