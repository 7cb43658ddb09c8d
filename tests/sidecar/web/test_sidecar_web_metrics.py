"""Metrics: what Prometheus reads is what the board says, the names are the documented ones, and labels are few."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from support.sidecar.asking import ask, serving
from support.sidecar.board_scene import HOSTILE, NOON, Clocks, busy_board, hostile_board

import sharedvol
from sharedvol_sidecar.counters import PassCounts
from sharedvol_sidecar.events import Events
from sharedvol_sidecar.monitor.snapshot import FAULTS, REASONS
from sharedvol_sidecar.monitor.state import ServiceState
from sharedvol_sidecar.web.metrics import PREFIX, registry

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import metrics_table  # noqa: E402

PAGE = metrics_table.PAGE.read_text()


def scraped(board: ServiceState) -> dict[str, dict[tuple[str, ...], float]]:
    """Name of a sample to label values to value; each only once."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse_text(generate_latest(registry(board.picture)).decode()):
        for sample in family.samples:
            values = found.setdefault(sample.name.removeprefix(PREFIX), {})
            labels = tuple(sample.labels.values())
            assert labels not in values, f"{sample.name} {labels} is there twice"
            values[labels] = sample.value
    return found


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_the_counters_are_those_of_the_passes(clocks: Clocks) -> None:
    board = clocks.board()
    board.passed(
        PassCounts(collected=5, bytes=500, kept_both=1, copied=2, recovered=3, unleased=1, put_back=4, sealed=1), 0.02
    )
    board.passed(PassCounts(collected=1, bytes=7, orphans_removed=1, writing=9, failed=2, uncatalogued=3), 400.0)
    for _ in range(2):
        Events(board.event).pruned("a", "b")
    board.moved(PassCounts(followed=1234))
    board.followed(2)
    found = scraped(board)
    for name, wanted in {
        "collected_files_total": 6,
        "collected_bytes_total": 507,
        "kept_both_files_total": 1,
        "copied_files_total": 2,
        "recovered_files_total": 3,
        "unleased_files_total": 1,
        "put_back_files_total": 4,
        "sealed_logs_total": 1,
        "orphans_removed_total": 1,
        "pruned_files_total": 2,
        "followed_bytes_total": 1234,
        "followed_logs": 2,
        "uncatalogued_files": 3,
        "passes_total": 2,
        "pass_duration_seconds_count": 2,
        "pass_duration_seconds_sum": 400.02,
        "last_pass_timestamp_seconds": NOON,
    }.items():
        assert found[name] == {(): wanted}, name
    buckets = found["pass_duration_seconds_bucket"]
    assert (buckets[("0.01",)], buckets[("0.05",)], buckets[("300.0",)], buckets[("+Inf",)]) == (0, 1, 1, 2)
    assert (found["left_files"][("writing",)], found["left_files"][("failed",)]) == (9, 2)
    assert found["build_info"] == {(sharedvol.__version__,): 1}
    assert found["process_open_fds"][()] > 0


def test_errors_are_not_dropped_and_dropped_are_no_errors(clocks: Clocks) -> None:
    board = clocks.board()
    before = scraped(board)
    board.left(PassCounts(refused=1), True)
    refused = scraped(board)
    assert refused["errors_total"] == before["errors_total"]
    assert refused["dropped_total"] == {**before["dropped_total"], ("refused",): 1}
    board.left(PassCounts(refused=1, failed=1), True)
    board.fault("destination_full", "no space")
    failed = scraped(board)
    assert failed["dropped_total"] == refused["dropped_total"]
    assert failed["errors_total"] == {**before["errors_total"], ("file",): 1, ("destination_full",): 1}


def test_every_reason_is_there_before_it_happens(clocks: Clocks) -> None:
    """Else the first of each would be no increase to Prometheus."""
    found = scraped(clocks.board())
    assert found["errors_total"] == dict.fromkeys([(reason,) for reason in ("file", "catalog", *FAULTS)], 0)
    assert found["dropped_total"] == dict.fromkeys([(x,) for x in "refused unmatched unfinished truncated".split()], 0)
    assert set(found["fault"]) == {(reason,) for reason in REASONS}


