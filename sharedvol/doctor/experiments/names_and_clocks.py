"""Experiments with owners, names and clocks: what the file system does to what it is given."""

from __future__ import annotations

import errno
import stat
from typing import Final

from sharedvol.doctor.experiments.testbed import Experiment, TestBed, refused
from sharedvol.doctor.report import Result, degraded, ok, unknown, unsafe
from sharedvol.doctor.side import do, number, record, text
from sharedvol.errors import describe

_DATED: Final = 1_700_000_000_123_456_789
_TICK: Final = 20_000_000  # ns; a file's time is that of the kernel's last tick, at most 10 ms ago
_SKEW_DEGRADED, _SKEW_UNSAFE = 0.1, 10.0  # seconds
_COMPOSED, _DECOMPOSED = "caf\u00e9", "cafe\u0301"
_SPECIAL = 'a:b*c?d"e<f>g|h\\i j.'
_LINKLESS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def identity(bench: TestBed) -> Result:
    """Whose the files are that this process makes; root_squash and user mapping make them another's."""
    handle = number(do(bench.a, "open", name=bench.name(), how="create"))
    uid, owner = _uid(bench), record(do(bench.a, "facts", file=handle), "uid")["uid"]
    if uid != owner:
        return degraded(f"what UID {uid} makes belongs to UID {owner}")
    return ok(f"what UID {uid} makes is its own")


def _uid(bench: TestBed) -> int:
    who = do(bench.a, "who")
    return number(who["uid"])


def mode(bench: TestBed) -> Result:
    handle = number(do(bench.a, "open", name=bench.name(), how="create"))
    try:
        for wanted in (0o666, 0o640):
            do(bench.a, "set_mode", file=handle, mode=wanted)
            kept = stat.S_IMODE(record(do(bench.a, "facts", file=handle), "mode")["mode"])
            if kept != wanted:
                return degraded(f"mode {wanted:#o} became {kept:#o}")
    except OSError as error:
        return refused(error, "modes cannot be set")
    return ok("kept")


def umask(bench: TestBed) -> Result:
    mask = number(do(bench.a, "who")["umask"])
    if mask & 0o400:
        return degraded(f"{mask:#05o}: not even this user may read what it makes")
    if mask & 0o040:
        return degraded(f"{mask:#05o}: another user's sidecar cannot read what is made with it")
    return ok(f"{mask:#05o}")


def _create(bench: TestBed, name: str) -> bool:
    """Make an empty file; False where the name is taken."""
    try:
        handle = number(do(bench.a, "open", name=name, how="create"))
    except FileExistsError:
        return False
    do(bench.a, "close", file=handle)
    return True


def case(bench: TestBed) -> Result:
    _create(bench, "Case")
    if not _create(bench, "cASE"):
        return degraded("names that differ in case are one name here")
    return ok("two names that differ in case are two files")


def form(bench: TestBed) -> Result:
    """Whether names are kept byte by byte, or normalised as on macOS."""
    try:
        _create(bench, _COMPOSED)
        two = _create(bench, _DECOMPOSED)
        listed = do(bench.b, "names")
    except OSError as error:
        return refused(error, "names with an accent are refused")
    if not two:
        return degraded("names that differ in Unicode's form are one name here")
    if not isinstance(listed, list) or not {_COMPOSED, _DECOMPOSED} <= set(listed):
        return degraded("a name comes back in another Unicode form than it was written")
    return ok("kept byte by byte")


def long(bench: TestBed) -> Result:
    for length in (255, 200, 143, 100):  # 143: eCryptfs
        try:
            _create(bench, "n" * length)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOENT):
                raise
            continue
        return (
            ok("allowed") if length == 255 else degraded(f"the longest name tried that is allowed has {length} bytes")
        )
    return degraded("not even names of 100 bytes are allowed")


def special(bench: TestBed) -> Result:
    try:
        _create(bench, _SPECIAL)
        listed = do(bench.b, "names")
    except OSError as error:
        return refused(error, "refused")
    if not isinstance(listed, list) or _SPECIAL not in listed:
        return degraded("a name with a colon and other signs comes back changed")
    return ok("kept")


