"""A filter that makes the kernel stop a process before chosen system calls, seccomp(2)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable

from support.torture.calls import Call

_LOAD, _EQUAL, _ABOVE, _BITS, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # bpf(4): LD|W|ABS, JMP|JEQ, JGT, JSET, RET
_ALLOW, _TRACE, _KILL, _SKIP = 0x7FFF0000, 0x7FF00000, 0x80000000, 0x00050000  # the last: not done, and the result is 0
_X86_64 = 0xC000003E
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2

_Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def stop_before(calls: Iterable[Call] | None, skipped: Iterable[int] = ()) -> None:
    """From here on the kernel stops this process before these calls, or with None before all, for its tracer.

    Threads and children inherit that. Without a tracer such a call fails with ENOSYS.

    Args:
        calls: to stop before.
        skipped: the numbers of those that are not made, and succeed.

    Raises:
        OSError: the kernel has no such filters, or this process may not use them.
    """
    instructions: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for number in skipped:
        instructions += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _SKIP)]
    for call in calls or ():
        instructions += _one(call)
    instructions.append((_RETURN, 0, 0, _ALLOW if calls is not None else _TRACE))
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    _prctl(_NO_NEW_PRIVS, 1, None)  # so that no privilege is needed
    _prctl(_SECCOMP, _FILTER, ctypes.byref(program))


def _one(call: Call) -> list[_Instruction]:
    if call.argument is None:
        return [(_EQUAL, 0, 1, call.number), (_RETURN, 0, 0, _TRACE)]
    body: list[_Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * call.argument)]  # the lower half is enough
    if call.bits:
        body.append((_BITS, 0, 1, call.bits))
    elif call.values:
        count = len(call.values)
        body += [(_EQUAL, count - 1 - at, int(at == count - 1), value) for at, value in enumerate(call.values)]
    else:
        body.append((_ABOVE, 0, 1, call.above))
    body += [(_RETURN, 0, 0, _TRACE), (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), call.number), *body]


def _prctl(option: int, second: int, third: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(second), third, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
