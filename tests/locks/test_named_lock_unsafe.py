"""A named lock that would exclude nobody is refused: the nodes of a cluster, a pooler that shares sessions."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pymysql
import pytest
import sqlalchemy
from support.link import Link
from support.named import holder_of, wait_until_ended
from support.processes import LIMIT, wait_until
from support.servers import Database, Endpoint, Server

from sharedvol import LockUnsafeError
from sharedvol.locks.mysql import NamedLock

_SEQUENCE, _COMMAND = 3, 4
_STATEMENT = 3  # COM_QUERY
_QUIT = 1
_GROUP = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"


class Pooler(Endpoint):
    """A proxy that shares two sessions between its clients: they log in to the first, and it keeps both.

    Args:
        link: to the server of the first, without TLS.
        second: the other session, which the pooler closes.
        route: which session gets the first statement, which the second; then the last one gets the rest.
    """

    def __init__(self, link: Link, second: pymysql.connections.Connection[Any], *route: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        super().__init__(self._listener.getsockname()[1])
        self._route = itertools.chain(route, itertools.repeat(route[-1]))
        self._second = second
        self._sessions = [socket.create_connection(("127.0.0.1", link.port), LIMIT), second._sock]  # type: ignore[attr-defined]
        self._open = list(self._sessions)
        self._listener.settimeout(LIMIT)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self._listener.accept()[0] as client:
            client.settimeout(LIMIT)
            while True:
                for ready in select.select([client, *self._open], [], [], LIMIT)[0]:
                    data = ready.recv(65536)
                    if ready is not client:
                        client.sendall(data)
                        if not data:  # it was killed
                            self._open.remove(ready)
                        continue
                    command = data[_COMMAND] if len(data) > _COMMAND and data[_SEQUENCE] == 0 else None
                    if not data or command == _QUIT:
                        return
                    self._sessions[next(self._route) if command == _STATEMENT else 0].sendall(data)

    def __enter__(self) -> Pooler:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        for sock in (self._listener, *self._sessions):
            sock.close()
        self._second._force_close()  # type: ignore[attr-defined]


@contextlib.contextmanager
def pooled(database: Database, *route: int) -> Iterator[str]:
    with Link(database.server) as link, Pooler(link, link.connect(database.name), *route) as pooler:
        yield pooler.url(database.name)


@contextlib.contextmanager
def clustered(server: Server) -> Iterator[str]:
    """Make the server say that it is in a cluster; what a message must name."""
    if server.flavour == "mysql":
        server.query("INSTALL PLUGIN group_replication SONAME 'group_replication.so'")
        server.query(f"SET GLOBAL group_replication_group_name = '{_GROUP}'")
        yield f"a member of the replication group '{_GROUP}'"
        return
    server.stop()
    server.options = ("--wsrep-on=ON", "--wsrep-provider=none", "--wsrep-cluster-name=shop", "--binlog-format=ROW")
    server.start()
    yield "a node of the Galera cluster 'shop'"


def test_a_node_of_a_cluster_is_refused_unless_told(private_server: Server) -> None:
    database = Database(private_server, private_server.create_database())
    with clustered(private_server) as cluster:
        engine = sqlalchemy.create_engine(database.url)
        with engine.connect() as connection:
            for target in (database.url, connection):
                lock = NamedLock(target, "report")
                with pytest.raises(LockUnsafeError) as caught:
                    lock.acquire()
                assert f"lock '{database.name}.report' would not exclude others: the server is {cluster}" in str(
                    caught.value
                )
                assert "let all replicas use one node and say allow_unsafe=True" in str(caught.value)
                assert not lock.held
                assert holder_of(database) is None
            wait_until_ended(database, left=1)
        engine.dispose()
        with NamedLock(database.url, "report", allow_unsafe=True) as lock:
            assert holder_of(database) is not None
            lock.check()
            assert lock.server is not None
            assert lock.server.cluster == f"the server is {cluster}"
    assert holder_of(database) is None


# The statements: SET NAMES by PyMySQL, two questions to the server, GET_LOCK, whose it is, then RELEASE_LOCK.
ROUTES = {
    "by turns": [0, 1] * 10,
    "never the log-in's": [1],
    "moved after the log-in": [0, 1],
    "moved before the lock": [0, 0, 0, 1],
    "moved after the lock": [0, 0, 0, 0, 1],
    "moved for one statement": [0, 0, 0, 1, 0],
    "back late": [0, 0, 0, 0, 1, 1, 1, 1, 1, 0],
}


@pytest.mark.parametrize("kind", ROUTES)
def test_a_pooler_is_refused_and_keeps_no_lock(database: Database, kind: str) -> None:
    unreachable = kind in ("moved after the lock", "moved for one statement")
    with pooled(database, *ROUTES[kind]) as url:
        lock = NamedLock(url, "report")
        with pytest.raises(LockUnsafeError) as caught:
            lock.acquire()
        text = str(caught.value)
        assert "something between us and the server shares connections" in text
        assert "connect to the server itself, or say allow_unsafe=True" in text
        assert not lock.held
        assert ("was killed, because nothing else would free the lock" in text) == unreachable
        if unreachable:
            wait_until(lambda: holder_of(database) is None, "the session to end")
        assert holder_of(database) is None


def test_a_pooler_that_keeps_to_one_session_is_no_danger(database: Database) -> None:
    with pooled(database, 0) as url, NamedLock(url, "report") as lock:
        lock.check()


@pytest.mark.parametrize("route", [[1], [0, 1] * 10])
def test_a_pooler_is_used_where_the_caller_insists(database: Database, route: list[int]) -> None:
    with pooled(database, *route) as url:
        lock = NamedLock(url, "report", allow_unsafe=True)
        lock.acquire()
        assert lock.held
        assert holder_of(database) is not None
        if len(route) == 1:
            lock.check()
            lock.release()
            assert holder_of(database) is None
        else:
            del lock


def test_a_lock_of_somebody_else_on_another_server_behind_the_pooler_is_left_alone(
    _server_of: Callable[[str], Server],
) -> None:
    name = "shared by mistake"
    first, second = _server_of("mysql"), _server_of("mariadb")
    with Link(first) as link, closing(first.connect()) as innocent, contextlib.ExitStack() as stack:
        granting = second.connect()
        while granting.thread_id() == innocent.thread_id():
            stack.callback(granting.close)
            granting = second.connect()
        with innocent.cursor() as cursor:
            cursor.execute("SELECT GET_LOCK(%s, 0)", (name,))
            told = pytest.raises(LockUnsafeError, match=r"of a server that does not answer now may still have it$")
            with Pooler(link, granting, 0, 0, 0, 1, 0) as pooler, told:
                NamedLock(pooler.url(), name, literal=True).acquire()
            cursor.execute("SELECT IS_USED_LOCK(%s) = CONNECTION_ID()", (name,))
            assert cursor.fetchall() == ((1,),)
