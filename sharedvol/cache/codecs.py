"""How values become bytes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to put values into bytes and back.

    Attributes:
        name: only a codec of this name reads the entry. Choose another name if the bytes change.
        dumps: turns a value into bytes.
        loads: turns the bytes into the value.
    """

    name: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


def _json_dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _bytes_dumps(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"a {type(value).__name__} is not bytes")
    return bytes(value)


def _text_dumps(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} is not a str")
    return value.encode("utf-8", "surrogatepass")


def _text_loads(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


JSON: Final = Codec("json", _json_dumps, json.loads)
"""Values that JSON can hold. Every caller gets the value as it is read back, so a tuple becomes a list."""

BYTES: Final = Codec("bytes", _bytes_dumps, bytes)
"""Bytes as they are."""

TEXT: Final = Codec("text", _text_dumps, _text_loads)
"""A str, as UTF-8."""

PICKLE: Final = Codec("pickle", pickle.dumps, pickle.loads)
"""Any value that can be pickled. **A user who can write to the volume can run code in every process that reads it**,
because an entry's checksum detects damage, not malice. Use it only on a volume that no other user can write to."""
