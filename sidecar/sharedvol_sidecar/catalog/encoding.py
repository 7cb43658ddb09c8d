"""Convert names to text for databases and terminals, and back without loss.

A name in Linux is bytes. Valid, printable UTF-8 stays as it is. Every other byte, and ``%`` itself, becomes ``%XX``
(RFC 3986, section 2.1). So a line break or an escape sequence in a name cannot break a line, a database accepts every
name, and two names never become the same text.
"""

from __future__ import annotations

import functools
import hashlib
import os
from urllib.parse import unquote_to_bytes


def escape(name: str) -> str:
    """Return a path as text; ``name`` is as `os.fsdecode` returns it."""
    if name.isascii() and name.isprintable() and "%" not in name:
        return name
    raw = os.fsencode(name)
    return "".join(map(_plain, raw.decode("utf-8", "surrogateescape")))


def unescape(text: str) -> str:
    """Return the path from which `escape` made ``text``."""
    if "%" not in text and text.isascii():
        return text
    return os.fsdecode(unquote_to_bytes(text))


def key(name: str) -> str:
    """Return the primary key of a path, which is too long itself: a hash of 32 hexadecimal digits.

    The first 8 digits are of its directory, so that the keys of one batch are close together. With a plain hash, each
    row would write another page of the index, and of the table if that is ordered by the key (InnoDB).
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
