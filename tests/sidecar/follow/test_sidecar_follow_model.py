"""Any order of writing, rotating, cutting and deleting logs: what a scan saw is kept, byte for byte, and once."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from support.sidecar.volume import Volume

ACTS = ["write", "write", "write", "half a line", "rotate", "cut", "replace", "replace", "delete", "leave", "close"]
LOOKS = ["scan", "scan", "scan", "tick", "another sidecar", "fewer kinds", "follow none", "other template"]
BESIDE: dict[str, dict[str, Any]] = {
    "fewer kinds": {"kinds": ("results",)},
    "follow none": {"follow": ()},
    "other template": {"template": "{kind}/{container}/other/{base}"},
}


@dataclass
class Life:
    """What a log held from its beginning, or from a cut, to the next."""

    text: str = ""
    seen: str = ""
    over: bool = False  # cut or deleted: no scan can see more


class Log:
    """A log whose writer keeps it open."""

    def __init__(self, path: Path) -> None:
        self.path, self.fd = path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.lives = [Life()]

    @property
    def life(self) -> Life:
        return self.lives[-1]


class Scene:
    """A container with two loggers, and sidecars that come and go."""

    def __init__(self, top: Path) -> None:
        self.volume = Volume(top / "spool", top / "collected")
        self.directory = self.volume.spool / "c1" / "logs"
        self.directory.mkdir(parents=True)
        self.outside = top / "outside"
        self.outside.mkdir()
        self.number = 0
        self.all: list[Log] = []
        self.open: dict[int, Log] = {}
        self.collector = self.volume.collector()

    def next(self) -> int:
        self.number += 1
        return self.number

    def act(self, which: int, what: str, lines: int) -> None:
        log = self.open.get(which)
        if log is None:
            log = self.open[which] = Log(self.directory / f"app{self.next()}.log")
            self.all.append(log)
        if what in ("write", "half a line"):
            text = (
                f"half {self.next()}"
                if what != "write"
                else "".join(f"{self.next()} of {which}\n" for _ in range(lines))
            )
            os.write(log.fd, text.encode())
            log.life.text += text
        elif what == "rotate" and log.path.exists():
            log.path = log.path.rename(log.path.with_name(f"{log.path.name}.{self.next()}"))
        elif what == "delete":
            log.path.unlink(missing_ok=True)
            log.life.over = True
        elif what in ("cut", "replace"):
            os.ftruncate(log.fd, 0)
            hidden = log.life.over
            log.life.over = True
            log.lives.append(Life(over=hidden))  # of a log that is deleted or moved away, no scan can see more
            if what == "replace":
                self.write(log, "".join(f"{self.next()} instead\n" for _ in range(lines)))
        elif what == "leave" and log.path.exists():
            log.path = log.path.rename(self.outside / f"{log.path.name}.{self.next()}")
            log.life.over = True
        elif what == "close":
            os.close(self.open.pop(which).fd)

    def write(self, log: Log, text: str) -> None:
        os.write(log.fd, text.encode())
        log.life.text += text

    def look(self, how: str) -> None:
        if how == "tick":
            self.collector.tick()
            return
        if how in BESIDE:
            self.volume.one_pass(**BESIDE[how])
            return
        if how == "another sidecar":
            self.collector.close()
            self.collector = self.volume.collector()
        self.collector.run_pass()
        for log in self.all:
            if not log.life.over:
                log.life.seen = log.life.text

    def end(self) -> None:
        for log in self.open.values():
            os.close(log.fd)
        for _ in range(5):
            self.look("scan")
        self.collector.close()

    def check_each(self, files: dict[str, str]) -> None:
        """Whatever is there is what a log began with: no byte is missing, doubled or of another."""
        whole = [life.text for log in self.all for life in log.lives]
        for path, text in files.items():
            assert any(life.startswith(text) for life in whole), ("not what was written", path, text[-80:])

    def check_all(self) -> None:
        assert self.volume.live() == {}
        assert self.volume.waiting() == {}
        texts = list(self.volume.files().values())
        for log in self.all:
            for life in log.lives:
                if not life.over:
                    assert life.text in texts, ("lost", log.path.name, life.text[-80:])
                elif life.seen:
                    assert any(text.startswith(life.seen) for text in texts), ("lost", log.path.name, life.seen[-80:])
        starts = [text[:60] for text in texts if text]
        assert len(starts) == len(set(starts)), "doubled"


steps = st.tuples(
    st.integers(0, 1), st.sampled_from(ACTS), st.sampled_from([1, 40, 900]), st.sampled_from([*LOOKS, *[""] * 5])
)


@settings(max_examples=int(os.environ.get("SHAREDVOL_TEST_EXAMPLES", "30")), deadline=None)
@given(st.lists(steps, min_size=3, max_size=20))
def test_what_a_scan_saw_is_kept_and_nothing_else(script: list[tuple[int, str, int, str]]) -> None:
    top = Path(tempfile.mkdtemp())
    try:
        scene = Scene(top)
        for which, what, lines, look in script:
            scene.act(which, what, lines)
            if look:
                scene.look(look)
                scene.check_each(scene.volume.files())
                scene.check_each(scene.volume.live())
        scene.end()
        scene.check_each(scene.volume.files())
        scene.check_all()
    finally:
        shutil.rmtree(top)
