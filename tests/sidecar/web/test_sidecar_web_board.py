"""The board: what makes it not ready, what it counts as what, and that it stays small."""

from __future__ import annotations

import signal
import threading

import pytest
from support.processes import LIMIT
from support.sidecar.board_scene import NOON, Clocks

from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.event import Event
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.humanize import LONGEST
from sharedvol_sidecar.monitor.snapshot import ReplicaView
from sharedvol_sidecar.monitor.state import CONTAINERS, LISTED, PATIENCE, ServiceState


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def board(clocks: Clocks) -> ServiceState:
    return clocks.board()


def reasons(board: ServiceState) -> list[str]:
    return [fault.reason for fault in board.picture().faults]


def test_not_ready_until_the_first_pass_has_ended(board: ServiceState) -> None:
    assert reasons(board) == ["starting"]
    board.pass_began()
    board.progress(PassCounts(collected=1))
    assert reasons(board) == ["starting"]
    board.passed(PassCounts(collected=1), 0.1)
    assert board.picture().ready


def test_a_fault_tells_more_than_that_it_is_starting(board: ServiceState) -> None:
    board.fault("destination_full", "no space left")
    assert reasons(board) == ["destination_full", "starting"]


def test_a_fault_lasts_from_its_onset_until_it_is_cleared(board: ServiceState, clocks: Clocks) -> None:
    board.passed(PassCounts(), 0.1)
    board.fault("spool_unavailable", "gone")
    clocks.now += 10
    board.fault("permission", "forbidden")
    board.fault("spool_unavailable", "still gone")
    first, second = board.picture().faults
    assert (first.reason, first.detail, first.since) == ("spool_unavailable", "still gone", NOON)
    assert (second.reason, second.since) == ("permission", NOON + 10)
    board.passed(PassCounts(), 0.1)
    board.clear("spool_unavailable")
    assert reasons(board) == ["permission"]
    board.clear("permission")
    board.clear("permission")
    assert board.picture().ready


def test_a_fault_is_one_error_however_often_it_is_told(board: ServiceState) -> None:
    for _ in range(3):
        board.fault("destination_full", "no space left")
    assert board.picture().errors["destination_full"] == 1
    board.clear("destination_full")
    board.fault("destination_full", "no space left")
    picture = board.picture()
    assert picture.errors["destination_full"] == 2
    assert [entry.name for entry in picture.recent_errors] == ["destination_full"] * 2


def test_stopping_comes_first_and_nothing_takes_it_back(board: ServiceState) -> None:
    board.fault("permission", "forbidden")
    board.stopping()
    assert reasons(board) == ["stopping", "permission", "starting"]
    board.passed(PassCounts(), 0.1)
    board.clear("permission")
    board.clear("stopping")
    assert reasons(board) == ["stopping"]


def test_a_signal_handler_may_say_stopping_and_beat_while_the_board_is_locked(board: ServiceState) -> None:
    """A handler runs in the thread that has the lock: to wait for it would be for ever."""
    handled = threading.Event()

    def handler(*_: object) -> None:
        board.stopping()
        board.beat()
        handled.set()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with board._lock:
            signal.raise_signal(signal.SIGUSR1)
            assert handled.wait(LIMIT)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert reasons(board)[0] == "stopping"


def test_silence_of_the_main_loop_is_death_only_after_the_bound(board: ServiceState, clocks: Clocks) -> None:
    board.passed(PassCounts(), 0.1)
    clocks.now += PATIENCE
    assert board.picture().alive
    assert board.picture().ready
    clocks.now += 0.1
    picture = board.picture()
    assert not picture.alive
    assert [fault.reason for fault in picture.faults] == ["stalled"]
    assert picture.faults[0].since == pytest.approx(NOON)
    board.beat()
    assert board.picture().ready


@pytest.mark.parametrize(
    "call",
    [
        lambda board: board.pass_began(),
        lambda board: board.progress(PassCounts()),
        lambda board: board.passed(PassCounts(), 0.1),
        lambda board: Events(board.event).refused("a", "b"),
        lambda board: board.backlog({}),
        lambda board: board.replicas([]),
        lambda board: board.followed(0),
        lambda board: board.fault("permission", ""),
        lambda board: board.clear("permission"),
    ],
)
def test_every_word_of_the_service_is_a_sign_of_life(board: ServiceState, clocks: Clocks, call: object) -> None:
    clocks.now += 1000
    assert not board.picture().alive
    call(board)  # type: ignore[operator]
    assert board.picture().alive


def test_progress_is_not_counted_twice(board: ServiceState) -> None:
    board.pass_began()
    board.progress(PassCounts(collected=3, bytes=30))
    board.progress(PassCounts(collected=5, bytes=50, copied=1))
    board.passed(PassCounts(collected=6, bytes=60, copied=1, writing=2), 0.1)
    board.passed(PassCounts(collected=6, bytes=60, writing=1), 0.1)
    picture = board.picture()
    assert (picture.moved.collected, picture.moved.bytes, picture.moved.copied) == (12, 120, 1)
    assert picture.left.writing == 1
    assert picture.moved.writing == 0
    assert (picture.minutes[-1].files, picture.minutes[-1].bytes) == (12, 120)


def test_what_a_pass_moved_before_it_failed_stays_counted(board: ServiceState) -> None:
    board.pass_began()
    board.progress(PassCounts(collected=3))
    board.fault("destination_full", "no space left")
    board.pass_began()
    board.progress(PassCounts(collected=4))
    board.passed(PassCounts(collected=4), 0.1)
    assert board.picture().moved.collected == 7
    assert board.picture().passes.count == 1


