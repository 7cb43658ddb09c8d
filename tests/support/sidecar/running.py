"""A sidecar that runs as a process, and what it logs."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
from typing import Any

from support.processes import LIMIT


class Running:
    """A `run` process and the lines that it logs, each of which must be JSON."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.seen: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def until(self, event: str) -> dict[str, Any]:
        """Read on to the next line of that event."""
        while True:
            line = self._lines.get(timeout=LIMIT)
            self.seen.append(line)
            if line["event"] == event:
                return line

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        return code
