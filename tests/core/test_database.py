"""A connection to a database: how it opens, the error if it cannot, and what passes through it unchanged."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pymysql
import pytest
import sqlalchemy
from support import servers
from support.link import Link
from support.named import holder_of, sessions, wait_until_ended
from support.processes import run_python
from support.servers import Endpoint, Server, free_port

from sharedvol import DatabaseError
from sharedvol.database.connection import Database
from sharedvol.locks.mysql import NamedLock

SECRET = "p@ss/w:%?#'\"\\ö😀"


@pytest.fixture
def opened(database: servers.Database) -> Iterator[Database]:
    with closing(Database.open(database.url)) as ours:
        yield ours


def told(target: Any, *errors: type[Exception]) -> str:
    """The message of what opening raises, once the whole traceback is known to hide the password."""
    with pytest.raises(errors) as caught:
        Database.open(target)
    # Not the lines of source that a traceback quotes, which are those of the test too.
    shown = "".join(traceback.TracebackException.from_exception(caught.value).format_exception_only())
    causes, seen = caught.value, []
    while causes is not None:
        seen.append(repr(causes) + str(causes))
        causes = causes.__cause__ or (None if causes.__suppress_context__ else causes.__context__)  # type: ignore[assignment]
    assert "s3cret" not in shown + "".join(seen)
    return str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "s3cret", "mysql:/u:s3cret@h", "mysql://u:p@h:s3cret/db", "mysql://u@h:1:s3cret/db", None, 5, b"s3cret"]
)
def test_what_is_no_url_is_told_without_its_text(url: Any) -> None:
    assert told(url, ValueError) == "not a database URL: it should look like mysql://user@host/database"


@pytest.mark.parametrize("kind", ["mysqll", "mysql+nodriver", "mysql+one+another"])
def test_an_unknown_kind_of_database_is_named(kind: str) -> None:
    assert told(f"{kind}://u:s3cret@h/db", ValueError) == f"SQLAlchemy knows no database '{kind}': use mysql://"


def test_an_asynchronous_driver_is_refused() -> None:
    assert "asynchronous driver" in told("mysql+aiomysql://u:s3cret@h/db", ValueError)


@pytest.mark.parametrize("url", ["postgresql://u:s3cret@h/db", "mysql+mysqldb://u:s3cret@h/db"])
def test_a_missing_driver_is_named(url: str) -> None:
    kind, _, _ = url.partition("://")
    assert told(url, DatabaseError).startswith(f"the driver of {kind} is not installed: No module named")


def test_a_refused_login_is_told_without_the_password(server: Server) -> None:
    text = told(server.url("db", "guest", "s3cret"), DatabaseError)
    assert text.startswith(f"cannot connect to guest@127.0.0.1:{server.port}/db: Access denied for user 'guest'")
    assert text.endswith("(error 1045)")
    assert "cannot connect to guest@" in told(
        sqlalchemy.create_engine(server.url("db", "guest", "s3cret")), DatabaseError
    )


def test_an_unknown_database_is_told(server: Server) -> None:
    text = told(server.url("nowhere"), DatabaseError)
    assert "Unknown database 'nowhere' (error 1049)" in text


@pytest.mark.parametrize("through_engine", [False, True])
def test_a_host_that_does_not_answer_is_told(through_engine: bool) -> None:
    for url in (
        "mysql+pymysql://u:s3cret@host.invalid/db",
        Endpoint(free_port()).url("db", "u", "s3cret"),
        "mysql+pymysql://u:s3cret@h/db?unix_socket=/nowhere",
    ):
        target = sqlalchemy.create_engine(url) if through_engine else url
        assert told(target, DatabaseError).startswith("cannot connect to u@")


@pytest.mark.parametrize("option", ["nonsense=1", "connect_timeout=soon"])
def test_an_option_that_the_driver_does_not_take_is_told(server: Server, option: str) -> None:
    told(f"{server.url('', 'u', 's3cret')}&{option}", ValueError, DatabaseError)


BLOCKED = """
import sys
sys.modules[sys.argv[1]] = None
from sharedvol import DatabaseError
from sharedvol.database.connection import Database
try:
    Database.open("mysql://u:s3cret@localhost/db")
