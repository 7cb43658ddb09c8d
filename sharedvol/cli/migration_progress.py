"""The progress of ``sharedvol migrate run``."""

from __future__ import annotations

import sys

from sharedvol.cli.terminal import Progress, write_line
from sharedvol.migrations import Step
from sharedvol.text import message


class MigrationProgress:
    """The display of each `Step` on standard error. On a terminal, one line shows the current statement."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._progress = Progress(sys.stderr, delay=0.0)

    def __call__(self, step: Step) -> None:
        """Show a step."""
        place = f"[{step.number}/{step.of}] {step.name}"
        if step.kind == "waiting":
            self._write_line(
                f"waiting for the lock {step.name!r}, held by {step.detail or 'another'}: {step.seconds:.0f} s"
            )
        elif step.kind == "renamed":
            self._write_line(f"{step.detail} is now {step.name}")
        elif step.kind == "applied":
            self._write_line(f"{place}: {step.statements} statements in {step.seconds:.1f} s")
        elif step.kind == "started":
            begin = f", from statement {step.statement + 1}" if step.statement else ""
            self._pass(f"{place}: {step.statements} statements{begin}")
        else:
            what = f"statement {step.statement}/{step.statements} (line {step.line}, {step.detail})"
            self._pass(f"{place}: {what}")

    def end(self) -> None:
        """Keep the last line, which the next one would overwrite."""
        self._progress.end(keep=True)

    def _pass(self, text: str) -> None:
        if not self._quiet:
            self._progress(message(text))

    def _write_line(self, text: str) -> None:
        if not self._quiet:
            self._progress.end()
            write_line(message(text), sys.stderr)
            sys.stderr.flush()
