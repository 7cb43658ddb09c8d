"""A file that has the name of a directory on the way: the directory gets another name, and no file stays."""

from __future__ import annotations

import gzip
import os
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sidecar.volume import Volume, run_cli

from sharedvol_sidecar.destination.template import DEFAULT, Template, is_spare, own_name, spare_names
from sharedvol_sidecar.destination.template_inverse import TemplateInverse

TEMPLATE = "{kind}/{container}/{name}"


def test_a_file_and_then_a_directory_of_its_name_are_both_collected(volume: Volume) -> None:
    report = volume.write("c1/results/report", "first")
    assert volume.one_pass(template=TEMPLATE).collected == 1
    assert not report.exists()
    for name in ("part1.json", "part2.json", "below/part3.json"):
        volume.write(f"c1/results/report/{name}", name)
    tally = volume.one_pass(template=TEMPLATE)
    assert (tally.collected, tally.failed) == (3, 0)
    assert volume.files() == {
        "results/c1/report": "first",
        "results/c1/report~/part1.json": "part1.json",
        "results/c1/report~/part2.json": "part2.json",
        "results/c1/report~/below/part3.json": "below/part3.json",
    }
    assert volume.waiting() == {} and volume.told("failed") == []


def test_a_directory_and_then_a_file_of_its_name_are_both_collected(volume: Volume) -> None:
    part = volume.write("c1/results/report/part1.json", "1")
    assert volume.one_pass(template=TEMPLATE).collected == 1
    part.parent.rmdir()
    volume.write("c1/results/report", "first")
    assert volume.drain(template=TEMPLATE).collected == 1
    assert volume.bag() == Counter(["1", "first"])
    assert volume.waiting() == {}


@pytest.mark.parametrize("compress", ["", "gzip"])
def test_files_and_directories_of_many_containers_have_one_name(volume: Volume, compress: str) -> None:
    contents = []
    for number in range(12):
        path = "x/x" if number % 3 == 0 else "x" if number % 3 == 1 else "x/x/x"
        contents.append(f"{number}\n")
        volume.write(f"c{number}/logs/{path}", contents[-1])
    tally = volume.drain(template="{name}", compress=compress)
    assert (tally.collected, tally.failed) == (12, 0)
    assert volume.waiting() == {} and volume.claims() == []
    found = [file for file in volume.collected.rglob("*") if file.is_file() and ".sharedvol" not in file.parts]
    texts = [gzip.decompress(file.read_bytes()) if compress else file.read_bytes() for file in found]
    assert sorted(text.decode() for text in texts) == sorted(contents)


def test_the_same_name_is_found_again_by_the_next_sidecar(volume: Volume) -> None:
    (volume.collected / "results/c1").mkdir(parents=True)
    (volume.collected / "results/c1/report").write_text("in the way")
    for number in range(3):
        volume.write(f"c1/results/report/{number}", str(number))
        assert volume.one_pass(template=TEMPLATE).collected == 1
    assert sorted(os.listdir(volume.collected / "results/c1")) == ["report", "report~"]


def test_names_that_are_taken_as_well_are_passed_over(volume: Volume) -> None:
    (volume.collected / "c1").write_text("in the way")
    (volume.collected / "c1~").write_text("in the way")
    (volume.collected / "c1~3").mkdir()
    volume.write("c1/results/a", "1")
    assert volume.one_pass(template="{container}/{name}").collected == 1
    assert volume.files() == {"c1": "in the way", "c1~": "in the way", "c1~2/a": "1"}


def make_link(path: Path) -> None:
    (path.parent.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent.parent / "elsewhere")


def make_socket(path: Path) -> None:
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


