"""R in the tests of migrations: the reference file in real R processes, spoken to by files and pipes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import LIMIT, reaped
from servers import Database

REFERENCE = Path(__file__).parents[2] / "docs/r/sharedvol.R"


def rscript(*needed: str) -> str:
    """The program; a test without it, or without a package, fails as one without a server does."""
    program = shutil.which("Rscript")
    if program is None:
        pytest.fail("R is missing: run scripts/install-r, as 'make test' does", pytrace=False)
    return program


def start(code: str, *args: str | os.PathLike[str], **environment: str) -> subprocess.Popen[str]:
    """An R process that runs ``code`` with the reference sourced; ``args`` are ``commandArgs(TRUE)``."""
    program = f"source('{REFERENCE}'); arguments <- commandArgs(TRUE)\n{code}"
    return subprocess.Popen(
        [rscript(), "--vanilla", "-e", program, *map(os.fspath, args)],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def run(code: str, *args: str | os.PathLike[str], **environment: str) -> str:
    """What R prints."""
    with reaped(start(code, *args, **environment)) as process:
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        return out
