"""Make text from other programs safe to print: without control characters and credentials."""

from __future__ import annotations

import re
from typing import Final

# A password may contain quotes, blanks and @. So everything up to the last @ of the text is hidden.
_CREDENTIALS: Final = re.compile(
    r"(?P<scheme>[\w+.-]*:/+)(?P<login>.*)@"
    r"|(?<![^\s'\"=])[^\s'\"@/:]+:\S+@(?=[\w.\[-])",  # without a scheme: user:password@host
    re.DOTALL,
)
_OPTIONS: Final = re.compile(r"(://[^\s'\"?]*\?)[^\s'\"]+")
ACCOUNT: Final = re.compile(r"[a-z][a-z_-]{0,15}")
"""A user name of a URL that is certainly not a password, so it is shown."""


def shown(text: str) -> str:
    """Return ``text`` with escapes for the backslash and for unprintable characters.

    Use it for names from other processes: two different names never look the same. `escape_unprintable` is for whole
    lines, in which names may be escaped already.
    """
    return escape_unprintable(text.replace("\\", "\\\\"))


def escape_unprintable(text: str) -> str:
    r"""Return ``text`` with escapes such as ``\n`` or ``\u202e`` for unprintable characters.

    These are control characters, line breaks, direction overrides and lone surrogates (bytes that are not UTF-8). Text
    that was escaped before stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )


def hide_credentials(text: str) -> str:
    """Return ``text`` with ``***`` for user, password and options of every URL in it."""
    if "@" in text:
        text = _CREDENTIALS.sub(_hidden, text)
    return _OPTIONS.sub(r"\1***", text) if "://" in text else text


def _hidden(found: re.Match[str]) -> str:
    if found["login"] is not None and ACCOUNT.fullmatch(found["login"]):
        return found[0]
    return f"{found['scheme'] or ''}***@"


def message(text: str) -> str:
    """Return an error or a report as one line for a terminal: escaped, and without credentials."""
    return escape_unprintable(hide_credentials(text))
