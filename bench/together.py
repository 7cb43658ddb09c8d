"""Processes that begin at the same moment, and how long all of them take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def together(count: int, work: Callable[[int], int]) -> tuple[float, list[int]]:
    """Fork ``count`` children, release them at once, and wait for all.

    Args:
        count: how many.
        work: is given the child's number, from 0, and gives its exit code; what it raises is exit code 1.

    Returns:
        Seconds from the release to the end of the last, and the exit codes; negative for a signal.
    """
    waiting, release = os.pipe()
    ready, there = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.close(release)
                os.write(there, b".")
                os.read(waiting, 1)
                code = work(number)
            finally:
                os._exit(code)
        children.append(child)
    for _ in range(count):
        os.read(ready, 1)
    os.close(waiting)
    begun = time.perf_counter()
    os.close(release)  # all of them read the end of file at once
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    taken = time.perf_counter() - begun
    os.close(ready)
    os.close(there)
    return taken, codes
