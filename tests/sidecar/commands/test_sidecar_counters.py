"""Every counter is what happened, wherever it is shown: in /metrics, /status.json, the page, the log and `once`."""

from __future__ import annotations

import errno
import html
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families as parse
from support.processes import Child, wait_until
from support.sidecar.replica import dead
from support.sidecar.service_process import Served, service, settled
from support.sidecar.volume import Volume

from sharedvol import publish
from sharedvol_sidecar.catalog.catalog import Catalog, CatalogError
from sharedvol_sidecar.commands.collect import summary
from sharedvol_sidecar.commands.prune import prune_command
from sharedvol_sidecar.counters import COUNTERS, DONE, LABELLED, LEFT, PassCounts, Reason
from sharedvol_sidecar.fs.directory import open_root
from sharedvol_sidecar.humanize import size
from sharedvol_sidecar.monitor.snapshot import ALL
from sharedvol_sidecar.spool.container_locks import ContainerLocks
from sharedvol_sidecar.transfer.placer import Placer
from sharedvol_sidecar.web.metrics import PREFIX

TROUBLE = """
import errno
from sharedvol_sidecar.catalog import catalog
from sharedvol_sidecar.fs import lease
from sharedvol_sidecar.catalog.catalog import CatalogError
reopened = []
def name_of(fd):
    return os.path.basename(os.readlink("/proc/self/fd/%d" % fd))
def wrap(owner, name, before):
    real = getattr(owner, name)
    def wrapped(*args, **options):
        found = before(*args, **options)
        return real(*args, **options) if found is None else found
    setattr(owner, name, wrapped)
wrap(lease, "acquire", lambda fd: lease.Lease.UNAVAILABLE if name_of(fd) == "unleased" else None)
def intact(fd):
    if name_of(fd).startswith("reopened") and not reopened:
        reopened.append(1)
        return False
wrap(lease, "is_intact", intact)
def rename(src, dst, **options):
    if src == "stuck" and "src_dir_fd" in options:
        raise PermissionError(errno.EACCES, "denied")
wrap(os, "rename", rename)
def link(src, dst, **options):
    if "too-large" in str(dst):
        raise OSError(errno.ENOSPC, "full")
    if "forbidden" in str(dst):
        raise OSError(errno.EACCES, "denied")
wrap(os, "link", link)
def add(self, rows):
    if os.path.exists(os.environ["NO_CATALOG"]):
        raise CatalogError("the catalog is away")
wrap(catalog.Catalog, "add", add)
wrap(catalog.Catalog, "remove", add)
import sharedvol_sidecar.transfer.catalog_writer as register
register._AGAIN = 0.2
import sharedvol_sidecar.service.prune_schedule as pruning
for name in ("advance", "relieve"):
    wrap(pruning.PruneSchedule, name, lambda *args: None if os.path.exists(os.environ["PRUNE"]) else False)
"""


class Shown:
    """The values of one counter, by where they are shown."""

    def __init__(self, served: Served) -> None:
        self.metrics: dict[tuple[str, str], float] = {}
        for family in parse(served.ask("/metrics")[1]):
            for sample in family.samples:
                name = sample.name.removeprefix(PREFIX).removesuffix("_total")
                self.metrics[name, sample.labels.get("reason", "")] = sample.value
        self.status: dict[str, Any] = json.loads(served.ask("/status.json")[1])
        found = re.findall(r'<th scope="row">(\w+)</th><td>(.*?)</td><td class="number">(.*?)</td>', served.ask("/")[1])
        self.page = {name: (html.unescape(text), value) for name, text, value in found}

    def compare(self, wanted: dict[str, int]) -> None:
        """Compare every counter with what happened; the counters that are not named have to be 0."""
        reasons: dict[tuple[str, str], int] = {}
        for counter in ALL:
            value = wanted.get(counter.name, 0)
            if counter.section in ("collected", "removed", "left"):
                assert self.status[counter.section][counter.name] == value, counter.name
            told = size(value) if counter.unit == "bytes" else f"{value:,}"
            assert self.page[counter.name] == (counter.help, told), counter.name
            if isinstance(counter.metric, str):
                assert self.metrics[counter.metric, ""] == value, counter.name
            else:
                at = counter.metric.metric, counter.metric.reason
                reasons[at] = reasons.get(at, 0) + value
            if counter.onset is not None:
                at = counter.onset.metric, counter.onset.reason
                reasons[at] = reasons.get(at, 0) + wanted.get(f"{counter.name} since", value)
        for (metric, reason), value in reasons.items():
            assert self.metrics[metric, reason] == value, (metric, reason)
            if metric != "left_files":
                assert self.status[metric][reason] == value, (metric, reason)
        assert self.status["followed"]["bytes"] == wanted.get("followed", 0)


