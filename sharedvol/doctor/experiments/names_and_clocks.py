"""Experiments with owners, names and clocks: does the file system keep what it is given?"""

from __future__ import annotations

import errno
import stat
from typing import Final

from sharedvol.doctor.experiments.testbed import Experiment, TestBed, refused
from sharedvol.doctor.report import Result, degraded, ok, unknown, unsafe
from sharedvol.doctor.side import do, number, record, text
from sharedvol.errors import describe

_DATED: Final = 1_700_000_000_123_456_789
_TICK: Final = 20_000_000  # ns; a file gets the time of the kernel's last tick, at most 10 ms ago
_SKEW_DEGRADED, _SKEW_UNSAFE = 0.1, 10.0  # seconds
_COMPOSED, _DECOMPOSED = "caf\u00e9", "cafe\u0301"
_SPECIAL = 'a:b*c?d"e<f>g|h\\i j.'
_LINKLESS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def identity(bed: TestBed) -> Result:
    """Test whether new files belong to this process; root_squash and user mapping change the owner."""
    handle = number(do(bed.a, "open", name=bed.name(), how="create"))
    uid, owner = _uid(bed), record(do(bed.a, "facts", file=handle), "uid")["uid"]
    if uid != owner:
        return degraded(f"files that UID {uid} creates belong to UID {owner}")
    return ok(f"files that UID {uid} creates belong to it")


def _uid(bed: TestBed) -> int:
    who = do(bed.a, "who")
    return number(who["uid"])


def mode(bed: TestBed) -> Result:
    """Test whether a file keeps the mode that is set."""
    handle = number(do(bed.a, "open", name=bed.name(), how="create"))
    try:
        for wanted in (0o666, 0o640):
            do(bed.a, "set_mode", file=handle, mode=wanted)
            kept = stat.S_IMODE(record(do(bed.a, "facts", file=handle), "mode")["mode"])
            if kept != wanted:
                return degraded(f"mode {wanted:#o} became {kept:#o}")
    except OSError as error:
        return refused(error, "modes cannot be set")
    return ok("kept")


def umask(bed: TestBed) -> Result:
    """Test whether new files are readable for other users."""
    mask = number(do(bed.a, "who")["umask"])
    if mask & 0o400:
        return degraded(f"{mask:#05o}: not even this user may read its new files")
    if mask & 0o040:
        return degraded(f"{mask:#05o}: a sidecar of another user cannot read new files")
    return ok(f"{mask:#05o}")


def _create(bed: TestBed, name: str) -> bool:
    """Create an empty file. Return False if the name is taken."""
    try:
        handle = number(do(bed.a, "open", name=name, how="create"))
    except FileExistsError:
        return False
    do(bed.a, "close", file=handle)
    return True


def case(bed: TestBed) -> Result:
    """Test whether names that differ in case are different names."""
    _create(bed, "Case")
    if not _create(bed, "cASE"):
        return degraded("names that differ only in case are the same name")
    return ok("two names that differ in case are two files")


def form(bed: TestBed) -> Result:
    """Test whether names are kept byte by byte, or normalized as on macOS."""
    try:
        _create(bed, _COMPOSED)
        two = _create(bed, _DECOMPOSED)
        listed = do(bed.b, "names")
    except OSError as error:
        return refused(error, "names with an accent are refused")
    if not two:
        return degraded("names that differ only in Unicode form are the same name")
    if not isinstance(listed, list) or not {_COMPOSED, _DECOMPOSED} <= set(listed):
        return degraded("a name comes back in another Unicode form")
    return ok("kept byte by byte")


def long(bed: TestBed) -> Result:
    """Test whether names of 255 bytes are allowed."""
    for length in (255, 200, 143, 100):  # 143: eCryptfs
        try:
            _create(bed, "n" * length)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.ENOENT):
                raise
            continue
        return (
            ok("allowed") if length == 255 else degraded(f"the longest name tried that is allowed has {length} bytes")
        )
    return degraded("not even names of 100 bytes are allowed")


