"""One row a file, whatever its name, whoever writes at once, whatever is killed, full or damaged."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import Child, has_permission_to_mount, run_forked, run_python
from support.sidecar.catalogued import HOSTILE, die_at_the_commit, row

from sharedvol_sidecar.catalog import schema as catalog_schema
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError, Filters, Row
from sharedvol_sidecar.catalog.encoding import escape, key, unescape
from sharedvol_sidecar.catalog.session import CatalogSession
from sharedvol_sidecar.errors import ConfigError


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog.open("", tmp_path)
    yield opened
    opened.close()


def file_of(directory: Path) -> Path:
    return directory / ".sharedvol" / "catalog.db"


@given(st.binary(min_size=1))
def test_any_name_comes_back_and_drives_no_terminal(raw: bytes) -> None:
    name = os.fsdecode(raw)
    text = escape(name)
    assert os.fsencode(unescape(text)) == raw
    assert text.isprintable()
    text.encode("utf-8")


@given(st.binary(), st.binary())
def test_two_names_never_become_one(one: bytes, other: bytes) -> None:
    names = os.fsdecode(one), os.fsdecode(other)
    assert (escape(names[0]) == escape(names[1])) == (one == other) == (key(names[0]) == key(names[1]))


def test_hostile_names_come_back_byte_by_byte(catalog: Catalog) -> None:
    paths = [os.fsdecode(raw) for raw in HOSTILE]
    catalog.add([row(path, original=path, container=path[8:]) for path in paths])
    assert sorted(found.path for found in catalog.rows()) == sorted(paths)
    for path in paths:
        found = catalog.get(path)
        assert found is not None and (found.path, found.original, found.container) == (path, path, path[8:])
    catalog.remove(paths[:3])
    assert sorted(found.path for found in catalog.rows()) == sorted(paths[3:])


def test_every_field_comes_back(catalog: Catalog) -> None:
    rows = [
        row("a", size=2**62, mtime_ns=-5, collected_at=2**62, encoding="zstd", original_size=2**62),
        row("b", sha256=None, kind="", container="", original="", size=0),
    ]
    catalog.add(rows)
    assert sorted(catalog.rows(), key=lambda found: found.path) == rows


def test_a_time_that_no_calendar_has_stops_nothing(catalog: Catalog) -> None:
    catalog.add([row("a", mtime_ns=10**30), row("b", mtime_ns=-(10**30))])
    assert catalog.get("a") == row("a", mtime_ns=10**30)
    assert catalog.count() == 2


def test_the_same_file_again_is_one_row_the_later(catalog: Catalog) -> None:
    catalog.add([row("a", collected_at=1), row("b"), row("a", collected_at=1)])
    catalog.add([row("a", collected_at=2)])
    assert catalog.count() == 2
    assert catalog.get("a") == row("a", collected_at=2)


def test_a_row_that_is_not_the_same_any_more_is_not_forgotten(catalog: Catalog) -> None:
    catalog.add([row("a", collected_at=1), row("b", collected_at=1)])
    catalog.add([row("a", collected_at=2)])
    catalog.forget([row("a", collected_at=1), row("b", collected_at=1)])
    assert list(catalog.rows()) == [row("a", collected_at=2)]


def test_an_amendment_yields_to_a_row_that_came_meanwhile(catalog: Catalog) -> None:
    catalog.add([row("a", container="of the mover"), row("b", collected_at=5)])
    catalog.amend([(None, row("a", container="")), (row("b", collected_at=4), row("b", container=""))])
    assert catalog.get("a") == row("a", container="of the mover")
    assert catalog.get("b") == row("b", collected_at=5)
    catalog.amend([(row("b", collected_at=5), row("b", size=9)), (None, row("c"))])
    assert [catalog.get("b"), catalog.get("c")] == [row("b", size=9), row("c")]


def test_rows_are_filtered_and_come_oldest_first(catalog: Catalog) -> None:
    catalog.add([row(f"logs/{n}.log", kind="logs", container=f"c{n % 2}", collected_at=9 - n) for n in range(9)])
    catalog.add([row("results/9.log", collected_at=50)])

    def found(**filters: Any) -> list[str]:
        return [one.path for one in catalog.rows(Filters(**filters))]

    assert found(kind="logs", container="c1") == ["logs/7.log", "logs/5.log", "logs/3.log", "logs/1.log"]
    assert found(since=8, until=50) == ["logs/1.log", "logs/0.log"]
    assert found(name="[89]*") == ["logs/8.log", "results/9.log"]
    assert found(name="results/*") == ["results/9.log"]
    assert found(kind="logs", limit=2) == ["logs/8.log", "logs/7.log"]
    assert found(kind="log_") == []
    assert catalog.total(Filters(kind="logs")) == (9, 9)


def test_rows_of_one_moment_are_paged_without_loss_while_others_come_and_go(catalog: Catalog) -> None:
    catalog.add([row(str(n), collected_at=n // 3000) for n in range(7000)])
    seen = []
    for number, one in enumerate(catalog.rows()):
        seen.append(one.path)
        if number % 500 == 0:
            catalog.add([row(f"new {number}", collected_at=10)])
            catalog.remove([one.path])
    old = [path for path in seen if not path.startswith("new")]
    assert sorted(old, key=int) == [str(n) for n in range(7000)]


def test_the_file_is_for_its_user_alone(catalog: Catalog, tmp_path: Path) -> None:
    catalog.add([row()])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file_of(tmp_path).parent.iterdir()}
    assert set(modes) >= {"catalog.db", "catalog.db-wal"} and set(modes.values()) == {0o600}


def test_a_commit_waits_for_the_disk_and_for_others_that_write(catalog: Catalog) -> None:
    settings = catalog._session.run(
        lambda connection: [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "busy_timeout")
        ],
        "read",
    )
    assert settings == ["wal", 2, 5_000]


def test_what_is_missing_is_not_made_where_it_is_only_read(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"no catalog .*rebuild"):
        Catalog.open("", tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []


def test_many_open_and_write_the_same_and_different_rows_at_once(tmp_path: Path) -> None:
    def work(number: int) -> Any:
        def write(connection: Any) -> None:
            connection.send("ready")
            connection.recv()
            catalog = Catalog.open("", tmp_path)
            for n in range(20):
                catalog.add([row(f"same {n}"), *(row(f"{number} {n} {m}") for m in range(10))])

        return write

    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(work(number))) for number in range(4)]
        for child in children:
            child.receive()
        for child in children:
            child.send("go")
    assert Catalog.open("", tmp_path).count() == 20 + 4 * 20 * 10


def test_a_forked_child_has_a_connection_of_its_own(catalog: Catalog) -> None:
    catalog.add([row("parent")])

    def work() -> int:
        catalog.add([row("child")])
        return catalog.count()

    assert run_forked(work) == 2
    catalog.add([row("parent again")])
    assert catalog.count() == 3


@pytest.mark.parametrize("before", [True, False], ids=["before-commit", "after-commit"])
def test_killed_at_the_commit_a_batch_is_there_whole_or_not_at_all(tmp_path: Path, before: bool) -> None:
    rows = [row(str(n)) for n in range(3000)]
    Catalog.open("", tmp_path).close()

    def work(_: object) -> None:
        die_at_the_commit(before)
        Catalog.open("", tmp_path).add(rows)

    child = Child(work)
    assert child.wait() == -signal.SIGKILL
    child.kill()
    with child:
        catalog = Catalog.open("", tmp_path)
        assert catalog.count() == (0 if before else 3000)
        catalog.add(rows)
        assert catalog.count() == 3000


@pytest.mark.parametrize("batches", [1, 5, 20])
def test_killed_at_any_moment_what_was_acknowledged_stays(tmp_path: Path, batches: int) -> None:
    def work(connection: Any) -> None:
        catalog = Catalog.open("", tmp_path)
        for number in itertools.count():
            catalog.add([row(f"{number} {n}") for n in range(50)])
            connection.send(number)

    with Child(work) as child:
        last = -1
        while last < batches:
            last = child.receive()
        child.kill()
        with contextlib.suppress(EOFError, ConnectionResetError):
            while child.connection.poll():
                last = child.connection.recv()
    catalog = Catalog.open("", tmp_path)
    groups: dict[str, int] = {}
    for found in catalog.rows():
        number = found.path.partition(" ")[0]
        groups[number] = groups.get(number, 0) + 1
    assert set(groups.values()) == {50}
    assert set(groups) >= {str(number) for number in range(last + 1)}
    with contextlib.closing(sqlite3.connect(file_of(tmp_path))) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(catalog_schema, "VERSION", 2)
        Catalog.open("", tmp_path).add([row()])
    with pytest.raises(CatalogError, match=r"schema 2, of a newer version.*upgrade"):
        Catalog.open("", tmp_path)
    with contextlib.closing(sqlite3.connect(file_of(tmp_path))) as plain:
        assert plain.execute("SELECT version FROM sharedvol_catalog").fetchall() == [(2,)]


def test_what_a_kill_left_of_the_tables_is_completed(tmp_path: Path) -> None:
    Catalog.open("", tmp_path).close()
    with contextlib.closing(sqlite3.connect(file_of(tmp_path))) as plain:
        plain.execute("DROP TABLE sharedvol_catalog")
        plain.execute("DROP INDEX sharedvol_collected_who")
        plain.commit()
    catalog = Catalog.open("", tmp_path)
    catalog.add([row()])
    with contextlib.closing(sqlite3.connect(file_of(tmp_path))) as plain:
        indexes = plain.execute("SELECT name FROM sqlite_schema WHERE type = 'index'").fetchall()
    assert ("sharedvol_collected_who",) in indexes


def test_a_damaged_file_says_what_to_do_and_a_new_one_is_used_at_once(catalog: Catalog, tmp_path: Path) -> None:
    catalog.add([row(str(n)) for n in range(500)])
    catalog.close()
    path = file_of(tmp_path)
    damaged = path.read_bytes()
    path.write_bytes(b"x" * len(damaged))
    for _ in range(2):
        with pytest.raises(CatalogError, match=r"damaged.*move .*catalog\.db\* away.*`rebuild`"):
            catalog.add([row("a")])
    (tmp_path / "away").mkdir()
    for old in path.parent.glob("catalog.db*"):
        old.rename(tmp_path / "away" / old.name)
    catalog.add([row("a")])
    assert [found.path for found in catalog.rows()] == ["a"]


def test_a_file_that_is_moved_away_while_it_is_open_gets_no_further_rows(catalog: Catalog, tmp_path: Path) -> None:
    catalog.add([row("old")])
    (tmp_path / "away").mkdir()
    for old in file_of(tmp_path).parent.glob("catalog.db*"):
        old.rename(tmp_path / "away" / old.name)
    catalog.add([row("new")])
    assert [found.path for found in catalog.rows()] == ["new"]


def test_a_batch_that_went_to_a_file_moved_away_meanwhile_is_written_again(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.add([row("old")])
    (tmp_path / "away").mkdir()
    real = CatalogSession.transaction

    @contextlib.contextmanager
    def moving(self: CatalogSession, connection: Any) -> Iterator[Any]:
        with real(self, connection) as cursor:
            yield cursor
            for old in file_of(tmp_path).parent.glob("catalog.db*"):
                old.rename(tmp_path / "away" / old.name)
            monkeypatch.undo()

    monkeypatch.setattr(CatalogSession, "transaction", moving)
    catalog.add([row("new")])
    assert [found.path for found in catalog.rows()] == ["new"]


def test_a_lock_that_is_held_too_long_is_an_error_and_the_next_try_succeeds(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.add([row("a")])
    catalog._session.run(lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout = 1"), "read")
    with contextlib.closing(sqlite3.connect(file_of(tmp_path), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogError, match=r"cannot write .*locked; another process holds it"):
            catalog.add([row("b")])
        other.execute("ROLLBACK")
    catalog.add([row("b")])
    assert catalog.count() == 2


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    Catalog.open("", tmp_path).close()
    path = file_of(tmp_path)
    path.unlink()
    victim = tmp_path / "victim"
    victim.write_text("")
    path.symlink_to(victim)
    with pytest.raises(CatalogError, match="not a regular file"):
        Catalog.open("", tmp_path)
    assert victim.read_text() == ""


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense:secret", "URL is none"),
        ("postgresql://u:secret@h/d", "cannot be in|knows no"),
        ("mysql+aiomysql://u:secret@h/d", "cannot be in|knows no|not installed"),
        ("nothing://u:secret@h/d", "knows no database"),
        ("mysql://u:secret@h", "names no database"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_a_url_that_cannot_be_used_is_said_without_its_password(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Catalog.open(url, tmp_path)
    assert "secret" not in str(caught.value)


FULL = """
import subprocess, sys, os
from pathlib import Path
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError
from support.sidecar.catalogued import row
top = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", top], check=True)
catalog = Catalog.open("", top)
catalog.add([row("first")])
(top / "ballast").write_bytes(b"x" * 1_200_000)
done, said = 1, ""
for number in range(100):
    try:
        catalog.add([row(f"{number} {n}") for n in range(200)])
        done += 200
    except CatalogError as error:
        said = str(error)
        break
