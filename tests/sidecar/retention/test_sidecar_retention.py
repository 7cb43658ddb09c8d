"""What is deleted: what the rules say, oldest first, never anything else, at whatever point it is killed."""

from __future__ import annotations

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.processes import Child
from support.sidecar.catalogued import DAY, NOW, Collected, row
from support.sidecar.killing import die_at

from sharedvol_sidecar.catalog import catalog as catalog_module
from sharedvol_sidecar.catalog.catalog import Catalog, Filters
from sharedvol_sidecar.catalog.files import CollectedFiles
from sharedvol_sidecar.catalog.verify import Verification
from sharedvol_sidecar.cli import main
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.follow.seals import RecordedCopies
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.retention import pruner as retention
from sharedvol_sidecar.retention.pruner import Pruned, apply, apply_in_steps, plan, plan_in_steps, prune
from sharedvol_sidecar.retention.rules import Rule, parse_rules

OLD = parse_rules(["results=90d"])


@pytest.fixture
def collected(tmp_path: Path) -> Collected:
    return Collected(tmp_path / "collected")


def run(collected: Collected, *rules: str, now: int = NOW) -> dict[str, str]:
    """Prune; the outcome for each path."""
    told: list[Pruned] = []
    prune(collected.catalog, open_root(collected.root), parse_rules(rules), now, told.append)
    return {pruned.expired.row.path: pruned.outcome for pruned in told}


def planned(collected: Collected, *rules: str, now: int = NOW) -> list[str]:
    return [doomed.row.path for doomed in plan(collected.catalog, parse_rules(rules), now)]


def verified(collected: Collected) -> dict[str, int]:
    """What `verify` finds wrong."""
    work = Verification(
        collected.catalog, CollectedFiles(open_root(collected.root)), RecordedCopies(), lambda finding: None
    )
    work.catalogued(Filters())
    work.uncatalogued()
    counts = work.counts.as_dict()
    return {name: counts[name] for name in ("changed", "missing", "uncatalogued", "unreadable") if counts[name]}


def test_rules_are_read() -> None:
    assert parse_rules(["results=90d", "logs=14d,20G", "x=1.5T", " y = 2h , 5MiB "]) == (
        Rule("results", 90 * DAY, None),
        Rule("logs", 14 * DAY, 20 * 2**30),
        Rule("x", None, 1536 * 2**30),
        Rule("y", DAY // 12, 5 * 2**20),
    )


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["90d"], "names no kind"),
        (["=90d"], "names no kind"),
        (["results="], "neither an age"),
        (["results=90"], "'90' is neither"),
        (["results=-1d"], "'-1d' is neither"),
        (["results=1y"], "'1y' is neither"),
        (["results=nand"], "neither"),
        (["results=1d,2d"], "two limits"),
        (["results=1d", "results=2d"], "there are two for 'results'"),
    ],
)
def test_a_rule_that_could_be_misread_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_rules(texts)
    assert "say results=90d" in str(caught.value)


def test_by_age_what_is_older_goes_and_nothing_else(collected: Collected) -> None:
    collected.add("results/old", age=91 * DAY)
    collected.add("results/limit", age=90 * DAY)
    collected.add("results/new", age=1)
    collected.add("logs/old", age=91 * DAY)
    assert run(collected, "results=90d") == {"results/old": "deleted"}
    assert collected.paths() == {"results/limit", "results/new", "logs/old"}
    assert collected.names() == {"results", "logs", *collected.paths()}


def test_by_size_the_oldest_go_until_the_rest_fits(collected: Collected) -> None:
    for number in range(10):
        collected.add(f"logs/{number}", "x" * 1024, age=number * DAY)
    collected.add("results/kept", "x" * 9000, age=99 * DAY)
    assert planned(collected, "logs=7K") == ["logs/9", "logs/8", "logs/7"]
    assert planned(collected, "logs=7679B") == ["logs/9", "logs/8", "logs/7"]
    assert planned(collected, "logs=10K") == []
    assert planned(collected, "logs=8d,5K") == ["logs/9", "logs/8", "logs/7", "logs/6", "logs/5"]
    assert planned(collected, "logs=3d,9K") == ["logs/9", "logs/8", "logs/7", "logs/6", "logs/5", "logs/4"]


