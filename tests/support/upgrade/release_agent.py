"""A process of one release that does what a test tells it: ``python -m release_agent PARENT RELEASE``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

LIMIT = 60.0


class AgentError(Exception):
    """The code failed in the other process; the message begins with the error's class."""


class Agent:
    """A process of a release, to use in a ``with``.

    Args:
        release: which one.
        environment: what it finds set besides.
    """

    def __init__(self, release: Any, **environment: str) -> None:
        clean = release.environment()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "support.upgrade.release_agent", str(os.getpid()), str(release.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**clean, **environment},
        )

    def run(self, code: str, **names: Any) -> Any:
        """Execute code with these names set. Returns what it assigns to ``result``.

        Raises:
            AgentError: the code raised.
        """
        self.send(code, **names)
        return self.answer()

    def send(self, code: str, **names: Any) -> None:
        """The same without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"code": code, "names": {k: _plain(v) for k, v in names.items()}}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What the code that was sent comes to."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait(LIMIT)}"
        found = json.loads(line)
        if "error" in found:
            raise AgentError(found["error"])
        return found["result"]

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(LIMIT)

    def __enter__(self) -> Agent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def main() -> None:
    from support.soak.ending import check_release, end_with

    parent, release = sys.argv[1:]
    end_with(int(parent))
    check_release(release)
    names: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        names.update(request["names"], result=None)
        try:
            exec(request["code"], names)
            answer = {"result": names["result"]}
        except Exception as error:
            print(traceback.format_exc(), file=sys.stderr)
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=str), flush=True)


if __name__ == "__main__":
    main()
