"""A board on which much has happened, with names that mean harm."""

from __future__ import annotations

import os

from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.event import Event
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.monitor.snapshot import ReplicaView
from sharedvol_sidecar.monitor.state import ServiceState

NOON = 1_800_000_000.0
"""The time of day of a `Clocks`, in seconds since the epoch: 2027-01-15 08:00 UTC."""

HOSTILE = {
    "element": "<script>document.title='owned'</script><img src=x onerror=alert(1)>.json",
    "attribute": "\"' onmouseover='alert(1)' x=\".json",
    "entity": "&lt;b&gt;&#x3c;.json",
    "comment": "--></style></title></svg><b>bold</b>.json",
    "template": "{{ 7*7 }}{% include 'x' %}.json",
    "lines": "one\ntwo\r\x00\u2028three.json",
    "terminal": "\x1b[31mred\x1b]0;title\x07.json",
    "direction": "report\u202enosj.exe",
    "hidden": "zero\u200bwidth\ufeff.json",
    "bytes": os.fsdecode(b"caf\xe9\xff.json"),
    "long": "x" * 4000,
}


class Clocks:
    """A monotonic clock and a time of day that go on when they are told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def board(self, patience: float = 60.0) -> ServiceState:
        return ServiceState(patience, clock=lambda: self.now, wall=lambda: NOON + self.now - 1000)


def hostile_board(clocks: Clocks) -> ServiceState:
    """Every list, table and fault of the board is about hostile names."""
    board = clocks.board()
    for number, name in enumerate(HOSTILE.values()):
        board.event(Event(Events.COLLECTED, f"c1/results/{name}", f"results/{name}", name, number))
        board.fault(f"fault {name}", f"cannot write {name}")
        for event in ("failed", "refused", "put_back"):
            getattr(Events(board.event), event)(name, f"about {name}")
    board.left(PassCounts(failed=len(HOSTILE), refused=len(HOSTILE)), True)
    board.backlog(dict.fromkeys(HOSTILE.values(), (1, 2)))
    board.replicas(ReplicaView(name, None, None, None) for name in HOSTILE.values())
    return board


def busy_board(clocks: Clocks, minutes: int = 60) -> ServiceState:
    """An hour of ordinary work, with some trouble in it."""
    board = clocks.board()
    board.passed(PassCounts(), 0.02)
    for minute in range(minutes):
        clocks.now += 60
        files = 400 + (minute * 7919) % 900 if 15 < minute < 50 else (minute * 31) % 40
        board.passed(PassCounts(collected=files, bytes=files * 70_000, writing=3, settling=1, refused=2), 0.4)
    for number in range(8):
        clocks.now += 1
        where = f"results/2027-01-15/3f9c0d1e2b4a/job_{number}.json"
        board.event(
            Event(Events.COLLECTED, f"3f9c0d1e2b4a/results/job_{number}.json", where, "3f9c0d1e2b4a", 70_000 * number)
        )
    events = Events(board.event)
    events.failed("9b1d/logs/api.log", "cannot claim it: permission denied (EACCES); give write permission")
    events.refused("9b1d/results/pipe", "no regular file")
    events.put_back("9b1d/results/a.json", "a writer opened it again while it was moved")
    board.backlog({f"{number:012x}": (number * 3, number * 1_000_000) for number in range(1, 7)})
    board.replicas(ReplicaView(f"{number:012x}", number != 4, number, NOON) for number in range(1, 6))
    board.moved(PassCounts(followed=5_000_000))
    board.followed(3)
    return board