def test_of_several_kinds_the_oldest_come_first(collected: Collected) -> None:
    for number in range(6):
        collected.add(f"{('logs', 'results')[number % 2]}/{number}", age=(10 + number) * DAY)
    assert planned(collected, "logs=1d", "results=1d") == [
        "results/5",
        "logs/4",
        "results/3",
        "logs/2",
        "results/1",
        "logs/0",
    ]


def test_a_clock_that_was_wrong_never_deletes_more(collected: Collected) -> None:
    collected.add("results/future", "x" * 100, age=-1000 * DAY)
    collected.add("results/old", "x" * 100, age=91 * DAY)
    collected.add("results/new", "x" * 100, age=DAY)
    right = planned(collected, "results=90d")
    assert right == ["results/old"]
    for back in (1, 91, 5000):
        assert set(planned(collected, "results=90d", now=NOW - back * DAY)) <= set(right)
    assert planned(collected, "results=200B") == ["results/old"]
    assert planned(collected, "results=100B") == ["results/old", "results/new"]
    assert planned(collected, "results=0s", now=NOW - 100 * DAY) == []


def test_a_plan_changes_nothing(collected: Collected) -> None:
    collected.add("results/old", age=91 * DAY)
    before = collected.names()
    assert planned(collected, "results=1d") == ["results/old"]
    assert collected.names() == before and collected.paths() == {"results/old"}


def test_what_is_not_in_the_catalog_is_never_touched(collected: Collected) -> None:
    collected.add("results/day/old", age=91 * DAY)
    collected.file("results/day/unknown")
    collected.file("results/day/.hidden")
    assert run(collected, "results=0B") == {"results/day/old": "deleted"}
    assert collected.names() == {"results", "results/day", "results/day/unknown", "results/day/.hidden"}


