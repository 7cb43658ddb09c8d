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
        name: entries of one name are read by that codec alone: give another where the bytes change.
        dumps: a value as bytes.
        loads: the value that the bytes stand for.
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
"""What JSON knows. Everyone gets the value as it is read back, he who computed it too: a tuple as a list."""

BYTES: Final = Codec("bytes", _bytes_dumps, bytes)
"""Bytes as they are."""

TEXT: Final = Codec("text", _text_dumps, _text_loads)
"""A str, as UTF-8."""

PICKLE: Final = Codec("pickle", pickle.dumps, pickle.loads)
"""Whatever can be pickled. **Whoever may write to the volume can run code in every process that reads from it**: an
entry's checksum tells damage, not malice. Only for a volume that nobody but these replicas can write."""
