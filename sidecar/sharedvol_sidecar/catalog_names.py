"""Names as text that a database can hold and a terminal can show, and back without loss.

A name of Linux is bytes. What is valid, printable UTF-8 stays as it is; every other byte, and ``%`` itself,
becomes ``%XX`` (RFC 3986, section 2.1). So a line break, an escape sequence or half a character in a name can
neither break a line nor be refused by a database, and two names never become one.
"""

from __future__ import annotations

import hashlib
import os
from urllib.parse import unquote_to_bytes


def escape(name: str) -> str:
    """A path as text; ``name`` as `os.fsdecode` gives it."""
    if name.isascii() and name.isprintable() and "%" not in name:
        return name
    raw = os.fsencode(name)
    return "".join(map(_plain, raw.decode("utf-8", "surrogateescape")))


def unescape(text: str) -> str:
    """The path that `escape` made ``text`` of."""
    if "%" not in text and text.isascii():
        return text
    return os.fsdecode(unquote_to_bytes(text))


def key(name: str) -> str:
    """The primary key of a path: a hash of its bytes, as an index cannot hold 4,096 of them."""
    return hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()


def _plain(letter: str) -> str:
    if letter.isprintable() and letter != "%":
        return letter
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))
