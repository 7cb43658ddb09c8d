"""A spool and a destination to test with, and a look at what is in them."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.event import Event
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.spool.layout import LIVE

CLI = (sys.executable, "-c", "import sys; from sharedvol_sidecar.cli import main; sys.exit(main())")
"""The command, run by this interpreter."""


class Volume:
    """A spool and a destination.

    Args:
        spool: made.
        collected: made.
        defaults: of each `CollectorConfig`.
    """

    def __init__(self, spool: Path, collected: Path, **defaults: Any) -> None:
        self.spool, self.collected = spool, collected
        self.defaults: dict[str, Any] = {"quiet": 0.0, "workers": 1, **defaults}
        self.events: list[Event] = []
        spool.mkdir(parents=True)
        collected.mkdir(parents=True)

    def job(self, **changes: Any) -> CollectorConfig:
        return CollectorConfig(str(self.spool), str(self.collected), **{**self.defaults, **changes})

    def write(self, path: str | bytes, content: str = "", *, mode: str = "w") -> Path:
        """A closed file in the spool."""
        target = self.spool / os.fsdecode(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, mode) as file:
            file.write(content)
        return target

    def collector(self, **changes: Any) -> Collector:
        return Collector(self.job(**changes), Events(self.events.append))

    def one_pass(self, **changes: Any) -> PassCounts:
        """One pass of a new collector, which then gives up its slot."""
        collector = self.collector(**changes)
        try:
            return collector.run_pass()
        finally:
            collector.close()

    def drain(self, **changes: Any) -> PassCounts:
        """Passes of a new collector until one finds nothing to do."""
        collector, total = self.collector(**changes), PassCounts()
        try:
            for _ in range(20):
                tally = collector.run_pass()
                total.add(tally)
                if not tally.collected and not tally.put_back and not self.claims():
                    return total
            raise AssertionError(f"does not come to an end: {tally}, claims {self.claims()}")
        finally:
            collector.close()

    def files(self) -> dict[str, str]:
        """Every collected file and what it holds, without the logs that are followed still."""
        return _contents(self.collected, lambda path: not path.endswith(LIVE))

    def live(self) -> dict[str, str]:
        """The logs that are followed, and what was copied of them."""
        return _contents(self.collected, lambda path: path.endswith(LIVE))

    def names(self) -> list[str]:
        """The paths of all that the destination shows, compressed or not, with the logs that are followed still."""
        return _files(self.collected)

    def bag(self) -> Counter[str]:
        """What the collected files hold, without their names."""
        return Counter(self.files().values())

    def waiting(self) -> dict[str, str]:
        """Every file that the spool shows and what it holds."""
        return _contents(self.spool)

    def claims(self) -> list[str]:
        """Files in the claim directories."""
        return _files(self.spool / ".sharedvol" / "claims")

    def staged(self) -> list[str]:
        """Files in the staging directories."""
        return _files(self.collected / ".sharedvol" / "staging")

    def told(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    def cli(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """The command with this volume's directories, run to its end."""
        return run_cli(args[0], "--from", str(self.spool), "--to", str(self.collected), *args[1:], **options)

    def cli_to(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command that takes the destination alone, run to its end."""
        return run_cli(args[0], "--to", str(self.collected), *args[1:], **options)


def run_cli(*args: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command, run to its end with a bounded wait, and without settings of ours in its environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHAREDVOL_")}
    return subprocess.run(
        [*CLI, *args],
        env={**clean, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def _files(root: Path) -> list[str]:
    """Paths of the regular files below ``root``, without what is hidden."""
    found = []
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in files:
            path = os.path.join(directory, name)
            with contextlib.suppress(FileNotFoundError):  # a sidecar that runs may move it now
                if not name.startswith(".") and stat.S_ISREG(os.lstat(path).st_mode):
                    found.append(os.path.relpath(path, root))
    return sorted(found)


def fail_once(function: Callable[..., Any], error: BaseException, when: Callable[..., bool]) -> Callable[..., Any]:
    """``function``, which fails the first time ``when`` is true of its arguments."""
    left = [error]

    def failing(*args: Any, **options: Any) -> Any:
        if left and when(*args, **options):
            raise left.pop()
        return function(*args, **options)

    return failing


def _contents(root: Path, wanted: Callable[[str], bool] = lambda path: True) -> dict[str, str]:
    """What the wanted files below ``root`` hold, without what a sidecar that runs removes just now."""
    contents = {}
    for path in filter(wanted, _files(root)):
        with contextlib.suppress(FileNotFoundError):
            contents[path] = Path(root, path).read_text()
    return contents
