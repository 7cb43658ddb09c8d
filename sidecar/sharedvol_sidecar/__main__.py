"""``python -m sharedvol_sidecar`` is the command ``sharedvol-sidecar``."""

from sharedvol_sidecar.cli import main

if __name__ == "__main__":
    main(prog_name="sharedvol-sidecar")
