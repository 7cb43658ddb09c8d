"""The rules of the holder file: who holds a lock, never believed over the kernel."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from adapter import Adapter
from kernel_view import write_locked
from rules import Scene, rule

SIZE = 1024
PURPOSE = 'the "nightly"\\ rün\n\t日本 {}'
LONG = "日" * 200
"""As long as a purpose may be; in bytes, near what the file has room for."""


def record(lock: Path) -> bytes:
    """The holder file of ``lock``."""
    return Path(f"{lock}.holder").read_bytes()


@rule(
    "HOLD-1",
    "The holder file is one JSON object padded to 1,024 bytes, with the protocol's fields and the lock file's mode.",
    "fence",
)
def file(scene: Scene, one: Adapter) -> None:
    path = scene.directory / "x.lock"
    one.do("container", "web-1")
    before = time.time()
    (token,) = one.do("fence", 1, path, "inf", PURPOSE)
    after = time.time()
    data = record(path)
    assert len(data) == SIZE, f"{len(data)} bytes"
    assert re.fullmatch(rb"\{.*\} *\n", data, re.DOTALL), data
    found = json.loads(data)
    since, worker = found.pop("since"), found.pop("worker")
    wanted = {"sharedvol": 1, "token": int(token), "replica": "web-1", "pid": one.pid, "purpose": PURPOSE}
    assert found == wanted
    assert before - 1 <= since <= after + 1, f"since {since}, held since {before} or later"
    assert re.fullmatch("[0-9a-z]{13}", worker), worker
    assert Path(f"{path}.holder").stat().st_mode == path.stat().st_mode


@rule(
    "HOLD-2",
    "The holder file is locked while its writer holds the lock, and free when that was given back or killed.",
    "fence",
)
def locked(scene: Scene, one: Adapter) -> None:
    path = scene.directory / "x.lock"
    holder = Path(f"{path}.holder")
    for _ in range(2):
        one.do("fence", 1, path, "inf", "")
        assert write_locked(holder)
        one.do("unlock", 1)
        assert not write_locked(holder)
    one.do("fence", 1, path, "inf", "")
    one.kill()
    assert not write_locked(holder)


@rule(
    "HOLD-3",
    "A reader in any language tells the living holder, and nobody once he has gone.",
    "fence",
    "holder",
    meeting=True,
)
def told(scene: Scene, holder: Adapter, reader: Adapter) -> None:
    path = scene.directory / "x.lock"
    holder.do("container", "web-1")
    for purpose in (PURPOSE, LONG, ""):
        (token,) = holder.do("fence", 1, path, "inf", purpose)
        assert reader.do("holder", path) == ("web-1", str(holder.pid), token, purpose)
        holder.do("unlock", 1)
        assert reader.ask("holder", path).word == "nobody"
    holder.do("fence", 1, path, "inf", "")
    holder.kill()
    assert reader.ask("holder", path).word == "nobody"


@rule(
    "HOLD-3",
    "What an earlier holder left is not believed of one who says nothing of himself.",
    "lock",
    "holder fence",
    meeting=True,
)
def silent(scene: Scene, silent: Adapter, reader: Adapter) -> None:
    path = scene.directory / "x.lock"
    reader.do("fence", 1, path, "inf", "an earlier one")
    reader.do("unlock", 1)
    silent.do("lock", 1, path, "exclusive", "inf")
    assert reader.ask("holder", path).word == "unknown"
    silent.do("unlock", 1)
    assert reader.ask("holder", path).word == "nobody"


@rule("HOLD-4", "That the holder file cannot be written fails no lock.", "fence")
def unwritable(scene: Scene, one: Adapter) -> None:
    for number, kind in enumerate(("directory", "link")):
        path = scene.directory / f"{number}.lock"
        holder = Path(f"{path}.holder")
        if kind == "directory":
            holder.mkdir()
        else:
            holder.symlink_to(scene.directory / "target")
        one.do("fence", 1, path, "inf", "")
        one.do("unlock", 1)
        assert not (scene.directory / "target").exists(), "a symbolic link was followed"


@rule(
    "HOLD-3",
    "A reader believes no holder file that is none: links, too long, wrong types.",
    "fence",
    "holder",
    meeting=True,
)
def forged(scene: Scene, holder: Adapter, reader: Adapter) -> None:
    path = scene.directory / "x.lock"
    holder.do("fence", 1, path, "inf", "true")
    true = record(path)
    for data in (
        b"",
        b"[]",
        b"{" * 1000,
        true.rstrip() + b" " * 2000,
        true.replace(b'"sharedvol":1', b'"sharedvol":2'),
    ):
        Path(f"{path}.holder").write_bytes(data)
        assert reader.ask("holder", path).word == "unknown", data
    Path(f"{path}.holder").write_bytes(true)
    assert reader.ask("holder", path).word == "ok", "written back, it is the holder's again"
