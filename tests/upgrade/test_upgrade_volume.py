"""What a sidecar of one release leaves on the volume, one of the other continues: open logs, catalog, claims."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from pathlib import Path

import pytest
from support.processes import wait_until
from support.soak.releases import Release
from support.upgrade.release_commands import Place

from sharedvol_sidecar.collect.collector import Collector
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.events import Events

Pair = tuple[Release, Release]

LIVE = ".live"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_open_log_is_followed_in_turns(place: Place, pair: Pair) -> None:
    """The live copy is continued, not begun again, and the log is moved once it is closed."""
    logs = place.spool / "web" / "logs"
    logs.mkdir(parents=True)
    text = ""
    with open(logs / "app.log", "a", buffering=1) as log:
        for number in range(4):
            log.write(f"line {number}\n")
            text += f"line {number}\n"
            place.once(pair[number % 2])
            ((path, copied),) = place.files().items()
            assert path.endswith(LIVE)
            assert copied == text
        log.write("the last line\n")
    place.once(pair[0])
    assert place.texts() == [text + "the last line\n"]
    place.verify(pair[1])


def test_a_log_that_was_cut_is_kept_by_the_other_release(place: Place, pair: Pair) -> None:
    logs = place.spool / "web" / "logs"
    logs.mkdir(parents=True)
    with open(logs / "app.log", "a", buffering=1) as log:
        log.write("before the cut\n")
        place.once(pair[0])
        log.truncate(0)
        log.write("after\n")
        place.once(pair[1])
        log.write("and more\n")
    place.once(pair[0])
    assert place.texts() == ["after\nand more\n", "before the cut\n"]


def test_a_log_that_was_cut_while_the_catalog_was_locked_is_finished_by_both(place: Place, pair: Pair) -> None:
    """What waits for its row has a note of this release, which the release before does not read."""
    logs = place.spool / "web" / "logs"
    logs.mkdir(parents=True)
    with open(logs / "app.log", "a", buffering=1) as log:
        log.write("before the cut\n")
        place.once(pair[0])
        log.truncate(0)
        log.write("after\n")
        with contextlib.closing(
            sqlite3.connect(place.collected / ".sharedvol" / "catalog.db", isolation_level=None)
        ) as db:
            db.execute("BEGIN IMMEDIATE")
            place.run(pair[0], "once", "--from", place.spool, "--to", place.collected, "--quiet", "0")
        place.once(pair[1])
        log.write("and more\n")
    for release in (*pair, *pair):
        place.once(release)
    assert place.texts() == ["after\nand more\n", "before the cut\n"]
    place.verify(pair[0])
    place.verify(pair[1])


def test_a_log_that_was_deleted_gets_its_name_from_the_other_release(place: Place, pair: Pair) -> None:
    logs = place.spool / "web" / "logs"
    logs.mkdir(parents=True)
    with open(logs / "app.log", "a", buffering=1) as log:
        log.write("line\n")
        place.once(pair[0])
        (logs / "app.log").unlink()
        with place.running(pair[1], "--quiet", "0"):
            wait_until(lambda: not any(path.endswith(LIVE) for path in place.files()), "the live copy to get its name")
    (path,) = place.files()
    assert path.endswith("/app.log")
    assert place.texts() == ["line\n"]


@pytest.mark.parametrize("end", ["closed", "stopped"])
def test_a_deleted_log_is_left_to_a_running_sidecar_of_the_release_before(
    place: Place, releases: dict[str, Release], end: str
) -> None:
    """It may have the log open, and sets no mark that would show it."""
    logs = place.spool / "web" / "logs"
    logs.mkdir(parents=True)
    here = contextlib.ExitStack()
    with open(logs / "app.log", "a", buffering=1) as log, here:
        log.write("line\n")
        with place.running(releases["before"], "--quiet", "0"):
            wait_until(lambda: place.texts() == ["line\n"], "the log to be followed")
            (logs / "app.log").unlink()
            log.write("after it was deleted\n")
            job = CollectorConfig(str(place.spool), str(place.collected), quiet=0.0, workers=1)
            collector = here.enter_context(contextlib.closing(Collector(job, Events())))
            for _ in range(5):
                collector.run_pass()
            assert [path for path in place.files() if not path.endswith(LIVE)] == []
            wait_until(lambda: place.texts() == ["line\nafter it was deleted\n"], "the rest")
            if end == "closed":
                log.close()
                wait_until(lambda: not list(place.collected.rglob(f"*{LIVE}")), "the final name")
        for _ in range(3):
            collector.run_pass()
    (path,) = place.files()
    assert path.endswith("/app.log")
    assert place.texts() == ["line\nafter it was deleted\n"]


@pytest.mark.parametrize("template", ["{kind}/{date}/{container}/{name}", "{kind}/{base}"])
def test_claims_without_a_row_get_one_from_the_other_release(place: Place, pair: Pair, template: str) -> None:
    """While the catalog is locked, files have their final names and their claims stay."""
    setting = f"--template={template}"
    place.write("web/results/first.json", "1")
    place.once(pair[0], setting)
    place.write("web/results/second.json", "22")
    place.write("api/results/second.json", "22")
    with contextlib.closing(sqlite3.connect(place.collected / ".sharedvol" / "catalog.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        done = place.run(
            pair[0], "once", "--from", place.spool, "--to", place.collected, "--quiet", "0", setting
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
    claims = [path for path in (place.spool / ".sharedvol" / "claims").rglob("*") if path.is_file()]
    assert len(claims) == 2
    place.once(pair[1], setting)
    assert place.texts() == ["1", "22", "22"]
    assert len(place.rows(pair[0])) == 3
    place.verify(pair[0])


def test_rows_are_written_and_read_by_both(place: Place, pair: Pair) -> None:
    for number in range(4):
        place.write(f"web/results/{number}.json", str(number))
        place.once(pair[number % 2])
    place.write("web/logs/app.log", "a line\n" * 100)
    place.once(pair[0], "--compress=gzip")
    rows = [place.rows(release) for release in pair]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 5
    assert place.rows(pair[0], "--kind=logs") == place.rows(pair[1], "--kind=logs") != []
    for release in pair:
        place.verify(release)


def test_a_catalog_is_rebuilt_by_the_other_release(place: Place, pair: Pair) -> None:
    place.write("web/results/a.json", "a")
    place.write("web/results/b.json", "b")
    place.once(pair[0])
    before = place.rows(pair[0])
    for path in (place.collected / ".sharedvol").glob("catalog.db*"):
        path.unlink()
    done = place.run(pair[1], "rebuild", "--to", place.collected)
    assert done.returncode == 0, done.stderr
    after = place.rows(pair[0])
    assert {row["path"]: row["sha256"] for row in after} == {row["path"]: row["sha256"] for row in before}
    place.verify(pair[0])


def test_what_one_release_collected_is_pruned_by_the_other(place: Place, pair: Pair) -> None:
    place.write("web/results/old.json", "old")
    place.once(pair[0])
    place.clock.write_bytes(struct.pack("d", 40 * 86_400.0))
    place.write("web/results/new.json", "new")
    place.once(pair[0])
    done = place.run(pair[1], "prune", "--to", place.collected, "--keep", "results=30d", "--apply")
    assert done.returncode == 0, done.stderr
    assert place.texts() == ["new"]
    place.verify(pair[0])
