"""A log file per replica, which the sidecar collects, and the console for `docker logs`."""

from __future__ import annotations

import logging.config
from pathlib import Path


def configure(spool: Path) -> None:
    """Send what this package and sharedvol log to the replica's own file below ``spool`` and to standard error."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"}},
            "handlers": {
                "console": {"class": "logging.StreamHandler", "formatter": "line"},
                "file": {
                    "class": "sharedvol.logs.ReplicaFileHandler",
                    "formatter": "line",
                    "directory": str(spool / "{container}" / "logs"),  # the handler puts in the replica's name
                    "name": "api",
                },
            },
            "root": {"level": "INFO", "handlers": ["console", "file"]},
        }
    )
