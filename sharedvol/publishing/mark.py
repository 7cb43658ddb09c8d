"""The mark of a published file: its modification time proves that `publish` wrote all of it.

The sidecar collects a marked file at once. It waits for the quiet time before it collects any other file, because
chmod, chown and touch change the same times as a rename or link into place. The mark is rule PUB-4 of the protocol, and
every language can write it: the microseconds of the modification time are a function of its second and of the file's
size. A later write changes the time and so removes the mark. A tool that copies a file sets the time last, so a copy
carries the mark only when it is whole.
"""

from __future__ import annotations

_SECOND = 1_000_000_000
_DAY = 86_400
_PRIME = 999_983
_OF_SECOND, _OF_SIZE = 374_761, 668_265


def microsecond(second: int, size: int) -> int:
    """Return the microsecond, 1 to 999,983, that marks a file of ``size`` bytes in this second since 1970."""
    # Never 0: many tools set whole seconds. Each product fits in a double, which is all that R computes with.
    return 1 + (second % _PRIME * _OF_SECOND + size % _PRIME * _OF_SIZE) % _PRIME


def marked_time(mtime_ns: int, size: int) -> int:
    """Return the marked modification time of a file that was last written at ``mtime_ns``.

    It is at most two seconds earlier. In the first second of a day (UTC) it may be up to a second later instead,
    because a collected file's directory is named after the day.

    Args:
        mtime_ns: the modification time, in nanoseconds since 1970.
        size: the file's size in bytes.
    """
    second, rest = divmod(mtime_ns, _SECOND)
    if second % _DAY and microsecond(second, size) >= rest // 1000:
        second -= 1
    # The mark does not use the nanoseconds. They stay, so that files of one second and one size differ.
    return second * _SECOND + microsecond(second, size) * 1000 + rest % 1000


def is_marked(mtime_ns: int, size: int) -> bool:
    """Return whether a file of this modification time and size carries the mark."""
    second, rest = divmod(mtime_ns, _SECOND)
    return rest // 1000 == microsecond(second, size)
