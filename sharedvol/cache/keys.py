"""Keys, and the file names that are made of them."""

from __future__ import annotations

import hashlib
import re
from typing import Final, TypeAlias

Key: TypeAlias = "str | bytes | tuple[Key, ...]"
"""The key of an entry. ``"a"``, ``b"a"`` and ``("a",)`` are three different keys."""

NAME: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
"""Matches the names that `name_of` returns."""


def name_of(key: Key, kind: str) -> str:
    """Return the name of an entry's file: 64 hexadecimal digits, different for each key and kind.

    Args:
        key: the key.
        kind: how the value becomes bytes, because one codec must not read what another wrote.

    Raises:
        TypeError: ``key`` is not a key.
    """
    return hashlib.blake2b(_encode(kind) + _encode(key), digest_size=32).hexdigest()


def _encode(key: Key) -> bytes:
    """Encode each part after its kind and length, so that no two keys have the same bytes."""
    if isinstance(key, str):
        kind, body = b"s", key.encode("utf-8", "surrogatepass")
    elif isinstance(key, bytes):
        kind, body = b"b", key
    elif isinstance(key, tuple):
        kind, body = b"t", b"".join(map(_encode, key))
    else:
        raise TypeError(f"key {key!r} is a {type(key).__name__}: use a str, bytes, or a tuple of these")
    return b"%s%d:%s" % (kind, len(body), body)
