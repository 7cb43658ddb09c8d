"""The ``with`` blocks that hold a lock, each known by the frame that entered it."""

from __future__ import annotations

import gc
import inspect
import sys
from opcode import opmap
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

CALLED: Final = 0
"""The name of each block that was entered by a call of ``__enter__``, without a ``with``."""
_WITH: Final = {opmap[name] for name in ("BEFORE_WITH", "BEFORE_ASYNC_WITH") if name in opmap}
_LOOK_UP: Final = opmap.get("LOAD_SPECIAL")
_RESUMABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def name_of(frame: FrameType) -> int:
    """Return the name of a block of ``frame``: positive if only the thread that entered it can end it.

    The frame of a generator or coroutine has a negative name: any thread may resume it.
    """
    return -id(frame) if frame.f_code.co_flags & _RESUMABLE else id(frame)


def block_of(frame: FrameType) -> int:
    """Return the name of the block that ``frame``, the caller's, enters.

    A frame at a ``with`` lives as long as the block, so it names the block. Otherwise the name is `CALLED`: a method
    that calls ``__enter__`` may end before the block, and another frame may get the address of its frame.
    """
    code, at = frame.f_code.co_code, frame.f_lasti
    # A `with` is one instruction up to Python 3.13. Later it is a look-up and a call.
    is_with = code[at] in _WITH or (at >= 2 and code[at - 2] == _LOOK_UP)
    return name_of(frame) if is_with else CALLED


def is_inside(blocks: list[int]) -> bool:
    """Return whether the caller runs within one of the blocks."""
    named = {block for block in blocks if block != CALLED}
    frame: FrameType | None = sys._getframe(1) if named else None
    while frame is not None:
        if name_of(frame) in named:
            return True
        frame = frame.f_back
    return False


def may_end(blocks: list[int]) -> bool:
    """Return whether one of the blocks can still end after the thread or task that entered them has ended.

    A block cannot end if its generator or coroutine was dropped without being closed, as asyncio does after its loop
    was closed. A block that was entered by a call can end at any time. If generators entered, this scans all objects of
    the process.
    """
    if CALLED in blocks:
        return True
    resumable = {-block for block in blocks if block < 0}
    return bool(resumable) and any(id(frame) in resumable for frame in _resumable_frames())


def _resumable_frames() -> list[FrameType]:
    """Return the frames of all generators and coroutines that have not ended."""
    frames: list[Any] = []
    for one in gc.get_objects():
        kind = type(one)
        if kind is GeneratorType:
            frames.append(one.gi_frame)
        elif kind is CoroutineType:
            frames.append(one.cr_frame)
        elif kind is AsyncGeneratorType:
            frames.append(one.ag_frame)
    return [frame for frame in frames if frame is not None]
