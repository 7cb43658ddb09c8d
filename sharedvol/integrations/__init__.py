"""Run a replica inside a web framework and its server: start, readiness, drain, stop."""

from sharedvol.integrations.service import Service

__all__ = ["Service"]
