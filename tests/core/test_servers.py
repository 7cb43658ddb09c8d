"""The database servers of the tests, and the network to them, do what the tests rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pymysql
import pytest
from sqlalchemy import create_engine, text
from support.link import Link
from support.processes import LIMIT, Child, wait_until
from support.servers import Database, Server, sweep

LOST = (pymysql.err.OperationalError, pymysql.err.InterfaceError, ConnectionError)
MULTI_LINE = "SELECT 'first\n\n\t\tthird', 'schön 😀' --"


def test_server_is_what_its_fixture_says(server: Server) -> None:
    ((version,),) = server.query("SELECT VERSION()")
    assert ("MariaDB" in version) == (server.flavour == "mariadb")


def test_database_is_reached_by_url_with_all_of_unicode(database: Database) -> None:
    engine = create_engine(database.url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT DATABASE(), '😀'")).one() == (database.name, "😀")
    engine.dispose()


def test_user_with_password_connects_also_through_a_link(server: Server) -> None:
    server.query("CREATE USER 'ann'@'%' IDENTIFIED BY 'p@ss/w'")
    try:
        with Link(server) as link:
            for endpoint in (server, link, server):
                engine = create_engine(endpoint.url(user="ann", password="p@ss/w"))
                with engine.connect() as connection:
                    assert connection.execute(text("SELECT 1")).scalar() == 1
                engine.dispose()
                endpoint.connect(user="ann", password="p@ss/w").close()
    finally:
        server.query("DROP USER 'ann'@'%'")


def test_database_is_dropped_though_a_transaction_is_open(server: Server) -> None:
    database = Database(server, server.create_database())
    database.query("CREATE TABLE t (a INT)")
    with closing(database.connect(autocommit=False)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM t")
        database.drop()
    assert not server.query(f"SHOW DATABASES LIKE '{database.name}'")


def test_general_log_has_statements_as_they_were_sent(database: Database) -> None:
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        with database.server.log() as log:
            for statement in (MULTI_LINE, "DO 1", "DO 2"):
                cursor.execute(statement)
            connection.select_db("information_schema")
            database.query("DO 3")
            assert log.statements(connection.thread_id()) == [MULTI_LINE, "DO 1", "DO 2"]
        cursor.execute("DO 4")
        assert "DO 4" not in log.statements()
    assert [entry.command for entry in log.entries(connection.thread_id())] == ["Query", "Query", "Query", "Init DB"]
    others = [entry for entry in log.entries() if entry.connection != connection.thread_id()]
    assert {"Connect", "Query", "Quit"} >= {entry.command for entry in others}
    assert "DO 3" in [entry.text for entry in others]


def test_client_goes_on_after_an_error(database: Database) -> None:
    script = "CREATE TABLE t (a TEXT);\nSELECT nonsense;\nINSERT INTO t VALUES ('😀');\nSELECT * FROM t;\n"
    done = database.server.client(script.encode(), database.name)
    assert b"nonsense" in done.stderr
    assert done.stdout.decode() == "a\n😀\n"


def test_restart_keeps_data_and_port(private_server: Server) -> None:
    database = private_server.create_database()
    private_server.query("CREATE TABLE t (a INT PRIMARY KEY)", database)
    for number, end in enumerate((private_server.stop, private_server.kill)):
        private_server.query(f"INSERT INTO t VALUES ({number})", database)
        end()
        with pytest.raises(LOST):
            private_server.connect()
        private_server.start()
    assert private_server.query("SELECT a FROM t", database) == [(0,), (1,)]


STARTER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from support.servers import Server
server = Server(sys.argv[2])
print(server.process.pid, server.directory, flush=True)
time.sleep(600)
"""


def test_server_dies_with_its_starter_and_the_next_one_tidies_up(server: Server) -> None:
    here = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", STARTER, here, server.flavour]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        try:
            assert starter.stdout is not None
            pid, directory = starter.stdout.readline().split()
            watch = os.pidfd_open(int(pid))
        finally:
            starter.send_signal(signal.SIGKILL)
    with open(watch, "rb", buffering=0):
        wait_until(lambda: not is_alive(watch), "the server's death")
    sweep()
    wait_until(lambda: not Path(directory).exists(), "its directory to go, maybe by the sweep of another test process")


