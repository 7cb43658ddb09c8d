"""The status page as text: complete, escaped, and well-formed."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from support.sidecar.asking import ask, serving
from support.sidecar.board_scene import HOSTILE, Clocks, busy_board, hostile_board

from sharedvol_sidecar.humanize import duration, plain, size
from sharedvol_sidecar.monitor.snapshot import Snapshot
from sharedvol_sidecar.monitor.throughput import Minute
from sharedvol_sidecar.web.page import Page
from sharedvol_sidecar.web.plot import bytes_plot, files_plot

VOID = {"meta", "br"}


class Outline(HTMLParser):
    """The elements, the attributes and the text of a page; asserts that what was opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        self.text += data


def page(picture: Snapshot) -> str:
    return Page().render(picture)


def test_hostile_names_are_text_and_add_nothing() -> None:
    tame = Clocks().board()
    harmed, same = Outline(page(hostile_board(Clocks()).picture())), Outline(page(tame.picture()))
    assert set(harmed.elements) - set(same.elements) <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "bdi"}
    assert not harmed.elements.keys() & {"script", "img", "iframe", "object", "link", "form", "input"}
    assert not any(name.startswith("on") for name in harmed.attributes)
    assert "style" not in harmed.attributes
    for name in HOSTILE.values():
        assert plain(name, 400) in harmed.text
    assert "49.json" not in harmed.text  # a template in a name


def test_no_letter_of_a_name_can_turn_or_break_the_text() -> None:
    html = page(hostile_board(Clocks()).picture())
    assert all(letter.isprintable() for letter in html if letter != "\n")
    html.encode()


def test_the_page_shows_what_the_board_says() -> None:
    board = busy_board(Clocks())
    text = Outline(page(board.picture())).text
    for wanted in (
        "Ready",
        "31,030 files",
        "000000000006",
        "results/2027-01-15/3f9c0d1e2b4a/job_7.json",
        "478.5 KiB",
        "2027-01-15 09:00:08",
        "cannot claim it: permission denied (EACCES)",
        "9b1d/results/pipe",
        "a writer opened it again",
        "gone",
    ):
        assert wanted in text, wanted
    assert "Not ready" not in text


def test_faults_stand_at_the_top_with_what_they_mean() -> None:
    board = busy_board(Clocks(), minutes=1)
    board.fault("destination_full", "no space left on device (ENOSPC)")
    html = page(board.picture())
    assert "<title>Not ready" in html
    assert html.index("destination_full") < html.index("At a glance")
    assert "make room" in html


def test_an_empty_board_is_a_page_too() -> None:
    text = Outline(page(Clocks().board().picture())).text
    for wanted in ("starting", "No replica is known.", "No file is waiting.", "None yet."):
        assert wanted in text


def test_the_last_twenty_are_listed() -> None:
    html = page(hostile_board(Clocks()).picture())
    assert Outline(html).elements["tr"] > 2 * len(HOSTILE)


def test_it_needs_no_script_and_nothing_from_elsewhere() -> None:
    html = page(busy_board(Clocks()).picture())
    assert not re.search(r"<script|javascript:|\bsrc=|https?://|url\(|@import", html)
    assert set(re.findall(r'href="([^"]*)"', html)) == {"/?pause", "/status.json", "/metrics", "/readyz", "/healthz"}


def test_the_style_is_the_one_that_the_policy_allows() -> None:
    with serving(busy_board(Clocks(), minutes=1)) as server:
        answer = ask(server, "/")
    style = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in answer.headers["content-security-policy"]


def test_it_reloads_until_it_is_paused() -> None:
    with serving(busy_board(Clocks(), minutes=1)) as server:
        assert '<meta http-equiv="refresh" content="10">' in ask(server, "/").text
        assert "http-equiv" not in ask(server, "/?pause").text


def test_tables_and_drawings_speak_to_those_who_do_not_see() -> None:
    html = page(busy_board(Clocks()).picture())
    outline = Outline(html)
    assert outline.elements["caption"] == outline.elements["table"]
    assert outline.elements["th"] == html.count('scope="col"') + html.count('scope="row"')
    assert outline.elements["svg"] == html.count('role="img"') == outline.elements["desc"] == 2
    assert len(outline.ids) == len(set(outline.ids))
    for labels in re.findall(r'aria-labelledby="([^"]*)"', html):
        assert set(labels.split()) <= set(outline.ids)
    assert '<html lang="en">' in html


def test_the_plots_say_in_words_what_they_show() -> None:
    minutes = [Minute(0, 0)] * 57 + [Minute(30, 3 << 20), Minute(1500, 9 << 20), Minute(2, 1024)]
    assert (
        files_plot(minutes).words
        == "Over the last 60 minutes: 1,532 in total, at most 1,500 in a minute, 2 in the last one."
    )
    plot = bytes_plot(minutes)
    assert (
        plot.words
        == "Over the last 60 minutes: 12.0 MiB in total, at most 9.0 MiB in a minute, 1.0 KiB in the last one."
    )
    assert "MiB per minute" in plot.svg
    assert ">10</text>" in plot.svg
    assert plot.svg.count('class="bar"') == 3


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 10, 11, 60, 61, 99, 100, 101, 1023, 1024, 10**9, 10**15, 10**18])
def test_no_bar_leaves_the_plot_and_every_bar_is_seen(most: int) -> None:
    for plot in (files_plot, bytes_plot):
        drawn = plot([Minute(0, 0)] * 58 + [Minute(1, 1), Minute(most, most)]).svg
        bars = re.findall(r'class="bar" x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', drawn)
        assert len(bars) == 1 + bool(most)
        for y, height in bars:
            assert float(y) >= 26
            assert float(height) >= 1.5
            assert float(y) + float(height) == pytest.approx(172, abs=0.02)


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB"), (1 << 60, "1048576.0 TiB")],
)
def test_sizes(count: int, wanted: str) -> None:
    assert size(count) == wanted


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3660, "1 h 1 min"), (90_000, "1 d 1 h")]
)
def test_durations(seconds: float, wanted: str) -> None:
    assert duration(seconds) == wanted


def test_a_clock_that_was_set_to_nonsense_takes_nothing_away() -> None:
    board = Clocks().board()
    board._wall = lambda: 1e18
    board.fault("permission", "forbidden")
    assert "never" in page(board.picture())
