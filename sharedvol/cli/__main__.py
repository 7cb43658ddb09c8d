"""Run the command as ``python -m sharedvol.cli``."""

import sys

import sharedvol_start
from sharedvol.cli.main import main

sys.exit(sharedvol_start.run("sharedvol", lambda: main))
