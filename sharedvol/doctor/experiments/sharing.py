"""Experiments with what two processes do to one file at once, and how one hears of the other."""

from __future__ import annotations

from sharedvol.doctor.experiments.testbed import Experiment, TestBed, each_way, refused
from sharedvol.doctor.report import Result, degraded, ok, unsafe
from sharedvol.doctor.side import do, flag, number, record
from sharedvol.errors import describe

_APPENDS = 200
_RECORD = 3000  # bytes; not a divisor of a page, so that records cross pages
_MAPPED = 64
_WANTED = ("closed", "created", "moved")


def append(bench: TestBed) -> Result:
    """Records that two processes append at once, each in one write, are all there and whole."""
    name, *_ = bench.shared()
    loop = {"name": name, "times": _APPENDS, "size": _RECORD}
    done = bench.at_once(("append", {**loop, "mark": "a"}), ("append", {**loop, "mark": "b"}))
    wrote = {"a": number(done[0]), "b": number(done[1])}
    found = record(do(bench.a, "records", name=name, size=_RECORD), "")
    whole = sum(min(found.get(mark, 0), times) for mark, times in wrote.items())
    lost = sum(wrote.values()) - whole
    if lost or found[""]:
        return unsafe(f"of {sum(wrote.values())} appended records {lost} were lost or mixed with others")
    return ok(f"{whole} records of two processes, all whole")


def mapped(bench: TestBed) -> Result:
    """What one process writes through a shared mapping, another sees in its mapping and by read(2), see mmap(2)."""
    _, a, b = bench.shared("." * 4096)
    try:
        do(bench.b, "map_read", file=b, size=_MAPPED)
        do(bench.a, "map_write", file=a, text="m" * _MAPPED)
        seen = do(bench.b, "map_read", file=b, size=_MAPPED), do(bench.b, "read", file=b, size=_MAPPED)
    except OSError as error:
        return refused(error, "no shared mappings")
    if seen != ("m" * _MAPPED, "m" * _MAPPED):
        return unsafe("what one process wrote to shared memory, another did not see")
    return ok("seen at once")


def inotify(bench: TestBed) -> Result:
    """Events of what another process does arrive, see inotify(7)."""
    name = bench.name()
    try:
        do(bench.a, "watch")
    except OSError as error:
        return degraded(f"no events: {describe(error)}")  # EMFILE and ENOSPC too: limits of inotify, see inotify(7)
    source = bench.made(bench.b, "x")
    do(bench.b, "rename", source=source, target=name)
    seen = do(bench.a, "events", name=name, wanted=["moved"], seconds=max(0.5, bench.pause * 4))
    other = bench.made(bench.b, "x")
    more = do(bench.a, "events", name=other, wanted=["closed", "created"], seconds=max(0.5, bench.pause * 4))
    kinds = {kind for one in (seen, more) if isinstance(one, list) for kind in one if isinstance(kind, str)}
    missing = [kind for kind in _WANTED if kind not in kinds]
    if missing:
        return degraded(f"no event came for a file that another process {' or '.join(missing)}")
    return ok("created, closed and moved are told")


def lease(bench: TestBed) -> Result:
    """A read lease is granted to a closed file's owner, and refused while it is open for writing, see fcntl(2)."""
    name = bench.made(bench.a, "x")
    handle = number(do(bench.a, "open", name=name, how="read"))
    try:
        if not flag(do(bench.a, "lease", file=handle)):
            return degraded("no lease was granted on a file that nobody writes")
        do(bench.a, "end_lease", file=handle)
    except OSError as error:
        return degraded(f"no leases: {describe(error)}; the sidecar has the quiet time only, which is weaker")
    do(bench.b, "open", name=name, how="write")
    if flag(do(bench.a, "lease", file=handle)):
        return unsafe("a lease was granted while another process had the file open for writing")
    return ok("granted when closed, refused while written")


EXPERIMENTS = (
    Experiment("data.append", append),
    Experiment("data.mmap", each_way(mapped)),
    Experiment("events.inotify", each_way(inotify)),
    Experiment("events.lease", each_way(lease)),
)
