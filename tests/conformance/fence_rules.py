"""The rules of the fencing file: tokens that only ever grow."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from adapter import Adapter
from kernel_view import is_free, wait_for
from rules import Scene, rule

RESERVED = 10_000
KILLS = 3
"""Takers that are killed while they take tokens as fast as they can."""

TAKEN = 40
"""Tokens that each of four takers takes."""

LINE = re.compile(rb"sharedvol-token 1 (\d{19}) (\d{19}) ([!-~]{1,36}) *\n")
SIZE = 95

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
OTHER_BOOT = "00000000-1111-2222-3333-444444444444"


def line(token: int, reserved: int, boot: str = BOOT) -> bytes:
    """The content of a token file."""
    return b"sharedvol-token 1 %019d %019d %-36s\n" % (token, reserved, boot.encode())


def read(lock: Path) -> tuple[int, int, str]:
    """Token, reservation and boot id of a lock's token file, which must be one."""
    data = Path(f"{lock}.token").read_bytes()
    found = LINE.fullmatch(data)
    assert found is not None, f"no token file: {data!r}"
    assert len(data) == SIZE, f"a token file has {SIZE} bytes, not {len(data)}: {data!r}"
    return int(found[1]), int(found[2]), found[3].decode()


def take(adapter: Adapter, lock: Path) -> int:
    """The token of one hold."""
    (token,) = adapter.do("fence", 1, lock, "inf", "")
    adapter.do("unlock", 1)
    return int(token)


@rule("FENCE-2", "Each token is the one before and 1, whoever takes it.", "fence", "fence", meeting=True)
def grows(scene: Scene, one: Adapter, other: Adapter) -> None:
    path = scene.directory / "x.lock"
    tokens = [take(adapter, path) for adapter in (one, other, other, one, one, other)]
    assert tokens == list(range(tokens[0], tokens[0] + len(tokens))), tokens
    assert read(path)[0] == tokens[-1]


@rule(
    "FENCE-4",
    "The token file is one line of 95 bytes, with the lock file's mode, made whole: no other name is left.",
    "fence",
)
def file(scene: Scene, one: Adapter) -> None:
    path = scene.directory / "x.lock"
    token = int(one.do("fence", 1, path, "inf", "")[0])
    assert read(path) == (token, token + RESERVED, BOOT)
    assert Path(f"{path}.token").stat().st_mode == path.stat().st_mode
    assert sorted(os.listdir(scene.directory)) == ["x.lock", "x.lock.holder", "x.lock.token"]
    one.do("unlock", 1)
    assert read(path) == (token, token + RESERVED, BOOT), "a release has changed it"


@rule("FENCE-2", "A holder that is killed takes no token back.", "fence", "fence", meeting=True)
def killed(scene: Scene, holder: Adapter, other: Adapter) -> None:
    path = scene.directory / "x.lock"
    before = take(other, path)
    token = int(holder.do("fence", 1, path, "inf", "")[0])
    holder.kill()
    assert (token, take(other, path)) == (before + 1, before + 2)


@rule("FENCE-1", "Killed at whatever moment, a holder leaves a token file that counts.", "fence", "fence", meeting=True)
def killed_anywhere(scene: Scene, holder: Adapter, other: Adapter) -> None:
    path = scene.directory / "x.lock"
    for number in range(KILLS):
        data = scene.directory / f"tokens-{number}"
        data.touch()
        holder.send("tokens", path, data, 1_000_000)
        wait_for(lambda data=data: b"\n" in data.read_bytes(), "tokens to be given")
        holder.kill()
        holder.owed = 0
        tokens = [int(row) for row in data.read_text().splitlines(keepends=True) if row.endswith("\n")]
        assert tokens == sorted(set(tokens))
        assert take(other, path) > tokens[-1]
        holder = scene.another(holder)


@rule(
    "FENCE-4",
    "Where the token file was deleted, the next token is larger still: it begins at the clock.",
    "fence",
    "fence",
    meeting=True,
)
def deleted(scene: Scene, one: Adapter, other: Adapter) -> None:
    path = scene.directory / "x.lock"
    last = 0
    for adapter in (one, other, one):
        first = take(adapter, path)
        assert first > last, "a token was taken back"
        last = take(other, path)
        assert last == first + 1
        Path(f"{path}.token").unlink()


