"""The catalog on MariaDB and MySQL: the same as on SQLite, and over a lost server and a deadlock."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import Child
from support.servers import Database
from support.sidecar.catalogued import HOSTILE, die_at_the_commit, row

from sharedvol_sidecar.catalog import schema as catalog_schema
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Filters
from sharedvol_sidecar.catalog.encoding import key


@pytest.fixture
def catalog(database: Database, tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog.open(database.url, tmp_path)
    yield opened
    opened.close()


def test_hostile_names_come_back_byte_by_byte(catalog: Catalog) -> None:
    paths = [os.fsdecode(raw) for raw in HOSTILE]
    rows = [row(path, original=path, container=path[8:]) for path in paths]
    catalog.add(rows)
    found = sorted(catalog.rows(), key=lambda one: one.path)
    assert found == sorted(rows, key=lambda one: one.path)
    assert [one.path for one in catalog.rows(Filters(container="case"))] == ["results/case"]


def test_every_field_comes_back_and_the_longest_path(catalog: Catalog) -> None:
    longest = "/".join([os.fsdecode(b"\xff" * 255)] * 16)[:4095]
    rows = [
        row("a", size=2**62, mtime_ns=-5, collected_at=2**62, encoding="zstd", original_size=2**62),
        row(longest, original=longest, container=os.fsdecode(b"\xff" * 255), sha256=None, mtime_ns=10**30),
    ]
    catalog.add(rows)
    assert sorted(catalog.rows(), key=lambda found: found.path) == rows
    assert catalog.total(Filters()) == (2, 2**62 + 1)


def test_one_row_a_file_forgotten_only_as_it_was_and_never_overwritten_by_an_amendment(catalog: Catalog) -> None:
    catalog.add([row("a", collected_at=1), row("b"), row("a", collected_at=1)])
    catalog.add([row("a", collected_at=2)])
    assert catalog.count() == 2
    catalog.forget([row("a", collected_at=1)])
    catalog.amend([(None, row("a", container="")), (row("b"), row("b", size=8)), (None, row("c"))])
    assert sorted(catalog.rows(), key=lambda one: one.path) == [row("a", collected_at=2), row("b", size=8), row("c")]
    catalog.remove(["a", "b", "nothing"])
    assert [one.path for one in catalog.rows()] == ["c"]


def test_a_batch_goes_in_few_statements_and_pages_come_in_order(catalog: Catalog, database: Database) -> None:
    with database.server.log() as log:
        catalog.add([row(str(n), collected_at=n // 900) for n in range(2500)])
    inserts = [text for text in Path(log.path).read_text(errors="replace").splitlines() if "INSERT INTO" in text]
    assert 0 < len(inserts) < 10
    found = list(catalog.rows())
    assert len(found) == 2500 and found == sorted(found, key=lambda one: one.collected_at)


@pytest.mark.parametrize("before", [True, False], ids=["before-commit", "after-commit"])
def test_killed_at_the_commit_a_batch_is_there_whole_or_not_at_all(
    database: Database, tmp_path: Path, before: bool
) -> None:
    Catalog.open(database.url, tmp_path).close()

    def work(_: object) -> None:
        die_at_the_commit(before)
        Catalog.open(database.url, tmp_path).add([row(str(n)) for n in range(500)])

    child = Child(work)
    assert child.wait() == -signal.SIGKILL
    child.kill()
    with child:
        catalog = Catalog.open(database.url, tmp_path)
        catalog.add([row("z")])
        assert catalog.count() == (1 if before else 501)


def test_many_make_the_tables_and_write_the_same_rows_in_any_order_at_once(database: Database, tmp_path: Path) -> None:
    def work(number: int) -> Any:
        def write(connection: Any) -> None:
            connection.send("ready")
            connection.recv()
            catalog = Catalog.open(database.url, tmp_path)
            for n in range(10):
                rows = [row(f"same {m}") for m in range(100)]
                catalog.add((rows if number % 2 else rows[::-1]) + [row(f"{number} {n} {m}") for m in range(10)])
                catalog.remove([f"{number} {n} 0"])

        return write

    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(work(number))) for number in range(4)]
        for child in children:
            child.receive()
        for child in children:
            child.send("go")
    assert Catalog.open(database.url, tmp_path).count() == 100 + 4 * 10 * 9


def test_a_connection_that_the_server_ended_is_made_again_unseen(catalog: Catalog, database: Database) -> None:
    catalog.add([row("a")])
    for (connection,) in database.query(
        f"SELECT id FROM information_schema.processlist WHERE db = '{database.name}' AND id <> CONNECTION_ID()"
    ):
        database.server.query(f"KILL {connection}")
    catalog.add([row("b")])
    assert catalog.count() == 2


def session_id(catalog: Catalog) -> int:
    found = catalog._session.run(
        lambda connection: connection.exec_driver_sql("SELECT CONNECTION_ID()").scalar(), "read"
    )
    assert isinstance(found, int)
    return found


def test_a_forked_child_leaves_the_connection_of_its_parent_alone(catalog: Catalog) -> None:
    before = session_id(catalog)

    def work(connection: Any) -> None:
        catalog.add([row("child")])
        connection.send(session_id(catalog))
        catalog.close()

    with Child(work) as child:
        assert child.receive() != before
    catalog.add([row("parent")])
    assert session_id(catalog) == before and catalog.count() == 2


def test_a_deadlock_is_gone_through_again(catalog: Catalog, database: Database) -> None:
    """Ours holds one row and asks for the other's, which holds that and asks for ours: a server ends one of us."""
    catalog.add([row("a"), row("b")])
    # The row that is locked first is the one that sorts first: the other begins at the end.
    first, last = sorted(("a", "b"), key=key)
    left = [first]

    def work(connection: Any) -> None:
        with catalog._session.transaction(connection) as cursor:
            cursor.execute("UPDATE sharedvol_collected SET size = size + 1 WHERE `key` = %s", (key(first),))
            if left:
                left.pop()
                other.send("go")
                other.receive()
            cursor.execute("UPDATE sharedvol_collected SET size = size + 1 WHERE `key` = %s", (key(last),))

    def hold(connection: Any) -> None:
        with contextlib.closing(database.connect(autocommit=False)) as theirs, theirs.cursor() as cursor:
            # The heavier of two transactions survives (MySQL manual, "Deadlock Detection").
            cursor.execute("CREATE TABLE ballast (n INT) ENGINE=InnoDB")
            cursor.executemany("INSERT INTO ballast VALUES (%s)", [(n,) for n in range(1000)])
            cursor.execute("SELECT size FROM sharedvol_collected WHERE `key` = %s FOR UPDATE", (key(last),))
            connection.send("holding")
            connection.recv()
            connection.send("asking")
            cursor.execute("SELECT size FROM sharedvol_collected WHERE `key` = %s FOR UPDATE", (key(first),))
            theirs.commit()

    with Child(hold) as other:
        other.receive()
        catalog._session.run(work, "write")
    assert {one.size for one in catalog.rows()} == {2}


def test_a_server_that_is_gone_is_an_error_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(
        CatalogError, match=r"cannot open catalog 'u@127.0.0.1:1/d'|cannot open catalog u@127"
    ) as caught:
        Catalog.open("mysql://u:secret@127.0.0.1:1/d", tmp_path)
    assert "secret" not in str(caught.value)
    assert "check that the server runs" in str(caught.value)


def test_a_newer_version_is_refused(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(catalog_schema, "VERSION", 2)
        Catalog.open(database.url, tmp_path).add([row()])
    with pytest.raises(CatalogError, match=r"schema 2, of a newer version.*upgrade"):
        Catalog.open(database.url, tmp_path)
