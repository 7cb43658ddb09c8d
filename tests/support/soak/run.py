"""One soak from its beginning to its verdict."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.processes import wait_until
from support.soak.cast import Cast
from support.soak.chaos import Chaos
from support.soak.judge import check_catalog, check_nothing_left, compare
from support.soak.places import MODES, Places
from support.soak.records import accounts, progress
from support.soak.releases import HERE, Release
from support.soak.resources import Sample, added, by_part, descriptors, lowest

_DRAINS = 20
_LOOKS = 300
_STILL = 20
_SHOW_EVERY = 5.0
_BYTES = 12  # of an account for each record, about
_UNFINISHED = ("writing", "settling", "failed", "put_back", "collected")


@dataclass(frozen=True)
class Plan:
    """What a soak does.

    Attributes:
        mode: of `MODES`.
        seed: of every choice.
        seconds: how long it disturbs; 0: each disturbance once.
        part, parts: makes each n-th disturbance of the list: several short runs share the list.
        copies: writers of each kind.
        sidecars: how many.
        releases: what its processes are; the sidecar that lives through all of it is the first.
    """

    mode: str
    seed: int
    seconds: float = 0.0
    part: int = 0
    parts: int = 1
    copies: int = 1
    sidecars: int = 3
    releases: Sequence[Release] = (HERE,)


@dataclass
class Report:
    """What came of it.

    Attributes:
        acknowledged: records, by kind.
        collected: files.
        disturbances: by kind.
        problems: what must not be.
        resources: of the sidecar that lived through all of it: at its least in each part, then idle at the end.
    """

    acknowledged: Counter[str] = field(default_factory=Counter)
    collected: int = 0
    disturbances: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    resources: list[Sample] = field(default_factory=list)

    def __str__(self) -> str:
        lost = sum(text.startswith("lost") for text in self.problems)
        doubled = sum(text.startswith("doubled") for text in self.problems)
        lines = [
            f"{self.acknowledged.total():,} records acknowledged: {_shown(self.acknowledged)}",
            f"{self.collected:,} files collected",
            f"{self.disturbances.total():,} disturbances: {_shown(self.disturbances)}",
            f"a sidecar held at its least, part by part, and idle at the end: {'; '.join(map(str, self.resources))}",
            f"lost {lost}, doubled {doubled}, other problems {len(self.problems) - lost - doubled}",
        ]
        return "\n".join(lines + [f"  {text}" for text in self.problems[:50]])


def run(plan: Plan, outside: Path, mounts: Path) -> Report:
    """Soak, and judge.

    Args:
        plan: what to do.
        outside: an empty directory for what is not on the volume; it stays, to look for the cause of a problem.
        mounts: an empty directory to mount file systems below.

    Raises:
        NotHere: this machine does not allow the file systems.
    """
    choose = random.Random(f"{plan.mode} {plan.seed}")
    places = Places(MODES[plan.mode], mounts)
    began = time.monotonic()
    with open(outside / "events", "w", buffering=1) as events:

        def note(text: str) -> None:
            print(f"{time.time():.3f} {text}", file=events)

        cast = Cast(places, MODES[plan.mode], outside, choose, plan.copies, plan.sidecars, plan.releases)
        chaos = Chaos(cast, places, choose, note, long=plan.seconds > 300)
        first = _disturb(plan, cast, chaos, began)
        note("the end")
        chaos.calm()
        cast.end_writers()
        last = _idle(cast, first)
        problems = added(first, last)
        if problems:
            problems.append(f"its descriptors: {descriptors(cast.witness.running.pid)}")
        cast.end_sidecars()
    problems += _drain(cast)
    verdict = compare(accounts(cast.records), places.collected)
    problems += verdict.problems
    problems += check_nothing_left(places.spool, places.collected, cast.writers_killed)
    problems += check_catalog(places.collected)
    problems += _verify(places)
    if problems:
        _keep_evidence(places, outside)
    return Report(verdict.acknowledged, verdict.collected, chaos.counts, problems, [*by_part(chaos.samples), last])


def _disturb(plan: Plan, cast: Cast, chaos: Chaos, began: float) -> Sample:
    """Returns what the sidecar that stays holds after its first work, at its least."""
    shown = began
    first = chaos.pause()
    rounds = iter(chaos.each(plan.part, plan.parts))
    while True:
        if next(rounds, None) is None:
            if time.monotonic() - began >= plan.seconds:
                return first
            chaos.disturb()
        if sys.stderr.isatty() and time.monotonic() - shown >= _SHOW_EVERY:
            shown = time.monotonic()
            records = progress(cast.records) // _BYTES
            done = f"{shown - began:.0f} s, {chaos.counts.total():,} disturbances, about {records:,} records"
            print(f"  {plan.mode}: {done}; {Sample.of(cast.witness.running.pid)}", file=sys.stderr)


def _idle(cast: Cast, first: Sample) -> Sample:
    """What the sidecar that stays holds when it has nothing more to do: its least, once that falls no more."""
    seen: list[Sample] = []
    fell = 0

    def settled() -> bool:
        nonlocal fell
        time.sleep(0.1)
        now = Sample.of(cast.witness.running.pid)
        if not seen or now.descriptors < lowest(seen).descriptors:
            fell = len(seen)
        seen.append(now)
        return len(seen) > _LOOKS or (len(seen) > fell + _STILL and not added(first, lowest(seen)))

    wait_until(settled, "a sidecar to be idle")
    return lowest(seen)


def _drain(cast: Cast) -> list[str]:
    """Passes until one leaves nothing."""
    left: dict[str, int] = {}
    for _ in range(_DRAINS):
        done = cast.once()
        if done.returncode != 0:
            return [f"the last passes fail: {done.stderr.decode()[-2000:]}"]
        counts = json.loads(done.stdout)
        left = {
            name: counts[name] for name in ("writing", "settling", "failed", "put_back", "collected") if counts[name]
        }
        if not left:
            return []
    return [f"the last passes do not come to an end: {left}"]


def _verify(places: Places) -> list[str]:
    command = [sys.executable, "-P", "-m", "sharedvol_sidecar", "verify", "--to", str(places.collected)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=HERE.environment())
    return (
        [] if done.returncode == 0 else [f"verify ends with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"]
    )


def _keep_evidence(places: Places, outside: Path) -> None:
    """The file systems end with this process."""
    target = outside / "volume.tar"
    subprocess.run(["tar", "-cf", target, "-C", places.spool.parent, "spool"], check=False, timeout=600)
    subprocess.run(["tar", "-rf", target, "-C", places.collected.parent, "collected"], check=False, timeout=600)


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