def symlink(bench: TestBed) -> Result:
    """O_NOFOLLOW refuses a link, see open(2)."""
    target, name = bench.made(bench.a, "behind the link"), bench.name()
    try:
        do(bench.a, "symlink", target=target, name=name)
    except OSError as error:
        if error.errno not in _LINKLESS:
            raise
        return ok("there are none here")
    try:
        do(bench.b, "open", name=name, how="read")
    except OSError as error:
        do(bench.a, "remove", name=name)
        if error.errno != errno.ELOOP:
            return degraded(f"opening a link is refused by {describe(error)} instead of ELOOP")
        return ok("refused where they are not to be followed")
    do(bench.a, "remove", name=name)  # before its target: whoever follows links finds it no more
    return unsafe("a symbolic link was followed in spite of O_NOFOLLOW: a planted link could lead anywhere")


def precision(bench: TestBed) -> Result:
    handle = number(do(bench.a, "open", name=bench.name(), how="create"))
    try:
        do(bench.a, "date", file=handle, nanoseconds=_DATED)
    except OSError as error:
        return refused(error, "a file's time cannot be set")
    off = abs(record(do(bench.a, "facts", file=handle), "modified")["modified"] - _DATED)
    if off:
        return degraded(f"a time that was set came back {_seconds(off)} off")
    return ok("kept")


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.9f}".rstrip("0").rstrip(".") + " s"


def skew(bench: TestBed) -> Result:
    """The time of a file that is written now, against the clock before and after."""
    before = number(do(bench.a, "clock"))
    name = bench.made(bench.b, "x")
    after = number(do(bench.a, "clock"))
    written = record(do(bench.a, "look", name=name), "modified")["modified"]
    off = max(before - _TICK - written, written - after - _TICK, 0) / 1e9
    if off > _SKEW_UNSAFE:
        return unsafe(f"a file that is written now is dated {off:.1f} s off")
    if off > _SKEW_DEGRADED:
        return degraded(f"a file that is written now is dated {off:.1f} s off")
    return ok("the same, as far as can be told")


def order(bench: TestBed) -> Result:
    name, a, b = bench.shared()
    last = 0
    for turn in range(10):
        side, handle = (bench.a, a) if turn % 2 else (bench.b, b)
        do(side, "write", file=handle, text="x")
        now = record(do(bench.a, "look", name=name), "modified")["modified"]
        if now < last:
            return degraded(f"a later write had an earlier time, by {_seconds(last - now)}")
        last = now
    return ok("later writes have no earlier times")


def peer_identity(bench: TestBed) -> Result:
    """Two containers need two names, and are best one user."""
    ours, theirs = do(bench.a, "who"), do(bench.b, "who")
    if not isinstance(theirs, dict) or not {"host", "uid", "gid"} <= theirs.keys():
        return unknown("the other side does not say who it is")
    if text(theirs["host"]) == ours["host"]:
        return unsafe(f"both are named {ours['host']!r}: their unique paths are the same")
    users = f"{ours['uid']}:{ours['gid']}", f"{number(theirs['uid'])}:{number(theirs['gid'])}"
    if users[0] != users[1]:
        return degraded(f"one is user {users[0]}, the other {users[1]}")
    return ok(f"{ours['host']!r} and {text(theirs['host'], 100)!r}, both user {users[0]}")


def peer_kernel(bench: TestBed) -> Result:
    ours, theirs = do(bench.a, "who"), do(bench.b, "who")
    if not isinstance(theirs, dict) or ours["boot"] != theirs.get("boot"):
        return degraded("two kernels: two machines, or two virtual ones")
    return ok("one kernel")


EXPERIMENTS: Final = (
    Experiment("owner.identity", identity, between=False),
    Experiment("owner.mode", mode, between=False),
    Experiment("owner.umask", umask, between=False),
    Experiment("names.case", case, between=False),
    Experiment("names.unicode", form, between=False),
    Experiment("names.long", long, between=False),
    Experiment("names.special", special, between=False),
    Experiment("names.symlink", symlink, between=False),
    Experiment("clock.precision", precision, between=False),
    Experiment("clock.skew", skew),
    Experiment("clock.order", order),
)
OF_PEERS: Final = (Experiment("peer.identity", peer_identity), Experiment("peer.kernel", peer_kernel))
