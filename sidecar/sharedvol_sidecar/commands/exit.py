"""Exit codes of the commands, and the errors that end them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import click

from sharedvol import SharedVolError
from sharedvol.errors import describe, reduce_error, remedy
from sharedvol_sidecar.commands.output import report_error
from sharedvol_sidecar.errors import ConfigError

EXIT_FAILED = 1
EXIT_CONFIG = 2


class CommandFailed(click.ClickException):
    """Ends a command with one line on standard error and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self._code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override] # a class variable in click, which has one code
        """The exit code of this failure."""
        return self._code

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_error(self)

    def show(self, file: Any = None) -> None:
        """Print the message in one line on standard error."""
        report_error(self.message)


@contextlib.contextmanager
def exit_on_error(unusable_code: int = EXIT_FAILED) -> Iterator[None]:
    """Turn an error into `CommandFailed`: exit code 2 for wrong settings, 1 for any other error of ours.

    Args:
        unusable_code: the exit code for an error of the operating system.
    """
    try:
        yield
    except ConfigError as error:
        raise CommandFailed(str(error), EXIT_CONFIG) from None
    except SharedVolError as error:
        raise CommandFailed(str(error), EXIT_FAILED) from None
    except OSError as error:
        raise unusable(error, unusable_code) from None


@contextlib.contextmanager
def finish() -> Iterator[None]:
    """Do what `exit_on_error` does, and end without an error if the reader of the output went away (``ls | head``)."""
    with exit_on_error(), contextlib.suppress(BrokenPipeError):
        yield


def unusable(error: OSError, code: int) -> CommandFailed:
    """Return the failure for an error of the operating system that nothing else explains."""
    where = f" with {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
    hint = remedy(error, default="")
    return CommandFailed(f"cannot continue{where}: {describe(error)}{'; ' * bool(hint)}{hint}", code)