def special(bed: TestBed) -> Result:
    """Test whether names with special characters are kept."""
    try:
        _create(bed, _SPECIAL)
        listed = do(bed.b, "names")
    except OSError as error:
        return refused(error, "refused")
    if not isinstance(listed, list) or _SPECIAL not in listed:
        return degraded("a name with a colon and other special characters comes back changed")
    return ok("kept")


def symlink(bed: TestBed) -> Result:
    """Test whether O_NOFOLLOW refuses a symbolic link, see open(2)."""
    target, name = bed.made(bed.a, "behind the link"), bed.name()
    try:
        do(bed.a, "symlink", target=target, name=name)
    except OSError as error:
        if error.errno not in _LINKLESS:
            raise
        return ok("the file system has no symbolic links")
    try:
        do(bed.b, "open", name=name, how="read")
    except OSError as error:
        do(bed.a, "remove", name=name)
        if error.errno != errno.ELOOP:
            return degraded(f"opening a link is refused by {describe(error)} instead of ELOOP")
        return ok("refused with O_NOFOLLOW")
    do(bed.a, "remove", name=name)  # before its target, because this file system follows links
    return unsafe("a symbolic link was followed in spite of O_NOFOLLOW: a planted link could lead anywhere")


def precision(bed: TestBed) -> Result:
    """Test whether a file keeps times to the nanosecond."""
    handle = number(do(bed.a, "open", name=bed.name(), how="create"))
    try:
        do(bed.a, "date", file=handle, nanoseconds=_DATED)
    except OSError as error:
        return refused(error, "a file's time cannot be set")
    off = abs(record(do(bed.a, "facts", file=handle), "modified")["modified"] - _DATED)
    if off:
        return degraded(f"a file's time differs by {_seconds(off)} from the time that was set")
    return ok("kept")


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.9f}".rstrip("0").rstrip(".") + " s"


def skew(bed: TestBed) -> Result:
    """Compare the time of a file that is written now with the clock before and after."""
    before = number(do(bed.a, "clock"))
    name = bed.made(bed.b, "x")
    after = number(do(bed.a, "clock"))
    written = record(do(bed.a, "look", name=name), "modified")["modified"]
    off = max(before - _TICK - written, written - after - _TICK, 0) / 1e9
    if off > _SKEW_UNSAFE:
        return unsafe(f"the time of a file that was just written is wrong by {off:.1f} s")
    if off > _SKEW_DEGRADED:
        return degraded(f"the time of a file that was just written is wrong by {off:.1f} s")
    return ok("the clocks agree")


def order(bed: TestBed) -> Result:
    """Test whether a later write gets a later time."""
    name, a, b = bed.shared()
    last = 0
    for turn in range(10):
        side, handle = (bed.a, a) if turn % 2 else (bed.b, b)
        do(side, "write", file=handle, text="x")
        now = record(do(bed.a, "look", name=name), "modified")["modified"]
        if now < last:
            return degraded(f"a later write had an earlier time, by {_seconds(last - now)}")
        last = now
    return ok("no later write has an earlier time")


def peer_identity(bed: TestBed) -> Result:
    """Test whether two containers have different names and the same user."""
    ours, theirs = do(bed.a, "who"), do(bed.b, "who")
    if not isinstance(theirs, dict) or not {"host", "uid", "gid"} <= theirs.keys():
        return unknown("the other side does not report its identity")
    if text(theirs["host"]) == ours["host"]:
        return unsafe(f"both are named {ours['host']!r}, so their paths are not unique")
    users = f"{ours['uid']}:{ours['gid']}", f"{number(theirs['uid'])}:{number(theirs['gid'])}"
    if users[0] != users[1]:
        return degraded(f"one is user {users[0]}, the other {users[1]}")
    return ok(f"{ours['host']!r} and {text(theirs['host'], 100)!r}, both user {users[0]}")


def peer_kernel(bed: TestBed) -> Result:
    """Test whether two containers run on one kernel."""
    ours, theirs = do(bed.a, "who"), do(bed.b, "who")
    if not isinstance(theirs, dict) or ours["boot"] != theirs.get("boot"):
        return degraded("two kernels: two machines or two virtual machines")
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