except DatabaseError as error:
    print(error)
"""


def test_missing_packages_are_told_with_what_to_install() -> None:
    text = "SQLAlchemy is not installed, which databases need: install sharedvol[mysql]"
    assert run_python(BLOCKED, "sqlalchemy") == text
    assert "the driver of mysql+pymysql is not installed" in run_python(BLOCKED, "pymysql")
    assert "install sharedvol[mysql]" in run_python(BLOCKED, "pymysql")


def test_a_failure_after_the_login_leaves_no_connection(database: servers.Database, monkeypatch: Any) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    engine = sqlalchemy.create_engine(database.url)
    monkeypatch.setattr(type(engine.dialect), "set_isolation_level", fail)
    gc.disable()  # the error's traceback keeps what was not closed
    try:
        for target in (database.url, engine):
            with pytest.raises(KeyboardInterrupt) as caught:
                Database.open(target)
            wait_until_ended(database)
            assert caught.value.__traceback__
    finally:
        gc.enable()


VALUES = ["50%", "%s %(a)s %%", ":name", "?", "it's", 'a "b"', "a\\b\\", "`", "😀 ö", "", "a\nb", ";", "--", "\0"]


@pytest.mark.parametrize("value", VALUES)
def test_values_go_through_unchanged(database: servers.Database, opened: Database, value: str) -> None:
    database.query("CREATE TABLE t (a INT PRIMARY KEY, b VARCHAR(50) COLLATE utf8mb4_bin)")
    assert opened.change("INSERT INTO t VALUES (:a, :b)", a=1, b=value) == 1
    assert opened.query("SELECT b FROM t WHERE b = :b AND a % 2 = :a", b=value, a=1) == [(value,)]
    assert opened.change("UPDATE t SET b = :c WHERE b = :b", b=value, c="x") == 1
    assert opened.change("DELETE FROM t WHERE b = :b", b=value) == 0
    assert opened.query("SELECT :b, :b", b=value) == [(value, value)]


def test_text_is_sent_as_it_is(opened: Database) -> None:
    opened.run("CREATE TABLE t (a VARCHAR(50))")
    opened.run("INSERT INTO t VALUES ('100% %s %(a)s :name ? 😀 \\'')")
    assert opened.query("SELECT a FROM t") == [("100% %s %(a)s :name ? 😀 '",)]
    with pytest.raises(DatabaseError, match=r"error 1064"):
        opened.run("SELECT :name")
    assert opened.query("SELECT 7 % 4") == [(3,)]


def test_all_results_are_read_and_the_error_of_a_later_one_raised(opened: Database) -> None:
    opened.run("CREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2; SELECT nonsense; SELECT 3; END")
    with pytest.raises(DatabaseError, match=r"nonsense.*\(error 1054\)") as caught:
        opened.run("CALL p()")
    assert (caught.value.code, caught.value.lost) == (1054, False)
    assert opened.query("SELECT 1") == [(1,)]
    assert len(list(opened.send("SELECT 1; DO 2; SELECT 3, 4"))) == 3
    steps = opened.send("SELECT 1; SELECT 2")
    next(steps)
    steps.close()
    assert opened.query("SELECT 5") == [(5,)]


def test_what_others_commit_is_seen(database: servers.Database, opened: Database) -> None:
    database.query("CREATE TABLE t (a INT)")
    engine = sqlalchemy.create_engine(database.url, isolation_level="REPEATABLE READ")
    with closing(Database.open(engine)) as from_engine:
        for number in range(3):
            for ours in (opened, from_engine):
                assert ours.query("SELECT COUNT(*) FROM t") == [(number,)]
            database.query("INSERT INTO t VALUES (1)")
        assert from_engine.change("INSERT INTO t VALUES (2)") == 1
    assert database.query("SELECT COUNT(*) FROM t") == [(4,)]


def test_a_lost_connection_is_told(database: servers.Database) -> None:
    with Link(database.server) as link, closing(Database.open(link.url(database.name))) as ours:
        for _ in range(2):
            link.drop()
            with pytest.raises(DatabaseError) as caught:
                ours.query("SELECT 1")
            assert caught.value.lost
            assert str(caught.value).startswith(f"root@127.0.0.1:{link.port}/{database.name}: ")


@pytest.mark.parametrize("kind", ["mysql", "mariadb"])
def test_pymysql_is_the_default(database: servers.Database, kind: str) -> None:
    with closing(Database.open(database.url.replace("mysql+pymysql", kind))) as ours:
        assert isinstance(ours.raw, pymysql.connections.Connection)
        assert ours.kind == "mysql"
        assert ours.driver_session == ours.query("SELECT CONNECTION_ID()")[0][0]


def test_an_engine_connects_with_its_own_arguments(database: servers.Database) -> None:
    engine = sqlalchemy.create_engine(database.url, connect_args={"init_command": "SET @mine = 7", "read_timeout": 50})
    seen: list[object] = []
    sqlalchemy.event.listen(engine, "connect", lambda raw, _: seen.append(raw))
    with closing(Database.open(engine)) as ours:
        assert ours.query("SELECT @mine, @@autocommit") == [(7, 1)]
        assert ours.read_timeout == 50
        assert seen[-1:] == [ours.raw]


def test_sqlalchemy_speaks_on_the_same_session_and_the_lock_stays(database: servers.Database, opened: Database) -> None:
    opened.run("CREATE TABLE t (a INT)")
    with NamedLock(opened, "report") as lock:
        ((session,),) = opened.query("SELECT CONNECTION_ID()")
        for number in range(2):
            with opened.sqlalchemy() as connection:
                assert connection.execute(sqlalchemy.text("SELECT CONNECTION_ID()")).scalar() == session
                connection.execute(sqlalchemy.text("INSERT INTO t VALUES (:a)"), {"a": number})
                assert database.query("SELECT COUNT(*) FROM t") == [(number,)]
                connection.commit()
                connection.execute(sqlalchemy.text("INSERT INTO t VALUES (9)"))
            gc.collect()
            assert holder_of(database) == session
            lock.check()
            assert opened.query("SELECT @@autocommit") == [(1,)]
            assert opened.query("SELECT a FROM t") == [(each,) for each in range(number + 1)]
        with pytest.raises(ZeroDivisionError), opened.sqlalchemy() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO t VALUES (9)"))
            raise ZeroDivisionError
        assert opened.query("SELECT @@autocommit") == [(1,)]
        assert opened.query("SELECT a FROM t") == [(0,), (1,)]
    assert sessions(database) == [session]


def test_opening_costs_what_the_driver_sends_and_no_more(database: servers.Database) -> None:
    with Link(database.server) as link:
        link.connect(database.name).close()
        bare, link.packets = link.packets, []
        Database.open(link.url(database.name)).close()
        assert link.packets == bare
        assert all(packet.startswith(b"\x03SET NAMES") for packet in bare)


@pytest.mark.parametrize("tls", [False, True])
def test_an_account_with_a_password_gets_in(database: servers.Database, tls: bool) -> None:
    """On MySQL by caching_sha2_password, whose first log-in sends the password: by TLS, or under the server's key."""
    user = f"u{database.name[-8:]}"
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE USER {user}@'%%' IDENTIFIED BY %s", (SECRET,))
        cursor.execute(f"GRANT ALL ON {database.name}.* TO {user}@'%'")
    try:
        with Link(database.server) as link:
            endpoint: Endpoint = database.server if tls else link
            with closing(Database.open(endpoint.url(database.name, user, SECRET))) as ours:
                ((_, cipher),) = ours.query("SHOW STATUS LIKE 'Ssl_cipher'")
                assert bool(cipher) == (tls and database.server.flavour == "mysql")
                assert SECRET not in ours.label
            with NamedLock(endpoint.url(database.name, user, SECRET), "report") as lock:
                lock.check()
    finally:
        database.query(f"DROP USER {user}@'%'")


def test_an_interrupt_between_question_and_answer_ends_the_session(opened: Database, monkeypatch: Any) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pymysql.connections.Connection, "_read_query_result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened.query("SELECT 'the answer to the first question'")
    with pytest.raises(DatabaseError) as caught:
        opened.query("SELECT 1")
    assert caught.value.lost
