"""Names as text that a database can hold and a terminal can show, and back without loss.

A name of Linux is bytes. What is valid, printable UTF-8 stays as it is; every other byte, and ``%`` itself,
becomes ``%XX`` (RFC 3986, section 2.1). So a line break, an escape sequence or half a character in a name can
neither break a line nor be refused by a database, and two names never become one.
"""

from __future__ import annotations

import functools
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
    """The primary key of a path, which is too long for one: 32 hexadecimal digits, a hash of its bytes.

    The first 8 are of its directory, so that the keys of one batch lie close together: with a plain hash each
    row is another page of the index to write, and of the table where that is ordered by it (InnoDB).
    """
    directory, _, _ = name.rpartition("/")
    raw = name.encode() if name.isascii() else os.fsencode(name)
    return _directory(directory) + hashlib.blake2b(raw, digest_size=12).hexdigest()


@functools.lru_cache(maxsize=1024)
def _directory(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=4).hexdigest()


def _plain(letter: str) -> str:
    if letter.isprintable() and letter != "%":
        return letter
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))
