"""The rules of publishing: a file appears whole, once, and replaces nothing."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

from adapter import Adapter
from kernel_view import wait_for
from rules import Scene, rule

SIZE = 300_000
"""Bytes of a published file: more than any buffer, so that a file in the making would be seen to be short."""

KILLS = 6
"""Moments of a publication, evenly spread, at which it is killed."""

RACES = 20
"""Names that are raced for."""

MARKS = Path(__file__).with_name("marks.tsv")
"""Marks that are given: second, size, microsecond."""


def content(scene: Scene, mark: str) -> Path:
    """A file to publish that consists of ``mark``."""
    made = scene.directory / f"{mark} source"
    made.write_bytes(mark.encode() * (SIZE // len(mark)) + b"\0\n\xff end")
    return made


def folder(scene: Scene) -> Path:
    """Where to publish."""
    made = scene.directory / "results"
    made.mkdir(exist_ok=True)
    return made


def visible(directory: Path) -> list[str]:
    """What a collector sees."""
    return [name for name in os.listdir(directory) if not name.startswith(".")]


def locked(path: Path) -> bool:
    """Whether somebody holds flock(2) on ``path``."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@rule("PUB-1", "A published file has its name and all its content, and nothing else is left behind.", "publish")
def whole(scene: Scene, one: Adapter) -> None:
    target = folder(scene)
    empty = scene.directory / "empty"
    empty.touch()
    for name, source in (("-a result.json", content(scene, "a")), ("ü_2", empty)):
        one.do("publish", target / name, source)
        assert (target / name).read_bytes() == source.read_bytes()
    assert sorted(os.listdir(target)) == ["-a result.json", "ü_2"]


@rule(
    "PUB-2",
    "What has the name is never replaced: a file, a directory, a link to nowhere; it is told as taken.",
    "publish",
)
def kept(scene: Scene, one: Adapter) -> None:
    target, source = folder(scene), content(scene, "a")
    (target / "file").write_text("first")
    (target / "directory").mkdir()
    (target / "link").symlink_to(target / "nowhere")
    for name in ("file", "directory", "link"):
        for verb in ("publish", "publish-slowly"):
            answer = one.ask(verb, target / name, source)
            if answer.word == "writing":
                answer = one.ask("go")
            assert answer.word == "taken", f"{answer} where the name is that of a {name}"
    assert (target / "file").read_text() == "first"
    assert os.listdir(target / "directory") == []
    assert sorted(os.listdir(target)) == ["directory", "file", "link"]


@rule("PUB-2", "On request a file or a symbolic link is replaced, and what the link leads to is left alone.", "replace")
def replaced(scene: Scene, one: Adapter) -> None:
    target, source = folder(scene), content(scene, "a")
    (target / "file").write_text("first")
    (target / "link").symlink_to(target / "file")
    for name in ("link", "new"):
        one.do("replace", target / name, source)
        assert (target / name).read_bytes() == source.read_bytes()
    assert (target / "file").read_bytes() == b"first"
    one.do("replace", target / "file", source)
    assert (target / "file").read_bytes() == source.read_bytes()
    assert sorted(os.listdir(target)) == ["file", "link", "new"]


