"""Experiments with the steps of publishing: links, renames, unnamed files, syncs, and what other processes see."""

from __future__ import annotations

import errno

from sharedvol.doctor.experiments.testbed import Experiment, TestBed, each_way
from sharedvol.doctor.report import Result, degraded, ok, unsafe
from sharedvol.doctor.side import Side, do, number, record
from sharedvol.errors import describe

_RACES = 100
_RENAMES = 100  # at most
_SIZE = 5000
_SECONDS = 2.0
_UNSUPPORTED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EISDIR, errno.ENOENT)


def link(bed: TestBed) -> Result:
    """Test whether creating a link fails if the name is taken, even if two processes race for it."""
    first, second, target = bed.made(bed.a, "first"), bed.made(bed.b, "second"), bed.name()
    try:
        do(bed.a, "link", source=first, target=target)
    except OSError as error:
        return degraded(f"no hard links: {describe(error)}; publish needs replace=True")
    try:
        do(bed.b, "link", source=second, target=target)
    except OSError as error:
        if error.errno != errno.EEXIST:
            return degraded(f"link to a taken name fails with {describe(error)} instead of EEXIST")
    else:
        return unsafe("link to a taken name succeeded: a result would be overwritten")
    if bed.content(bed.a, target) != "first":
        return unsafe("link was refused, but changed the file")
    return _race(bed, first, second)


def _race(bed: TestBed, first: str, second: str) -> Result:
    done = bed.at_once(
        ("link_race", {"name": first, "times": _RACES}), ("link_race", {"name": second, "times": _RACES})
    )
    won = [_numbers(one) for one in done]
    if won[0] & won[1]:
        return unsafe(f"in {len(won[0] & won[1])} of {_RACES} races for a name both processes won")
    if len(won[0] | won[1]) < _RACES:
        return degraded("in some races for a name neither process won")
    return ok(f"EEXIST, and one winner in each of {_RACES} races")


def _numbers(value: object) -> set[int]:
    return {number(one) for one in value[:_RACES]} if isinstance(value, list) else set()


def rename(bed: TestBed) -> Result:
    """Test whether a process that opens a name while it is replaced finds the old or the new file."""
    name = bed.made(bed.a, "a")
    _, saw = bed.at_once(
        ("replace", {"name": name, "times": _RENAMES, "size": _SIZE}),
        ("see_replaced", {"name": name, "seconds": _SECONDS}),
    )
    seen = record(saw, "reads", "missing", "torn", "end")
    if seen["missing"]:
        return unsafe(f"the name was missing in {seen['missing']} of {seen['reads']} reads while it was replaced")
    if seen["torn"]:
        return unsafe(f"{seen['torn']} of {seen['reads']} reads found a half-written or mixed file")
    if not seen["end"]:
        return degraded(f"{_SECONDS:g} s after the last replacement an older file was still read")
    return ok(f"{seen['reads']} reads while it was replaced found a whole file")


def noreplace(bed: TestBed) -> Result:
    """Test RENAME_NOREPLACE, see rename(2)."""
    first, second, free = bed.made(bed.a, "first"), bed.made(bed.b, "second"), bed.name()
    try:
        do(bed.a, "rename_new", source=first, target=free)
    except OSError as error:
        return degraded(f"not supported: {describe(error)}; link and unlink are used instead")
    try:
        do(bed.b, "rename_new", source=second, target=free)
    except OSError as error:
        if error.errno != errno.EEXIST:
            return degraded(f"rename to a taken name fails with {describe(error)} instead of EEXIST")
    else:
        return unsafe("RENAME_NOREPLACE replaced a file: two claims of one name would lose a file")
    return ok("EEXIST if the name is taken")


def unnamed(bed: TestBed) -> Result:
    """Test O_TMPFILE, see open(2), and linkat(2) to give the file a name."""
    name = bed.name()
    try:
        handle = number(do(bed.a, "unnamed"))
        do(bed.a, "write", file=handle, text="whole")
        do(bed.a, "set_mode", file=handle, mode=0o666)
        do(bed.a, "give_name", file=handle, name=name)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return degraded(f"not supported: {describe(error)}; a hidden name is used instead")
    if bed.content(bed.b, name) != "whole":
        return unsafe("the file lost its content when it got its name")
    return ok("created, written and named")


def visible(bed: TestBed) -> Result:
    """Test whether a file that one side wrote and closed is at once visible to the other, listed and by name."""
    for turn in range(5):
        name, target, content = bed.name(), bed.name(), f"version {turn}"
        if _exists(bed.b, target):  # this lookup may be cached
            return unsafe("a file existed before it was created")
        handle = number(do(bed.a, "open", name=name, how="create"))
        do(bed.a, "write", file=handle, text=content)
        do(bed.a, "close", file=handle)
        do(bed.a, "rename", source=name, target=target)
        if not _exists(bed.b, target):
            return unsafe("a file that was renamed into place was not found by another process")
        listed = do(bed.b, "names")
        if not isinstance(listed, list) or target not in listed:
            return unsafe("a file that was renamed into place was missing in another process's listing")
        read = bed.content(bed.b, target)
        if read != content:
            return unsafe("another process read other content than was written")
    return ok("found, listed and read at once")


def _exists(side: Side, name: str) -> bool:
    try:
        do(side, "look", name=name)
    except FileNotFoundError:
        return False
    return True


def sync_file(bed: TestBed) -> Result:
    """Test fsync of a file, see fsync(2). Only a power cut would show whether the disk keeps its promise."""
    handle = number(do(bed.a, "open", name=bed.name(), how="create"))
    do(bed.a, "write", file=handle, text="content")
    try:
        do(bed.a, "sync", file=handle)
    except OSError as error:
        return unsafe(f"fsync fails: {describe(error)}: written data may never reach the disk")
    return ok("succeeds")


def sync_directory(bed: TestBed) -> Result:
    """Test fsync of the directory that holds a new name, see fsync(2)."""
    bed.made(bed.a, "content")
    try:
        do(bed.a, "sync_room")
    except OSError as error:
        return unsafe(f"fsync fails: {describe(error)}: a published name may be lost in a power cut")
    return ok("succeeds")


EXPERIMENTS = (
    Experiment("publish.link", link),
    Experiment("publish.rename", rename),
    Experiment("publish.noreplace", each_way(noreplace)),
    Experiment("publish.unnamed", unnamed),
    Experiment("publish.visible", each_way(visible)),
    Experiment("durable.file", sync_file, between=False),
    Experiment("durable.directory", sync_directory, between=False),
)
