"""Experiments with two processes that use one file at once, and with events and leases."""

from __future__ import annotations

from sharedvol.doctor.experiments.testbed import Experiment, TestBed, each_way, refused
from sharedvol.doctor.report import Result, degraded, ok, unsafe
from sharedvol.doctor.side import do, flag, number, record
from sharedvol.errors import describe

_APPENDS = 200
_RECORD = 3000  # bytes; not a divisor of a page, so that records cross pages
_MAPPED = 64
_WANTED = ("closed", "created", "moved")


def append(bed: TestBed) -> Result:
    """Test whether all records survive that two processes append at once, each in one write."""
    name, *_ = bed.shared()
    loop = {"name": name, "times": _APPENDS, "size": _RECORD}
    done = bed.at_once(("append", {**loop, "mark": "a"}), ("append", {**loop, "mark": "b"}))
    wrote = {"a": number(done[0]), "b": number(done[1])}
    found = record(do(bed.a, "records", name=name, size=_RECORD), "")
    whole = sum(min(found.get(mark, 0), times) for mark, times in wrote.items())
    lost = sum(wrote.values()) - whole
    if lost or found[""]:
        return unsafe(f"of {sum(wrote.values())} appended records {lost} were lost or mixed with others")
    return ok(f"{whole} records of two processes, all whole")


def mapped(bed: TestBed) -> Result:
    """Test whether another process sees a write through a shared mapping, in its mapping and by read, see mmap(2)."""
    _, a, b = bed.shared("." * 4096)
    try:
        do(bed.b, "map_read", file=b, size=_MAPPED)
        do(bed.a, "map_write", file=a, text="m" * _MAPPED)
        seen = do(bed.b, "map_read", file=b, size=_MAPPED), do(bed.b, "read", file=b, size=_MAPPED)
    except OSError as error:
        return refused(error, "no shared mappings")
    if seen != ("m" * _MAPPED, "m" * _MAPPED):
        return unsafe("a process did not see what another one wrote to shared memory")
    return ok("visible at once")


def inotify(bed: TestBed) -> Result:
    """Test whether changes by another process raise events."""
    name = bed.name()
    try:
        do(bed.a, "watch")
    except OSError as error:
        return degraded(f"no events: {describe(error)}")  # also EMFILE and ENOSPC, which are limits of inotify(7)
    source = bed.made(bed.b, "x")
    do(bed.b, "rename", source=source, target=name)
    seen = do(bed.a, "events", name=name, wanted=["moved"], seconds=max(0.5, bed.pause * 4))
    other = bed.made(bed.b, "x")
    more = do(bed.a, "events", name=other, wanted=["closed", "created"], seconds=max(0.5, bed.pause * 4))
    kinds = {kind for one in (seen, more) if isinstance(one, list) for kind in one if isinstance(kind, str)}
    missing = [kind for kind in _WANTED if kind not in kinds]
    if missing:
        return degraded(f"no event arrived for a file that another process {' or '.join(missing)}")
    return ok("events arrive for created, closed and moved files")


def lease(bed: TestBed) -> Result:
    """Test whether a read lease is granted on a closed file, and refused while the file is open for writing."""
    name = bed.made(bed.a, "x")
    handle = number(do(bed.a, "open", name=name, how="read"))
    try:
        if not flag(do(bed.a, "lease", file=handle)):
            return degraded("no lease was granted on a file that no process has open for writing")
        do(bed.a, "end_lease", file=handle)
    except OSError as error:
        return degraded(f"no leases: {describe(error)}; the sidecar relies on the quiet time, which is weaker")
    do(bed.b, "open", name=name, how="write")
    if flag(do(bed.a, "lease", file=handle)):
        return unsafe("a lease was granted while another process had the file open for writing")
    return ok("granted when closed, refused while written")


EXPERIMENTS = (
    Experiment("data.append", append),
    Experiment("data.mmap", each_way(mapped)),
    Experiment("events.inotify", each_way(inotify)),
    Experiment("events.lease", each_way(lease)),
)
