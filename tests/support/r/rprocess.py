"""R processes for the tests: docs/r/sharedvol.R is sourced, R code is sent, its value or error comes back.

Every wait is bounded and every process reaped.
"""

from __future__ import annotations

import functools
import os
import select
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

import pytest

from support.installed import R_MISSING
from support.processes import LIMIT

REFERENCE = Path(__file__).parents[3] / "docs" / "r" / "sharedvol.R"

# A request is a line: R code in hexadecimal, so that it may hold anything. So is an answer, after its mark: all other
# lines are what the code, or a forked child, printed.
_MARK = "\x01"
_LOOP = """
hex <- function(digits) {
  from <- seq_len(nchar(digits) %/% 2) * 2 - 1
  if (!length(from)) return("")
  rawToChar(as.raw(strtoi(substring(digits, from, from + 1), 16L)))
}
.to_hex <- function(text) paste(format(charToRaw(text)), collapse = "")
.text <- function(value) {
  if (is.environment(value) || is.function(value)) return(class(value)[1])
  paste(if (is.numeric(value)) sprintf("%.17g", value) else as.character(value), collapse = "\\n")
}
.answer <- function(code) {
  tryCatch(
    c("ok", .to_hex(.text(eval(parse(text = code, keep.source = FALSE), globalenv())))),
    error = function(e) c("error", .to_hex(paste(class(e), collapse = " ")), .to_hex(conditionMessage(e)))
  )
}
.input <- file("stdin", "r")
repeat {
  .line <- readLines(.input, n = 1L)
  if (!length(.line)) break
  cat(paste0("\\n\\001", paste(.answer(hex(.line)), collapse = " "), "\\n"))
  flush(stdout())
}
"""


class RError(Exception):
    """An R condition.

    Attributes:
        classes: its classes, the first is the most special one.
    """

    def __init__(self, classes: list[str], message: str) -> None:
        super().__init__(message)
        self.classes = classes


class R:
    """An R process that lives until the end of the block, or `close`, or `kill`.

    ::

        with R() as r:
            assert r.ask("1 + 1") == "2"

    A value comes back as text: elements separated by newlines, numbers with 17 digits, NULL as
    nothing, and of an object only its class.

    Args:
        cwd: its working directory.
        prefix: a command to run it with, such as strace.
        environment: additional variables.
    """

    def __init__(self, cwd: Path | None = None, *, prefix: list[str] | None = None, **environment: str) -> None:
        self._process = subprocess.Popen(
            [*(prefix or []), *command(), "-e", f"source({quote(str(REFERENCE))})", "-e", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=cwd,
            env=_environment(environment),
        )
        self.pid = self._process.pid
        self._read = b""
        self._unanswered = 0

    def ask(self, code: str) -> str:
        """The value of R code.

        Raises:
            RError: it stopped with an error.
        """
        self.tell(code)
        return self.answer()

    def tell(self, code: str) -> None:
        """Send code without waiting for its value: `answer` has that."""
        assert self._process.stdin is not None
        self._unanswered += 1
        self._process.stdin.write(code.encode("utf-8", "surrogateescape").hex().encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """What the oldest unanswered `tell` came to.

        Raises:
            RError: it stopped with an error.
        """
        while True:
            line = self._line()
            if line.startswith(_MARK):
                break
        self._unanswered -= 1
        kind, *values = line[1:].split(" ")
        texts = [bytes.fromhex(value).decode("utf-8", "surrogateescape") for value in values]
        if kind == "ok":
            return texts[0]
        raise RError(texts[0].split(), texts[1])

    def fails(self, code: str) -> RError:
        """The error that the code stops with."""
        with pytest.raises(RError) as caught:
            self.ask(code)
        return caught.value

    def descriptors(self, path: str | os.PathLike[str]) -> int:
        """How many descriptors it has open on ``path``."""
        links = []
        for number in os.listdir(f"/proc/{self.pid}/fd"):
            try:
                links.append(os.readlink(f"/proc/{self.pid}/fd/{number}"))
            except OSError:
                continue  # closed since
        return links.count(os.path.realpath(path))

    def ended(self) -> None:
        """Wait until it has ended by itself."""
        self._process.wait(LIMIT)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """Let it end, by the end of its input, and reap; kill it if it works on something still."""
        if self._unanswered:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(LIMIT)
        finally:
            self._process.kill()
            self._process.wait(LIMIT)

    def __enter__(self) -> R:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._process.stdout], [], [], LIMIT)
            assert ready, f"R process {self.pid} said nothing"
            read = os.read(self._process.stdout.fileno(), 65536)
            assert read, f"R process {self.pid} ended"
            self._read += read
        line, _, self._read = self._read.partition(b"\n")
        return line.decode("utf-8", "surrogateescape")


def run_r(code: str, *, cwd: Path | None = None, **environment: str) -> str:
    """What a fresh R prints when it has sourced the reference and runs ``code``."""
    done = subprocess.run(
        [*command(), "-e", f"source({quote(str(REFERENCE))})", "-e", code],
        cwd=cwd,
        env=_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def quote(text: str) -> str:
    """R code of a string; inside `R` and any of its code ``hex("…")`` does the same for arbitrary bytes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def in_hex(text: str) -> str:
    """R code, for `R`, of a string of any bytes but NUL."""
    return f'hex("{text.encode("utf-8", "surrogateescape").hex()}")'


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **more}


def command() -> list[str]:
    """R, or the test is skipped; with SHAREDVOL_TEST_R=required it fails."""
    missing = _missing()
    if missing:
        if os.environ.get("SHAREDVOL_TEST_R") == "required":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    return ["Rscript", "--vanilla"]


@functools.cache
def _missing() -> str:
    """Why R cannot be tested; empty where it can."""
    if os.environ.get("SHAREDVOL_TEST_R") == "no":
        return f"{R_MISSING}: SHAREDVOL_TEST_R=no"
    how = "run scripts/install-r, as 'make test' does"
    if shutil.which("Rscript") is None:
        return f"{R_MISSING}: no Rscript: {how}"
    code = "cat(setdiff(c('filelock', 'DBI', 'RMySQL', 'jsonlite'), rownames(installed.packages())))"
    said = subprocess.run(
        ["Rscript", "--vanilla", "-e", code], capture_output=True, text=True, timeout=LIMIT, check=True
    ).stdout.strip()
    return f"{R_MISSING}: without its packages {said}: {how}" if said else ""
