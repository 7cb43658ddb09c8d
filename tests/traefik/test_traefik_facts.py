"""What docs/traefik.md says of Traefik, asked of Traefik itself. Without these facts the settings there are guesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from support.traefik.traefik_proxy import CHECK, NEVER, RETRY, Balancing, Traefik
from support.traefik.traefik_stub import Stub

Make = Callable[[str], Stub]

BARE = Balancing(check=NEVER, retry=None, passive=None)


def test_a_server_counts_as_healthy_until_its_first_check_an_interval_later(traefik: Traefik, stub: Make) -> None:
    alive, dead = stub("alive"), stub("dead")
    dead.kill()
    traefik.serve([alive.port, dead.port], BARE)
    assert traefik.up() == {alive.port, dead.port}
    seen = Counter(traefik.ask("GET", "/").status for _ in range(8))
    assert seen[502] > 0 and seen[200] > 0


def test_every_change_of_the_configuration_makes_all_servers_healthy_again(traefik: Traefik, stub: Make) -> None:
    alive, dead, other = stub("alive"), stub("dead"), stub("other")
    dead.kill()
    traefik.serve([alive.port, dead.port])
    traefik.await_up([alive.port])
    traefik.serve([alive.port, dead.port, other.port], BARE)
    assert traefik.up() == {alive.port, dead.port, other.port}


def test_a_server_that_says_that_it_is_not_ready_gets_no_requests(traefik: Traefik, stub: Make) -> None:
    ready, draining = stub("ready"), stub("draining")
    traefik.serve([draining.port])
    assert traefik.ask("GET", "/ready/503").status == 200
    traefik.serve([ready.port, draining.port])
    traefik.await_up([ready.port])
    assert {traefik.ask("GET", "/").replica for _ in range(8)} == {"ready"}
    traefik.serve([draining.port])
    traefik.await_up([])
    assert traefik.ask("GET", "/").status == 503


def test_a_server_that_hangs_gets_no_new_requests_after_its_check(traefik: Traefik, stub: Make) -> None:
    alive, hanging = stub("alive"), stub("hanging")
    traefik.serve([alive.port, hanging.port], Balancing(check={**CHECK, "timeout": "1s"}))
    hanging.stop()
    traefik.await_up([alive.port])
    assert {traefik.ask("GET", "/").replica for _ in range(8)} == {"alive"}


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_a_dead_server_is_an_error_without_retry_and_none_with_it(traefik: Traefik, stub: Make, method: str) -> None:
    """It refuses the connection: nothing was sent, so a POST may be repeated, too."""
    alive, dead = stub("alive"), stub("dead")
    dead.kill()
    body = None if method == "GET" else "body"
    traefik.serve([alive.port, dead.port], BARE)
    assert 502 in [traefik.ask(method, "/", body).status for _ in range(8)]
    traefik.serve([alive.port, dead.port], Balancing(check=NEVER))
    answers = [traefik.ask(method, "/", body) for _ in range(8)]
    assert [(one.status, one.body) for one in answers] == [(200, body or "")] * 8


@pytest.mark.parametrize(
    ("method", "how", "status"),
    [
        ("GET", BARE, 502),
        ("GET", Balancing(check=NEVER, retry={"attempts": 3}), 502),
        ("GET", Balancing(check=NEVER), 200),
        ("PUT", Balancing(check=NEVER), 200),
        ("POST", Balancing(check=NEVER), 502),
        ("PUT", Balancing(check=NEVER, retry={**RETRY, "maxRequestBodyBytes": 3}), 502),
        ("PUT", Balancing(check=NEVER, retry={**RETRY, "timeout": "1us"}), 502),
    ],
    ids=["no-retry", "retry-without-status", "get", "put", "post", "put-of-more-bytes", "put-of-more-time"],
)
def test_a_kill_before_the_answer_is_hidden_by_retry_on_502_and_not_for_post(
    traefik: Traefik, stub: Make, method: str, how: Balancing, status: int
) -> None:
    alive, dying = stub("alive"), stub("dying")
    traefik.serve([alive.port, dying.port], how)
    seen = [traefik.ask(method, "/die-dying", None if method == "GET" else "body") for _ in range(8)]
    dying.await_end()
    worst = max(seen, key=lambda one: one.status)
    assert worst.status == status
    if status == 200 and method == "PUT":
        assert {one.body for one in seen} == {"body"}


def test_a_kill_within_the_answer_cannot_be_hidden(traefik: Traefik, stub: Make) -> None:
    alive, dying = stub("alive"), stub("dying")
    traefik.serve([alive.port, dying.port])
    broken = [one.error for one in (traefik.ask("GET", "/cut-dying") for _ in range(8)) if one.error]
    dying.await_end()
    assert len(broken) == 1


def test_two_failures_put_a_server_out_before_its_check_does(traefik: Traefik, stub: Make) -> None:
    """So three attempts are enough for one dead server, however the turns fall."""
    alive, dead = stub("alive"), stub("dead")
    dead.kill()
    traefik.serve([alive.port, dead.port], Balancing(check=NEVER, retry=None))
    assert Counter(traefik.ask("GET", "/").status for _ in range(20)) == {200: 18, 502: 2}


def test_a_request_that_kills_takes_as_many_servers_as_it_has_attempts(traefik: Traefik, stub: Make) -> None:
    servers = [stub(name) for name in "abcd"]
    traefik.serve([one.port for one in servers], Balancing(check=NEVER, retry={**RETRY, "attempts": 3}))
    assert traefik.ask("GET", "/die").status == 502
    assert traefik.ask("GET", "/").status == 200


def test_two_answers_of_500_put_a_server_out_and_a_good_one_between_starts_anew(traefik: Traefik, stub: Make) -> None:
    good, failing = stub("good"), stub("failing")
    traefik.serve([good.port, failing.port], Balancing(check=NEVER))
    asked = [traefik.ask("GET", "/code-failing/500").status for _ in range(12)]
    assert Counter(asked) == {200: 10, 500: 2}
    traefik.serve([failing.port], Balancing(check=NEVER))
    assert [traefik.ask("GET", path).status for path in ("/code/500", "/", "/code/500", "/")] == [500, 200, 500, 200]


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
def test_a_server_that_closes_a_kept_connection_first_fails_the_post_on_it(
    traefik: Traefik, stub: Make, method: str, status: int
) -> None:
    """What happens where the server's keep-alive time is shorter than Traefik's."""
    one = stub("one")
    traefik.serve([one.port], Balancing(check=NEVER))
    assert traefik.ask("GET", "/").status == 200
    assert traefik.ask(method, "/drop", None if method == "GET" else "body").status == status


def test_the_cookie_keeps_a_client_on_its_server_and_moves_it_without_an_error(traefik: Traefik, stub: Make) -> None:
    servers = {name: stub(name) for name in "abc"}
    traefik.serve([one.port for one in servers.values()], Balancing(check=NEVER, sticky=True))
    first = traefik.ask("GET", "/")
    stays = [traefik.ask("PUT", "/", "body", first.cookie) for _ in range(8)]
    assert {one.replica for one in stays} == {first.replica}
    assert {traefik.ask("GET", "/").replica for _ in range(12)} == set("abc")  # who has no cookie
    moved = traefik.ask("PUT", f"/die-{first.replica}", "body", first.cookie)
    assert (moved.status, moved.body) == (200, "body")
    assert moved.replica != first.replica and moved.cookie not in ("", first.cookie)
    servers[first.replica].await_end()
    stays = [traefik.ask("PUT", "/", "body", moved.cookie) for _ in range(8)]
    assert {one.replica for one in stays} == {moved.replica}


def test_a_sticky_client_is_moved_when_its_server_drains(traefik: Traefik, stub: Make) -> None:
    servers = {name: stub(name) for name in "ab"}
    traefik.serve([one.port for one in servers.values()], Balancing(sticky=True))
    first = traefik.ask("GET", "/")
    assert traefik.ask("GET", "/ready/503", cookie=first.cookie).replica == first.replica
    (other,) = (one for name, one in servers.items() if name != first.replica)
    traefik.await_up([other.port])
    moved = traefik.ask("GET", "/", cookie=first.cookie)
    assert (moved.status, moved.replica) == (200, other.name)
