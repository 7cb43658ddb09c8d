"""The oldest release of a package that we support, next to the installed one: made once and cached."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from support.installed import NO_AUTHORITIES, cache
from support.processes import LIMIT

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def lowest(package: str) -> Path:
    """A directory to import it from, without its dependencies, which are the installed ones.

    Raises:
        subprocess.CalledProcessError: pip could not install it.
    """
    project = tomllib.loads(PROJECT.read_text())["project"]
    bounds = [bound for extra in project["optional-dependencies"].values() for bound in extra]
    (version,) = [found[1] for bound in bounds if (found := re.fullmatch(rf"{package}>=([0-9.]+)", bound))]
    made = cache() / f"{package}-{version}"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        partial = tempfile.mkdtemp(prefix=f"{made.name}.", dir=made.parent)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-compile"]
        environment = {name: value for name, value in os.environ.items() if name not in NO_AUTHORITIES}
        command = [*pip, "--target", partial, f"{package}=={version}"]
        subprocess.run(command, env=environment, check=True, timeout=LIMIT)
        with contextlib.suppress(OSError):  # another process of the tests was faster
            Path(partial).rename(made)
        shutil.rmtree(partial, ignore_errors=True)
    return made
