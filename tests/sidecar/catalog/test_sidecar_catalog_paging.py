"""Rows are read in order by an index, on each database: what is shown costs, and not what else the catalog holds."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from support.installed import FLAVOURS
from support.processes import Child
from support.servers import Database
from support.sidecar.catalogued import first_release, row

from sharedvol import FileLock
from sharedvol_sidecar.catalog import catalog as catalog_module
from sharedvol_sidecar.catalog import indexes as catalog_indexes
from sharedvol_sidecar.catalog import schema as catalog_schema
from sharedvol_sidecar.catalog import session as catalog_session
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Filters, Row
from sharedvol_sidecar.catalog.schema import ADDED, CONTAINER, KIND, WHEN, WHO
from sharedvol_sidecar.catalog.session import CatalogSession
from sharedvol_sidecar.cli import main
from sharedvol_sidecar.event import Event
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.transfer.catalog_writer import CatalogWriter

CHOICES = (
    (Filters(), WHEN),
    (Filters(kind="results"), KIND),
    (Filters(container="c1"), CONTAINER),
    (Filters(kind="results", container="c1"), WHO),
    (Filters(name="*1"), WHEN),
    (Filters(kind="logs", limit=5), KIND),
)
TIMES = ((None, None), (20, None), (None, 70), (20, 70))

Query = tuple[str, tuple[Any, ...]]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "_PAGE", 10)
    monkeypatch.setattr(catalog_module, "_SUMMED", 25)


@pytest.fixture(params=["sqlite", *FLAVOURS])
def catalog(request: pytest.FixtureRequest, tmp_path: Path, small_pages: None) -> Iterator[Catalog]:
    if request.param == "sqlite":
        opened = Catalog.open("", tmp_path)
        yield opened
        opened.close()
        return
    server = request.getfixturevalue("_server_of")(request.param)
    database = Database(server, server.create_database())
    opened = Catalog.open(database.url, tmp_path)
    yield opened
    opened.close()
    database.drop()


def choices() -> Iterator[tuple[Filters, str]]:
    """Every combination of filters, and the index that has its order."""
    for filters, index in CHOICES:
        for since, until in TIMES:
            yield Filters(filters.kind, filters.container, filters.name, since, until, filters.limit), index


def rows_of(count: int, *, times: int = 100) -> list[Row]:
    """Rows of which several have each time; the kind ``logs`` is rare."""
    return [
        row(
            f"results/{n}",
            kind="results" if n % 17 else "logs",
            container=f"c{n % 3}",
            collected_at=n * 7 % times,
            size=n,
        )
        for n in range(count)
    ]


def expected(rows: list[Row], filters: Filters) -> list[Row]:
    """What passes, by other means."""
    return [
        one
        for one in rows
        if filters.kind in (None, one.kind)
        and filters.container in (None, one.container)
        and (filters.name is None or one.path.endswith("1"))
        and (filters.since is None or one.collected_at >= filters.since)
        and (filters.until is None or one.collected_at < filters.until)
    ]


def by_path(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda one: one.path)


def test_every_row_that_passes_comes_once_and_in_order(catalog: Catalog) -> None:
    rows = rows_of(300)
    catalog.add(rows)
    for filters, _ in choices():
        found = list(catalog.rows(filters))
        passing = expected(rows, filters)
        moments = [one.collected_at for one in found]
        assert moments == sorted(one.collected_at for one in passing)[: filters.limit]
        if filters.limit is None:
            assert by_path(found) == by_path(passing)
            if filters.name is None:
                assert catalog.total(filters) == (len(passing), sum(one.size for one in passing))


@settings(max_examples=60, deadline=None)
@given(
    moments=st.lists(st.tuples(st.integers(-3, 5), st.sampled_from(["results", "logs"])), max_size=40),
    page=st.integers(1, 7),
    indexed=st.booleans(),
    since=st.none() | st.integers(-4, 6),
    until=st.none() | st.integers(-4, 6),
    kind=st.sampled_from([None, "results", "logs"]),
)
def test_pages_of_any_length_with_and_without_the_indexes(
    tmp_path_factory: pytest.TempPathFactory,
    moments: list[tuple[int, str]],
    page: int,
    indexed: bool,
    since: int | None,
    until: int | None,
    kind: str | None,
) -> None:
    directory = tmp_path_factory.mktemp("paged")
    catalog = Catalog.open("", directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog_module, "_PAGE", page)
        patch.setattr(catalog_module, "_SUMMED", page)
        rows = [row(f"results/{n}", collected_at=when, kind=what) for n, (when, what) in enumerate(moments)]
        catalog.add(rows)
        if not indexed:
            catalog.close()
            first_release(directory)
        filters = Filters(kind=kind, since=since, until=until)
        found, passing = list(catalog.rows(filters)), expected(rows, filters)
        assert by_path(found) == by_path(passing)
        assert [one.collected_at for one in found] == sorted(one.collected_at for one in passing)
        assert catalog.total(filters)[0] == len(passing)
    catalog.close()


def test_a_year_that_no_database_holds_is_a_bound_like_any_other(catalog: Catalog) -> None:
    catalog.add([row()])
    assert list(catalog.rows(Filters(until=10**30))) == [row()]
    assert list(catalog.rows(Filters(since=10**30))) == []
    assert list(catalog.rows(Filters(since=-(10**30)))) == [row()]
    assert catalog.total(Filters(until=-(10**30))) == (0, 0)


@contextlib.contextmanager
def queries(catalog: Catalog) -> Iterator[list[Query]]:
    """The SELECTs that the catalog sends during the block."""
    sent: list[Query] = []

    def note(connection: Any, cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if "FROM sharedvol_collected" in statement:
            sent.append((statement, tuple(values)))

    engine = catalog._session._engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def plan_of(catalog: Catalog, query: Query) -> str:
    """How the database reads it, in its own words."""
    dialect = catalog._session._engine.dialect
    explain = "EXPLAIN QUERY PLAN " if dialect.name == "sqlite" else "EXPLAIN "
    if dialect.name == "mysql" and not getattr(dialect, "is_mariadb", False):
        explain += "FORMAT=TRADITIONAL "

    def work(connection: sa.Connection) -> str:
        found = connection.exec_driver_sql(explain + query[0], query[1])
        return str([tuple(one) for one in found])

    return catalog._session.run(work, "read")


def test_no_query_sorts_and_each_uses_the_index_of_its_order(catalog: Catalog) -> None:
    catalog.add(rows_of(300))
    mariadb = getattr(catalog._session._engine.dialect, "is_mariadb", False)
    for filters, wanted in choices():
        index = CONTAINER if wanted == WHO and mariadb else wanted  # it has no order where names are cut
        with queries(catalog) as sent:
            list(catalog.rows(filters))
            catalog.total(filters)
        plans = [plan_of(catalog, query) for query in sent]
        assert index in plans[0]
        for plan in plans:
            assert index in plan or WHEN in plan, plan
            assert not any(word in plan for word in ("TEMP B-TREE", "filesort", "temporary")), plan


def rows_read(catalog: Catalog, work: Callable[[], object]) -> int:
    """How many rows or index entries a server reads, or how much SQLite works, during a call."""
    session = catalog._session
    session.run(lambda connection: None, "read")
    if session.path is not None:
        connection = session._connection
        assert connection is not None
        driver: Any = connection.connection.driver_connection
        steps = [0]

        def step() -> int:
            steps[0] += 1
            return 0

        driver.set_progress_handler(step, 10)
        work()
        driver.set_progress_handler(None, 0)
        return steps[0]
    status = "SHOW SESSION STATUS LIKE 'Handler_read%%'"

    def count(connection: sa.Connection) -> int:
        return sum(int(value) for _, value in connection.exec_driver_sql(status))

    before = session.run(count, "read")
    work()
    return session.run(count, "read") - before


@pytest.mark.parametrize("times", [10**6, 1], ids=["times", "one-time"])
def test_ten_times_the_rows_are_ten_times_the_work(catalog: Catalog, times: int) -> None:
    def work(filters: Filters) -> None:
        list(catalog.rows(filters))
        catalog.total(filters)

    def costs() -> list[int]:
        return [rows_read(catalog, functools.partial(work, filters)) for filters, _ in CHOICES]

    catalog.add(rows_of(500, times=times))
    few = costs()
    catalog.add(rows_of(5000, times=times))
    for (filters, _), before, after in zip(CHOICES, few, costs(), strict=True):
        assert after <= 13 * before + 20, filters


def test_a_rare_kind_among_many_rows_costs_what_it_has(catalog: Catalog) -> None:
    catalog.add([row(f"results/{n}", collected_at=n) for n in range(5000)])
    catalog.add([row(f"logs/{n}", kind="logs", collected_at=n * 400) for n in range(10)])
    everything = rows_read(catalog, lambda: list(catalog.rows()))
    rare = Filters(kind="logs")
    assert len(list(catalog.rows(rare))) == 10
    assert rows_read(catalog, lambda: list(catalog.rows(rare))) * 20 < everything
    assert rows_read(catalog, lambda: catalog.total(rare)) * 20 < everything


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak(directory: str, count: int) -> int:
        (tmp_path / directory).mkdir()
        catalog = Catalog.open("", tmp_path / directory)
        for start in range(0, count, 5000):
            catalog.add([row(f"results/{n}", collected_at=n) for n in range(start, start + 5000)])
        list(catalog.rows(Filters(limit=2000)))
        tracemalloc.start()
        for filters in (Filters(), Filters(kind="results"), Filters(container="c1")):
            for _ in catalog.rows(filters):
                pass
            catalog.total(filters)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        catalog.close()
        return found

    assert peak("many", 50_000) < 1.5 * peak("few", 5000)


def indexes(directory: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(directory / ".sharedvol" / "catalog.db")) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}


def test_a_catalog_of_the_first_release_is_read_as_it_is_and_gets_the_indexes_from_a_writer(tmp_path: Path) -> None:
    first_release(tmp_path)
    rows = rows_of(30)
    reader = Catalog.open("", tmp_path, create=False)
    reader.add(rows)
    wanted = by_path(expected(rows, Filters(kind="logs")))
    assert by_path(list(reader.rows(Filters(kind="logs")))) == wanted
    assert not indexes(tmp_path) & set(ADDED)
    told: list[Event] = []
    register = CatalogWriter(lambda: Catalog.open("", tmp_path), Events(told.append))
    register.prepare()
    assert indexes(tmp_path) >= set(ADDED) and told == []
    assert by_path(list(reader.rows(Filters(kind="logs")))) == wanted
    register.close()
    reader.close()


@pytest.mark.parametrize(
    ("command", "options", "made"),
    [
        ("ls", [], False),
        ("verify", [], False),
        ("prune", ["--keep", "results=1d"], False),
        ("prune", ["--keep", "results=1d", "--apply"], True),
        ("rebuild", [], True),
    ],
)
def test_only_commands_that_write_make_the_indexes(
    tmp_path: Path, command: str, options: list[str], made: bool
) -> None:
    first_release(tmp_path)
    done = CliRunner().invoke(main, [command, "--to", str(tmp_path), *options])
    assert (done.exit_code, done.stderr) == (0, "")
    assert (indexes(tmp_path) >= set(ADDED)) == made


def test_the_indexes_are_made_on_a_server(database: Database, tmp_path: Path) -> None:
    catalog = Catalog.open(database.url, tmp_path)
    catalog.add(rows_of(30))
    for name in ADDED:
        database.query(f"DROP INDEX {name} ON sharedvol_collected")
    catalog.close()
    before = list(catalog.rows(Filters(kind="results")))
    calls: list[int] = []
    with contextlib.closing(database.connect()) as writer, writer.cursor() as cursor:
        # An open transaction makes the statement wait: others are not to wait for it longer than a bound.
        cursor.execute("BEGIN")
        cursor.execute("SELECT * FROM sharedvol_collected")
        with pytest.raises(CatalogError, match="cannot make an index of catalog"):
            catalog.add_indexes(lambda: calls.append(1))
        writer.rollback()
    assert calls
    assert list(catalog.rows(Filters(kind="results"))) == before
    catalog.add_indexes()
    made = {name for (name,) in database.query("SELECT index_name FROM information_schema.statistics")}
    assert made >= set(ADDED)
    assert by_path(list(catalog.rows(Filters(kind="results")))) == by_path(before)
    catalog.close()


def test_an_index_that_cannot_be_made_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_release(tmp_path)
    monkeypatch.setattr(catalog_session, "_PATIENCE", 0.05)
    monkeypatch.setattr(catalog_indexes, "_BEAT", 0.01)
    told: list[Event] = []
    register = CatalogWriter(lambda: Catalog.open("", tmp_path), Events(told.append))
    beats: list[int] = []
    with contextlib.closing(sqlite3.connect(tmp_path / ".sharedvol" / "catalog.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        register.prepare(lambda: beats.append(1))
    assert [event.name for event in told] == ["catalog_index"] and "another process holds it" in told[0].detail
    assert beats and register.problem == ""
    assert register.catalog is not None
    register.catalog.add_indexes()
    assert indexes(tmp_path) >= set(ADDED)
    register.close()


def test_the_wait_for_an_index_ends_when_the_service_is_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_release(tmp_path)
    monkeypatch.setattr(catalog_indexes, "_BEAT", 0.01)
    catalog = Catalog.open("", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / ".sharedvol" / "catalog.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        catalog.add_indexes(lambda: True)  # returns, though the lock is held
        assert not indexes(tmp_path) & set(ADDED)
    catalog.close()


def test_a_server_without_room_for_the_keys_gets_a_catalog_all_the_same(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """InnoDB with pages of 8 KiB or less refuses keys of that length."""

    def refuse(connection: sa.Connection, name: str) -> None:
        connection.exec_driver_sql("CREATE TABLE too_long (a VARCHAR(3000), KEY (a))")

    with monkeypatch.context() as patch:
        patch.setattr(catalog_schema, "add_index", refuse)
        catalog = Catalog.open(database.url, tmp_path)
    catalog.add(rows_of(60))
    assert by_path(list(catalog.rows(Filters(kind="results")))) == by_path(
        expected(rows_of(60), Filters(kind="results"))
    )
    catalog.close()


def test_who_writes_while_another_makes_an_index_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite locks the file, and for a large catalog longer than a writer waits otherwise."""
    monkeypatch.setattr(catalog_session, "_PATIENCE", 0.1)
    catalog = Catalog.open("", tmp_path)

    def work(connection: Any) -> None:
        file = tmp_path / ".sharedvol" / "catalog.db"
        with FileLock(f"{file}.index.lock"), contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            connection.send("locked")
            connection.recv()
            db.execute("COMMIT")

    real, told = CatalogSession._wait_for_index, list[bool]()

    def indexing(session: CatalogSession) -> bool:
        found = real(session)
        if not told:
            told.append(True)
            child.send("end")
        return found

    monkeypatch.setattr(CatalogSession, "_wait_for_index", indexing)
    with Child(work) as child:
        child.receive()
        catalog.add([row()])
    assert list(catalog.rows()) == [row()]
    catalog.close()


def test_two_that_find_no_index_make_it_once_and_neither_complains(tmp_path: Path) -> None:
    first_release(tmp_path)
    catalog = Catalog.open("", tmp_path)
    with FileLock(tmp_path / ".sharedvol" / "catalog.db.index.lock"):
        catalog.add_indexes()  # the other makes them
        assert not indexes(tmp_path) & set(ADDED)
    catalog.add_indexes()
    assert indexes(tmp_path) >= set(ADDED)
    catalog.close()
