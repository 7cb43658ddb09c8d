"""Steps that repeat an operation. Requested one by one, the operations would rarely overlap with the other process."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Any

from sharedvol.doctor.agent.limits import ARRIVING, COUNTING, LOOPING, MOST_BYTES, MOST_SECONDS, MOST_TIMES
from sharedvol.doctor.agent.room import HOW, OPEN, checked_name, listed, lock, refuse_planted, unlock


class Loops:
    """The loops of an `Actor`."""

    _room: int

    def _arrive(self, meeting: list[Any]) -> None:
        """Create a file as a signal and wait for the other side's file, so that both loops start together.

        Args:
            meeting: the name of this side's file, the name of the other side's file, and the seconds to wait.
        """
        mine, other, seconds = meeting
        os.close(os.open(checked_name(mine), HOW["create"] | OPEN, 0o600, dir_fd=self._room))
        end = time.monotonic() + min(seconds, ARRIVING)
        while time.monotonic() < end and not self._has(checked_name(other)):
            time.sleep(0.0005)

    def _has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._room, follow_symlinks=False)
        except OSError:
            with listed(self._room) as entries:  # a cached lookup may still say that it is missing
                return any(entry.name == name for entry in entries)
        return True

    def count(self, name: str, times: int, meeting: list[Any]) -> int:
        """Increment a number in a file under both locks, at least ``times`` times. Return the number of increments."""
        lock_fd = os.open(checked_name(name), os.O_RDWR | OPEN, dir_fd=self._room)
        fd = os.open(checked_name(f"{name}.n"), os.O_RDWR | OPEN, dir_fd=self._room)
        try:
            refuse_planted(fd)
            self._arrive(meeting)
            began, done = time.monotonic(), 0
            # One side may be a hundred times as fast. It must not finish before the other has started.
            while (
                done < MOST_TIMES
                and (passed := time.monotonic() - began) < LOOPING
                and (done < times or passed < COUNTING)
            ):
                lock(lock_fd, "both", False, True)
                number = int(os.pread(fd, 20, 0))
                os.pwrite(fd, b"%020d" % (number + 1), 0)
                unlock(lock_fd, "both")
                done += 1
        finally:
            os.close(lock_fd)
            os.close(fd)
        return done

    def append(self, name: str, mark: str, times: int, size: int, meeting: list[Any]) -> int:
        """Append ``times`` records of ``size`` bytes, each in one write. Return the number of records."""
        fd = os.open(checked_name(name), HOW["append"] | OPEN, dir_fd=self._room)
        try:
            refuse_planted(fd)
            self._arrive(meeting)
            record = (mark[:1] * (min(size, MOST_BYTES) - 1) + "\n").encode("ascii")
            for _ in range(min(times, MOST_TIMES)):
                wrote = os.write(fd, record)
                if wrote < len(record):  # the file system is full: a second write raises the error
                    os.write(fd, record[wrote:])
        finally:
            os.close(fd)
        return min(times, MOST_TIMES)

    def records(self, name: str, size: int) -> dict[str, int]:
        """Count the whole records of each mark in the file. The key ``""`` counts the lines that are not records."""
        found: dict[str, int] = {"": 0}
        fd = os.open(checked_name(name), os.O_RDONLY | OPEN, dir_fd=self._room)
        with open(fd, "rb") as file:
            for line in file.read(MOST_BYTES << 6).splitlines(keepends=True):
                whole = len(line) == size and line == line[:1] * (size - 1) + b"\n"
                mark = line[:1].decode("ascii", "replace") if whole else ""
                found[mark] = found.get(mark, 0) + 1
        return found

    def replace(self, name: str, times: int, size: int, meeting: list[Any]) -> None:
        """Rename files of one repeated letter over ``name``, for at most 0.25 s. The last file consists of ``z``."""
        self._arrive(meeting)
        end = time.monotonic() + 0.25
        for number in range(min(times, MOST_TIMES)):
            last = number == times - 1 or time.monotonic() > end
            letter = "z" if last else "abcdefghij"[number % 10]
            fd = os.open(f"{checked_name(name)}.new", HOW["create"] | OPEN, 0o666, dir_fd=self._room)
            with open(fd, "w", encoding="ascii") as file:
                with contextlib.suppress(OSError):
                    os.fchmod(fd, 0o666)
                file.write(letter * min(size, MOST_BYTES))
            os.rename(f"{name}.new", name, src_dir_fd=self._room, dst_dir_fd=self._room)
            if last:
                break

    def see_replaced(self, name: str, seconds: float, meeting: list[Any]) -> dict[str, int]:
        """Read ``name`` until it consists of ``z``. Count how often it was missing or a mixture of letters."""
        self._arrive(meeting)
        seen = {"reads": 0, "missing": 0, "torn": 0, "end": 0}
        end = time.monotonic() + min(seconds, MOST_SECONDS)
        while time.monotonic() < end:
            seen["reads"] += 1
            try:
                fd = os.open(checked_name(name), os.O_RDONLY | OPEN, dir_fd=self._room)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
                seen["missing"] += 1
                continue
            with open(fd, "rb") as file:
                text = file.read(MOST_BYTES)
            if text != text[:1] * len(text) or not text:
                seen["torn"] += 1
            elif text[:1] == b"z":
                seen["end"] = 1
                break
        return seen

    def link_race(self, name: str, times: int, meeting: list[Any]) -> list[int]:
        """Link the file ``name`` to race.0, race.1, … Return the numbers of the links that this side created first."""
        self._arrive(meeting)
        won = []
        for number in range(min(times, 1000)):
            try:
                os.link(
                    checked_name(name),
                    f"race.{number}",
                    src_dir_fd=self._room,
                    dst_dir_fd=self._room,
                    follow_symlinks=False,
                )
                won.append(number)
            except FileExistsError:
                pass
        return won