def is_alive(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True


def test_link_counts_round_trips(database: Database) -> None:
    with Link(database.server) as link:
        with closing(link.connect(database.name)) as connection, connection.cursor() as cursor:
            link.clear()
            cursor.execute("CREATE TABLE t (a LONGTEXT)")
            cursor.execute("INSERT INTO t VALUES (%s)", ("x" * 200_000,))
            cursor.execute("SELECT a FROM t")
            assert cursor.fetchone() == ("x" * 200_000,)
        assert link.round_trips == 3
        assert link.packets[2] == b"\x03SELECT a FROM t"


def test_drop_cuts_connections_and_new_ones_can_be_made(server: Server) -> None:
    with Link(server) as link, closing(link.connect()) as first, closing(link.connect()) as second:
        link.drop()
        for connection in (first, second):
            with pytest.raises(LOST):
                connection.query("SELECT 1")
        assert link.query("SELECT 1") == [(1,)]


def test_drop_reaches_connections_that_a_forked_child_has_too(server: Server) -> None:
    with Link(server) as link, closing(link.connect()) as connection:
        number = connection.thread_id()
        with Child(lambda pipe: pipe.recv()) as child:
            link.drop()
            with pytest.raises(LOST):
                connection.query("SELECT 1")
            wait_until(lambda: not is_connected(server, number), "the server to notice")
            child.send(None)


def test_server_can_be_left_unaware_of_a_drop(server: Server) -> None:
    with Link(server) as link, closing(link.connect()) as connection:
        number = connection.thread_id()
        link.drop(server_notices=False)
        with pytest.raises(LOST):
            connection.query("SELECT 1")
        assert is_connected(server, number)
        link.drop()
        wait_until(lambda: not is_connected(server, number), "the server to notice")


def is_connected(server: Server, number: int) -> bool:
    return bool(server.query(f"SELECT 1 FROM information_schema.processlist WHERE id = {number}"))


@pytest.mark.parametrize("delivered", [True, False])
@pytest.mark.parametrize("by", ["text", "count"])
def test_answer_is_lost_or_statement_never_arrives(database: Database, delivered: bool, by: str) -> None:
    database.query("CREATE TABLE t (a INT)")
    with Link(database.server) as link, closing(link.connect(database.name)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            if by == "text":
                link.drop_on(b"COMMIT", delivered=delivered)
            else:
                link.drop_after(2, delivered=delivered)
            cursor.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(LOST):
                cursor.execute("COMMIT")
        assert database.query("SELECT * FROM t") == ([(1,)] if delivered else [])
        assert link.query("SELECT 1") == [(1,)]


def test_refusing_leaves_connections_alone(server: Server) -> None:
    with Link(server) as link, closing(link.connect()) as connection:
        link.refuse()
        with pytest.raises(pymysql.err.OperationalError, match="refused"):
            link.connect()
        connection.ping(reconnect=False)
        link.accept()
        assert link.query("SELECT 1") == [(1,)]


def test_held_connection_stalls_until_release(database: Database) -> None:
    with Link(database.server) as link:
        with closing(link.connect(database.name, read_timeout=0.2)) as connection:
            link.hold()
            with pytest.raises(pymysql.err.OperationalError, match="timed out"):
                connection.query("CREATE TABLE t (a INT)")
            assert link.packets[-1].startswith(b"\x03CREATE")
            assert not database.query("SHOW TABLES")
        link.release()
        assert link.query("SELECT 1") == [(1,)]


def test_link_survives_a_restart_of_its_server(private_server: Server) -> None:
    with Link(private_server) as link, closing(link.connect()) as connection:
        private_server.kill()
        with pytest.raises(LOST):
            connection.query("SELECT 1")
        with pytest.raises(LOST):
            link.connect(connect_timeout=LIMIT)
        private_server.start()
        assert link.query("SELECT 1") == [(1,)]
