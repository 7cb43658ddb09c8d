"""The rules of a cache's version: purged exactly once, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

from adapter import Adapter
from kernel_view import Raw, wait_blocked
from rules import Scene, rule

ROUNDS = 8
"""Versions that are raced for."""


def old_cache(scene: Scene, version: str = "1") -> Path:
    """A cache with entries of a version."""
    made = scene.directory / "cache"
    (made / "entries" / "sub").mkdir(parents=True)
    (made / "version").write_text(f"{version}\n")
    for name in ("a", ".hidden", "sub/b"):
        (made / "entries" / name).write_text("old")
    (made / "kept").write_text("not an entry")
    return made


@rule(
    "CACHE-1",
    "Of all that start with a new version exactly one purges, and nothing that is made after that goes.",
    "purge queue",
    "purge queue",
    meeting=True,
    ordered=False,
)
def once(scene: Scene, one: Adapter, other: Adapter) -> None:
    cache = old_cache(scene)
    starters = [one, other, scene.another(one), scene.another(other)]
    for number in range(ROUNDS):
        version = f"version {number} ü"
        with Raw(cache / "version.lock"):
            for starter in starters:
                starter.send("purge", cache, version)
            wait_blocked(cache / "version.lock", len(starters))  # so each has begun when the first goes on
        made: list[Path] = []
        said = []
        for starter in starters:
            said.append(starter.receive())
            made.append(cache / "entries" / f"{number}-{len(made)}")
            made[-1].write_text("new")
        assert sorted(said) == [("ok", ("no",))] * 3 + [("ok", ("yes",))], said
        assert all(path.exists() for path in made), "purged more than once"
        left = {path.name for path in cache.joinpath("entries").iterdir() if not path.is_dir()}
        assert left == {path.name for path in made}, "an old entry was left"
        assert (cache / "version").read_text() == f"{version}\n"


@rule(
    "CACHE-1", "Only what is in entries/ goes: hidden names and directories too, and of a link only the link.", "purge"
)
def only_entries(scene: Scene, one: Adapter) -> None:
    cache, elsewhere = old_cache(scene), scene.directory / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("precious")
    (cache / "entries" / "link").symlink_to(elsewhere)
    (cache / "entries" / "sub" / "link").symlink_to(elsewhere)
    assert one.do("purge", cache, "2") == ("yes",)
    left = {name for name in os.listdir(cache / "entries") if not (cache / "entries" / name).is_dir()}
    assert left == set()
    assert not (cache / "entries" / "sub").exists()
    assert not (cache / "entries" / "link").is_symlink()
    assert (elsewhere / "file").read_text() == "precious"
    assert (cache / "kept").read_text() == "not an entry"
    assert (cache / "version").read_text() == "2\n"


@rule(
    "CACHE-1",
    "A cache of one's own version is left as it is, in whatever language it was made.",
    "purge",
    "purge",
    meeting=True,
)
def same_version(scene: Scene, maker: Adapter, other: Adapter) -> None:
    cache = scene.directory / "cache"
    cache.mkdir()
    assert maker.do("purge", cache, "2026-01 ü") == ("yes",)
    (cache / "entries").mkdir(exist_ok=True)
    (cache / "entries" / "a").write_text("kept")
    for adapter in (other, maker):
        assert adapter.do("purge", cache, "2026-01 ü") == ("no",)
    assert (cache / "entries" / "a").read_text() == "kept"


@rule("CACHE-2", "A directory that is not empty and has no version is no cache: refused, and nothing goes.", "purge")
def no_cache(scene: Scene, one: Adapter) -> None:
    directory = scene.directory / "results"
    (directory / "entries").mkdir(parents=True)
    (directory / "entries" / "result").write_text("precious")
    assert one.ask("purge", directory, "2").word == "error"
    assert (directory / "entries" / "result").read_text() == "precious"
    assert not (directory / "version").exists()
    (directory / "entries" / "result").unlink()
    assert one.ask("purge", directory, "2").word == "error", "entries/ alone, empty, is no cache either"


@rule(
    "CACHE-1",
    "Where a purger was killed before it had written the version, the next one purges.",
    "purge",
    "purge queue",
    meeting=True,
)
def killed(scene: Scene, other: Adapter, purger: Adapter) -> None:
    new = scene.directory / "new"
    new.mkdir()
    # Of the first starter of a new cache: the version has been written, and has no name yet.
    (new / f".{'0' * 13}-{'1' * 12}.sharedvol-tmp").write_text("2\n")
    for cache in (new, old_cache(scene)):
        with Raw(cache / "version.lock"):
            purger.send("purge", cache, "2")
            wait_blocked(cache / "version.lock", 1)
            purger.kill()
            purger.owed = 0
        assert other.do("purge", cache, "2") == ("yes",)
        assert (cache / "version").read_text() == "2\n"
        purger = scene.another(purger)
