"""A worker that cannot join, while another process of its replica is a member, serves and joins later."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from support.integrations.served import NAME, Place, Served
from support.processes import Child, wait_until

from sharedvol import FileLock, Volume
from sharedvol.integrations.family import slot_of_family

OURS = ("python", "-m", "sharedvol.integrations.uvicorn")


def serve(place: Place, kind: str) -> Served:
    if kind == "gunicorn":
        return place.gunicorn("-w", "1", SHOP_DRAIN="0")
    return place.uvicorn("--workers", "2", program=OURS if kind == "ours" else ("uvicorn",), SHOP_DRAIN="0")


def replaced(served: Served, count: int) -> int:
    """Kill a worker, and return the new one, which answers."""
    before = served.pids(count)
    os.kill(min(before), signal.SIGKILL)

    def is_back() -> bool:
        answer = served.code("/health/live") and served.ask("/")
        if answer and answer.body["pid"] not in before:
            found.append(answer.body["pid"])
            assert answer.body["slot"] == 0
        return bool(found)

    found: list[int] = []
    wait_until(is_back, f"a new worker\n{served.log}")
    return found[0]


def is_member(pid: int) -> bool:
    """Whether a process holds its lock in the volume."""
    wanted = f"/.replicas/names/{NAME}.lock"
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(fd).endswith(wanted) and "lock:" in Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text():
                return True
    return False


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn", "ours"])
def test_a_new_worker_serves_while_the_volume_is_gone_or_its_gate_is_held(place: Place, kind: str) -> None:
    volume, away = place.path / "volume", place.path / "away"
    with serve(place, kind) as served:
        served.until("ready")
        count = 1 if kind == "gunicorn" else 2
        volume.rename(away)
        new = replaced(served, count)
        served.until("ready")
        wait_until(lambda: "cannot join volume" in served.log, "a line in the log")
        assert not is_member(new)
        away.rename(volume)
        wait_until(lambda: is_member(new), f"the next try to join\n{served.log}")
        with FileLock(volume / ".replicas" / "join.lock"):
            new = replaced(served, count)
            served.until("ready")
            assert not is_member(new)
        wait_until(lambda: is_member(new), f"the gate\n{served.log}")
        assert served.process.poll() is None
        served.tell()
        assert served.wait() == 0
    assert Volume(volume).is_alive(NAME) is False


def test_a_replica_without_a_member_does_not_start(place: Place) -> None:
    (place.path / "volume").rmdir()
    with place.gunicorn("-w", "1") as served:
        assert served.wait() == 3
    assert "Start-up failed" in served.log and "cannot join" not in served.log


def test_only_the_locks_of_the_family_count(tmp_path: Path) -> None:
    volume = Volume(tmp_path)

    def look(connection: object) -> None:
        for name in (NAME, "another"):
            connection.send(slot_of_family(name))  # type: ignore[attr-defined]

    def seen() -> list[int | None]:
        with Child(look) as child:
            return [child.receive(), child.receive()]

    assert seen() == [None, None]
    with volume.join(NAME):
        assert seen() == [0, None]
        os.unlink(tmp_path / ".replicas" / "names" / f"{NAME}.lock")
        assert seen() == [0, None]
    assert seen() == [None, None]
