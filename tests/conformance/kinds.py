"""The kinds of adapters that are seated: the reference ones, and the one that is given."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cache_rules  # noqa: F401 - these imports register the rules
import fence_rules  # noqa: F401
import holder_rules  # noqa: F401
import lock_rules  # noqa: F401
import name_rules  # noqa: F401
import publish_rules  # noqa: F401
import pytest
import race_rules  # noqa: F401
import sql_rules  # noqa: F401
from adapter import CAPABILITIES, Adapter, Claims, Missing
from rules import RULES

HERE = Path(__file__).parent / "adapters"
GIVEN = "given"
KEPT = 4
"""How many idle adapters of one kind are kept."""


@dataclass(frozen=True)
class Kind:
    """A command, and what it says of itself."""

    command: tuple[str, ...]
    claims: Claims


def _reference(language: str, family: str, command: list[str], *lacks: str) -> Kind:
    return Kind(tuple(command), Claims(language, family, frozenset(CAPABILITIES) - set(lacks)))


REFERENCES = {
    "python": _reference("python", "both", [sys.executable, str(HERE / "python.py")]),
    "r": _reference("r", "fcntl", ["Rscript", "--vanilla", str(HERE / "r.R")], "holder"),
    "shell": _reference(
        "shell", "flock", ["sh", str(HERE / "shell.sh")], "network", "fence", "holder", "names", "purge", "sql"
    ),
}
"""Those of this repository, with their claims known beforehand: nothing is started to collect the tests."""


@functools.cache
def ask_kind(command: str) -> Kind:
    """The kind of an adapter that is given as a command line.

    Raises:
        Missing: it cannot run here.
        Broken: it does not speak the protocol.
    """
    words = shlex.split(command)
    with Adapter(words) as adapter:
        return Kind(tuple(words), adapter.hello())


class Pool:
    """Running adapters, kept between tests: an R process takes a good while to start."""

    def __init__(self, kinds: dict[str, Kind]) -> None:
        self.kinds = kinds
        self._idle: dict[str, list[Adapter]] = {name: [] for name in kinds}

    def take(self, name: str) -> Adapter:
        """An adapter that holds nothing.

        Raises:
            Missing: it cannot run here.
        """
        if self._idle[name]:
            return self._idle[name].pop()
        kind = self.kinds[name]
        if shutil.which(kind.command[0]) is None:
            raise Missing(f"{kind.command[0]} is not installed")
        adapter = Adapter(kind.command)
        try:
            said = adapter.hello()
            assert said == kind.claims, f"{name} says {said}, not {kind.claims}"
        except BaseException:
            adapter.close()
            raise
        return adapter

    def give_back(self, name: str, adapter: Adapter) -> None:
        """After a test that passed; an adapter that was killed is reaped."""
        if not adapter.alive:
            adapter.close()
            return
        try:
            assert not adapter.owed, f"{name}: the check left {adapter.owed} answers unread"
            adapter.do("reset")
        except BaseException:
            adapter.close()
            raise
        if len(self._idle[name]) < KEPT:
            self._idle[name].append(adapter)
        else:
            adapter.close()

    def close(self) -> None:
        """End all that are kept."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()


class Cast:
    """A scene: the adapters of one test, and its directory. Use it in a ``with``."""

    def __init__(self, pool: Pool, directory: Path, seating: tuple[str, ...]) -> None:
        self.directory = directory
        self._pool, self._seating = pool, seating
        self._names: dict[Adapter, str] = {}

    def __enter__(self) -> Cast:
        with ExitStack() as stack:
            stack.callback(self._drop)
            self.seats = [self._join(name) for name in self._seating]
            stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with ExitStack() as stack:
            stack.callback(self._drop)
            while kind is None and self._names:
                adapter, name = self._names.popitem()
                self._pool.give_back(name, adapter)

    def _join(self, name: str) -> Adapter:
        adapter = self._pool.take(name)
        self._names[adapter] = name
        return adapter

    def _drop(self) -> None:
        while self._names:
            self._names.popitem()[0].close()

    def another(self, like: Adapter) -> Adapter:
        """One more running adapter of the kind of ``like``, living or dead."""
        return self._join(self._names[like])

    def claims(self, of: Adapter) -> Claims:
        """What ``of`` said when it was asked hello."""
        return self._pool.kinds[self._names[of]].claims


def seatings(kinds: dict[str, Kind], given: bool) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Every check with every seating: the check's name, the kinds in its seats, and why it is left out if it is.

    With an adapter that is given, the checks in which it has a seat.
    """
    for key, rule in RULES.items():
        for names in rule.seatings(kinds):
            if given and GIVEN not in names:
                continue
            claims = [kinds[name].claims for name in names]
            missing = rule.missing(claims)
            # What a reference adapter lacks is no news; what the given one lacks is told, once.
            if missing and not (given and set(names) == {GIVEN}):
                continue
            if missing or rule.suits(claims):
                yield key, names, "; ".join(missing)


def given_command(config: pytest.Config) -> str | None:
    """The command of the adapter to test, from the option or the environment."""
    option = config.getoption("adapter", default=None)
    return option or os.environ.get("SHAREDVOL_CONFORMANCE_ADAPTER") or None


def all_kinds(config: pytest.Config) -> dict[str, Kind]:
    """The reference kinds, and the one that is given."""
    command = given_command(config)
    if not command:
        return REFERENCES
    try:
        return {**REFERENCES, GIVEN: ask_kind(command)}
    except (Missing, AssertionError, OSError) as error:
        raise pytest.UsageError(f"adapter {command!r}: {error}") from None


def leave_out(error: Missing) -> None:
    """Skip where a reference language is not here, or fail where it has to be."""
    if os.environ.get("SHAREDVOL_TEST_R") == "required":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))
