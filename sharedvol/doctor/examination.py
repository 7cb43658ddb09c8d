"""The examination of a directory: it runs every experiment within a time limit and leaves nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final

from sharedvol.doctor.experiments import locks, mount, names_and_clocks, publishing, sharing
from sharedvol.doctor.experiments.testbed import NO_ROOM, Experiment, TestBed
from sharedvol.doctor.report import Finding, Report, Result, degraded, ok, unknown, unsafe
from sharedvol.doctor.side import PATIENCE, Gone, Hung, Local, Process, do
from sharedvol.errors import SharedVolError, describe
from sharedvol.text import shown

Progress = Callable[[str], None]
"""A function that gets the id of the next experiment."""

EXPERIMENTS: Final = (
    *names_and_clocks.EXPERIMENTS,
    *locks.EXPERIMENTS,
    *publishing.EXPERIMENTS,
    *sharing.EXPERIMENTS,
)
BETWEEN: Final = tuple(experiment for experiment in EXPERIMENTS if experiment.between)

_MOST_HANGS: Final = 3


class DoctorError(SharedVolError):
    """The directory cannot be examined."""


class Room:
    """The doctor's own directory in the examined directory. Use it in a ``with`` statement.

    Args:
        directory: the examined directory.
        patience: seconds that a step may take.
        open_to_all: give the room the mode of the directory, for a peer.
    """

    def __init__(self, directory: str, patience: float, open_to_all: bool = False) -> None:
        self.directory, self.patience = directory, patience
        self.warden = Process("warden", patience)
        self.name: str | None = None
        self.refused: OSError | None = None
        try:
            self.facts: dict[str, Any] = do(self.warden, "inspect", path=directory)
            self.name = do(self.warden, "make", open_to_all=open_to_all)
        except OSError as error:
            if not hasattr(self, "facts"):
                self.warden.leave()
                raise
            self.refused = error
        except (Hung, Gone) as error:
            raise DoctorError(
                f"cannot examine {directory!r}: its file system hangs: {error}; check its server or disk"
            ) from error

    def side(self, path: str | None = None) -> Local:
        """Return a new side in the room, which it may reach by another path."""
        assert self.name is not None
        return Local(path or self.directory, self.name, self.patience)

    def tidy(self) -> None:
        """Remove the files of an experiment, because the volume may be nearly full."""
        do(self.warden, "sweep")

    def __enter__(self) -> Room:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.warden.leave()


def examine(
    directory: str,
    *,
    through: str | None = None,
    patience: float = PATIENCE,
    progress: Progress = lambda id: None,
) -> Report:
    """Test by experiments between processes whether a mounted directory is safe to share.

    The experiments run in a hidden directory, which is removed at the end.

    Args:
        directory: the volume, or a directory in it.
        through: another path to the same directory, on another mount.
        patience: seconds that a step may take before the file system counts as hanging.
        progress: gets the id of the next experiment.

    Raises:
        OSError: the directory is missing, is not a directory, or cannot be read.
        DoctorError: the file system does not answer.
    """
    with Room(directory, patience) as room:
        findings = list(_survey(room, progress))
        if room.name is None:
            why = unknown(f"not tried, because the directory is not writable: {describe(room.refused or OSError())}")
            findings += [Finding(experiment.id, *why) for experiment in EXPERIMENTS]
        else:
            findings += _experiments(room, through, progress)
        return Report(directory, tuple(findings))


def _survey(room: Room, progress: Progress) -> Iterator[Finding]:
    """Yield the findings that need no room."""
    progress("mount")
    facts = room.facts
    yield Finding("mount.type", *mount.kind(facts))
    yield Finding("mount.writable", *mount.writable(facts))
    try:
        space, survey, who = (do(room.warden, step) for step in ("space", "survey", "who"))
    except (Hung, Gone, OSError) as error:
        yield Finding("mount.subdirectories", *unknown(f"cannot be read: {_reason(error)}"))
        return
    yield Finding("mount.subdirectories", *mount.subdirectories(survey))
    yield Finding("owner.write", *_may_write(room, who))
    yield Finding("owner.directory", *mount.directory(facts, who))
    yield Finding("owner.foreign", *mount.foreign(survey, who))
    yield Finding("space.bytes", *mount.free_bytes(space))
    yield Finding("space.inodes", *mount.free_inodes(space))


def _may_write(room: Room, who: dict[str, Any]) -> Result:
    if room.refused is None:
        return ok(f"UID {who['uid']} may")
    return degraded(f"UID {who['uid']} cannot make a directory: {describe(room.refused)}")


def _experiments(room: Room, through: str | None, progress: Progress) -> Iterator[Finding]:
    bed = TestBed(room.side(), room.side(), room.tidy)
    findings = list(run(bed, EXPERIMENTS, progress))
    yield from findings
    if through is not None:
        beyond = TestBed(bed.a, room.side(through), room.tidy, numbers=bed.numbers)
        yield from _through(beyond, progress)
    for side in (bed.a, bed.b):
        side.kill()
    # A free lock proves that its holder is dead only if locks work.
    believe = all(one.verdict == "ok" for one in findings if one.id in ("locks.flock", "locks.kill"))
    with contextlib.suppress(Hung, Gone, OSError):  # the next run tries again
        do(room.warden, "clean", believe=believe)


def _through(bed: TestBed, progress: Progress) -> Iterator[Finding]:
    try:
        name = bed.made(bed.a, "mark")
        same = bed.content(bed.b, name) == "mark"
    except (Hung, Gone, OSError) as error:
        yield Finding("through.same", *unknown(f"the other path does not show the same directory: {_reason(error)}"))
        return
    if not same:
        yield Finding("through.same", *unsafe("a file has other content at the other path"))
        return
    yield Finding("through.same", *ok("it is"))
    yield from run(bed, BETWEEN, progress, "through.")
    bed.b.kill()


def run(bed: TestBed, experiments: Sequence[Experiment], progress: Progress, where: str = "") -> Iterator[Finding]:
    """Run experiments one after the other.

    Args:
        bed: where they run.
        experiments: the experiments.
        progress: gets the id of the next experiment.
        where: the prefix of the ids.
    """
    hangs = 0
    for experiment in experiments:
        id = experiment.id if experiment.id.startswith("peer.") else where + experiment.id
        progress(id)
        if hangs >= _MOST_HANGS:
            yield Finding(id, *unknown("not tried, because too many earlier steps did not finish"))
            continue
        try:
            result = experiment.make(bed)
            for side in (bed.a, bed.b):
                side.rest()
            bed.tidy()
        except Hung as error:
            hangs += 1
            result = unsafe(f"the file system hangs: {error}")
        except Gone as error:
            result = unknown(str(error))
        except OSError as error:
            full = error.errno in NO_ROOM
            result = (unknown if full else degraded)(
                f"{'could not be tried' if full else 'refused'}: {describe(error)}"
            )
        else:
            yield Finding(id, *result)
            continue
        _restart(bed)
        yield Finding(id, *result)


def _restart(bed: TestBed) -> None:
    """Replace both processes after a failure, because they may still be running a step."""
    with contextlib.suppress(Hung, Gone, OSError):
        for side in (bed.a, bed.b):
            side.kill()
        bed.tidy()


def _reason(error: Exception) -> str:
    return describe(error) if isinstance(error, OSError) else shown(str(error))
