"""A process of its own for a sweep: its mounts, children and planted bugs end with it."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import select
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Pipe
from typing import Any

import pytest

from support.torture.judge import Violation

_NEW_NAMESPACE, _PARENT_DEATH_SIGNAL = 0x00020000, 1
_RECURSIVE_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE

libc = ctypes.CDLL(None, use_errno=True)


class NotHere(Exception):
    """This machine doesn't allow what a test needs."""


def isolated(work: Callable[[], Any], limit: float) -> Any:
    """What ``work`` returns in a forked child with a mount namespace of its own, where that is allowed.

    Args:
        work: what to do.
        limit: in seconds: how long it may take before it is killed. Nothing is measured by it.

    Raises:
        Violation: as ``work`` raised it.
        AssertionError: it failed in another way, or took too long.
    """
    if platform.machine() != "x86_64":
        pytest.skip(f"the harness knows the registers of x86-64, and this is {platform.machine()}")
    ours, theirs = Pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                _own_mounts()
                gc.freeze()  # what its children never touch is not copied for them
                gc.disable()
                theirs.send(_outcome(work))
        finally:
            os._exit(0)
    theirs.close()
    watch = os.pidfd_open(pid)
    try:
        select.select([ours], [], [], limit)  # readable too when it ended without an answer
        answer = ours.recv() if ours.poll() else None
    except EOFError:
        answer = None
    finally:
        signal.pidfd_send_signal(watch, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(watch)
        ours.close()
    assert answer is not None, f"the sweep ended without an answer, or took longer than {limit} s"
    kind, value = answer
    if kind == "skip":
        pytest.skip(value)
    if kind == "violation":
        raise Violation(value)
    assert kind == "done", value
    return value


def _outcome(work: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "done", work()
    except NotHere as reason:
        return "skip", str(reason)
    except Violation as found:
        return "violation", str(found)
    except BaseException:
        return "failed", traceback.format_exc()


def _own_mounts() -> None:
    """Without the permission nothing can be mounted, and `filesystems` says so."""
    if libc.unshare(_NEW_NAMESPACE) == 0:
        libc.mount(b"none", b"/", None, ctypes.c_ulong(_RECURSIVE_PRIVATE), None)
