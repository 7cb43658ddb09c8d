"""Experiments with what makes a file appear: links, renames, nameless files, syncs; and how others see it."""

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


def link(bench: TestBed) -> Result:
    """link(2) fails where the name is taken, also where two race for it."""
    first, second, target = bench.made(bench.a, "first"), bench.made(bench.b, "second"), bench.name()
    try:
        do(bench.a, "link", source=first, target=target)
    except OSError as error:
        return degraded(f"no hard links: {describe(error)}; publish needs replace=True then")
    try:
        do(bench.b, "link", source=second, target=target)
    except OSError as error:
        if error.errno != errno.EEXIST:
            return degraded(f"a taken name is told by {describe(error)} instead of EEXIST")
    else:
        return unsafe("a link to a name that was taken succeeded: a result would be overwritten")
    if bench.content(bench.a, target) != "first":
        return unsafe("a refused link changed the file all the same")
    return _race(bench, first, second)


def _race(bench: TestBed, first: str, second: str) -> Result:
    done = bench.at_once(
        ("link_race", {"name": first, "times": _RACES}), ("link_race", {"name": second, "times": _RACES})
    )
    won = [_numbers(one) for one in done]
    if won[0] & won[1]:
        return unsafe(f"{len(won[0] & won[1])} of {_RACES} names were given to both of two that raced for them")
    if len(won[0] | won[1]) < _RACES:
        return degraded("some names were given to nobody of two that raced for them")
    return ok(f"EEXIST, and one winner in each of {_RACES} races")


def _numbers(value: object) -> set[int]:
    return {number(one) for one in value[:_RACES]} if isinstance(value, list) else set()


def rename(bench: TestBed) -> Result:
    """Who opens a name while it is replaced finds the old file or the new one."""
    name = bench.made(bench.a, "a")
    _, saw = bench.at_once(
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


def noreplace(bench: TestBed) -> Result:
    """RENAME_NOREPLACE of rename(2)."""
    first, second, free = bench.made(bench.a, "first"), bench.made(bench.b, "second"), bench.name()
    try:
        do(bench.a, "rename_new", source=first, target=free)
    except OSError as error:
        return degraded(f"not supported: {describe(error)}; link and unlink are used instead")
    try:
        do(bench.b, "rename_new", source=second, target=free)
    except OSError as error:
        if error.errno != errno.EEXIST:
            return degraded(f"a taken name is told by {describe(error)} instead of EEXIST")
    else:
        return unsafe("a rename that was to replace nothing replaced a file: two claims of one name lose a file")
    return ok("EEXIST where the name is taken")


def unnamed(bench: TestBed) -> Result:
    """O_TMPFILE of open(2), and linkat(2) to give it a name."""
    name = bench.name()
    try:
        handle = number(do(bench.a, "unnamed"))
        do(bench.a, "write", file=handle, text="whole")
        do(bench.a, "set_mode", file=handle, mode=0o666)
        do(bench.a, "give_name", file=handle, name=name)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return degraded(f"not supported: {describe(error)}; a hidden name is used instead")
    if bench.content(bench.b, name) != "whole":
        return unsafe("the file that was given a name has not the content that was written")
    return ok("made, filled and named")


def visible(bench: TestBed) -> Result:
    """What one side wrote and closed, the other finds at once, in the directory and by its name."""
    for turn in range(5):
        name, target, content = bench.name(), bench.name(), f"version {turn}"
        if _looks(bench.b, target):  # a cache may remember that it was missing
            return unsafe("a file was there before it was made")
        handle = number(do(bench.a, "open", name=name, how="create"))
        do(bench.a, "write", file=handle, text=content)
        do(bench.a, "close", file=handle)
        do(bench.a, "rename", source=name, target=target)
        if not _looks(bench.b, target):
            return unsafe("a file that was renamed into place was not found by another process")
        listed = do(bench.b, "names")
        if not isinstance(listed, list) or target not in listed:
            return unsafe("a file that was renamed into place was missing in another process's listing")
        read = bench.content(bench.b, target)
        if read != content:
            return unsafe("another process read something else than was written")
    return ok("found, listed and read at once")


def _looks(side: Side, name: str) -> bool:
    try:
        do(side, "look", name=name)
    except FileNotFoundError:
        return False
    return True


def sync_file(bench: TestBed) -> Result:
    """fsync(2); whether the disk keeps what it says it has is not told without a power cut."""
    handle = number(do(bench.a, "open", name=bench.name(), how="create"))
    do(bench.a, "write", file=handle, text="content")
    try:
        do(bench.a, "sync", file=handle)
    except OSError as error:
        return unsafe(f"fsync fails: {describe(error)}: what is written may never reach the disk")
    return ok("succeeds")


def sync_directory(bench: TestBed) -> Result:
    """fsync(2) of the directory that holds a new name."""
    bench.made(bench.a, "content")
    try:
        do(bench.a, "sync_room")
    except OSError as error:
        return unsafe(f"fsync fails: {describe(error)}: a published name may be gone after a power cut")
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