@rule("PUB-2", "Only files are replaced: a directory, a pipe and a socket are refused and left as they are.", "replace")
def special(scene: Scene, one: Adapter) -> None:
    target, source = folder(scene), content(scene, "a")
    (target / "directory").mkdir()
    os.mkfifo(target / "pipe")
    place = os.open(target, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{place}/socket")  # the path of a socket has at most 107 bytes
    os.close(place)
    before = {name: os.stat(target / name).st_ino for name in os.listdir(target)}
    for name in before:
        answer = one.ask("replace", target / name, source)
        assert answer.word == "error", f"{answer} where the name is that of a {name}"
    assert {name: os.stat(target / name).st_ino for name in os.listdir(target)} == before


@rule(
    "PUB-3", "Until it is whole, a file has only a hidden name; a publisher that is killed leaves no other.", "publish"
)
def killed(scene: Scene, one: Adapter) -> None:
    target, source = folder(scene), content(scene, "a")
    assert one.ask("publish-slowly", target / "result", source).word == "writing"
    assert visible(target) == []
    one.kill()
    assert visible(target) == []
    scene.another(one).do("publish", target / "result", source)
    assert visible(target) == ["result"]


@rule(
    "PUB-3",
    "A temporary named .….sharedvol-tmp is locked with flock while its writer lives: cleaners go by that.",
    "publish",
)
def cleaners(scene: Scene, one: Adapter) -> None:
    target, source = folder(scene), content(scene, "a")
    assert one.ask("publish-slowly", target / "result", source).word == "writing"
    ours = [target / name for name in os.listdir(target) if name.endswith(".sharedvol-tmp")]
    unlocked = [path for path in ours if not locked(path)]
    assert not unlocked, f"a cleaner would take the file of a living writer: {unlocked}"
    one.kill()
    wait_for(lambda: not any(map(locked, ours)), "the temporary of the dead to be free")


@rule(
    "PUB-2",
    "Of many that publish one name at once one succeeds, the others are told, and the file is the winner's.",
    "publish",
    "publish",
    ordered=False,
)
def race(scene: Scene, one: Adapter, other: Adapter) -> None:
    target = folder(scene)
    publishers = [one, other, scene.another(one), scene.another(other)]
    sources = [content(scene, mark) for mark in "abcd"]
    for number in range(RACES):
        path = target / f"result-{number}"
        for publisher, source in zip(publishers, sources, strict=True):
            publisher.send("publish-slowly", path, source)
        for publisher in publishers:
            assert publisher.receive().word == "writing"  # so every look before the end has found the name free
        for publisher in publishers:
            publisher.send("go")
        words = [publisher.receive().word for publisher in publishers]
        assert sorted(words) == ["ok", "taken", "taken", "taken"], words
        assert path.read_bytes() == sources[words.index("ok")].read_bytes()
    assert len(os.listdir(target)) == RACES


@rule("PUB-1", "Where a file cannot be published is an error, and nothing is made there.", "publish")
def impossible(scene: Scene, one: Adapter) -> None:
    missing = scene.directory / "missing"
    answer = one.ask("publish", missing / "result", content(scene, "a"))
    assert answer.word == "error", answer
    assert not missing.exists()


@rule("PUB-1", "Killed at whatever moment, a publisher leaves a whole file or none.", "publish")
def killed_anywhere(scene: Scene, one: Adapter) -> None:
    target, source = folder(scene), content(scene, "a")
    begun = time.monotonic()
    one.do("publish", target / "first", source)
    took = time.monotonic() - begun  # only to spread the kills: what is asserted is true at any moment
    for number in range(KILLS):
        path = target / f"result-{number}"
        one.send("publish", path, source)
        time.sleep(took * number / KILLS)
        one.kill()
        one.owed = 0
        if path.exists():
            assert path.read_bytes() == source.read_bytes(), (
                f"a part of the file is visible, killed at {number}/{KILLS}"
            )
        one = scene.another(one)
    assert all(name == "first" or name.startswith("result-") for name in visible(target)), visible(target)


@rule("PUB-4", "A published file carries the mark, in the second of its last write or the one before.", "publish mark")
def marked(scene: Scene, one: Adapter) -> None:
    target = folder(scene)
    for size in (0, 1, 999_983, 1_048_577):
        source, path = scene.directory / "source", target / f"{size} bytes"
        source.write_bytes(b"x" * size)
        begun = int(time.time())
        one.do("publish", path, source)
        info = path.stat()
        second, rest = divmod(info.st_mtime_ns, 10**9)
        wanted = 1 + (second % 999_983 * 374_761 + size % 999_983 * 668_265) % 999_983
        assert rest // 1000 == wanted, f"{size} bytes, second {second}: microsecond {rest // 1000}, not {wanted}"
        assert begun - 2 <= second <= int(time.time())


@rule("PUB-4", "Marks are computed exactly, also of large files and of distant years.", "mark")
def given(scene: Scene, one: Adapter) -> None:
    for line in MARKS.read_text().splitlines():
        if line.startswith("#"):
            continue
        second, size, wanted = line.split("\t")
        answer = one.do("mark", second, size)
        assert answer == (wanted,), f"second {second}, {size} bytes: {answer}, not {wanted}"
