"""A second process for a backlog: one is bound by the file system's journal and its own core."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict

from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.counters import PassCounts

_LOOK = 0.2  # seconds between two looks at whether to stop while the helper works


class Helper:
    """One such process, from its start to `end`. It moves the second half of what is left of a pass (`worker`).

    Args:
        job: what it does.

    Attributes:
        process: the process.
    """

    def __init__(self, job: CollectorConfig) -> None:
        self.process = subprocess.Popen(
            # -P: the current directory may be the spool, and nothing is imported from there.
            [sys.executable, "-P", "-m", "sharedvol_sidecar.collect.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # a terminal sends Ctrl-C to the collector alone, which then ends it
        )
        assert self.process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # killed already: the next pass takes its half
                self.process.stdin.write(json.dumps(asdict(job)).encode())
        finally:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.stdin = None

    def end(self, stop: Callable[[], bool]) -> PassCounts | None:
        """Wait for its end. What it moved; None where it was killed.

        Args:
            stop: asked again and again whether it is to end early.
        """
        ended = False
        try:
            while not ended:
                if stop():
                    self.process.terminate()  # it finishes its batch
                try:
                    self.process.wait(_LOOK)
                    ended = True
                except subprocess.TimeoutExpired:
                    pass
        finally:
            if not ended:  # a second signal ends us at once, and it is as safe to kill as we are
                self.process.kill()
                self.process.wait()
            assert self.process.stdout is not None
            with self.process.stdout:
                answer = self.process.stdout.read()  # one short line, which the pipe has held
        # One that was killed reports nothing; the files it moved are moved, its claims are found by the
        # next pass. Of what it left only the next pass, which is whole, can tell.
        if not answer:
            return None
        return PassCounts(**json.loads(answer))