@rule("FENCE-5", "A damaged token file is refused, left as it is, and the lock is free again.", "fence")
def damaged(scene: Scene, one: Adapter) -> None:
    good = line(5, 10_005)
    contents = {
        "empty": b"",
        "short": good[:-1],
        "long": good + b" ",
        "other version": good.replace(b"token 1", b"token 2"),
        "other words": good.replace(b"sharedvol", b"SHAREDVOL"),
        "letters": good.replace(b"0000000000000000005", b"000000000000000000x"),
        "a sign": good.replace(b"0000000000000000005", b"-000000000000000005"),
        "no boot": good.replace(BOOT.encode(), b" " * len(BOOT)),
        "no line feed": good.replace(b"\n", b" "),
        "zeros": bytes(SIZE),
    }
    elsewhere = scene.directory / "elsewhere"
    elsewhere.write_bytes(good)
    makers: dict[str, Callable[[Path], object]] = {
        "a link": lambda token: token.symlink_to(elsewhere),
        "a directory": lambda token: token.mkdir(),
        "a pipe": os.mkfifo,
    }
    for number, what in enumerate([*contents, *makers]):
        path = scene.directory / f"{number}.lock"
        token = Path(f"{path}.token")
        if what in contents:
            token.write_bytes(contents[what])
        else:
            makers[what](token)
        before = token.lstat()
        answer = one.ask("fence", 1, path, "inf", "")
        assert answer.word == "error", f"{answer} with a token file that is damaged: {what}"
        assert is_free(path), f"the lock was kept after the token file was refused: {what}"
        after = token.lstat()
        assert (before.st_ino, before.st_mtime_ns, before.st_mode) == (after.st_ino, after.st_mtime_ns, after.st_mode)
        if what in contents:
            assert token.read_bytes() == contents[what]
    assert elsewhere.read_bytes() == good


@rule("FENCE-6", "A token or a reservation that is 2^53 or more is damage: no double can count on from there.", "fence")
def too_large(scene: Scene, one: Adapter) -> None:
    for number, (token, reserved) in enumerate(((2**53, 2**53), (2**53 - 1, 2**53 - 1), (5, 2**53), (10**18, 10**18))):
        path = scene.directory / f"{number}.lock"
        data = line(token, reserved)
        Path(f"{path}.token").write_bytes(data)
        assert one.ask("fence", 1, path, "inf", "").word == "error", f"token {token}, reserved {reserved}"
        assert Path(f"{path}.token").read_bytes() == data


@rule(
    "FENCE-2",
    "After another boot, or an unknown one, the next token is above the reservation, and a new one is made.",
    "fence",
)
def booted(scene: Scene, one: Adapter) -> None:
    for number, boot in enumerate((OTHER_BOOT, "-")):
        for token, reserved in ((7_000, 15_000), (15_000, 7_000)):
            path = scene.directory / f"{number}-{token}.lock"
            Path(f"{path}.token").write_bytes(line(token, reserved, boot))
            assert take(one, path) == 15_001
            assert read(path) == (15_001, 15_001 + RESERVED, BOOT)


@rule("FENCE-3", "The reservation is renewed when a token is larger, and not before.", "fence")
def reserved(scene: Scene, one: Adapter) -> None:
    path = scene.directory / "x.lock"
    Path(f"{path}.token").write_bytes(line(6_999, 7_000))
    assert take(one, path) == 7_000
    assert read(path) == (7_000, 7_000, BOOT)
    assert take(one, path) == 7_001
    assert read(path) == (7_001, 7_001 + RESERVED, BOOT)


@rule("FENCE-1", "Plain and shared holders leave the token and the holder file alone.", "fence shared")
def plain(scene: Scene, one: Adapter) -> None:
    path = scene.directory / "x.lock"
    for kind in ("exclusive", "shared"):
        one.do("lock", 1, path, kind, "inf")
        one.do("unlock", 1)
    assert os.listdir(scene.directory) == ["x.lock"]
    token = take(one, path)
    beside = [Path(f"{path}.{suffix}") for suffix in ("token", "holder")]
    before = [found.read_bytes() for found in beside]
    for kind in ("exclusive", "shared"):
        one.do("lock", 1, path, kind, "inf")
        one.do("unlock", 1)
    assert [found.read_bytes() for found in beside] == before
    assert take(one, path) == token + 1


@rule("FENCE-7", "A token file that was replaced is believed, not the one that was read before.", "fence")
def replaced(scene: Scene, one: Adapter) -> None:
    path, new = scene.directory / "x.lock", scene.directory / "new"
    token = take(one, path)
    for larger in (token + 100, token + 200):
        new.write_bytes(line(larger, larger + 50))
        new.replace(f"{path}.token")
        assert take(one, path) == larger + 1
    Path(f"{path}.token").write_bytes(line(token + 300, token + 350))
    assert take(one, path) == token + 301


@rule(
    "FENCE-1",
    "Of many takers at once no two get one token, and each is larger than that of the holder before.",
    "fence",
    "fence",
    meeting=True,
    ordered=False,
)
def many(scene: Scene, one: Adapter, other: Adapter) -> None:
    path, data = scene.directory / "x.lock", scene.directory / "tokens"
    takers = [one, other, scene.another(one), scene.another(other)]
    for taker in takers:
        taker.send("tokens", path, data, TAKEN)
    for taker in takers:
        assert taker.receive().word == "ok"
    tokens = [int(word) for word in data.read_text().split()]
    assert tokens == list(range(tokens[0], tokens[0] + TAKEN * len(takers))), tokens
