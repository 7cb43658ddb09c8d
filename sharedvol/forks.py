"""The registry of what a forked child renews before it uses anything of its parent.

`os.fork` runs the hooks of `os.register_at_fork`. C code that calls fork(2) itself runs none of them: an application
server such as uWSGI, an extension module, ctypes. So everything that belongs to one process calls `notice` before it
is used, released or finalised, and `notice` compares the process id. Both ways lead to the same renewal, once for each
child.

This is the only module that registers hooks and remembers the process id.
"""

from __future__ import annotations

import os
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any, Protocol


class Renewable(Protocol):
    """An object with state of the process that made it."""

    def renew(self) -> None:
        """Drop what belongs to the parent process. This runs in the child, and may neither wait nor raise."""


_hooks: list[Callable[[], object]] = []
_before: list[Callable[[], object]] = []
_in_parent: list[Callable[[], object]] = []
_objects: weakref.WeakValueDictionary[int, Renewable] = weakref.WeakValueDictionary()
_pid = os.getpid()
_renewing = 0  # the process that runs the hooks now
_mutexes: dict[int, Any] = {}


def in_child(hook: Callable[[], object]) -> Callable[[], object]:
    """Run ``hook`` in each forked child, in the order of registration and before any tracked object is renewed."""
    _hooks.append(hook)
    return hook


def around(before: Callable[[], object], in_parent: Callable[[], object]) -> None:
    """Run ``before`` ahead of each fork that Python sees, and ``in_parent`` after it in the parent.

    A lock that ``before`` takes and ``in_parent`` releases keeps other threads from changing its data during the fork.
    """
    _before.append(before)
    _in_parent.append(in_parent)


def track(one: Renewable) -> None:
    """Call ``one.renew()`` in each forked child. This does not keep the object alive."""
    _objects[id(one)] = one


def notice() -> None:
    """Renew everything if this is a forked child that has not done so. Otherwise this costs one getpid(2)."""
    if os.getpid() != _pid:
        _renew(seen=False)


def _renew(*, seen: bool = True) -> None:
    """Run the hooks and renew the objects.

    Args:
        seen: whether Python saw the fork. The child may then have its parent's process id, in another PID namespace.
    """
    global _pid, _renewing
    pid = os.getpid()
    if seen:
        _mutexes.clear()
        _renewing = 0
    # Each process makes its own mutex, because a thread of the parent may have held the parent's.
    with _mutexes.setdefault(pid, threading.RLock()):
        if _renewing == pid or (pid == _pid and not seen):
            return
        _renewing = pid
        try:
            # `valuerefs` copies in one step, because another thread of the parent may have been adding an object.
            for renew in (*_hooks, *(one.renew for ref in _objects.valuerefs() if (one := ref()) is not None)):
                try:
                    renew()
                except Exception:  # the other hooks must run; Python reports a failed hook in the same way
                    traceback.print_exc()
        finally:
            _pid, _renewing = pid, 0


def _run_before() -> None:
    for hook in reversed(_before):
        hook()


def _run_in_parent() -> None:
    for hook in _in_parent:
        hook()


if hasattr(os, "register_at_fork"):  # absent on Windows, as fork is
    os.register_at_fork(before=_run_before, after_in_parent=_run_in_parent, after_in_child=_renew)
