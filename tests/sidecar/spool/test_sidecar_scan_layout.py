"""What a scan takes, what it leaves and why, and where files go."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sidecar.volume import Volume

from sharedvol_sidecar.destination.template import Template, alternatives, day_of, fit
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.spool.layout import Layout, Origin

KINDS = ("results", "logs")
DAY = 1_767_225_600 * 10**9  # 2026-01-01
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=90).filter(
    lambda name: not name.startswith(".") and len(os.fsencode(name)) <= 255
)


def test_both_layouts_side_by_side(volume: Volume) -> None:
    volume.write("c1/results/a.json", "1")
    volume.write("c1/logs/app.log", "2")
    volume.write("results/job_7_c2.json", "3")
    volume.write("logs/c2_20260131.log", "4")
    assert volume.drain(template="{container}/{kind}/{name}").collected == 4
    assert volume.files() == {
        "c1/results/a.json": "1",
        "c1/logs/app.log": "2",
        "c2/results/job_7_c2.json": "3",
        "c2/logs/c2_20260131.log": "4",
    }
    assert volume.waiting() == {}


def test_nested_directories_stay_in_name_and_not_in_base(volume: Volume) -> None:
    volume.write("c1/results/x/y/a.json", "1")
    volume.one_pass(template="{container}/{name}")
    volume.write("c1/results/x/y/b.json", "2")
    volume.one_pass(template="{container}/{base}")
    assert volume.files() == {"c1/x/y/a.json": "1", "c1/b.json": "2"}


def test_date_is_that_of_the_name_or_of_the_last_write(volume: Volume) -> None:
    volume.write("logs/c2_20240229.log", "1")
    os.utime(volume.write("c1/results/a", "2"), ns=(DAY, DAY))
    volume.one_pass(template="{date}/{year}{month}{day}/{base}")
    assert set(volume.files()) == {"2024-02-29/20240229/c2_20240229.log", "2026-01-01/20260101/a"}


def test_pattern_tells_container_and_day(volume: Volume) -> None:
    volume.write("results/web-1.20260203.csv", "1")
    volume.write("results/nothing.csv", "2")
    pattern = r"^(?P<container>\w+-\d)\.(?P<date>\d{8})"
    tally = volume.one_pass(pattern=pattern, template="{container}/{date}/{name}")
    assert volume.files() == {"web-1/2026-02-03/web-1.20260203.csv": "1"}
    assert (tally.collected, tally.unmatched) == (1, 1)


def test_kinds_are_the_configured_ones(volume: Volume) -> None:
    volume.write("c1/plots/a.png", "1")
    volume.write("c1/results/b", "2")
    assert volume.one_pass(kinds=("plots",)).collected == 1
    assert list(volume.waiting()) == ["c1/results/b"]


@pytest.mark.parametrize("path", [".hidden/results/a", "c1/results/.a", "c1/results/.d/a", "c1/.results/a"])
def test_hidden_names_are_left(volume: Volume, path: str) -> None:
    target = volume.write(path, "x")
    assert volume.one_pass().collected == 0
    assert target.read_text() == "x"


def test_what_is_in_no_source_is_counted_and_left(volume: Volume) -> None:
    volume.write("results/no-container", "x")
    volume.write("top.json", "x")
    tally = volume.one_pass()
    assert (tally.collected, tally.unmatched) == (0, 2)
    assert len(volume.waiting()) == 2
    assert {event.path for event in volume.told("unmatched")} == {"results/no-container", "top.json"}


def test_what_is_no_regular_file_is_counted_and_never_opened(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = volume.write("c1/results/good", "x").parent
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    (results / "to-file").symlink_to(tmp_path / "secret" / "file")
    (results / "to-directory").symlink_to(tmp_path / "secret")
    (results / "dangling").symlink_to("nowhere")
    (volume.spool / "c2").symlink_to(tmp_path / "secret")
    (volume.spool / "c3").mkdir()
    (volume.spool / "c3" / "results").symlink_to(tmp_path / "secret")
    os.mkfifo(results / "fifo")
    refused = 6
    if os.geteuid() == 0:
        os.mknod(results / "null", 0o020666, os.makedev(1, 3))
        refused += 1
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(results)  # the whole path may be too long for an address
        server.bind("socket")
        tally = volume.one_pass()
    assert (tally.collected, tally.refused) == (1, refused + 1)
    assert (tmp_path / "secret" / "file").read_text() == "secret"
    assert os.path.lexists(results / "fifo") and (results / "to-file").is_symlink()


@pytest.mark.parametrize("name", [b"\xff\xfe.json", b"two\nlines", b"x" * 255, b"tab\there", b"{name}", b"~", b"a b"])
def test_hostile_names_move_as_they_are(volume: Volume, name: bytes) -> None:
    volume.write(b"c1/results/" + name, "x")
    assert volume.one_pass(template="{name}").collected == 1
    assert (os.fsencode(volume.collected) + b"/" + name) in [os.fsencode(p) for p in volume.collected.iterdir()]


def test_longest_names_that_collide_still_get_names(volume: Volume) -> None:
    for number in range(5):
        volume.write(f"c{number}/results/" + "x" * 250 + ".json", str(number))
    volume.drain(template="{base}")
    assert sorted(volume.files().values()) == list("01234")


@pytest.mark.parametrize("name", ["x_...json", "x_..json", "x_.sharedvol.json", "x_.._u0123456789abc-1.json"])
def test_no_container_in_a_name_leads_out_of_the_destination(volume: Volume, name: str) -> None:
    volume.write(f"results/{name}", "x")
    assert volume.one_pass(template="{container}/{name}").unmatched == 1
    assert list(volume.waiting()) == [f"results/{name}"]


@pytest.mark.parametrize("seconds", [10**14, 253_402_300_800, -(10**13)])
def test_a_time_in_no_calendar_stops_nothing(across: Volume, seconds: int) -> None:
    across.spool, across.collected = across.collected, across.spool  # of the two, tmpfs keeps such times
    os.utime(across.write("c1/results/a", "1"), (seconds, seconds))
    across.write("c1/results/b", "2")
    assert across.drain().collected == 2


@pytest.mark.parametrize(
    "text",
    [
        *("{nam}/{name}", "../{name}", "/{name}", "{name}/", "a//{name}", "{date}", "{name!r}", "{name:9}", "{"),
        *("{0}{name}", ".{name}", "x/..", "a/./{name}", "{name}\0"),
    ],
)
def test_wrong_templates_are_told(text: str) -> None:
    with pytest.raises(ConfigError, match="template"):
        Template(text)


@given(NAMES, st.sampled_from(["", "-2", "~20260101T000000-000000001"]))
def test_fit_keeps_short_names_and_shortens_long_ones(name: str, tail: str) -> None:
    fitted = fit(name, tail)
    assert 0 < len(os.fsencode(fitted)) <= 255
    assert "/" not in fitted and not fitted.startswith(".")
    assert fit(name, tail) == fitted


def test_names_that_are_cut_stay_different() -> None:
    assert len({fit("x" * 254 + letter) for letter in "abc"} | {fit("x" * 260 + letter) for letter in "abc"}) == 6


@given(NAMES, st.integers(-(2**70), 2**70), st.integers(1, 2**63))
def test_alternatives_are_a_function_of_the_file(name: str, mtime: int, inode: int) -> None:
    first, second = alternatives(name, mtime, inode)
    assert (first, second) == alternatives(name, mtime, inode)
    assert first != second and name not in (first, second)
    assert all(len(os.fsencode(each)) <= 255 for each in (first, second))


@given(
    st.lists(NAMES, min_size=1, max_size=4),
    st.sampled_from(["{name}", "{container}/{name}", "{kind}/{date}/{container}/{base}", "x{container}{base}"]),
    st.integers(-(2**70), 2**70),
)
def test_no_target_escapes(parts: list[str], text: str, mtime: int) -> None:
    layout = Layout(KINDS)
    for path in ("/".join(["results", *parts]), "/".join(["c1", "results", *parts])):
        origin = layout.origin(path)
        if origin is not None:
            _assert_inside(Template(text).target(origin, day_of(origin, mtime)))


@given(st.text("._x-uab1", min_size=1, max_size=12).filter(lambda name: not name.startswith(".")))
def test_no_flat_name_escapes(name: str) -> None:
    for layout in (Layout(KINDS), Layout(KINDS, re.compile(r"(?P<container>[^_]*)"))):
        origin = layout.origin(f"results/{name}")
        if origin is not None:
            _assert_inside(Template("{container}/{name}").target(origin, day_of(origin, DAY)))


def _assert_inside(target: str) -> None:
    for part in target.split("/"):
        assert part and not part.startswith("."), target
        assert len(os.fsencode(part)) <= 255


def test_origin_of_a_kind_alone_is_none() -> None:
    layout = Layout(KINDS)
    assert layout.origin("results") is None
    assert layout.origin("c1/results") is None
    assert layout.origin("c1/other/a") is None
    assert layout.origin("c1/results/x/y") == Origin("results", "c1", "x/y")
