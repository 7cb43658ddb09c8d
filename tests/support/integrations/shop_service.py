"""The service of the applications here, as their environment says. Imported by the real servers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sharedvol import MigrationCoordinator, Volume, worker_token
from sharedvol.integrations import Service

HERE = Path(os.environ["SHOP"])


class Told(MigrationCoordinator):
    """Writes down which process ran it."""

    def run(self) -> Any:
        with (HERE / "runs").open("a") as file:
            file.write(f"{os.getpid()} {worker_token()}\n")
        return super().run()


def gate() -> bool:
    """A readiness check that says no, or hangs, as files ask."""
    if (HERE / "hang").exists():
        (HERE / "hang").read_text()  # a FIFO
    return not (HERE / "broken").exists()


def wait(name: str) -> None:
    """Until the test opens the FIFO of that name, if there is one, and closes it."""
    if not (HERE / name).exists():
        return
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        from gevent import get_hub

        get_hub().threadpool.apply((HERE / name).read_text)  # to read a pipe stops all greenlets
    else:
        (HERE / name).read_text()


wait("import")
service = Service(
    volume=Volume(HERE / "volume", timeout=300),
    coordinator=Told(
        os.environ.get("SHOP_DATABASE", f"sqlite:///{HERE / 'shop.db'}"),
        HERE / "migrations",
        lock_name=os.environ.get("SHOP_LOCK"),
        lock_timeout=300,
    ),
    checks={"gate": gate},
    drain=float(os.environ.get("SHOP_DRAIN", "1000")),
    check_timeout=float(os.environ.get("SHOP_CHECK_TIMEOUT", "0.2")),
    max_age=0,
    purpose="shop",
)


def about() -> dict[str, Any]:
    """What a process knows of itself."""
    return {"pid": os.getpid(), "worker": worker_token(), "replica": service.replica, "slot": service.slot}
