"""Run the measurements, print each figure beside its target, and write the report.

Exit code 1 if a target was missed, 2 if a group failed; the report is written first.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from bench import results
from bench.figures import say, show
from bench.groups import GROUPS
from bench.machine import describe
from bench.report import order, write
from bench.results import Group, Results

ROOT = Path(__file__).parents[1]


def main() -> int:
    options = _options()
    output: Path = options.output or (ROOT / ("docs" if options.scale == 1 else "build"))
    kept = options.results or output / "benchmarks" / "results.json"
    known = results.load(kept)
    failed = False
    if not options.render:
        # As an installed package is: else every process that is measured compiles all of its modules when it starts.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        say(f"{platform.platform()}, Python {platform.python_version()}")
        failed = not _measure(options, known, kept)
    if not options.no_report:
        # From the file, as it is rendered later: with the digits that it keeps.
        say(f"the report is {write(order(results.load(kept), GROUPS), GROUPS, output)}")
    asked = [known[name] for name in options.groups or GROUPS if name in known]
    missed = sum(not figure.reached for group in asked for figure in group.figures)
    if missed:
        say(f"targets missed: {missed}")
    return 2 if failed else int(missed > 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="what to measure (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="the size of each run; figures below 1 mean little")
    parser.add_argument("--directory", type=Path, help="where to work: the file system that is measured")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the report again")
    parser.add_argument("--no-report", action="store_true", help="measure, and write no report")
    parser.add_argument(
        "--output", type=Path, help="where benchmarks.md goes, with benchmarks/ (default: docs; build with a scale)"
    )
    parser.add_argument("--results", type=Path, help="what was measured (default: benchmarks/results.json there)")
    return parser.parse_args()


def _measure(options: argparse.Namespace, known: Results, kept: Path) -> bool:
    """Each group's results go into ``known``, and into the file as soon as they are there."""
    whole = True
    with tempfile.TemporaryDirectory(prefix="sharedvol-bench-", dir=options.directory) as directory:
        machine = describe(Path(directory))
        for name in options.groups or GROUPS:
            say(name)
            began, measured = time.monotonic(), []
            place = Path(directory) / name
            place.mkdir()
            try:
                for one in GROUPS[name](place, options.scale):
                    measured.append(one)
                    show(one, as_json=options.json)
            except Exception:  # the other groups can be measured all the same
                traceback.print_exc()
                say(f"{name} failed: what is known of it is from an earlier run")
                whole = False
                continue
            took = time.monotonic() - began
            say(f"{name} took {took:.0f} s")
            date = datetime.now(UTC).date().isoformat()
            known[name] = Group.of(measured, date=date, seconds=took, scale=options.scale, machine=machine)
            results.save(kept, known)
    return whole


if __name__ == "__main__":
    raise SystemExit(main())