def shows(served: Served, wanted: dict[str, int]) -> None:
    """Wait until the service has done what happened, then compare all that it shows."""
    everything = {one.name: wanted.get(one.name, 0) for one in ALL if one.section in ("collected", "removed", "left")}

    def there() -> bool:
        status = json.loads(served.ask("/status.json")[1])
        found = {**status["collected"], **status["removed"], **status["left"]}
        if found != everything:
            there.__dict__["last"] = {
                name: (found[name], value) for name, value in everything.items() if found[name] != value
            }
        return found == everything

    try:
        wait_until(there, "the counters")
    except AssertionError:
        raise AssertionError(f"name: (shown, wanted) {there.__dict__['last']}") from None
    Shown(served).compare(wanted)


def claimed_by_the_dead(volume: Volume, path: str) -> None:
    """A mover claimed a file and was killed."""

    def work(connection: Any) -> None:
        from sharedvol_sidecar.transfer.placer import Placer

        def stop(self: Placer, *args: Any) -> None:
            connection.send("claimed")
            connection.recv()

        Placer.place = stop  # type: ignore[method-assign, assignment]
        volume.one_pass()

    volume.write(path, "12")
    with Child(work) as child:
        assert child.receive() == "claimed"
        child.kill()


def prepare(volume: Volume) -> dict[str, int]:
    """Make one of everything in the spool, and return what is to be counted."""
    claimed_by_the_dead(volume, "c1/results/recovered")  # 2 bytes
    dead(volume, "gone")
    volume.write("gone/results/last", "123")
    volume.write("c1/results/unleased", "1234")
    volume.write("c1/results/reopened", "12345")
    os.link(volume.write("c1/results/linked", "123456"), volume.spool / "c1/results/linked-too")
    for path in ("c2/results/stuck", "c2/results/too-large", "c3/results/forbidden", "loose", "busy/results/x"):
        volume.write(path, "left")
    (volume.spool / "c1/results/link").symlink_to("x")

    def work(connection: Any) -> None:
        with publish(volume.spool / "c1/results/half.json") as file:
            file.write("never published")
            connection.send("half")
            connection.recv()

    with Child(work) as child:
        assert child.receive() == "half"
        child.kill()
    return {
        "collected": 6,
        "bytes": 2 + 3 + 4 + 5 + 6 + 6,
        "recovered": 1,
        "unleased": 1,
        "put_back": 1,
        "copied": 2,
        "orphans_removed": 1,
        "unmatched": 1,
        "refused": 1,
        "unfinished": 1,
        "failed": 3,
        "no_room": 1,
        "denied": 1,
        "elsewhere": 1,
    }


def test_every_counter_is_what_happened_wherever_it_is_shown(volume: Volume, tmp_path: Path) -> None:
    wanted = prepare(volume)
    away, prune = tmp_path / "away", tmp_path / "prune"
    waits = Volume(tmp_path / "waits" / "spool", tmp_path / "waits" / "collected")
    seen: set[str] = set()

    def check(served: Served, **more: int) -> None:
        for name, count in more.items():
            wanted[name] = wanted.get(name, 0) + count
        shows(served, wanted)
        seen.update(name for name, count in wanted.items() if count)

    options = ("--keep", "logs=1B results=1B", "--prune", "apply", "--follow-interval", "0.05")
    environment = {"NO_CATALOG": str(away), "PRUNE": str(prune)}
    locks = ContainerLocks(open_root(volume.spool))
    assert locks.acquire("busy")
    with service(volume, *options, shim=TROUBLE, interval="0.1", environment=environment) as served:
        check(served)
        (volume.spool / "c1/logs").mkdir()
        with open(volume.spool / "c1/logs/app.log", "w", buffering=1) as log:
            log.write("line\n")
            check(served, followed=5, writing=1)
            log.truncate(0)
            log.seek(0)
            log.write("again\n")
            check(served, followed=6, truncated=1, collected=1, bytes=5, sealed=1)
        check(served, writing=-1, collected=1, bytes=6, sealed=1, kept_both=1)
        away.touch()
        volume.write("c1/results/row", "1234567")
        check(served, uncatalogued=1, catalog=1)
        assert set(served.readiness()[1]) == {"permission", "destination_full", "catalog_unavailable"}
        away.unlink()
        check(served, uncatalogued=-1, collected=1, bytes=7)
        next(volume.collected.glob("results/*/*/row")).write_text("changed")
        prune.touch()
        check(served, pruned=wanted["collected"] - 1, not_pruned=1)
        prune.unlink()  # a destination without room is relieved again and again
        locks.release()
        check(served, elsewhere=-1, collected=1, bytes=4)
        stopped = settled(served)
    summaries = [line for line in served.seen if line["event"] == "summary"]
    for name in DONE:
        key = "files" if name == "collected" else name
        assert stopped[key] == sum(line[key] for line in summaries) == wanted.get(name, 0), name
    assert summaries[-1]["left"] == {name: wanted[name] for name in LEFT if wanted.get(name)}

    wanted = {"settling": 1}
    waits.write("c1/results/new", "x")
    with service(waits, "--quiet", "3600") as served:
        check(served)
    assert seen == {one.name for one in ALL}, "a counter that nothing here counts"


def test_the_summary_of_once_has_every_counter() -> None:
    told = summary(PassCounts(**{one.name: 700 + number for number, one in enumerate(COUNTERS)}))
    assert re.findall(r"\b7\d\d\b", told) == [str(700 + number) for number in range(len(COUNTERS))]


