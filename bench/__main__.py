"""Run the measurements and print each figure beside its target.

Exit code 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

from bench import backlog, cache, following, latency, locks, migrations, moving
from bench.figures import say, show

GROUPS = {
    "uncontended": locks.uncontended,
    "fenced": locks.fenced,
    "contended": locks.contended,
    "beside": locks.beside_posix_waiters,
    "moving": moving.moving,
    "idle": moving.idle,
    "backlog": backlog.backlog,
    "latency": latency.latency,
    "following": following.following,
    "http": following.http_cost,
    "cache": cache.cache,
    "splitter": migrations.splitter,
    "replicas": migrations.replicas,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="what to measure (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="the size of each run; figures below 1 mean little")
    parser.add_argument("--directory", type=Path, help="where to work: the file system that is measured")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    options = parser.parse_args()
    # As an installed package is: else every process that is measured compiles all of its modules when it starts.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    say(f"{platform.platform()}, Python {platform.python_version()}")
    missed = 0
    with tempfile.TemporaryDirectory(prefix="sharedvol-bench-", dir=options.directory) as directory:
        for name in options.groups or GROUPS:
            say(name)
            for figure in GROUPS[name](Path(directory), options.scale):
                missed += not figure.reached
                show(figure, as_json=options.json)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
