"""The tokens of named locks, which only ever grow, and what their holders say of themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from typing import Any

import pytest
import sqlalchemy
from support.link import Link
from support.named import (
    holder_session,
    in_thread,
    named,
    wait_until_believed,
    wait_until_ended,
    wait_until_waited_for,
)
from support.processes import LIMIT, Child, run_forked
from support.servers import Database, Server

from sharedvol import DatabaseError, LockError, LockLostError, LockTimeout, NotLockedError, container_id, worker_token
from sharedvol.database.connection import Database as Opened
from sharedvol.locks.mysql import NamedLock, token_table
from sharedvol.locks.mysql.lock import LockHolder

SCHEMA = (
    "CREATE TABLE sharedvol_lock (name VARBINARY(256) NOT NULL PRIMARY KEY, token BIGINT UNSIGNED NOT NULL, "
    "connection_id BIGINT UNSIGNED NOT NULL, replica VARCHAR(64), pid BIGINT UNSIGNED, worker VARCHAR(32), "
    "purpose VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL, since DATETIME(6) NOT NULL) ENGINE=InnoDB"
)


def token_of(database: Database, **options: Any) -> int:
    with named(database, fenced=True, **options) as lock:
        return lock.token


def row(database: Database) -> tuple[Any, ...]:
    ((*values,),) = database.query("SELECT name, token, connection_id, purpose FROM sharedvol_lock")
    return tuple(values)


def clock(database: Database) -> int:
    ((now,),) = database.query("SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))")
    return int(now)


@contextmanager
def account(database: Database, *rights: str) -> Iterator[str]:
    """The URL of one that may do no more than that on the database."""
    user = f"u{database.name[-8:]}"
    database.query(f"CREATE USER {user}@'%'")
    try:
        for right in rights:
            database.query(f"GRANT {right} TO {user}@'%'")
        yield database.server.url(database.name, user)
    finally:
        database.query(f"DROP USER {user}@'%'")


def test_tokens_grow_from_the_servers_clock(database: Database) -> None:
    before = clock(database)
    tokens = [token_of(database) for _ in range(3)]
    assert before <= tokens[0] < tokens[1] < tokens[2] <= clock(database) + 3
    assert row(database)[:2] == (f"{database.name}.report".encode(), tokens[2])


def test_a_hold_has_one_token_however_often_it_is_taken(database: Database) -> None:
    lock = named(database, fenced=True)
    with lock:
        token = lock.token
        with lock:
            assert lock.token == token
        assert lock.token == token
    with lock:
        assert lock.token > token


def test_a_token_is_of_a_fenced_lock_that_is_held(database: Database) -> None:
    lock = named(database, fenced=True)
    with pytest.raises(NotLockedError):
        _ = lock.token
    with lock:
        assert run_forked(lambda: isinstance(_refusal(lock), NotLockedError))
    with named(database) as plain, pytest.raises(LockError, match="make it with fenced=True"):
        _ = plain.token
    assert not isinstance(_refusal(plain), NotLockedError)


def _refusal(lock: NamedLock) -> LockError:
    with pytest.raises(LockError) as caught:
        _ = lock.token
    return caught.value


def test_a_lock_that_is_not_fenced_touches_no_table(database: Database) -> None:
    with named(database, purpose="nothing is written"):
        pass
    assert database.query("SHOW TABLES") == []


def test_a_token_costs_two_round_trips(database: Database) -> None:
    token_of(database)
    with Link(database.server) as link:
        lock = NamedLock(link.url(database.name), "report", fenced=True)
        lock.acquire()
        own = [packet for packet in link.packets if not packet.startswith(b"\x03SET NAMES")]  # that is PyMySQL
        assert len(own) == 4 + 2
        lock.release()


@pytest.mark.parametrize(
    "harm",
    ["DROP TABLE sharedvol_lock", "TRUNCATE TABLE sharedvol_lock", "UPDATE sharedvol_lock SET token = token - 5000000"],
)
def test_neither_a_dropped_table_nor_an_old_backup_takes_tokens_back(database: Database, harm: str) -> None:
    first = token_of(database)
    database.query(harm)
    assert token_of(database) > first


def test_a_clock_that_was_set_back_takes_no_token_back(database: Database) -> None:
    token_of(database)
    database.query("UPDATE sharedvol_lock SET token = token + 86400000000")
    ahead = row(database)[1]
    assert [token_of(database) for _ in range(3)] == [ahead + 1, ahead + 2, ahead + 3]


def test_tokens_of_different_locks_do_not_meet(database: Database) -> None:
    with named(database, "a", fenced=True) as one, named(database, "b", fenced=True) as two:
        assert {bytes(name): token for name, token in database.query("SELECT name, token FROM sharedvol_lock")} == {
            f"{database.name}.a".encode(): one.token,
            f"{database.name}.b".encode(): two.token,
        }


@pytest.mark.parametrize("name", ["Größe", "ÀÉÎ", "İI", "日本"])
def test_names_that_are_one_lock_are_one_row(database: Database, name: str) -> None:
    forms = [database.name + form for form in (name, name.upper(), name.lower())]
    holders = [named(database, form, literal=True, fenced=True) for form in dict.fromkeys(forms)]
    rows = 0
    for lock in holders:
        with lock:
            excluded = 0
            for other in holders:
                try:
                    in_thread(lambda other=other: other.acquire(timeout=0).__enter__().release() or None)
                except LockTimeout:
                    excluded += 1
            rows += 1 / excluded
    assert len(database.query("SELECT name FROM sharedvol_lock")) == round(rows)


def test_a_holder_is_told_with_what_it_said_of_itself(database: Database) -> None:
    wait_until_believed(database)
    # Some character sets have no such letters.
    purpose = "näch\x1btlich 😀"
    url = database.url.replace("utf8mb4", "gbk")

    def hold(pipe: Pipe) -> None:
        with NamedLock(url, "report", fenced=True, purpose=purpose) as lock:
            pipe.send((os.getpid(), worker_token(), lock.token))
            pipe.recv()

    with Child(hold) as child:
        pid, worker, token = child.receive()
        holder = named(database).holder()
        assert holder is not None
        assert (holder.replica, holder.pid, holder.worker) == (container_id(), pid, worker)
        assert (holder.purpose, holder.token, holder.connection_id) == (purpose, token, holder_session(database))
        assert holder.since is not None
        assert abs(holder.since - datetime.now(UTC)) < timedelta(days=1)
        assert holder.as_dict()["since"] == holder.since.isoformat()
        with pytest.raises(LockTimeout, match=rf"connection \d+ \(.*\), replica .*, process {pid}, for ") as caught:
            named(database, timeout=0).acquire()
        assert isinstance(caught.value.holder, LockHolder)
        assert caught.value.holder.purpose == purpose
        assert "\x1b" not in str(caught.value)
        child.send("end")
        child.wait()
    assert named(database).holder() is None
    wait_until_ended(database)


def test_a_purpose_that_is_no_text_is_written_as_well_as_it_can_be(database: Database) -> None:
    wait_until_believed(database)
    with named(database, fenced=True, purpose="\udcff" * 200) as lock:
        holder = lock.holder()
        assert holder is not None
        assert holder.purpose == "?" * 200
    with pytest.raises(ValueError, match="purpose has 201 characters"):
        named(database, purpose="x" * 201)


def test_a_row_of_another_hold_is_not_believed(database: Database) -> None:
    wait_until_believed(database)
    token_of(database, purpose="over")
    with named(database) as lock:
        holder = lock.holder()
        assert holder is not None
        assert (holder.purpose, holder.token, holder.replica) == ("", None, None)
    with named(database, fenced=True, purpose="of an earlier life of the server") as lock:
        believed = lock.holder()
        database.query("UPDATE sharedvol_lock SET since = since - INTERVAL 10 DAY")
        holder = lock.holder()
        assert believed is not None and holder is not None
        assert (believed.token, holder.token) == (lock.token, None)
        assert holder.purpose == ""
        assert holder.connection_id == believed.connection_id


def test_who_may_not_read_the_table_still_learns_who_holds(database: Database) -> None:
    with named(database, fenced=True), account(database, f"CREATE ON {database.name}.*") as url:
        holder = NamedLock(url, "report").holder()
        assert holder == LockHolder(connection_id=holder_session(database))


# What follows is about accounts, and about connections that are the caller's.


def test_a_table_that_is_there_is_used_without_the_right_to_make_one(database: Database) -> None:
    database.query(SCHEMA)
    with account(database, f"SELECT, INSERT, UPDATE ON {database.name}.sharedvol_lock") as url:
        lock = NamedLock(url, "report", fenced=True)
        with lock:
            first = lock.token
        with lock:
            assert lock.token > first
    wait_until_ended(database)


@pytest.mark.parametrize("exists", [True, False])
def test_an_account_that_may_not_write_is_told_what_it_lacks(database: Database, exists: bool) -> None:
    if exists:
        database.query(SCHEMA)
    # On a table that is missing, these rights let the server say so.
    rights = "SELECT" if exists else "SELECT, INSERT, UPDATE"
    with account(database, f"{rights} ON {database.name}.*") as url:
        lock = NamedLock(url, "report", fenced=True)
        with pytest.raises(LockError, match=r"grant it SELECT, INSERT and UPDATE there, .* CREATE TABLE IF NOT EXISTS"):
            lock.acquire()
        assert not lock.held
        with named(database, timeout=LIMIT):
            pass
    wait_until_ended(database)


def test_a_server_that_only_reads_gives_no_tokens(private_server: Server) -> None:
    database = Database(private_server, private_server.create_database())
    database.query(SCHEMA)
    with account(database, f"ALL ON {database.name}.*") as url:
        database.query("SET GLOBAL read_only = 1")
        try:
            with pytest.raises(LockError, match="the server only reads, as a replica of another does"):
                NamedLock(url, "report", fenced=True).acquire()
            with NamedLock(url, "report", timeout=LIMIT) as lock:
                lock.check()
        finally:
            database.query("SET GLOBAL read_only = 0")


def test_a_restart_of_the_server_takes_no_token_back(private_server: Server) -> None:
    database = Database(private_server, private_server.create_database())
    first = token_of(database)
    private_server.kill()
    private_server.start()
    assert token_of(database) > first


def test_tokens_want_a_schema(database: Database) -> None:
    lock = NamedLock(database.server.url(), database.name, literal=True, fenced=True)
    with pytest.raises(LockError, match="name a database in the URL"):
        lock.acquire()
    assert not lock.held


def test_a_rollback_of_the_callers_takes_no_token_back_and_loses_nothing_of_his(database: Database) -> None:
    wait_until_believed(database)
    database.query("CREATE TABLE t (n INT)")
    engine = sqlalchemy.create_engine(database.url)
    tokens = []
    for end in ("rollback", "rollback", "commit"):
        with engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            with NamedLock(connection, "report", fenced=True, purpose="his") as lock:
                tokens.append(lock.token)
                holder = named(database).holder()
                assert holder is not None
                assert (holder.token, holder.purpose) == (lock.token, "his")
                assert database.query("SELECT * FROM t") == []  # making our table did not commit it
                getattr(connection, end)()
                lock.check()
            tokens.append(token_of(database))
    assert tokens == sorted(set(tokens))
    assert database.query("SELECT * FROM t") == [(1,)]
    engine.dispose()


def test_waiting_and_asking_take_no_snapshot_in_the_callers_transaction(database: Database) -> None:
    database.query("CREATE TABLE t (n INT)")
    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as connection, ThreadPoolExecutor(1) as pool:
        lock = NamedLock(connection, "report", fenced=True, timeout=LIMIT, on_wait=lambda _: None)
        with named(database, fenced=True):
            assert lock.holder() is not None
            taken = pool.submit(lock.acquire)
            wait_until_waited_for(database)
            database.query("INSERT INTO t VALUES (1)")
        taken.result(LIMIT)
        pool.submit(lock.holder).result(LIMIT)
        # What the last holder did is seen: else the lock would order nothing.
        assert pool.submit(lambda: connection.exec_driver_sql("SELECT n FROM t").all()).result(LIMIT) == [(1,)]
        pool.submit(lock.release).result(LIMIT)
    engine.dispose()


def test_others_ask_while_the_callers_connection_is_busy(database: Database) -> None:
    wait_until_believed(database)
    engine = sqlalchemy.create_engine(database.url)
    opened = Opened.open(database.url)
    with engine.connect() as connection, ThreadPoolExecutor(1) as pool:
        busy = {connection: lambda sql: connection.exec_driver_sql(sql).all(), opened: opened.query}
        for target, ask in busy.items():
            lock = NamedLock(target, "report", fenced=True)
            pool.submit(lock.acquire).result(LIMIT)
            with named(database, "other"):
                asked = pool.submit(ask, f"SELECT GET_LOCK('{database.name}.other', {LIMIT:.0f})")
                wait_until_waited_for(database)
                lock.check()
                holder = lock.holder()
                assert holder is not None
                assert holder.token == lock.token
                assert not asked.done()
            assert list(map(tuple, asked.result(LIMIT))) == [(1,)]
            ask(f"SELECT RELEASE_LOCK('{database.name}.other')")
            database.query(f"KILL {holder_session(database)}")
            with pytest.raises(LockLostError):
                lock.check()
            with pytest.raises(LockLostError):
                pool.submit(lock.release).result(LIMIT)
        connection.invalidate()
    engine.dispose()


def test_an_engine_with_one_connection_only_is_refused(database: Database) -> None:
    raw = database.connect(autocommit=False)
    engine = sqlalchemy.create_engine("mysql+pymysql://", creator=lambda: raw, poolclass=sqlalchemy.StaticPool)
    with engine.connect() as connection:
        lock = NamedLock(connection, "report", fenced=True)
        with pytest.raises(DatabaseError, match="has one connection only, and a second one is needed"):
            lock.acquire()
        assert not lock.held
        assert connection.exec_driver_sql("SELECT @@autocommit").scalar() == 0
        with NamedLock(connection, "report") as plain:
            plain.check()
        assert named(database).holder() is None
    raw.close()


@pytest.mark.parametrize("borrowed", [False, True])
def test_who_loses_the_lock_before_its_token_gets_neither(
    database: Database, borrowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_of(database)
    before = row(database)
    ourselves = token_table._ourselves

    def lose(purpose: str) -> dict[str, Any]:
        database.query(f"KILL {holder_session(database)}")
        named(database, timeout=LIMIT).acquire().__enter__().release()
        return ourselves(purpose)

    engine = sqlalchemy.create_engine(database.url)
    with engine.connect() as connection:
        lock = NamedLock(connection if borrowed else database.url, "report", fenced=True)
        with monkeypatch.context() as patch:
            patch.setattr(token_table, "_ourselves", lose)
            with pytest.raises(LockLostError if borrowed else DatabaseError):
                lock.acquire()
        assert not lock.held
        assert row(database) == before
        connection.invalidate()
    engine.dispose()
    assert token_of(database) > before[1]
