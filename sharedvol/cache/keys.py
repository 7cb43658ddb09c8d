"""A key, and the file name that stands for it."""

from __future__ import annotations

import hashlib
import re
from typing import Final, TypeAlias

Key: TypeAlias = "str | bytes | tuple[Key, ...]"
"""What an entry is found by. ``"a"``, ``b"a"`` and ``("a",)`` are three keys."""

NAME: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
"""The names that `name_of` gives."""


def name_of(key: Key, kind: str) -> str:
    """The name of an entry's file: 64 hexadecimal digits, another for each key and kind.

    Args:
        key: the key.
        kind: how the value is put into bytes: what one codec wrote another must not read.

    Raises:
        TypeError: the key is none.
    """
    return hashlib.blake2b(_encode(kind) + _encode(key), digest_size=32).hexdigest()


def _encode(key: Key) -> bytes:
    """Each part with its kind and length before it, so that no two keys have the same bytes."""
    if isinstance(key, str):
        kind, body = b"s", key.encode("utf-8", "surrogatepass")
    elif isinstance(key, bytes):
        kind, body = b"b", key
    elif isinstance(key, tuple):
        kind, body = b"t", b"".join(map(_encode, key))
    else:
        raise TypeError(f"key {key!r} is a {type(key).__name__}: use a str, bytes, or a tuple of such")
    return b"%s%d:%s" % (kind, len(body), body)
