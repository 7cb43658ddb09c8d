"""Run the command ``sharedvol-sidecar`` with ``python -P -m sharedvol_sidecar``."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Without -P the first entry is the current directory. That may be the spool, where replicas can put modules.
        del sys.path[0]
    import sharedvol_start

    sys.exit(sharedvol_start.sidecar())
