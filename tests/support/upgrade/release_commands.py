"""The sidecar's commands of a release, run to their end on one volume."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.processes import reaped
from support.soak.releases import Release

LIMIT = 120.0


@dataclass(frozen=True)
class Place:
    """A spool, a destination, and a clock for `soak.sidecar`, below one directory."""

    top: Path

    def __post_init__(self) -> None:
        for directory in (self.spool, self.collected):
            directory.mkdir()
        self.clock.write_bytes(bytes(8))

    @property
    def spool(self) -> Path:
        return self.top / "spool"

    @property
    def collected(self) -> Path:
        return self.top / "collected"

    @property
    def clock(self) -> Path:
        return self.top / "clock"

    def once(self, release: Release, *settings: str) -> dict[str, int]:
        """The counts of a drain. It must succeed."""
        done = self.run(
            release, "once", "--from", self.spool, "--to", self.collected, "--quiet", "0", "--json", *settings
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, int] = json.loads(done.stdout)
        return found

    def rows(self, release: Release, *filters: str) -> list[dict[str, Any]]:
        """The catalog, by `ls`."""
        done = self.run(release, "ls", "--to", self.collected, "--json", *filters)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def verify(self, release: Release) -> None:
        """The catalog and the files agree."""
        done = self.run(release, "verify", "--to", self.collected)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, release: Release, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A command, to its end, whatever comes of it."""
        shim = [str(os.getpid()), str(release.directory), str(self.clock)]
        return subprocess.run(
            [sys.executable, "-P", "-m", "support.soak.sidecar", *shim, *map(str, arguments)],
            env=release.environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def write(self, path: str, text: str) -> None:
        """A finished file in the spool."""
        target = self.spool / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def files(self) -> dict[str, str]:
        """The collected files by their paths; those that are hidden are left out."""
        found = {str(path.relative_to(self.collected)): path for path in self.collected.rglob("*") if path.is_file()}
        return {path: file.read_text() for path, file in found.items() if not path.startswith(".")}

    def texts(self) -> list[str]:
        """What they hold, without their names."""
        return sorted(self.files().values())

    @contextlib.contextmanager
    def running(self, release: Release, *settings: str) -> Iterator[None]:
        """A sidecar that stays, meanwhile."""
        directories = ["--from", str(self.spool), "--to", str(self.collected), "--listen", "off"]
        shim = [str(os.getpid()), str(release.directory), str(self.clock)]
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "support.soak.sidecar",
                *shim,
                "run",
                *directories,
                "--interval",
                "0.2",
                *settings,
            ],
            env=release.environment(),
            stdout=subprocess.DEVNULL,
        )
        with reaped(process):
            yield
