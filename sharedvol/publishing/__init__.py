"""Files that appear whole or not at all."""

from sharedvol.publishing.publication import publish
from sharedvol.publishing.temporaries import remove_stale_temporaries, stale_temporaries

__all__ = ["publish", "remove_stale_temporaries", "stale_temporaries"]
