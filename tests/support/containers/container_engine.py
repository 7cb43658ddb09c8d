"""The container engine that `scripts/with-containers` found, by its command line."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Callable
from typing import Any

SECONDS = 60.0
"""The longest that a command of the engine, or a state that is waited for, may take."""


class Engine:
    """Runs containers that carry a label of this run, and removes those alone.

    Args:
        command: ``docker`` or ``podman``.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.label = f"sharedvol-test={uuid.uuid4().hex}"

    def call(self, *arguments: str, seconds: float = SECONDS) -> bytes:
        """What the command prints.

        Raises:
            AssertionError: it failed, with what it said.
        """
        done = subprocess.run([self.command, *arguments], capture_output=True, timeout=seconds)
        assert done.returncode == 0, (
            f"{self.command} {' '.join(arguments)[:400]}: {done.returncode}\n"
            f"{done.stdout[-2000:].decode(errors='replace')}\n{done.stderr[-4000:].decode(errors='replace')}"
        )
        return done.stdout

    def text(self, *arguments: str, seconds: float = SECONDS) -> str:
        return self.call(*arguments, seconds=seconds).decode().strip()

    def succeeds(self, *arguments: str) -> bool:
        return subprocess.run([self.command, *arguments], capture_output=True, timeout=SECONDS).returncode == 0

    def hardened(self) -> list[str]:
        """The options of a container that may do nothing but write its volume; it reaches no network."""
        options = ["--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        # Podman adds a writable /tmp and /run by itself, Docker does not.
        return options + ["--read-only-tmpfs=false"] * (self.command == "podman")

    def run(self, *arguments: str) -> bytes:
        """Run a container to its end, and return what it printed on standard output."""
        return self.call("run", "--rm", f"--label={self.label}", *self.hardened(), *arguments)

    def start(self, *arguments: str) -> str:
        """Start a container; returns its id."""
        return self.text("run", "-d", f"--label={self.label}", *self.hardened(), *arguments)

    def logs(self, container: str) -> list[str]:
        """The whole lines of its standard output so far."""
        text = self.call("logs", container).decode()
        return text[: text.rfind("\n") + 1].splitlines()

    def kill(self, container: str) -> None:
        """SIGKILL, and wait until it is dead."""
        self.call("kill", "-s", "KILL", container)
        self.call("wait", container)

    def stop(self, container: str, grace: int = 20) -> int:
        """SIGTERM, as the engine sends it; after ``grace`` seconds SIGKILL, which makes the exit code 137."""
        self.call("stop", "-t", str(grace), container, seconds=grace + SECONDS)
        return int(self.text("inspect", "--format", "{{.State.ExitCode}}", container))

    def inspect_image(self, image: str) -> dict[str, Any]:
        return dict(json.loads(self.call("image", "inspect", image))[0])

    def clean_up(self) -> None:
        """Remove this run's containers and volumes."""
        for container in self.text("ps", "-aq", f"--filter=label={self.label}").split():
            self.call("rm", "-f", container)
        for volume in self.text("volume", "ls", "-q", f"--filter=label={self.label}").split():
            self.call("volume", "rm", volume)


def wait_until(condition: Callable[[], bool], what: Callable[[], str], seconds: float = SECONDS) -> None:
    """Return when the condition holds; fail after so many seconds without it, saying ``what()``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what()}"
        time.sleep(0.1)