def test_no_two_counters_are_one_metric_or_one_key() -> None:
    metrics = [one.metric for one in ALL if isinstance(one.metric, str)]
    assert len(set(metrics)) == len(metrics)
    places = [place for one in ALL for place in (one.metric, one.onset) if isinstance(place, Reason)]
    assert {place.metric for place in places} == set(LABELLED)
    assert len({(one.section, one.name) for one in ALL}) == len(ALL)


def test_what_a_failing_pass_did_is_in_the_log_as_in_the_metrics(volume: Volume) -> None:
    """The destination fails after a file was collected, before the pass ends."""
    shim = """
service.BACKOFF = (3600.0, 3600.0)
from sharedvol_sidecar.errors import DestinationError
from sharedvol_sidecar.transfer.mover import Mover
real = Mover.move
def move(self, items):
    real(self, items)
    if items:
        raise DestinationError("it fails")
Mover.move = move
"""
    volume.write("c1/results/a", "123")
    with service(volume, "--workers", "1", shim=shim, first="fault") as served:
        shows(served, {"collected": 1, "bytes": 3})
        stopped = settled(served)
    summaries = [line for line in served.seen if line["event"] == "summary"]
    assert [(line["files"], line["bytes"]) for line in (*summaries, stopped)] == [(1, 3), (1, 3)]


def test_a_directory_that_may_not_be_written_is_counted_in_every_pass_while_its_file_waits(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two tries of a file readiness would be well for a moment, and each try one more error."""
    real = os.link

    def link(source: Any, target: Any, **options: Any) -> None:
        if "forbidden" in str(target):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    for name in ("forbidden", "forbidden-too"):
        volume.write(f"c1/results/{name}", name)
    collector = volume.collector()
    try:
        found = [collector.run_pass() for _ in range(4)]
    finally:
        collector.close()
    assert [(tally.failed, tally.denied) for tally in found] == [(2, 1)] * 4


def test_a_claim_that_stays_is_a_failure_and_its_file_is_collected_once(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.unlink
    left = [OSError(errno.EIO, os.strerror(errno.EIO))]

    def unlink(path: Any, **options: Any) -> None:
        if path == "a" and left:
            raise left.pop()
        real(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    volume.write("c1/results/a", "123")
    collector = volume.collector()
    try:
        first, second = collector.run_pass(), collector.run_pass()
    finally:
        collector.close()
    assert (first.collected, first.failed, len(volume.told("failed"))) == (0, 1, 1)
    assert (second.collected, second.failed, second.recovered) == (1, 0, 0)


def test_files_that_wait_for_their_rows_are_counted_while_the_catalog_rests(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [True]

    def add(self: Catalog, rows: Any) -> None:
        if away:
            raise CatalogError("the catalog is away")
        real(self, rows)

    real = Catalog.add
    monkeypatch.setattr(Catalog, "add", add)
    collector = volume.collector()
    try:
        counts = []
        for number in range(3):
            volume.write(f"c1/results/{number}", "x")
            counts.append(collector.run_pass().uncatalogued)
            if number == 1:
                collector.parts.catalog.try_again()  # and it fails again
        away.clear()
        collector.parts.catalog.try_again()
        last = collector.run_pass()
    finally:
        collector.close()
    assert counts == [1, 2, 3]
    assert (last.uncatalogued, last.collected) == (0, 3)


def pruned(volume: Volume, *arguments: str, **environment: str) -> tuple[int, str]:
    """What `prune` says, and its exit code."""
    result = CliRunner().invoke(prune_command, ["--to", str(volume.collected), *arguments], env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_prune_takes_the_setting_keep_from_wherever_it_is(volume: Volume, tmp_path: Path) -> None:
    for kind in ("results", "logs"):
        volume.write(f"c1/{kind}/a", "some text")
    volume.drain(follow=())
    rules = "results=1B logs=90d"
    config, secret = tmp_path / "sidecar.toml", tmp_path / "secret"
    secret.write_text(rules)
    for text in (f'keep = "{rules}"', 'keep = ["results=1B", "logs=90d"]'):
        config.write_text(text)
        code, said = pruned(volume, "--config", str(config))
        assert code == 0 and "would delete 1 files" in said and "results/" in said
        assert "would delete 0 files" in pruned(volume, "--config", str(config), "--keep", "logs=90d")[1]
    assert "would delete 1 files" in pruned(volume, SHAREDVOL_KEEP=rules)[1]
    assert "would delete 1 files" in pruned(volume, SHAREDVOL_KEEP_FILE=str(secret))[1]


def test_prune_names_the_source_of_a_rule_that_is_wrong(volume: Volume, tmp_path: Path) -> None:
    config = tmp_path / "sidecar.toml"
    config.write_text('keep = ["results"]\n')
    code, said = pruned(volume, "--config", str(config))
    assert code == 2 and f"setting 'keep' ({config}): rule 'results' names no kind" in said
    config.write_text("")
    code, said = pruned(volume, "--config", str(config))
    assert code == 2 and "--keep" in said
