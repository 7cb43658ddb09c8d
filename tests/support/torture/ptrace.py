"""The few requests of ptrace(2) that the harness needs."""

from __future__ import annotations

import ctypes
import os

TRACE_ME, _CONTINUE, _GET_REGISTERS, _SET_REGISTERS, _TO_EXIT, _OPTIONS = 0, 7, 12, 13, 24, 0x4200

_SYSGOOD, _FORK, _VFORK, _CLONE, _EXEC, _SECCOMP, _EXITKILL = 0x1, 0x2, 0x4, 0x8, 0x10, 0x80, 0x100000
FOLLOW = _SYSGOOD | _FORK | _VFORK | _CLONE | _EXEC | _SECCOMP | _EXITKILL
EVENT_SECCOMP = 7
WAIT_ALL = 0x40000000  # __WALL: threads too

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


class Registers(ctypes.Structure):
    """``struct user_regs_struct`` of x86-64. At a call ``orig_rax`` is its number, after it ``rax`` its result."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
            "fs_base gs_base ds es fs gs"
        ).split()
    ]


def trace_me() -> None:
    """The parent traces this process from now on."""
    _ptrace(TRACE_ME, 0)


def follow(pid: int) -> None:
    """Trace what it forks too, stop where its filter says, and kill it when the tracer ends."""
    _ptrace(_OPTIONS, pid, FOLLOW)


def go_on(pid: int, signal: int = 0, *, to_exit: bool = False) -> None:
    """To the next stop, or only to the end of the call it is in."""
    _ptrace(_TO_EXIT if to_exit else _CONTINUE, pid, signal)


def registers(pid: int) -> Registers:
    """Of a stopped process."""
    found = Registers()
    _ptrace(_GET_REGISTERS, pid, ctypes.addressof(found))
    return found


def set_registers(pid: int, values: Registers) -> None:
    """Of a stopped process."""
    _ptrace(_SET_REGISTERS, pid, ctypes.addressof(values))


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request}: {os.strerror(number)}")
