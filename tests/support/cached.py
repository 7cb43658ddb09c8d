"""A cache directory to look into, and processes that use it."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sharedvol.cache import Cache
from sharedvol.cache.keys import name_of
from support.processes import Child, wait_until


def refuse() -> Any:
    """For a `Cache.get` that must find its entry."""
    raise AssertionError("computed")


def files(directory: Path) -> list[str]:
    """Every file in ``entries``, below its version's directory, but for what belongs to the limits."""
    found = [path.relative_to(directory / "entries") for path in sorted((directory / "entries").rglob("*"))]
    names = ["/".join(path.parts[1:]) for path in found if not (directory / "entries" / path).is_dir()]
    return [name for name in names if name not in ("tally", "limits.lock")]


def entry_path(directory: Path, key: Any, kind: str = "json") -> Path:
    """Where the only version's entry of a key lies."""
    (version,) = os.listdir(directory / "entries")
    name = name_of(key, kind)
    return directory / "entries" / version / name[:2] / name


def lock_path(directory: Path, key: Any) -> Path:
    """The lock file of the entry of a key."""
    entry = entry_path(directory, key)
    return entry.with_name(f"{entry.name}.lock")


def getter(cache: Cache, key: Any, **options: Any) -> Child:
    """Return a child that gets one entry, and computes it as the test says.

    It sends ``computing`` when it computes, and takes the value to return; ``fail``, ``exit`` and ``refuse`` are
    orders. At the end it sends ``("got", value)`` or ``("failed", error as text)``.
    """

    def work(connection: Connection) -> None:
        def compute() -> Any:
            connection.send("computing")
            order = connection.recv()
            if order == "fail":
                raise RuntimeError("as told")
            if order == "exit":
                os._exit(0)
            return order

        try:
            connection.send(("got", cache.get(key, compute, **options)))
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {error}"))

    return Child(work)


def waits_in_kernel(pid: int) -> bool:
    """Whether a process waits for a lock: its main thread blocks in fcntl(2) or flock(2), or its helper does."""
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            call = Path(f"/proc/{pid}/task/{task}/syscall").read_text().split()[0]
        except (OSError, IndexError):
            continue
        if call in _LOCKING:
            return True
    return False


def wait_until_waiting(child: Child) -> None:
    """Until a child waits for a lock in the kernel."""
    wait_until(lambda: waits_in_kernel(child.pid), f"process {child.pid} in the kernel")


def computed(directory: Path, compute: Callable[[], Any]) -> Callable[[], Any]:
    """``compute``, and a line for each time it ran, in whatever process."""

    def call() -> Any:
        with open(directory, "a") as file:
            file.write(f"{os.getpid()}\n")
        return compute()

    return call


# fcntl and flock, see syscalls(2).
_LOCKING = {"x86_64": ("72", "73"), "aarch64": ("25", "32")}.get(os.uname().machine, ("72", "73"))
