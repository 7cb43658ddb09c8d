"""What a forked child does before it uses anything of its parent's.

`os.fork` runs the hooks of `os.register_at_fork`. C code that calls fork(2) itself runs none of them: an application
server such as uWSGI, an extension module, ctypes. So everything that belongs to one process calls `notice` before it
is used, released or finalised, and `notice` compares the process id. Both ways lead to the same renewal, once for each
child.

This is the only place that registers a hook or remembers whose process this is.
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
        """Forget what belongs to the parent process. Runs in the child; may neither wait nor raise."""


_hooks: list[Callable[[], object]] = []
_objects: weakref.WeakValueDictionary[int, Renewable] = weakref.WeakValueDictionary()
_pid = os.getpid()
_renewing = 0  # the process that is at it
_mutexes: dict[int, Any] = {}


def in_child(hook: Callable[[], object]) -> Callable[[], object]:
    """Run ``hook`` in each forked child, in the order of registration and before any tracked object is renewed."""
    _hooks.append(hook)
    return hook


def track(one: Renewable) -> None:
    """Call ``one.renew()`` in each forked child for as long as the object lives, which this does not prolong."""
    _objects[id(one)] = one


def notice() -> None:
    """Renew everything if this is a forked child that has not done so. Costs one getpid(2) otherwise."""
    if os.getpid() != _pid:
        _renew(seen=False)


def _renew(*, seen: bool = True) -> None:
    """Run the hooks and renew the objects.

    Args:
        seen: Python ran its hooks. The process id may then be the parent's, in another PID namespace.
    """
    global _pid, _renewing
    pid = os.getpid()
    if seen:
        _mutexes.clear()
        _renewing = 0
    # A mutex for each process: no thread of the parent can hold the one that its child makes.
    with _mutexes.setdefault(pid, threading.RLock()):
        if _renewing == pid or (pid == _pid and not seen):
            return
        _renewing = pid
        try:
            # `valuerefs` copies in one step: another thread of the parent may have been adding an object.
            for renew in (*_hooks, *(one.renew for ref in _objects.valuerefs() if (one := ref()) is not None)):
                try:
                    renew()
                except Exception:  # as Python reports what fails in a hook of its own: the others must run
                    traceback.print_exc()
        finally:
            _pid, _renewing = pid, 0


if hasattr(os, "register_at_fork"):  # absent on Windows, as fork is
    os.register_at_fork(after_in_child=_renew)
