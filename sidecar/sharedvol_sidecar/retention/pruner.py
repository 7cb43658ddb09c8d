"""Remove collected files by age and by size, by rules for each kind; only what the catalog knows.

Rules of time. A file's age is counted from when it was collected. A time in the future counts as now: by age
such a file stays, by size it is the newest. So a clock that was set back, or that was ahead when a file was
collected, makes files stay longer and never go earlier. A clock that runs ahead now cannot be told from a
destination that nobody used for so long: look at the dry run first.

For each file, in this order: look that it is still what its row says, unlink it, sync its directory, remove
the directories that became empty, forget the row. The row goes last: a kill at any point leaves a row without
a file, at worst, and by that row the next run finds what is left to do.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from sharedvol.arguments import parse_size
from sharedvol.errors import describe
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Filters, Row, clamped
from sharedvol_sidecar.catalog.encoding import key
from sharedvol_sidecar.catalog.files import CollectedFiles, is_plain
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.humanize import parse_duration, size
from sharedvol_sidecar.retention.cutoff import Cutoff, cutoff

_BATCH = 100
_MOST_PENDING = 10_000  # rows without a file: the next run finds them
_EXAMPLE = "say results=90d, logs=20G or logs=14d,20G"

DELETED, GONE, LEFT, REFUSED, FAILED = "deleted", "gone", "left", "refused", "failed"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is kept of a kind; None is no limit.

    Attributes:
        kind: of which files.
        age_ns: nanoseconds since they were collected, at most.
        size: bytes of all together, at most.
    """

    kind: str
    age_ns: int | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Expired:
    """A file that a rule does not keep, and why."""

    row: Row
    why: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What became of it.

    Attributes:
        outcome: ``deleted``; ``gone``: the file was not there any more, its row went; ``left``: it is not what the
            row says, file and row stay; ``refused``: no file was ever collected to such a path; ``failed``.
        expired: the file.
        detail: why, where it was not deleted.
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
        """Count one more."""
        setattr(self, pruned.outcome, getattr(self, pruned.outcome) + 1)
        if pruned.outcome == DELETED:
            self.bytes += pruned.expired.row.size

    @property
    def good(self) -> bool:
        """Whether everything went that was to go."""
        return not (self.left or self.refused or self.failed)

    def as_dict(self) -> dict[str, int]:
        """The summary's JSON."""
        return asdict(self)


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Rules as people write them: ``results=90d``, ``logs=14d,20G``.

    Raises:
        ConfigError: what is wrong with which one.
    """
    rules: dict[str, Rule] = {}
    for text in texts:
        rule = _parse_rule(text)
        if rule.kind in rules:
            raise ConfigError(f"rule {text!r}: there are two for {rule.kind!r}; {_EXAMPLE}")
        rules[rule.kind] = rule
    return tuple(rules.values())


def _parse_rule(text: str) -> Rule:
    kind, equals, limits = text.partition("=")
    kind = kind.strip()
    if not equals or not kind:
        raise ConfigError(f"rule {text!r} names no kind: {_EXAMPLE}")
    age: int | None = None
    size: int | None = None
    for limit in (part.strip() for part in limits.split(",")):
        as_age = parse_duration(limit)
        as_size = parse_size(limit) if as_age is None else None
        # A bare number could be days or bytes, and a wrong guess deletes.
        if (as_age is None and as_size is None) or limit.isdecimal():
            raise ConfigError(
                f"rule {text!r}: {limit!r} is neither an age (s, m, h, d, w) nor a size (B, K, M, G, T): {_EXAMPLE}"
            )
        if (as_age is not None and age is not None) or (as_size is not None and size is not None):
            raise ConfigError(f"rule {text!r} has two limits of one sort: {_EXAMPLE}")
        age, size = (as_age, size) if as_age is not None else (age, as_size)
    return Rule(kind, age, size)


def plan(catalog: Catalog, rules: Iterable[Rule], now_ns: int) -> Iterator[Expired]:
    """What the rules do not keep, oldest first, in bounded memory. Nothing is changed.

    Args:
        catalog: the rows.
        rules: one for each kind; of other kinds everything is kept.
        now_ns: nanoseconds since 1970 (UTC).

    Raises:
        CatalogError: the catalog cannot be read.
    """
    return itertools.chain.from_iterable(plan_in_steps(catalog, rules, now_ns))


def plan_in_steps(catalog: Catalog, rules: Iterable[Rule], now_ns: int) -> Iterator[list[Expired]]:
    """The same as `plan`, in short lists: an empty one where a step finds nothing. No step takes long.

    Raises:
        CatalogError: the catalog cannot be read.
    """
    kinds: list[Iterator[Expired]] = []
    for rule in rules:
        last: Cutoff | None = None
        if rule.size is not None:
            last = yield from cutoff(catalog, rule.kind, rule.size)
        kinds.append(_of_kind(catalog, rule, last, now_ns))
    doomed = heapq.merge(*kinds, key=lambda one: one.row.collected_at)
    while batch := list(itertools.islice(doomed, _BATCH)):
        yield batch


def _of_kind(catalog: Catalog, rule: Rule, last: Cutoff | None, now_ns: int) -> Iterator[Expired]:
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
    catalog: Catalog, root: Directory, doomed: Iterable[Expired], tell: Callable[[Pruned], None] = lambda pruned: None
) -> Counts:
    """Delete what a plan names, as far as it is still what the catalog says.

    Args:
        catalog: the rows.
        root: the destination's root.
        doomed: from `plan`.
        tell: told of each file when it, and its row, are dealt with.

    Raises:
        CatalogError: the catalog failed. Rows of files that are gone may be left: the next run mends that.
    """
    counts = Counts()
    doomed = iter(doomed)
    for outcomes in apply_in_steps(catalog, root, iter(lambda: list(itertools.islice(doomed, _BATCH)), [])):
        for pruned in outcomes:
            counts.add(pruned)
            tell(pruned)
    return counts


def apply_in_steps(catalog: Catalog, root: Directory, steps: Iterable[list[Expired]]) -> Iterator[list[Pruned]]:
    """The same as `apply` for each list of `plan_in_steps`; what became of its files.

    Raises:
        CatalogError: the catalog failed, as with `apply`.
    """
    pending: list[Row] = []
    problem: CatalogError | None = None
    for doomed in steps:
        outcomes = unlink(root, doomed)
        # Exactly these rows: a file that was collected meanwhile under such a name keeps its own.
        pending += forgettable(outcomes)
        try:
            catalog.forget(pending)
        except CatalogError as error:
            if not error.full or len(pending) > _MOST_PENDING:
                raise
            problem = error.with_traceback(None)  # more room may be all that it needs, and the next files make some
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
    tell: Callable[[Pruned], None] = lambda pruned: None,
) -> Counts:
    """`plan` and `apply`: what a service calls from time to time. Several may at once.

    Raises:
        CatalogError: the catalog failed; call it again later.
    """
    return apply(catalog, root, plan(catalog, rules, now_ns), tell)


def unlink(root: Directory, batch: Sequence[Expired]) -> list[Pruned]:
    """Delete files durably, and the directories that become empty. Their rows stay: see `forgettable`."""
    tree = CollectedFiles(root)  # anew: directories may have been moved away since
    emptied: dict[str, None] = {}
    outcomes = [_delete(tree, doomed, emptied) for doomed in batch]
    problem = _settle(root, emptied)
    if problem:  # the names may come back after a power cut: so the rows stay
        outcomes = [
            Pruned(FAILED, pruned.expired, problem) if pruned.outcome in (DELETED, GONE) else pruned
            for pruned in outcomes
        ]
    return outcomes


def forgettable(outcomes: Iterable[Pruned]) -> list[Row]:
    """The rows whose files do not exist any more."""
    return [pruned.expired.row for pruned in outcomes if pruned.outcome in (DELETED, GONE)]


def _delete(tree: CollectedFiles, doomed: Expired, emptied: dict[str, None]) -> Pruned:
    row = doomed.row
    if not is_plain(row.path):
        return Pruned(REFUSED, doomed, "no file was ever collected to such a path: look who writes the catalog")
    try:
        found = tree.find(row.path)
        if found is not None:
            if not stat.S_ISREG(found.info.st_mode):
                return Pruned(LEFT, doomed, "it is no regular file")
            if (found.info.st_size, clamped(found.info.st_mtime_ns)) != (row.size, row.mtime_ns):
                return Pruned(LEFT, doomed, "it was changed since it was collected; `verify` tells more")
            os.unlink(found.name, dir_fd=found.directory.fd)
    except FileNotFoundError:
        found = None
    except OSError as error:
        return Pruned(LEFT if error.errno == errno.ELOOP else FAILED, doomed, describe(error))
    emptied[row.path.rpartition("/")[0]] = None
    return Pruned(DELETED, doomed) if found else Pruned(GONE, doomed, "the file was not there any more")


def _settle(root: Directory, touched: Iterable[str]) -> str:
    """Make what was unlinked durable, and remove the directories that are empty now; what failed, or nothing."""
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
            # rmdir(2) refuses what is not empty; where a sidecar is about to use it, that tries again.
            os.rmdir(name, dir_fd=parent.fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                pass  # removed already, perhaps by a run that was killed before it came to those above
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
