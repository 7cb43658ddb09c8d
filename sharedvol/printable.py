"""Text that others wrote, made fit for a terminal."""

from __future__ import annotations


def shown(text: str) -> str:
    """``text`` for a terminal: what is not printable as an escape, and the backslash, so that none is forged."""
    return "".join(
        letter if letter.isprintable() and letter != "\\" else letter.encode("unicode_escape").decode()
        for letter in text
    )
