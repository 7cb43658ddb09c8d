"""The whole examination of one directory: every experiment, each bounded in time, nothing left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final

from sharedvol.doctor.experiments import locks, publishing
from sharedvol.doctor.experiments import mount as place
from sharedvol.doctor.experiments import names_and_clocks as facts
from sharedvol.doctor.experiments import sharing as content
from sharedvol.doctor.experiments.testbed import NO_ROOM, Experiment, TestBed
from sharedvol.doctor.report import Finding, Report, Result, degraded, ok, unknown, unsafe
from sharedvol.doctor.side import PATIENCE, Gone, Hung, Local, Process, do
from sharedvol.errors import SharedVolError, describe
from sharedvol.text import shown

Progress = Callable[[str], None]
"""Told the id of what is tried next."""

EXPERIMENTS: Final = (
    *facts.EXPERIMENTS,
    *locks.EXPERIMENTS,
    *publishing.EXPERIMENTS,
    *content.EXPERIMENTS,
)
BETWEEN: Final = tuple(experiment for experiment in EXPERIMENTS if experiment.between)

_MOST_HANGS: Final = 3


class DoctorError(SharedVolError):
    """The directory cannot be examined at all."""


class Room:
    """A directory of the doctor's own in the one that is examined; use it in a ``with``.

    Args:
        directory: that is examined.
        patience: seconds that a step may take.
        open_to_all: let in whoever may use the directory, for a peer.
    """

    def __init__(self, directory: str, patience: float, open_to_all: bool = False) -> None:
        self.directory, self.patience = directory, patience
        self.warden = Process("warden", patience)
        self.name: str | None = None
        self.refused: OSError | None = None
        try:
            self.place: dict[str, Any] = do(self.warden, "look", path=directory)
            self.name = do(self.warden, "make", open_to_all=open_to_all)
        except OSError as error:
            if not hasattr(self, "place"):
                self.warden.leave()
                raise
            self.refused = error
        except (Hung, Gone) as error:
            raise DoctorError(
                f"cannot examine {directory!r}: its file system hangs: {error}; look after its server or disk"
            ) from error

    def side(self, path: str | None = None) -> Local:
        """A new side in the room, which it may see by another path."""
        assert self.name is not None
        return Local(path or self.directory, self.name, self.patience)

    def tidy(self) -> None:
        """Remove what an experiment made: a volume may be nearly full."""
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
    """Find out by experiment between processes what a mounted directory can be trusted with.

    Everything is done in a hidden directory of its own, which is removed at the end.

    Args:
        directory: the volume, or a directory of it.
        through: another path to the same directory, on another mount.
        patience: seconds that a step may take before the file system counts as hanging.
        progress: told what is tried next.

    Raises:
        OSError: the directory is missing, is none, or cannot be read.
        DoctorError: not even looking at it comes back.
    """
    with Room(directory, patience) as room:
        findings = list(_looked_at(room, progress))
        if room.name is None:
            why = unknown(f"not tried: nothing can be written here: {describe(room.refused or OSError())}")
            findings += [Finding(experiment.id, *why) for experiment in EXPERIMENTS]
        else:
            findings += _experiments(room, through, progress)
        return Report(directory, tuple(findings))


def _looked_at(room: Room, progress: Progress) -> Iterator[Finding]:
    """What needs no room."""
    progress("mount")
    seen = room.place
    yield Finding("mount.type", *place.kind(seen))
    yield Finding("mount.writable", *place.writable(seen))
    try:
        space, survey, who = (do(room.warden, step) for step in ("space", "survey", "who"))
    except (Hung, Gone, OSError) as error:
        yield Finding("mount.subdirectories", *unknown(f"cannot be looked at: {_words(error)}"))
        return
    yield Finding("mount.subdirectories", *place.subdirectories(survey))
    yield Finding("owner.write", *_may_write(room, who))
    yield Finding("owner.directory", *place.directory(seen, who))
    yield Finding("owner.foreign", *place.foreign(survey, who))
    yield Finding("space.bytes", *place.free_bytes(space))
    yield Finding("space.inodes", *place.free_inodes(space))


def _may_write(room: Room, who: dict[str, Any]) -> Result:
    if room.refused is None:
        return ok(f"UID {who['uid']} may")
    return degraded(f"UID {who['uid']} cannot make a directory: {describe(room.refused)}")


def _experiments(room: Room, through: str | None, progress: Progress) -> Iterator[Finding]:
    bench = TestBed(room.side(), room.side(), room.tidy)
    findings = list(run(bench, EXPERIMENTS, progress))
    yield from findings
    if through is not None:
        beyond = TestBed(bench.a, room.side(through), room.tidy, numbers=bench.numbers)
        yield from _through(beyond, progress)
    for side in (bench.a, bench.b):
        side.kill()
    # A free lock means a dead holder only where locks do what they should.
    believe = all(one.verdict == "ok" for one in findings if one.id in ("locks.flock", "locks.kill"))
    with contextlib.suppress(Hung, Gone, OSError):  # it is the next run's, then
        do(room.warden, "clean", believe=believe)


def _through(bench: TestBed, progress: Progress) -> Iterator[Finding]:
    try:
        name = bench.made(bench.a, "mark")
        same = bench.content(bench.b, name) == "mark"
    except (Hung, Gone, OSError) as error:
        yield Finding("through.same", *unknown(f"the other path does not show the same directory: {_words(error)}"))
        return
    if not same:
        yield Finding("through.same", *unsafe("a file there has other content than here"))
        return
    yield Finding("through.same", *ok("it is"))
    yield from run(bench, BETWEEN, progress, "through.")
    bench.b.kill()


def run(bench: TestBed, experiments: Sequence[Experiment], progress: Progress, where: str = "") -> Iterator[Finding]:
    """Make experiments one after the other.

    Args:
        bench: where.
        experiments: which.
        progress: told what is tried next.
        where: what the ids begin with.
    """
    hangs = 0
    for experiment in experiments:
        id = experiment.id if experiment.id.startswith("peer.") else where + experiment.id
        progress(id)
        if hangs >= _MOST_HANGS:
            yield Finding(id, *unknown("not tried: too many steps before did not come back"))
            continue
        try:
            result = experiment.make(bench)
            for side in (bench.a, bench.b):
                side.rest()
            bench.tidy()
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
        _replace(bench)
        yield Finding(id, *result)


def _replace(bench: TestBed) -> None:
    """New processes after trouble: the old ones may be in the middle of anything."""
    with contextlib.suppress(Hung, Gone, OSError):
        for side in (bench.a, bench.b):
            side.kill()
        bench.tidy()


def _words(error: Exception) -> str:
    return describe(error) if isinstance(error, OSError) else shown(str(error))
