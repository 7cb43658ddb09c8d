"""Rules of retention: what is kept of each kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sharedvol.arguments import parse_size
from sharedvol_sidecar.errors import ConfigError
from sharedvol_sidecar.humanize import parse_duration

_EXAMPLE = "say results=90d, logs=20G or logs=14d,20G"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is kept of a kind; None is no limit.

    Attributes:
        kind: the kind of the files.
        age_ns: the largest age since they were collected, in nanoseconds.
        size: the largest size of all together, in bytes.
    """

    kind: str
    age_ns: int | None = None
    size: int | None = None


def parse_rules(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Parse rules such as ``results=90d`` and ``logs=14d,20G``.

    Raises:
        ConfigError: a rule is wrong, or a kind has two.
    """
    rules: dict[str, Rule] = {}
    for text in texts:
        rule = _parse_rule(text)
        if rule.kind in rules:
            raise ConfigError(f"rule {text!r}: there are two for {rule.kind!r}; {_EXAMPLE}")
        rules[rule.kind] = rule
    return tuple(rules.values())


def _parse_rule(text: str) -> Rule:
    kind, equals, limits = text.partition("=")
    kind = kind.strip()
    if not equals or not kind:
        raise ConfigError(f"rule {text!r} names no kind: {_EXAMPLE}")
    age: int | None = None
    size: int | None = None
    for limit in (part.strip() for part in limits.split(",")):
        as_age = parse_duration(limit)
        as_size = parse_size(limit) if as_age is None else None
        # A bare number could be days or bytes, and a wrong guess deletes files.
        if (as_age is None and as_size is None) or limit.isdecimal():
            raise ConfigError(
                f"rule {text!r}: {limit!r} is neither an age (s, m, h, d, w) nor a size (B, K, M, G, T): {_EXAMPLE}"
            )
        if (as_age is not None and age is not None) or (as_size is not None and size is not None):
            raise ConfigError(f"rule {text!r} has two limits of one sort: {_EXAMPLE}")
        age, size = (as_age, size) if as_age is not None else (age, as_size)
    return Rule(kind, age, size)