def test_a_file_that_was_changed_or_replaced_is_left_with_its_row(collected: Collected, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("content")
    for name in ("longer", "later", "link", "directory", "fifo"):
        made = collected.add(f"results/{name}", age=91 * DAY)
        path = collected.root / made.path
        if name == "longer":
            path.write_text("content and more")
        elif name == "later":
            os.utime(path, ns=(0, made.mtime_ns + 1))
        else:
            path.unlink()
            {"link": lambda p: p.symlink_to(victim), "directory": Path.mkdir, "fifo": os.mkfifo}[name](path)  # type: ignore[operator]
    rows, names = collected.paths(), collected.names()
    assert set(run(collected, "results=90d").values()) == {"left"}
    assert (collected.paths(), collected.names()) == (rows, names)
    assert victim.read_text() == "content"


@pytest.mark.parametrize(
    "path",
    ["../victim", "results/../../victim", "/{outside}/victim", "", ".", "results//x", ".sharedvol/catalog.db", "a\0b"],
)
def test_a_hostile_row_leads_nowhere(collected: Collected, tmp_path: Path, path: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("content")
    info = victim.stat()
    path = path.replace("/{outside}", str(tmp_path))
    collected.catalog.add([row(path, size=info.st_size, mtime_ns=info.st_mtime_ns, collected_at=1)])
    assert run(collected, "results=1d") == {path: "refused"}
    assert victim.exists() and (collected.root / ".sharedvol" / "catalog.db").exists()


def test_a_link_in_the_place_of_a_directory_is_not_followed(collected: Collected, tmp_path: Path) -> None:
    made = collected.add("results/day/old", age=91 * DAY)
    (collected.root / "results" / "day").rename(tmp_path / "outside")
    (collected.root / "results" / "day").symlink_to(tmp_path / "outside")
    assert run(collected, "results=90d") == {made.path: "left"}
    assert collected.paths() == {made.path}
    assert (tmp_path / "outside" / "old").read_text() == "content"
    assert (collected.root / "results" / "day").is_symlink()


def test_directories_that_became_empty_go_and_the_root_stays(collected: Collected) -> None:
    for path in ("results/a/b/c/1", "results/a/b/2", "results/a/3", "top"):
        collected.add(path, age=91 * DAY, kind="results")
    collected.add("logs/kept", age=0)
    (collected.root / "empty").mkdir()
    assert set(run(collected, "results=90d").values()) == {"deleted"}
    assert collected.names() == {"logs", "logs/kept", "empty"}


def test_a_file_that_is_gone_takes_its_row_and_empty_directories_with_it(collected: Collected) -> None:
    collected.add("results/a/b/gone", age=91 * DAY)
    (collected.root / "results/a/b/gone").unlink()
    collected.add("results/c/gone", age=91 * DAY)
    (collected.root / "results/c/gone").unlink()
    (collected.root / "results/c").rmdir()
    assert set(run(collected, "results=90d").values()) == {"gone"}
    assert collected.paths() == set() and collected.names() == set()


def test_a_file_collected_under_the_name_meanwhile_keeps_its_row(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected.add("results/a", age=91 * DAY)
    real = Catalog.forget

    def forget(self: Catalog, rows: Any) -> None:
        collected.add("results/a", "another")  # between the unlink and the end of the row
        real(self, rows)

    monkeypatch.setattr(Catalog, "forget", forget)
    assert run(collected, "results=90d") == {"results/a": "deleted"}
    assert collected.paths() == {"results/a"}
    assert verified(collected) == {}


def test_a_name_that_cannot_be_synced_keeps_its_row(collected: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    collected.add("results/a", age=91 * DAY)

    def fsync(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert run(collected, "results=90d") == {"results/a": "failed"}
    assert collected.paths() == {"results/a"}
    assert run(collected, "results=90d") == {"results/a": "gone"}
    assert collected.paths() == set()


def test_more_files_than_a_batch(collected: Collected) -> None:
    for number in range(250):
        collected.add(f"results/{number % 7}/{number}", age=(91 + number) * DAY)
    assert len(run(collected, "results=90d")) == 250
    assert collected.paths() == set() and collected.names() == set()


def test_two_at_once_delete_each_file_once(collected: Collected) -> None:
    for number in range(300):
        collected.add(f"results/{number % 5}/{number}", age=(91 + number) * DAY)

    def work(connection: Any) -> None:
        connection.send("ready")
        connection.recv()
        catalog = Catalog.open("", collected.root)
        counts = prune(catalog, open_root(collected.root), OLD, NOW)
        assert counts.good, counts
        connection.send(counts.deleted)

    with Child(work) as one, Child(work) as two:
        one.receive(), two.receive()
        one.send("go"), two.send("go")
        assert one.receive() + two.receive() == 300
    assert collected.paths() == set() and collected.names() == set()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_the_next_run_mends_it(tmp_path: Path, after: bool) -> None:
    for number in itertools.count():
        collected = Collected(tmp_path / str(number))
        for path in ("results/a/b/1", "results/a/2", "results/c/3"):
            collected.add(path, age=91 * DAY)
        collected.add("results/c/kept")
        collected.file("results/c/unknown")
        collected.catalog.close()

        def work(_: object) -> None:
            catalog = Catalog.open("", collected.root)  # noqa: B023 - reaped below
            root = open_root(collected.root)  # noqa: B023
            forget = Catalog.forget

            def counted(self: Catalog, rows: Any) -> None:
                os.fsync(root.fd)  # a call that is counted: so it dies before and after the row goes, too
                forget(self, rows)
                os.fsync(root.fd)

            Catalog.forget = counted  # type: ignore
            die_at(number, after)  # noqa: B023
            prune(catalog, root, OLD, NOW)

        child = Child(work)
        status = child.wait()
        child.kill()
        with child:
            pass
        assert set(verified(collected)) <= {"missing", "uncatalogued"}
        assert verified(collected).get("uncatalogued") == 1  # the one that always was
        assert prune(collected.catalog, open_root(collected.root), OLD, NOW).good
        assert verified(collected) == {"uncatalogued": 1}
        assert collected.paths() == {"results/c/kept"}
        # What was killed after the last row went leaves nothing that a row would tell of, and nothing to tell.
        assert collected.names() == {"results", "results/c", "results/c/kept", "results/c/unknown"}
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert number > 10


def test_a_plan_from_another_time_deletes_only_what_is_still_so(collected: Collected) -> None:
    collected.add("results/a", age=91 * DAY)
    doomed = list(plan(collected.catalog, OLD, NOW))
    collected.add("results/a", "collected anew")
    told: list[Pruned] = []
    apply(collected.catalog, open_root(collected.root), doomed, told.append)
    assert [pruned.outcome for pruned in told] == ["left"]
    assert collected.paths() == {"results/a"}


def command(collected: Collected, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["prune", "--to", str(collected.root), *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_deletes_only_when_told_to(collected: Collected) -> None:
    collected.add("results/old\n", "x" * 2048, age=NOW - 1)
    code, out, _ = command(collected, "--keep", "results=90d")
    assert code == 0 and "would delete 1 files, 2.0 KiB; to delete them, add --apply" in out
    assert "results/old%0A  2.0 KiB  collected " in out
    assert collected.paths() == {"results/old\n"}
    code, out, _ = command(collected, "--keep", "results=90d", "--apply")
    assert code == 0 and "deleted 1 files, 2.0 KiB" in out
    assert collected.paths() == set()


def test_the_command_tells_in_json_and_by_its_exit_code(collected: Collected) -> None:
    collected.add("results/old", age=NOW - 1)
    collected.add("results/changed", age=NOW - 2)
    (collected.root / "results/changed").write_text("longer than before")
    code, out, _ = command(collected, "--keep", "results=90d", "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line.get("outcome") for line in lines] == ["would_delete", "would_delete", None]
    assert lines[-1] == {"summary": {"would_delete": 2, "bytes": 14, "applied": False}}
    code, out, _ = command(collected, "--keep", "results=90d", "--json", "--apply")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [line.get("outcome") for line in lines] == ["deleted", "left", None]
    assert lines[-1]["summary"]["left"] == 1
    code, _, err = command(collected, "--keep", "results=90")
    assert code == 2 and err.startswith("sharedvol-sidecar: rule 'results=90'")


@pytest.mark.parametrize("turn", [1, 3, 7])
def test_two_that_prune_by_size_at_once_keep_what_the_rule_keeps(
    collected: Collected, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one of them has deleted, the other does not find: it is not to delete newer files instead."""
    monkeypatch.setattr(catalog_module, "_PAGE", 5)
    monkeypatch.setattr(catalog_module, "_SUMMED", 6)
    monkeypatch.setattr(retention, "_BATCH", 2)
    for number in range(40):
        collected.add(f"results/{number:02}", "x" * 10, age=(40 - number) * DAY)
    rules, root = parse_rules(["results=155B"]), open_root(collected.root)
    slow = apply_in_steps(collected.catalog, root, plan_in_steps(collected.catalog, rules, NOW))
    for _ in range(turn):
        next(slow)
    other = Catalog.open(collected.url, collected.root)
    assert prune(other, root, rules, NOW).good
    list(slow)
    assert collected.paths() == {f"results/{number:02}" for number in range(25, 40)}
    assert collected.paths() == {name for name in collected.names() if "/" in name}


def test_a_plan_by_size_is_the_same_whatever_the_lengths_of_pages_and_sums(
    collected: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of one time are in the order of their keys, so that every process counts the same ones."""
    collected.catalog.add([row(f"results/{n}", collected_at=n // 10, size=n % 4) for n in range(100)])
    for limit in (0, 1, 10, 77, 149, 150):
        plans = set()
        for page, summed in ((1, 1), (3, 7), (1000, 10_000)):
            monkeypatch.setattr(catalog_module, "_PAGE", page)
            monkeypatch.setattr(catalog_module, "_SUMMED", summed)
            plans.add(frozenset(planned(collected, f"results={limit}B")))
        (doomed,) = plans
        kept = [one for one in collected.catalog.rows() if one.path not in doomed]
        assert sum(one.size for one in kept) <= limit
        newest = min((one.collected_at for one in kept), default=10)
        assert all(int(path.partition("/")[2]) // 10 <= newest for path in doomed)
