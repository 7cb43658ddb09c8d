"""Progress is for terminals, after a while; lines are printed whatever the encoding."""

from __future__ import annotations

import io

import pytest

from sharedvol.cli.terminal import Progress, write_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("seconds", "said"), [(0.0, False), (1.9, False), (2.0, True)])
def test_progress_is_shown_on_a_terminal_after_a_while_and_taken_away(seconds: float, said: bool) -> None:
    now = 100.0
    stream = Terminal()
    progress = Progress(stream, lambda: now)
    progress("half")
    assert stream.getvalue() == ""
    now += seconds
    progress("all")
    assert ("all" in stream.getvalue()) is said
    progress.end()
    assert stream.getvalue().endswith("\r\x1b[K") is said


def test_progress_is_not_shown_in_a_file() -> None:
    now = 100.0
    stream = io.StringIO()
    progress = Progress(stream, lambda: now)
    now += 60
    progress("all")
    progress.end()
    assert stream.getvalue() == ""


def test_progress_is_not_told_more_often_than_it_is_meant() -> None:
    now = 0.0
    stream = Terminal()
    progress = Progress(stream, lambda: now, every=0.2)
    for now in (2.0, 2.1, 2.19, 2.21):
        progress(f"at {now}")
    assert [now for now in (2.0, 2.1, 2.19, 2.21) if f"at {now}" in stream.getvalue()] == [2.0, 2.21]


def test_what_the_encoding_lacks_is_printed_as_an_escape() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    write_line("caf\xe9", stream)
    stream.flush()
    assert stream.buffer.getvalue() == b"caf\\xe9\n"  # type: ignore[attr-defined]
