"""What the service can fail with."""

from __future__ import annotations

from sharedvol import SharedVolError


class SidecarError(SharedVolError):
    """The base of the service's own errors."""


class ConfigError(SidecarError):
    """A setting or a directory that nothing can be collected with; exit code 2."""


class DestinationError(SidecarError):
    """The destination does not take files now: full, gone, or forbidden. Every file stays a source."""


class SpoolError(SidecarError):
    """Nothing can be claimed in the spool now: it is read-only, full, or gone. Every file stays where it is."""


class CatalogError(SidecarError):
    """The catalog cannot be read or written now. Nothing was changed in it; the next call tries again."""