def test_ready_alive_and_faults_are_those_of_the_checks(clocks: Clocks) -> None:
    board = clocks.board()
    assert (scraped(board)["ready"][()], scraped(board)["fault"][("starting",)]) == (0, 1)
    board.passed(PassCounts(), 0.1)
    assert (scraped(board)["ready"][()], scraped(board)["alive"][()]) == (1, 1)
    assert not any(scraped(board)["fault"].values())
    board.fault("permission", "forbidden")
    clocks.now += 61
    found = scraped(board)
    assert (found["ready"][()], found["alive"][()]) == (0, 0)
    assert {labels for labels, value in found["fault"].items() if value} == {("stalled",), ("permission",)}


def test_backlogs_are_few_series_and_none_is_forgotten(clocks: Clocks) -> None:
    board = clocks.board()
    board.backlog({f"c{number}": (number, 10) for number in range(1000)})
    found = scraped(board)
    assert len(found["backlog_files"]) == 201
    assert ("other",) in found["backlog_files"]
    assert sum(found["backlog_files"].values()) == sum(range(1000))
    assert sum(found["backlog_bytes"].values()) == 10_000


def test_names_that_look_alike_are_one_series(clocks: Clocks) -> None:
    board = clocks.board()
    board.backlog({"a\nb": (1, 10), "a\\nb": (2, 20), "other": (4, 40)})
    assert scraped(board)["backlog_files"] == {("a\\nb",): 3, ("other",): 4}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_name_is_one_label_on_one_line(clocks: Clocks, name: str) -> None:
    board = clocks.board()
    board.backlog({name: (3, 4), "tame": (1, 2)})
    text = generate_latest(registry(board.picture)).decode()
    assert all(line.isprintable() for line in text.split("\n"))
    assert sum(line.startswith(f"{PREFIX}backlog_files{{") for line in text.split("\n")) == 2
    assert sorted(scraped(board)["backlog_files"].values()) == [1, 3]


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain", parse_text),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text",
            parse_openmetrics,
        ),
    ],
)
@pytest.mark.parametrize("scene", [busy_board, hostile_board])
def test_what_is_served_can_be_parsed(
    clocks: Clocks,
    scene: Callable[[Clocks], ServiceState],
    accept: str,
    content_type: str,
    parse: Callable[[str], object],
) -> None:
    with serving(scene(clocks)) as server:
        answer = ask(server, "/metrics", Accept=accept)
    assert answer.code == 200
    assert answer.headers["content-type"].startswith(content_type)
    names = {family.name for family in parse(answer.text)}  # type: ignore[attr-defined]
    assert {f"{PREFIX}ready", "process_cpu_seconds", f"{PREFIX}errors"} <= {
        name.removesuffix("_total") for name in names
    }


def test_two_servers_in_a_process_share_nothing(clocks: Clocks) -> None:
    first, second = clocks.board(), clocks.board()
    first.passed(PassCounts(collected=1), 0.1)
    assert scraped(first)["collected_files_total"] == {(): 1}
    assert scraped(second)["collected_files_total"] == {(): 0}


def test_the_documented_names_are_those_that_are_served(clocks: Clocks) -> None:
    families = parse_text(generate_latest(registry(busy_board(clocks).picture)).decode())
    served = {family.name for family in families if family.name.startswith(PREFIX)}
    documented = set(re.findall(rf"`({PREFIX}\w+)", PAGE))
    assert {name.removesuffix("_total") for name in documented} == served


def test_every_reason_is_documented() -> None:
    for reason in (*REASONS, "file", "catalog", "refused", "unmatched", "unfinished", "truncated"):
        assert f"`{reason}`" in PAGE, reason


def test_the_table_of_the_docs_is_that_of_the_declarations() -> None:
    """``python scripts/metrics_table.py`` writes it again."""
    page = metrics_table.PAGE.read_text()
    assert page == metrics_table.with_table(page)
