"""The command ``sharedvol doctor``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Final

from sharedvol.cli.common import Commands, add_command, fail
from sharedvol.cli.terminal import Progress, write_line
from sharedvol.doctor.advice import meaning
from sharedvol.doctor.examination import DoctorError, examine
from sharedvol.doctor.peer.meeting import PeerError
from sharedvol.doctor.peer.peer import NAME, WAIT, meet
from sharedvol.doctor.report import Report, Verdict
from sharedvol.doctor.side import PATIENCE
from sharedvol.errors import describe, remedy
from sharedvol.text import shown

CODES: Final[dict[Verdict, int]] = {"ok": 0, "unknown": 1, "degraded": 1, "unsafe": 3}
EXIT_DIRECTORY: Final = 66  # EX_NOINPUT of sysexits.h
EXIT_UNAVAILABLE: Final = 69  # EX_UNAVAILABLE
EXIT_PEER: Final = 75  # EX_TEMPFAIL: try again

ABOUT: Final = """Test whether a mounted volume is safe to share between containers.

The doctor tries locks, links, renames, syncs, events and leases between processes. It works in a hidden
directory of its own in DIR, removes it at the end, and touches nothing else. The verdict of each line is ok,
degraded (refused with an error, or weaker than on a local file system), unsafe (does something else than
promised, hangs, or loses data) or unknown (could not be tried). Each line that is not ok says why it
matters and what to do."""

EXIT_CODES: Final = """exit codes:
  0    all ok
  1    something is degraded or unknown
  2    wrong usage
  3    something is unsafe
  66   DIR is missing, is not a directory, or cannot be read
  69   nothing can be tried: not Linux, or the file system does not answer
  75   --peer: no second doctor came, or it ended early
  130  interrupted by Ctrl-C"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "doctor", ABOUT, EXIT_CODES)
    parser.add_argument("directory", metavar="DIR", help="the volume, or a directory in it")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--verbose", action="store_true", help="explain every line, including those that are ok")
    parser.add_argument(
        "--through", metavar="DIR2", help="the same directory on another mount: try locks and events across both"
    )
    parser.add_argument(
        "--peer",
        type=_meeting,
        metavar="NAME",
        help="also run the experiments with a second doctor, started with the same NAME in another container",
    )
    parser.add_argument(
        "--wait",
        type=_seconds,
        default=WAIT,
        metavar="S",
        help=f"seconds to wait for the second doctor (default {WAIT:g})",
    )
    parser.add_argument(
        "--patience",
        type=_seconds,
        default=PATIENCE,
        metavar="S",
        help=f"seconds after which a step counts as hanging (default {PATIENCE:g})",
    )
    parser.set_defaults(run=_run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds: give more than 0, at most 3600")
    return seconds


def _meeting(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid name: use at most 64 letters, digits and ._-")
    return text


def _run(options: argparse.Namespace) -> int:
    if sys.platform != "linux":
        return fail("the doctor runs on Linux only: run it in a container that mounts the volume", EXIT_UNAVAILABLE)
    try:
        report, missed = _examine(options)
    except OSError as error:
        hint = remedy(error, ENOTDIR="name the volume's directory", EACCES="run this as a user that may read it")
        return fail(f"cannot examine {options.directory!r}: {describe(error)}; {hint}", EXIT_DIRECTORY)
    except DoctorError as error:
        return fail(str(error), EXIT_UNAVAILABLE)
    for line in [json.dumps(report.as_dict())] if options.json else _in_words(report, options.verbose):
        write_line(line, sys.stdout)
    if missed is not None:
        sys.stdout.flush()
        return fail(str(missed), EXIT_PEER)
    return CODES[report.verdict]


def _examine(options: argparse.Namespace) -> tuple[Report, PeerError | None]:
    progress = Progress(sys.stderr)

    def show(what: str) -> None:
        progress(f"trying {what}")

    try:
        report = examine(options.directory, through=options.through, patience=options.patience, progress=show)
        if options.peer is None:
            return report, None
        try:
            return _with_peer(report, options, show), None
        except PeerError as error:
            return report, error  # the findings without the peer are still shown
    finally:
        progress.end()


def _with_peer(report: Report, options: argparse.Namespace, progress: Callable[[str], None]) -> Report:
    found = meet(options.directory, options.peer, wait=options.wait, patience=options.patience, progress=progress)
    return dataclasses.replace(report, findings=report.findings + found, peer=options.peer)


def _in_words(report: Report, verbose: bool) -> Iterator[str]:
    yield f"{shown(report.directory)}: {report.verdict}"
    width = max((len(finding.id) for finding in report.findings), default=0)
    for finding in report.findings:
        about = meaning(finding.id)
        yield f"  {finding.verdict:<8}  {finding.id:<{width}}  {about.title}: {shown(finding.detail)}"
        indent = " " * (width + 14)
        if finding.verdict != "ok" or verbose:
            yield f"{indent}why: {about.why}"
        if finding.verdict != "ok":
            yield f"{indent}do:  {about.todo}"
    counts = {verdict: sum(one.verdict == verdict for one in report.findings) for verdict in CODES}
    yield ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