assert "full" in said and "free some space" in said, said
assert catalog.count() == done, (catalog.count(), done)
(top / "ballast").unlink()
catalog.add([row("last")])
assert catalog.count() == done + 1
print("passed")
"""


@pytest.mark.skipif(not has_permission_to_mount(), reason="mounts need root")
def test_a_full_disk_takes_a_batch_whole_or_not_and_is_got_over(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", FULL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip().endswith("passed"), done.stderr


MANY = """
import resource, sys
from pathlib import Path
from sharedvol_sidecar.catalog.catalog import Catalog, Row
catalog = Catalog.open("", Path(sys.argv[1]))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def add(start, count):
    for first in range(start, start + count, 2000):
        numbers = range(first, first + 2000)
        catalog.add([Row(f"results/d{n // 2000}/{n}", "results", "c", "", n, None, n, n) for n in numbers])
add(0, 20_000)
assert sum(1 for _ in catalog.rows()) == 20_000
before = peak()
add(20_000, 280_000)
assert sum(1 for _ in catalog.rows()) == 300_000
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    grown = int(run_python(MANY, str(tmp_path)))
    assert grown < 16_000, f"{grown} KiB for 280,000 rows more"


def test_rows_are_small(catalog: Catalog) -> None:
    assert not hasattr(row(), "__dict__")
    assert isinstance(row(), Row)