MADE: dict[str, Callable[[Path], Any]] = {
    "symbolic link": make_link,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "fifo": os.mkfifo,
    "socket": make_socket,
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_is_no_directory_is_neither_followed_nor_opened(
    volume: Volume, make: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(volume.collected)
    make(volume.collected / "c1")
    volume.write("c1/results/a", "1")
    assert volume.one_pass(template="{container}/{name}").collected == 1
    assert (volume.collected / "c1~/a").read_text() == "1"
    elsewhere = volume.collected.parent / "elsewhere"
    assert not elsewhere.exists() or os.listdir(elsewhere) == []


@pytest.mark.parametrize("length", [253, 254, 255])
def test_a_name_of_full_length_can_be_taken(volume: Volume, length: int) -> None:
    name = "r" * length
    volume.write(f"c1/results/{name}", "first")
    assert volume.one_pass(template=TEMPLATE).collected == 1
    volume.write(f"c1/results/{name}/part", "second")
    assert volume.one_pass(template=TEMPLATE).collected == 1
    volume.write(f"c1/results/{name}/part2", "third")
    assert volume.one_pass(template=TEMPLATE).collected == 1
    assert volume.bag() == Counter(["first", "second", "third"])
    assert len(os.listdir(volume.collected / "results/c1")) == 2


def test_files_are_copied_there_as_well(across: Volume) -> None:
    across.write("c1/results/report", "first")
    assert across.one_pass(template=TEMPLATE).copied == 1
    across.write("c1/results/report/part", "second")
    assert across.one_pass(template=TEMPLATE).copied == 1
    assert across.files() == {"results/c1/report": "first", "results/c1/report~/part": "second"}


def test_the_catalog_names_the_file_where_it_is(volume: Volume) -> None:
    volume.write("c1/results/report", "first")
    volume.drain()
    volume.write("c1/results/report/part", "second")
    volume.drain()
    shown = run_cli("ls", "--to", str(volume.collected), "--json").stdout
    assert "report~/part" in shown
    assert run_cli("verify", "--to", str(volume.collected)).returncode == 0
    for file in (volume.collected / ".sharedvol").glob("catalog*"):
        file.unlink()
    assert run_cli("rebuild", "--to", str(volume.collected)).returncode == 0
    rebuilt = run_cli("ls", "--to", str(volume.collected), "--kind", "results", "--container", "c1", "--json").stdout
    assert "report~/part" in rebuilt


def die(*args: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("mount", ["volume", "across"])
def test_a_claim_that_has_its_name_is_found_whatever_was_removed_since(
    request: pytest.FixtureRequest, mount: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume: Volume = request.getfixturevalue(mount)
    in_the_way = volume.collected / "results/c1/report"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("in the way")
    volume.write("c1/results/report/a/part", "1")
    collector = volume.collector(template=TEMPLATE)
    with monkeypatch.context() as patch:
        patch.setattr(collector.parts.destination, "sync", die)
        with pytest.raises(KeyboardInterrupt):
            collector.run_pass()
    collector.close()
    assert (volume.collected / "results/c1/report~/a/part").exists()
    in_the_way.unlink()
    assert volume.drain(template=TEMPLATE).recovered == 1
    assert volume.files() == {"results/c1/report~/a/part": "1"}
    assert volume.claims() == [] and volume.staged() == []


def test_a_log_is_followed_there(volume: Volume) -> None:
    volume.write("c1/logs/app", "first\n")
    assert volume.one_pass(template=TEMPLATE).collected == 1
    path = volume.write("c1/logs/app/web.log", "line 1\n")
    collector = volume.collector(template=TEMPLATE)
    with path.open("a") as log:
        collector.run_pass()
        (live,) = volume.live()
        assert live.startswith("logs/c1/app~/web.log~") and volume.live()[live] == "line 1\n"
        log.write("line 2\n")
        log.flush()
        collector.run_pass()
        assert volume.live()[live] == "line 1\nline 2\n"
    collector.run_pass()
    collector.close()
    assert volume.files() == {"logs/c1/app": "first\n", "logs/c1/app~/web.log": "line 1\nline 2\n"}
    assert volume.live() == {}


def test_a_followed_log_moves_on_where_a_file_takes_the_name_of_its_directory(volume: Volume) -> None:
    path = volume.write("c1/logs/app/web.log", "line 1\n")
    collector = volume.collector(template=TEMPLATE)
    with path.open("a"):
        collector.run_pass()
        (live,) = volume.live()
        (volume.collected / live).unlink()
        (volume.collected / "logs/c1/app").rmdir()
        (volume.collected / "logs/c1/app").write_text("in the way")
        collector.close()
        collector = volume.collector(template=TEMPLATE)
        collector.run_pass()
        collector.run_pass()
        assert list(volume.live().values()) == ["line 1\n"]
    collector.run_pass()
    collector.close()
    assert volume.files() == {"logs/c1/app": "in the way", "logs/c1/app~/web.log": "line 1\n"}
    assert volume.told("failed") == []


def test_compressed_logs_go_there_as_well(volume: Volume) -> None:
    volume.write("c1/logs/app.gz", "first")
    volume.drain(template=TEMPLATE, compress="gzip")
    volume.write("c1/logs/app.gz/web.log", "second\n")
    assert volume.drain(template=TEMPLATE, compress="gzip").collected == 1
    assert (volume.collected / "logs/c1/app.gz~/web.log.gz").exists()


@pytest.mark.parametrize(
    ("template", "path"),
    [
        (DEFAULT, "results/2026-01-31/c1/report~/part.json"),
        (DEFAULT, "results~/2026-01-31/c1~2/report/part.json"),
        (DEFAULT, "results/2026-01-31~/c1~12/report~3/part.json"),
        ("{container}/{kind}/{name}", "c1~/results~/a"),
    ],
)
def test_kind_and_container_are_read_from_it(template: str, path: str) -> None:
    assert TemplateInverse(Template(template)).read(path) == ("results", "c1")


@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=255))
def test_spare_names_are_a_function_of_the_name(name: str) -> None:
    if len(os.fsencode(name)) > 255:
        return
    names = [spare for spare, _ in zip(spare_names(name), range(30), strict=False)]
    assert names[0] == name and len(set(names)) == 30
    assert all(len(os.fsencode(spare)) <= 255 and is_spare(spare, name) for spare in names)
    if len(os.fsencode(name)) <= 252:
        assert {own_name(spare) for spare in names[1:]} == {name}
    assert not is_spare(f"{name}~1", name) and not is_spare(f"{name}~02", name) and not is_spare("other", name)
