"""The status page in a real browser, without JavaScript."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sidecar.asking import serving
from support.sidecar.board_scene import HOSTILE, Clocks, busy_board, hostile_board
from support.sidecar.browser import browse, missing
from test_sidecar_web_page import Outline

from sharedvol_sidecar.humanize import plain
from sharedvol_sidecar.web.server import Server


@pytest.fixture(autouse=True)
def _browser() -> None:
    why = missing()
    if why is not None:
        pytest.skip(why)


@pytest.fixture
def hostile() -> Iterator[Server]:
    with serving(hostile_board(Clocks())) as server:
        yield server


@pytest.fixture
def busy() -> Iterator[Server]:
    with serving(busy_board(Clocks())) as server:
        yield server


def test_hostile_names_are_text_in_a_browser(hostile: Server) -> None:
    seen = browse(hostile.url, "--dump-dom")
    outline = Outline(seen.output.strip())
    assert outline.text.lstrip().startswith("Not ready")
    for name in HOSTILE.values():
        assert plain(name, 400) in outline.text, name
    assert not outline.elements.keys() & {"script", "img"}
    assert outline.elements["b"] == len(HOSTILE) + 1  # the names of faults, and no "bold"
    assert not any(name.startswith("on") for name in outline.attributes)


def test_hostile_names_do_nothing_where_scripts_may_run(hostile: Server) -> None:
    seen = browse(hostile.url, "--dump-dom", javascript=True)
    assert "<title>Not ready" in seen.output
    assert Outline(seen.output.strip()).elements["script"] == 0


def test_the_browser_of_these_tests_tells_what_breaks_the_policy(busy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next test could not fail."""
    monkeypatch.setattr("sharedvol_sidecar.web.page.Page.render", lambda *_, **__: '<p style="color:red">x</p>')
    assert "Content Security Policy" in browse(f"{busy.url}?pause", "--dump-dom").log


@pytest.mark.parametrize("width", [800, 500])
def test_the_page_is_drawn_with_its_style(busy: Server, tmp_path: Path, width: int) -> None:
    picture = tmp_path / "page.png"
    seen = browse(f"{busy.url}?pause", f"--window-size={width},1000", f"--screenshot={picture}")
    assert "Content Security Policy" not in seen.log
    colours = _colours(picture.read_bytes(), width)
    assert (0x25, 0x63, 0xA8) in colours  # the bars of the plot, whose colour the style gives
    assert (0xE3, 0xF4, 0xE9) in colours  # "ready"


def _colours(png: bytes, width: int) -> set[tuple[int, int, int]]:
    """The colours of a picture of 8 bits a channel; see the PNG specification, 9 (filtering)."""
    assert struct.unpack(">I", png[16:20])[0] == width
    channels = {2: 3, 6: 4}[png[25]]
    data, offset = b"", 8
    while offset < len(png):
        length = struct.unpack(">I", png[offset : offset + 4])[0]
        if png[offset + 4 : offset + 8] == b"IDAT":
            data += png[offset + 8 : offset + 8 + length]
        offset += length + 12
    raw, found = zlib.decompress(data), set()
    stride = width * channels
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        line = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), above, channels)
        found |= set(zip(line[0::channels], line[1::channels], line[2::channels], strict=True))
        above = line
    return found


def _unfiltered(kind: int, line: bytearray, above: bytearray, channels: int) -> bytearray:
    for at in range(len(line) if kind else 0):
        left = line[at - channels] if at >= channels else 0
        corner = above[at - channels] if at >= channels else 0
        line[at] = (line[at] + _guess(kind, left, above[at], corner)) & 0xFF
    return line


def _guess(kind: int, left: int, above: int, corner: int) -> int:
    if kind == 4:
        guess = left + above - corner
        return min((left, above, corner), key=lambda one: abs(guess - one))
    return (0, left, above, (left + above) // 2)[kind]
