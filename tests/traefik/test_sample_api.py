"""The sample API by itself: what it promises to who asks twice, and to who copies it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from support.processes import LIMIT
from support.servers import Database
from support.traefik.api_replica import Mounts, Replica
from support.traefik.traefik_proxy import Answer, wait_told

from sharedvol import Semaphore

BUSY = "&init_command=SET%20innodb_lock_wait_timeout%3D1"
"""On the URL: who waits for a row gives up after a second."""

Pair = tuple[Replica, Replica]


@pytest.fixture
def pair(mounts: Mounts) -> Iterator[Pair]:
    """Two replicas that are ready."""
    with ExitStack() as stack:
        made = Replica("c1", mounts), Replica("c2", mounts)
        for one in made:
            stack.callback(one.close)
            one.start()
        for one in made:
            one.await_ready()
        yield made


def at_once(*asking: Callable[[], Answer]) -> list[Answer]:
    """What each answers, asked from a thread of its own."""
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda one=one: answers.append(one())) for one in asking]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    return answers


def files(mounts: Mounts) -> list[str]:
    return sorted(path.name for path in mounts.spool.glob("*/results/*"))


def test_an_order_that_is_given_many_times_at_once_is_done_once(pair: Pair, mounts: Mounts, database: Database) -> None:
    order = {"numbers": [1, 2], "unit": "km", "seconds": 0.2}
    answers = at_once(*(lambda one=one: one.ask("PUT", "/jobs/same", order) for one in pair * 4))
    assert Counter(one.status for one in answers) == {201: 1, 200: 7}
    (body,) = {one.body for one in answers}
    done = json.loads(body)
    assert files(mounts) == [done["file"]]
    assert done["total"] == 3000
    assert database.query("SELECT id, replica, total, file FROM jobs") == [
        ("same", done["replica"], done["total"], done["file"])
    ]

    asked = [one.ask("GET", f"/reports/{datetime.now(UTC):%Y-%m-%d}") for one in pair]
    assert [one.status for one in asked] == [200, 200]
    assert len({one.body for one in asked}) == 1  # one computed it, and says its name

    first, _ = pair
    who = json.loads(first.ask("GET", "/").body)
    assert who["replica"] == "c1" and who["slot"] in (0, 1)
    assert first.ask("GET", "/jobs/none").status == 404
    assert first.ask("PUT", "/jobs/no..such", order).status == 422
    assert first.ask("PUT", "/jobs/other", {**order, "unit": "mile"}).status == 422
    assert {one.ask("GET", "/jobs/none").replica for one in pair} == {"c1", "c2"}


def test_what_nobody_can_answer_is_the_clients_error(pair: Pair, mounts: Mounts, database: Database) -> None:
    first, _ = pair  # an answer of 500 would count as a failure of the replica: two in a row, and Traefik puts it out
    for numbers in (["nan"], [1e308, 1e308], ["-inf"]):
        assert first.ask("PUT", "/jobs/odd", {"numbers": numbers}).status == 422
    assert first.ask("PUT", "/jobs/large", {"numbers": [1e12] * 10_000}).status == 201
    assert [first.ask("GET", f"/reports/{day}").status for day in ("9999-12-31", "9999-12-30", "0001-01-01")] == [
        422,
        200,
        200,
    ]
    assert len(files(mounts)) == 1
    assert database.query("SELECT id FROM jobs") == [("large",)]


def test_a_report_that_others_keep_it_from_is_to_be_asked_again(pair: Pair, mounts: Mounts) -> None:
    first, _ = pair
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Semaphore(mounts.spool / "locks" / "report", 2))
        assert first.ask("GET", "/reports/2026-01-31").status == 503
    assert first.ask("GET", "/reports/2026-01-31").status == 200


def test_an_order_whose_replica_is_killed_is_done_by_the_next_that_waits(pair: Pair, mounts: Mounts) -> None:
    first, second = pair
    interrupted = threading.Thread(target=first.ask, args=("PUT", "/jobs/killed", {"numbers": [1], "seconds": LIMIT}))
    interrupted.start()
    wait_told(lambda: "job killed begins" in first.console(), "the first at work")
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.append(second.ask("PUT", "/jobs/killed", {"numbers": [2]})))
    waiting.start()
    wait_told(lambda: "job killed begins" in second.console(), "the second at its INSERT, or before it")
    assert first.ask("GET", "/jobs/killed").status == 404
    first.kill()
    for thread in (interrupted, waiting):
        thread.join(LIMIT)
    (answer,) = answers
    done = json.loads(answer.body)
    assert (answer.status, done["replica"], done["total"]) == (201, "c2", 2)
    assert files(mounts) == [done["file"]]


def test_an_order_that_somebody_else_has_for_too_long_is_to_be_asked_again(mounts: Mounts, database: Database) -> None:
    with ExitStack() as stack:
        one = Replica("c1", replace(mounts, url=mounts.url + BUSY))
        stack.callback(one.close)
        one.start()
        one.await_ready()
        other = stack.enter_context(closing(database.connect(autocommit=False)))
        other.cursor().execute("INSERT INTO jobs (id, replica) VALUES ('held', 'other')")
        assert one.ask("PUT", "/jobs/held", {"numbers": [1]}).status == 503
        other.rollback()
        assert one.ask("PUT", "/jobs/held", {"numbers": [1]}).status == 201
    assert len(files(mounts)) == 1
