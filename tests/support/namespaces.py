"""Stand-ins for containers: processes with PID, UTS, IPC and mount namespaces of their own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.processes import LIMIT, has_permission_to_mount, reaped

DRIVER = """
import json, os, sys
from sharedvol import *
volume = Volume(sys.argv[1])
for line in sys.stdin:
    try:
        answer = eval(line)
    except Exception as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(answer, default=str), flush=True)
"""
NAMESPACES = "--uts --pid --mount --ipc --fork --mount-proc --propagation private --kill-child".split()
SET_NAME = 'hostname "$1" && shift && exec "$@"'


class Container:
    """A process that evaluates expressions over ``volume``, the first of its container or one beside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self.ask("os.getpid()") > 0
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        self.pid = int(children[0])
        """As this test sees it."""

    def ask(self, expression: str) -> Any:
        """Its value."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{expression}\n")
        self._process.stdin.flush()
        readable, _, _ = select.select([self._process.stdout], [], [], LIMIT)
        assert readable, f"no answer to {expression}"
        return json.loads(self._process.stdout.readline())

    def join(self, arguments: str = "") -> int:
        """Its slot."""
        slot: int = self.ask(f"volume.join({arguments}).slot")
        return slot

    def stop(self) -> None:
        """SIGSTOP, until it is stopped."""
        self.signal(signal.SIGSTOP)
        end = Path(f"/proc/{self.pid}/stat")
        while end.read_text().rpartition(")")[2].split()[0] != "T":
            pass

    def signal(self, number: int) -> None:
        """As from outside of the container."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, as the engine does, and reap."""
        self.signal(signal.SIGKILL)
        self._process.wait(LIMIT)


@contextlib.contextmanager
def container(volume: Path, hostname: str, **environment: str) -> Iterator[Container]:
    """A container with that host name; HOSTNAME is not set unless given. Killed and reaped at the end."""
    if not has_permission_to_mount():
        pytest.skip("needs permission to make namespaces (root with CAP_SYS_ADMIN)")
    with _driven(["unshare", *NAMESPACES, "sh", "-c", SET_NAME, "sh", hostname], volume, environment) as made:
        yield made


@contextlib.contextmanager
def beside(other: Container, volume: Path) -> Iterator[Container]:
    """Another process in a container, as ``docker exec`` starts it."""
    enter = ["nsenter", "--target", str(other.pid), "--uts", "--pid", "--mount", "--ipc"]
    with _driven(enter, volume, {}) as made:
        yield made


@contextlib.contextmanager
def _driven(before: list[str], volume: Path, environment: dict[str, str]) -> Iterator[Container]:
    inherited = {key: value for key, value in os.environ.items() if key != "HOSTNAME"}
    process = subprocess.Popen(
        [*before, sys.executable, "-c", DRIVER, str(volume)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**inherited, **environment},
    )
    with reaped(process):
        made = Container(process)
        try:
            yield made
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    made.signal(signal.SIGKILL)
