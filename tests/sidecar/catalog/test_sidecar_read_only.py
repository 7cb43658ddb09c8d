"""Commands that only read work on a read-only mount of the destination, and never show an old or torn catalog."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from support.processes import LIMIT, Child, run_forked
from support.sidecar.volume import Volume
from support.torture.filesystems import mount
from support.torture.isolated import isolated

from sharedvol_sidecar.catalog.catalog import Catalog, Row
from sharedvol_sidecar.catalog.session import CatalogSession
from sharedvol_sidecar.cli import main
from sharedvol_sidecar.commands import catalog as catalog_commands  # noqa: F401 # once for all forked children
from sharedvol_sidecar.errors import CatalogError
from sharedvol_sidecar.fs.private import PRIVATE

_BIND, _REMOUNT, _READ_ONLY = 0x1000, 0x20, 1


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """With one collected file."""
    made = Volume(tmp_path / "spool", tmp_path / "collected")
    made.write("c/results/a", "x")
    assert made.drain(catalog="").collected == 1
    return made


def mounted(directory: Path) -> Path:
    """In an isolated process: a read-only mount of a directory."""
    place = directory.with_name("read-only")
    place.mkdir()
    mount(str(directory), place, "none", flags=_BIND)
    mount(str(directory), place, "none", flags=_BIND | _REMOUNT | _READ_ONLY)
    return place


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and output, both streams."""

    def run() -> tuple[int, str]:
        sys.stdout = sys.stderr = io.StringIO()
        code: Any = 0
        try:
            main([str(one) for one in arguments])
        except SystemExit as end:
            code = end.code
        return int(code or 0), sys.stdout.getvalue()

    found: tuple[int, str] = run_forked(run)
    return found


def add(directory: Path, *paths: str) -> None:
    """Another process writes rows, and closes the catalog."""

    def work() -> None:
        rows = [Row(path, "results", "c", path, 1, None, 0, 1) for path in paths]
        with contextlib.closing(Catalog.open(None, directory)) as catalog:
            catalog.add(rows)

    run_forked(work)


def test_commands_that_read_do_so(volume: Volume) -> None:
    def work() -> dict[str, tuple[int, str]]:
        place = mounted(volume.collected)
        found = {name: command(name, "--to", place) for name in ("ls", "verify", "rebuild")}
        return {**found, "prune": command("prune", "--to", place, "--keep", "results=0d")}

    found = isolated(work, LIMIT)
    assert {name: code for name, (code, _) in found.items()} == {"ls": 0, "verify": 0, "prune": 0, "rebuild": 1}
    assert "/c/a" in found["ls"][1]
    assert "all is as it was collected" in found["verify"][1]
    assert "would delete 1 files" in found["prune"][1]
    assert found["rebuild"][1].count("\n") == 1
    assert "EROFS" in found["rebuild"][1]


@pytest.mark.parametrize("killed", [False, True])
def test_rows_in_the_log_of_a_writer_are_read(killed: bool, volume: Volume) -> None:
    def write(connection: Any) -> None:
        database = sqlite3.connect(volume.collected / PRIVATE / "catalog.db")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.execute("UPDATE sharedvol_collected SET path = 'results/in-the-log'")
        database.commit()
        connection.send("written")
        connection.poll(LIMIT)

    def work() -> str:
        place = mounted(volume.collected)
        with Child(write) as writer:
            assert writer.receive() == "written"
            if killed:
                writer.kill()
            found = command("ls", "--to", place)[1]
            if not killed:
                writer.send("end")
            return found

    assert "results/in-the-log" in isolated(work, LIMIT)


def test_a_log_that_cannot_be_read_is_an_error(volume: Volume) -> None:
    def work() -> tuple[int, str]:
        (volume.collected / PRIVATE / "catalog.db-wal").write_bytes(b"x" * 100)
        return command("ls", "--to", mounted(volume.collected))

    code, said = isolated(work, LIMIT)
    assert code == 1
    assert "catalog.db-wal that cannot be read on a read-only mount" in said


def test_what_was_written_since_is_seen(volume: Volume) -> None:
    def work() -> list[int]:
        with contextlib.closing(Catalog.open(None, mounted(volume.collected), create=False)) as catalog:
            counts = [catalog.count()]
            add(volume.collected, "results/b")
            counts.append(catalog.count())
            add(volume.collected, "results/c", "results/d")
            return [*counts, catalog.count()]

    assert isolated(work, LIMIT) == [1, 2, 4]


def test_what_was_read_while_it_changed_is_read_again(volume: Volume) -> None:
    def counting(during: Callable[[int], object]) -> tuple[int, int]:
        calls = 0

        def count(connection: sa.Connection) -> int:
            nonlocal calls
            calls += 1
            found = connection.exec_driver_sql("SELECT count(*) FROM sharedvol_collected").scalar()
            during(calls)
            return int(str(found))

        path = mounted(volume.collected) / PRIVATE / "catalog.db"
        session = CatalogSession(sa.URL.create("sqlite", database=str(path)), create=False)
        with contextlib.closing(session):
            return session.run(count, "read"), calls

    once = isolated(lambda: counting(lambda call: add(volume.collected, "results/b") if call == 1 else None), LIMIT)
    assert once == (2, 2)
    (volume.collected.parent / "read-only").rmdir()

    def always() -> str:
        with pytest.raises(CatalogError) as raised:
            counting(lambda call: add(volume.collected, f"results/{call}"))
        return str(raised.value)

    assert "keeps changing" in isolated(always, LIMIT)
