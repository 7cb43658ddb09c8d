"""uvicorn with several workers, as ``uvicorn APP --workers N`` runs it, and two things more.

::

    python -m sharedvol.integrations.uvicorn shop.app:app --workers 4

uvicorn's parent process ends with status 0 when a worker could not start, so that ``restart: on-failure`` sees no
failure; here it ends with 3. And once it has told its workers to stop it hears no further signal; here a second
SIGTERM reaches them, and ends their drain. With one worker there is no parent, and nothing is different.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from typing import Final

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

_LOOK_SECONDS: Final = 0.1


class Supervisor(Multiprocess):
    """The parent of the workers."""

    def run(self) -> None:
        """Until it is told to stop, or a worker cannot start.

        Raises:
            SystemExit: a worker could not start.
        """
        super().run()
        if any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            sys.exit(STARTUP_FAILURE)

    def join_all(self) -> None:
        """Wait until all have ended, and pass on what we are told meanwhile."""
        while running := [process for process in self.processes if process.exitcode is None]:
            running[0].process.join(_LOOK_SECONDS)
            while self.signal_queue:
                number = self.signal_queue.pop(0)
                if number in (signal.SIGTERM, signal.SIGINT):
                    _tell([process.pid for process in running if process.exitcode is None], number)


def _tell(pids: list[int | None], number: int) -> None:
    for pid in pids:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def main() -> None:
    """The command line of uvicorn."""
    command = importlib.import_module("uvicorn.main")
    command.Multiprocess = Supervisor  # type: ignore[attr-defined]
    command.main(prog_name="uvicorn")


if __name__ == "__main__":
    main()
