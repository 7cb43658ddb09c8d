"""Delete collected files that no retention rule keeps. Only files in the catalog are deleted.

A file's age counts from when it was collected. A time in the future counts as now: such a file is never too old, and
it is the newest when sizes are counted. So a clock that was set back, or that was ahead when a file was collected,
keeps files longer and never deletes them earlier. A clock that is ahead now looks the same as a destination that was
not used for so long: read the dry run first.

For each file, in this order: check that it is what its row says, unlink it, sync its directory, remove the directories
that became empty, delete the row. The row is last, so a kill at any point leaves at worst a row without a file. The
next run finds that row and continues from there.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from sharedvol.errors import describe
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Filters, Row, clamped
from sharedvol_sidecar.catalog.encoding import key
from sharedvol_sidecar.catalog.files import CollectedFiles, is_plain
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.humanize import size
from sharedvol_sidecar.retention.cutoff import Cutoff, cutoff
from sharedvol_sidecar.retention.rules import Rule

_BATCH = 100
_MOST_PENDING = 10_000  # rows without a file: the next run finds them

DELETED, GONE, LEFT, REFUSED, FAILED = "deleted", "gone", "left", "refused", "failed"


@dataclass(frozen=True, slots=True)
class Expired:
    """A file that a rule does not keep, and why."""

    row: Row
    why: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """The outcome for one expired file.

    Attributes:
        outcome: ``deleted``; ``gone``: the file did not exist, and its row was deleted; ``left``: the file is not what
            its row says, and both stay; ``refused``: no file was ever collected to such a path; ``failed``.
        expired: the file.
        detail: why it was not deleted.
    """

    outcome: str
    expired: Expired
    detail: str = ""


@dataclass(slots=True)
class Counts:
    """Counts of one pruning, by outcome; ``bytes`` of the deleted files."""

    deleted: int = 0
    bytes: int = 0
    gone: int = 0
    left: int = 0
    refused: int = 0
    failed: int = 0

    def add(self, pruned: Pruned) -> None:
        """Count one file."""
        setattr(self, pruned.outcome, getattr(self, pruned.outcome) + 1)
        if pruned.outcome == DELETED:
            self.bytes += pruned.expired.row.size

    @property
    def good(self) -> bool:
        """Return whether every expired file is deleted."""
        return not (self.left or self.refused or self.failed)

    def as_dict(self) -> dict[str, int]:
        """Return the summary for JSON."""
        return asdict(self)


def plan(catalog: Catalog, rules: Iterable[Rule], now_ns: int) -> Iterator[Expired]:
    """Yield the files that the rules do not keep, oldest first, in bounded memory. Change nothing.

    Args:
        catalog: the rows.
        rules: one for each kind. Every file of another kind is kept.
        now_ns: nanoseconds since 1970 (UTC).

    Raises:
        CatalogError: the catalog cannot be read.
    """
    return itertools.chain.from_iterable(plan_in_steps(catalog, rules, now_ns))


def plan_in_steps(catalog: Catalog, rules: Iterable[Rule], now_ns: int) -> Iterator[list[Expired]]:
    """Yield the files of `plan` in short lists, so that no step takes long. A list may be empty.

    Raises:
        CatalogError: the catalog cannot be read.
    """
    kinds: list[Iterator[Expired]] = []
    for rule in rules:
        last: Cutoff | None = None
        if rule.size is not None:
            last = yield from cutoff(catalog, rule.kind, rule.size)
        kinds.append(_expired_of_kind(catalog, rule, last, now_ns))
    expired = heapq.merge(*kinds, key=lambda one: one.row.collected_at)
    while batch := list(itertools.islice(expired, _BATCH)):
        yield batch


def _expired_of_kind(catalog: Catalog, rule: Rule, last: Cutoff | None, now_ns: int) -> Iterator[Expired]:
    oldest_kept = None if rule.age_ns is None else now_ns - rule.age_ns
    bounds = [bound for bound in (oldest_kept, None if last is None else last[0] + 1) if bound is not None]
    if not bounds:
        return
    for row in catalog.rows(Filters(kind=rule.kind, until=max(bounds))):
        age = now_ns - row.collected_at
        if rule.age_ns is not None and age > rule.age_ns:
            yield Expired(row, f"collected {_days(age)} ago, more than {_days(rule.age_ns)}")
        elif rule.size is not None and last is not None and (row.collected_at, key(row.path)) <= last:
            yield Expired(row, f"the oldest of more than {size(rule.size)} of {rule.kind}")


def apply(
    catalog: Catalog,
    root: Directory,
    planned: Iterable[Expired],
    report: Callable[[Pruned], None] = lambda pruned: None,
) -> Counts:
    """Delete the planned files that are still what the catalog says.

    Args:
        catalog: the rows.
        root: the destination's root.
        planned: from `plan`.
        report: called for each file after its row was dealt with.

    Raises:
        CatalogError: the catalog failed. Rows of deleted files may be left, which the next run removes.
    """
    counts = Counts()
    planned = iter(planned)
    for outcomes in apply_in_steps(catalog, root, iter(lambda: list(itertools.islice(planned, _BATCH)), [])):
        for pruned in outcomes:
            counts.add(pruned)
            report(pruned)
    return counts


def apply_in_steps(catalog: Catalog, root: Directory, steps: Iterable[list[Expired]]) -> Iterator[list[Pruned]]:
    """Do what `apply` does for each list of `plan_in_steps`, and yield the outcomes of its files.

    Raises:
        CatalogError: as for `apply`.
    """
    pending: list[Row] = []
    problem: CatalogError | None = None
    for planned in steps:
        outcomes = unlink(root, planned)
        # Exactly these rows: a file that was collected meanwhile under such a name keeps its own.
        pending += forgettable(outcomes)
        try:
            catalog.forget(pending)
        except CatalogError as error:
            if not error.full or len(pending) > _MOST_PENDING:
                raise
            problem = error.with_traceback(None)  # deleting the next files may make the room that the catalog needs
        else:
            pending, problem = [], None
        yield outcomes
    if problem is not None:
        raise problem


def prune(
    catalog: Catalog,
    root: Directory,
    rules: Sequence[Rule],
    now_ns: int,
    report: Callable[[Pruned], None] = lambda pruned: None,
) -> Counts:
    """Run `plan` and `apply`. Several processes may do so at once.

    Raises:
        CatalogError: the catalog failed. Call it again later.
    """
    return apply(catalog, root, plan(catalog, rules, now_ns), report)


def unlink(root: Directory, batch: Sequence[Expired]) -> list[Pruned]:
    """Delete files durably, and the directories that become empty. Keep their rows: see `forgettable`."""
    files = CollectedFiles(root)  # a new one, because directories may have been moved away since the last batch
    emptied: dict[str, None] = {}
    outcomes = [_delete(files, expired, emptied) for expired in batch]
    problem = _remove_empty(root, emptied)
    if problem:  # a power cut may bring the names back, so the rows stay
        outcomes = [
            Pruned(FAILED, pruned.expired, problem) if pruned.outcome in (DELETED, GONE) else pruned
            for pruned in outcomes
        ]
    return outcomes


def forgettable(outcomes: Iterable[Pruned]) -> list[Row]:
    """Return the rows whose files no longer exist."""
    return [pruned.expired.row for pruned in outcomes if pruned.outcome in (DELETED, GONE)]


def _delete(files: CollectedFiles, expired: Expired, emptied: dict[str, None]) -> Pruned:
    row = expired.row
    if not is_plain(row.path):
        return Pruned(REFUSED, expired, "no file was ever collected to such a path: check what writes the catalog")
    try:
        found = files.find(row.path)
        if found is not None:
            if not stat.S_ISREG(found.info.st_mode):
                return Pruned(LEFT, expired, "it is not a regular file")
            if (found.info.st_size, clamped(found.info.st_mtime_ns)) != (row.size, row.mtime_ns):
                return Pruned(LEFT, expired, "it was changed since it was collected: run `verify` for details")
            os.unlink(found.name, dir_fd=found.directory.fd)
    except FileNotFoundError:
        found = None
    except OSError as error:
        return Pruned(LEFT if error.errno == errno.ELOOP else FAILED, expired, describe(error))
    emptied[row.path.rpartition("/")[0]] = None
    return Pruned(DELETED, expired) if found else Pruned(GONE, expired, "the file did not exist any more")


def _remove_empty(root: Directory, touched: Iterable[str]) -> str:
    """Make unlinked names durable and remove the directories that are empty now. Return what failed, or nothing."""
    paths = set(touched)
    while paths:
        path = max(paths, key=lambda path: (path.count("/"), len(path)))
        paths.remove(path)
        above, _, name = path.rpartition("/")
        try:
            CollectedFiles(root).directory(path).sync()
            if not path:
                continue
            parent = CollectedFiles(root).directory(above)
            # rmdir(2) refuses a directory that is not empty. A sidecar that is about to use it makes it again.
            os.rmdir(name, dir_fd=parent.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                pass  # removed before, perhaps by a run that was killed before it reached the parents
            elif error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.EPERM, errno.EACCES):
                continue
            else:
                return f"cannot sync {path or '.'!r}: {describe(error)}"
        if path:
            paths.add(above)
    return ""


def _days(nanoseconds: int) -> str:
    seconds = nanoseconds / 1e9
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
