"""An adapter as the suite sees it: a process that is asked a line and answers a line, every wait bounded."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

PROTOCOL = 1
FAMILIES = ("fcntl", "flock", "both")
CAPABILITIES = ("lock shared timeout queue fork network fence holder names publish replace mark purge sql").split()
LIMIT = float(os.environ.get("SHAREDVOL_CONFORMANCE_LIMIT", "60"))
"""Seconds that an answer may take before the adapter is given up. Nothing is measured by it."""


class Broken(AssertionError):
    """The adapter does not keep to the line protocol: silent, ended, or not understood."""


class Missing(Exception):
    """The adapter says that it cannot run here; the message is its reason."""


class Answer(NamedTuple):
    """One answer: its first word, and the rest."""

    word: str
    rest: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.word, *map(repr, self.rest)))


class Claims(NamedTuple):
    """What an adapter says of itself when it is asked ``hello``."""

    language: str
    family: str
    capabilities: frozenset[str]


def meet(one: str, other: str) -> bool:
    """Whether users of these lock families exclude each other."""
    return one == other or "both" in (one, other)


class Adapter:
    """A running adapter. Use it in a ``with``, which ends and reaps it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        # A group of its own: what an adapter started, such as flock(1), is ended with it.
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            umask=0o077,  # a strict one, as some images have
            start_new_session=True,
        )
        self._watch = os.pidfd_open(self._process.pid)
        self._read = b""
        self.owed = 0
        """Answers that were asked for and not yet received."""

    @property
    def pid(self) -> int:
        """The adapter's process."""
        return self._process.pid

    def ask(self, verb: str, *words: object) -> Answer:
        """`send`, then `receive`."""
        self.send(verb, *words)
        return self.receive()

    def do(self, verb: str, *words: object) -> tuple[str, ...]:
        """`ask` for what must be answered ``ok``; the rest of the answer."""
        answer = self.ask(verb, *words)
        assert answer.word == "ok", f"{self.command} answered {answer} to {verb} {words}"
        return answer.rest

    def send(self, verb: str, *words: object) -> None:
        """Ask, and leave the answer to `receive`."""
        line = " ".join([verb, *(quote_from_bytes(os.fsencode(str(word))) or "%" for word in words)]) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
        except BrokenPipeError:
            raise Broken(f"{self.command} has ended: {self.errors()}") from None
        self.owed += 1

    def receive(self) -> Answer:
        """The next answer."""
        end = time.monotonic() + LIMIT
        while b"\n" not in self._read:
            assert self._process.stdout is not None
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise Broken(f"{self.command} did not answer: {self.errors()}")
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                raise Broken(f"{self.command} ended without an answer: {self.errors()}")
            self._read += more
        line, self._read = self._read.split(b"\n", 1)
        self.owed -= 1
        words = [os.fsdecode(b"" if word == b"%" else unquote_to_bytes(word)) for word in line.split(b" ")]
        return Answer(words[0], tuple(words[1:]))

    def hello(self) -> Claims:
        """What it says it can do.

        Raises:
            Missing: it cannot run here.
            Broken: it says what the suite does not know.
        """
        answer = self.ask("hello")
        if answer.word == "missing":
            raise Missing(" ".join(answer.rest))
        if answer.word != "ok" or len(answer.rest) < 3 or answer.rest[0] != str(PROTOCOL):
            raise Broken(f"{self.command} answered {answer} to hello, not: ok {PROTOCOL} LANGUAGE FAMILY CAPABILITY…")
        _, language, family, *capabilities = answer.rest
        if family not in FAMILIES:
            raise Broken(f"{self.command} has lock family {family!r}, which is none of {FAMILIES}")
        if unknown := set(capabilities) - set(CAPABILITIES):
            raise Broken(f"{self.command} has capabilities that the suite does not know: {sorted(unknown)}")
        return Claims(language, family, frozenset(capabilities))

    def errors(self) -> str:
        """The end of what it wrote to its standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 2000))
        return self._errors.read().decode(errors="replace") or "nothing on its standard error"

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def kill(self) -> None:
        """SIGKILL to the process alone, as a crash would have it, and reap; its children live on until `close`."""
        signal.pidfd_send_signal(self._watch, signal.SIGKILL)
        self._process.wait(LIMIT)

    def close(self) -> None:
        """End it, and all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(LIMIT)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()
        if self._watch >= 0:
            os.close(self._watch)
            self._watch = -1

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