def test_the_board_keeps_its_own_copy_of_a_tally(board: ServiceState) -> None:
    tally = PassCounts(collected=1, writing=1)
    board.progress(tally)
    tally.collected = 5
    board.passed(tally, 0.1)
    tally.writing = 9
    assert board.picture().moved.collected == 5
    assert board.picture().left.writing == 1


def test_throughput_is_of_the_last_hour_by_the_minute(board: ServiceState, clocks: Clocks) -> None:
    clocks.now = 6000.0
    for minute in range(90):
        board.passed(PassCounts(collected=minute, bytes=minute * 10), 0.1)
        clocks.now += 60
    clocks.now -= 60
    minutes = board.picture().minutes
    assert [minute.files for minute in minutes] == list(range(30, 90))
    assert [minute.bytes for minute in minutes] == [number * 10 for number in range(30, 90)]
    clocks.now += 3600
    assert sum(minute.files for minute in board.picture().minutes) == 0


def test_followed_bytes_are_throughput_without_files(board: ServiceState) -> None:
    board.followed(2)
    board.moved(PassCounts(followed=500))
    board.moved(PassCounts(followed=70))
    board.followed(1)
    picture = board.picture()
    assert (picture.followed_logs, picture.moved.followed) == (1, 570)
    assert (picture.minutes[-1].files, picture.minutes[-1].bytes) == (0, 570)


def test_errors_and_dropped_are_told_apart(board: ServiceState) -> None:
    events = Events(board.event)
    for name in "failed refused unmatched unfinished truncated put_back unfollowed".split():
        getattr(events, name)(f"{name}.json", "")
    board.event(Event(Events.COLLECTED, "collected.json", ""))
    events.catalog_failed("")
    events.pruned("pruned.json", "")
    board.moved(PassCounts(truncated=1, put_back=1, collected=1))
    board.left(PassCounts(failed=1, refused=1, unmatched=1, unfinished=1), True)
    picture = board.picture()
    assert {name for name, count in picture.errors.items() if count} == {"file", "catalog"}
    assert {name for name, count in picture.dropped.items() if count} == set(
        "refused unmatched unfinished truncated".split()
    )
    assert {entry.name for entry in picture.recent_errors} == {"failed", "catalog"}
    assert {entry.name for entry in picture.recent_dropped} == set(picture.dropped)
    assert {entry.name for entry in picture.notes} == {"put_back", "unfollowed", "pruned"}
    assert [entry.name for entry in picture.recent] == ["collected"]


def test_lists_keep_the_newest(board: ServiceState, clocks: Clocks) -> None:
    for number in range(LISTED + 5):
        clocks.now += 1
        board.event(Event(Events.COLLECTED, str(number), f"to/{number}", "c1", number))
    recent = board.picture().recent
    assert len(recent) == LISTED
    assert (recent[0].detail, recent[0].container, recent[0].size) == ("to/24", "c1", 24)
    assert recent[0].at == NOON + 25
    assert recent[-1].detail == "to/5"


def test_whatever_is_told_the_board_stays_small(board: ServiceState) -> None:
    for number in range(500):
        board.event(Event(Events.FAILED, "x" * 100_000, "y" * 100_000, "z" * 100_000))
        board.fault("permission", "x" * 100_000)
        board.passed(PassCounts(collected=1), float(number))
    board.backlog({f"{number}" + "x" * 5000: (1, 1) for number in range(5000)})
    board.replicas(ReplicaView(f"c{number}", None, None, None) for number in range(5000))
    picture = board.picture()
    assert max(len(entry.path) for entry in picture.recent_errors) == LONGEST + 1
    assert len(picture.faults[0].detail) == LONGEST + 1
    assert len(picture.backlog) == CONTAINERS
    assert len(picture.replicas) == CONTAINERS
    assert picture.replicas_unknown == 5000
    assert len(board._throughput._steps) <= 360


def test_the_largest_backlogs_are_shown_and_the_rest_summed(board: ServiceState) -> None:
    board.backlog({f"c{number:03}": (number, number * 10) for number in range(1, 251)})
    picture = board.picture()
    assert (picture.backlog[0].container, picture.backlog[-1].container) == ("c250", "c051")
    assert picture.backlog_rest is not None
    assert (picture.backlog_rest.files, picture.backlog_rest.bytes) == (sum(range(51)), sum(range(51)) * 10)
    assert (picture.backlog_files, picture.backlog_bytes) == (sum(range(251)), sum(range(251)) * 10)
    board.backlog({"c1": (1, 2)})
    assert board.picture().backlog_rest is None


def test_the_living_come_first(board: ServiceState) -> None:
    board.replicas(
        [ReplicaView("a", False, None, None), ReplicaView("c", True, 1, None), ReplicaView("b", None, None, None)]
    )
    picture = board.picture()
    assert picture.replicas[0].name == "c"
    assert (picture.replicas_alive, picture.replicas_dead, picture.replicas_unknown) == (1, 1, 1)


def test_pictures_taken_beside_the_service_agree_in_themselves() -> None:
    """A torn one would show bytes without their files."""
    board = ServiceState()
    done = threading.Event()

    def serve() -> None:
        for _ in range(3000):
            board.passed(PassCounts(collected=1, bytes=7), 0.1)
        done.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        pictures = 0
        while not done.is_set() or not pictures:
            picture = board.picture()
            pictures += 1
            assert picture.moved.bytes == 7 * picture.moved.collected == 7 * picture.passes.count
            assert sum(picture.passes.buckets) == picture.passes.count
    finally:
        thread.join(LIMIT)
    assert board.picture().moved.collected == 3000
