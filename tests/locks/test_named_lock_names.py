"""What a named lock is called on its server, and whom that keeps out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.named import holder_of, named
from support.servers import Database, Server

from sharedvol import LockError, LockTimeout
from sharedvol.locks.mysql import NamedLock

LONGEST = {"mysql": 64, "mariadb": 192}


@pytest.fixture
def other(server: Server) -> Iterator[Database]:
    """A second schema."""
    made = Database(server, server.create_database())
    yield made
    made.drop()


def excludes(one: NamedLock, two: NamedLock) -> bool:
    with one:
        try:
            with two.acquire(timeout=0):
                return False
        except LockTimeout:
            return True


def test_schemas_do_not_exclude_each_other(database: Database, other: Database) -> None:
    assert not excludes(named(database), named(other))
    assert excludes(named(database), named(database))


def test_a_literal_name_is_the_servers(database: Database, other: Database) -> None:
    name = f"{database.name}_shared"
    assert excludes(named(database, name, literal=True), named(other, name, literal=True))
    lock = NamedLock(database.server.url(), name, literal=True)
    with lock:
        assert lock.name == name
        assert database.query(f"SELECT IS_USED_LOCK('{name}')") != [(None,)]


def test_a_literal_name_can_be_a_scoped_one(database: Database) -> None:
    assert excludes(named(database, "report"), named(database, f"{database.name}.report", literal=True))


def test_scoped_names_are_lower_case_so_that_both_servers_mean_the_same(server: Server) -> None:
    name = server.create_database()
    capital = Database(server, name.capitalize())
    server.query(f"CREATE DATABASE {capital.name}")
    try:
        lock = named(capital, "Report")
        with lock:
            assert lock.name == f"{name}.report"
        assert excludes(lock, named(capital, "rePORT"))
    finally:
        capital.drop()
        Database(server, name).drop()


def test_long_names_are_shortened_and_stay_distinct(database: Database) -> None:
    stem = "x" * 300
    locks = [named(database, stem + end) for end in ("", "a", "b")]
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        names = {str(lock.name) for lock in locks}
        assert len(names) == 3
        assert all(name.startswith(f"{database.name}.xxx") and len(name) <= 64 for name in names)
    assert excludes(locks[1], named(database, stem.upper() + "A"))


@pytest.mark.parametrize("spare", [0, 1])
def test_a_name_is_shortened_only_where_it_is_too_long(database: Database, spare: int) -> None:
    name = "x" * (64 - len(database.name) - 1 - spare)
    lock = named(database, name)
    with lock:
        assert lock.name == f"{database.name}.{name}"
    assert excludes(lock, named(database, name))
    assert not excludes(lock, named(database, name + "xx"))


@pytest.mark.parametrize("name", ["größe", "😀", "日本" * 40])
def test_letters_beyond_ascii_mean_the_same_in_every_character_set(database: Database, name: str) -> None:
    latin = database.url.replace("utf8mb4", "gbk")
    lock = NamedLock(latin, name)
    assert excludes(lock, named(database, name))
    assert not excludes(lock, named(database, name + "é"))
    assert str(lock.name).isascii()


@pytest.mark.parametrize("name", ["it's", 'a"b', "a\\b", "50%", "%s", ":name", "a b", " ", "?", "`", "日本"])
def test_a_literal_name_may_have_any_of_these(database: Database, name: str) -> None:
    name = database.name + name
    lock = named(database, name, literal=True)
    with lock:
        assert lock.name == name
    assert excludes(lock, named(database, name, literal=True))
    assert not excludes(lock, named(database, name + ".", literal=True))


@pytest.mark.parametrize("letter", ["x", "é"])
def test_the_longest_literal_name_is_taken_and_a_longer_one_refused(database: Database, letter: str) -> None:
    flavour = database.server.flavour
    size = len(letter.encode()) if flavour == "mariadb" else 1
    name = database.name + letter * ((LONGEST[flavour] - len(database.name)) // size)
    lock = named(database, name, literal=True)
    with lock:
        assert lock.name == name
    with pytest.raises(LockError, match=r"is longer than the (64 characters|192 bytes) that .* takes: shorten it"):
        named(database, name + letter, literal=True).acquire()


def test_mysql_takes_no_emoji_in_a_literal_name(database: Database) -> None:
    lock = named(database, f"{database.name}😀", literal=True)
    if database.server.flavour == "mariadb":
        assert excludes(lock, named(database, f"{database.name}😀", literal=True))
        return
    with pytest.raises(LockError, match=r"beyond U\+FFFF"):
        lock.acquire()


@pytest.mark.parametrize("literal", [True, False])
def test_an_empty_name_is_refused(database: Database, literal: bool) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        named(database, "", literal=literal)


def test_a_scoped_name_wants_a_schema(server: Server) -> None:
    lock = NamedLock(server.url(), "report")
    for use in (lock.acquire, lock.holder):
        with pytest.raises(LockError, match="name a database in the URL, or say literal=True"):
            use()
    assert not lock.held


def test_the_name_and_the_server_are_known_after_the_first_acquire(database: Database) -> None:
    lock = named(database, "Report")
    assert (lock.name, lock.server) == (None, None)
    assert repr(lock) == "<NamedLock 'Report' not held>"
    with lock:
        assert repr(lock) == f"<NamedLock '{database.name}.report' held>"
        assert lock.server is not None
        assert (lock.server.flavour, lock.server.schema) == (database.server.flavour, database.name)
        assert lock.server.session == holder_of(database)
    assert lock.name == f"{database.name}.report"
