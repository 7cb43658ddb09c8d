"""The log of `run`: lines of JSON on standard output, and nothing else there or on standard error."""

from __future__ import annotations

import logging
import threading
from typing import Any

import structlog

from sharedvol_sidecar.monitor.log_limit import LineLimit
from sharedvol_sidecar.monitor.log_output import LogOutput, standard_output


def set_up(verbose: bool) -> LogOutput:
    """Send everything that this process logs to standard output: structlog, `logging`, warnings, dying threads.

    Args:
        verbose: log every file, too.
    """
    output = LogOutput(standard_output())
    structlog.configure(
        processors=[
            LineLimit(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(output),  # type: ignore[arg-type] # it needs `write` and `flush`
    )
    logging.raiseExceptions = False  # a handler that fails would write to standard error
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.addHandler(ToStructlog("library", logging.WARNING))
    logging.getLogger("uvicorn").propagate = False  # what clients send is not worth a line; see `web.server`
    threading.excepthook = _thread_ended
    return output


class ToStructlog(logging.Handler):
    """Logs what libraries log.

    Args:
        event: the name of the event.
        level: the least level that is logged.
    """

    def __init__(self, event: str, level: int) -> None:
        super().__init__(level)
        self._event = event

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record, with the error that it has."""
        detail: dict[str, Any] = {"logger": record.name, "detail": record.getMessage().strip()}
        if record.exc_info and record.exc_info[1] is not None:
            detail["error"] = repr(record.exc_info[1])
        structlog.get_logger().log(record.levelno, self._event, **detail)


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return
    name = args.thread.name if args.thread is not None else ""
    structlog.get_logger().error("thread_ended", thread=name, error=repr(args.exc_value))
