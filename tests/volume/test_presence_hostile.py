"""What another user put into ``.replicas`` is never followed, trusted or waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import run_python

from sharedvol import FileLock, PresenceError, SharedVolError, Volume

SECRET = "what is elsewhere"
GOOD: dict[str, Any] = {
    "name": "c1",
    "slot": 3,
    "joined_at": "2026-01-31T12:00:00+00:00",
    "purpose": "web",
    "pid": 1,
    "worker": "u",
    "boot_id": "b",
    "mount_namespace": 5,
}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    (path.parents[2] / "elsewhere").write_text(SECRET)
    path.symlink_to(path.parents[2] / "elsewhere")


def _text(content: bytes) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        path.write_bytes(content)

    return put


NO_FILES = [pytest.param(_fifo, id="fifo"), pytest.param(_link, id="link")]
GARBAGE = [
    pytest.param(_text(content), id=name)
    for name, content in {
        "empty": b"",
        "not text": b"\xff\xfe\0" * 99,
        "huge": b'{"name": "c1", "purpose": "' + b"x" * 10_000_000 + b'"}',
        "deep": b"[" * 8000,
        "long number": b'{"name": "c1", "slot": ' + b"9" * 6000 + b"}",
        "a list": b"[]",
        "another's": json.dumps({**GOOD, "name": "c2"}).encode(),
    }.items()
]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    """The names' directory of a volume in which c1 joined and left."""
    Volume(tmp_path).join("c1").leave()
    return tmp_path / ".replicas/names"


@pytest.mark.parametrize("put", NO_FILES + GARBAGE)
def test_information_that_cannot_be_read_is_unknown_and_replaced(
    names: Path, put: Callable[[Path], None], tmp_path: Path
) -> None:
    (names / "c1.json").unlink()
    put(names / "c1.json")
    volume = Volume(tmp_path)
    (dead,) = volume.replicas()
    assert (dead.name, dead.alive, dead.slot, dead.joined_at, dead.purpose) == ("c1", False, None, None, "")
    with volume.join("c1"):
        assert [(one.alive, one.slot) for one in volume.replicas()] == [(True, 0)]
    if (tmp_path / "elsewhere").exists():
        assert (tmp_path / "elsewhere").read_text() == SECRET


@pytest.mark.parametrize("put", NO_FILES + GARBAGE)
def test_a_live_replica_is_alive_whatever_lies_beside_its_lock(
    names: Path, put: Callable[[Path], None], tmp_path: Path
) -> None:
    volume = Volume(tmp_path)
    with volume.join("c1"):
        (names / "c1.json").unlink()
        assert [(one.name, one.alive, one.slot) for one in volume.replicas()] == [("c1", True, None)]
        put(names / "c1.json")
        assert volume.is_alive("c1") is True
        with pytest.raises(PresenceError, match="cannot be read"):
            Volume(tmp_path).join("c1")
        assert Volume(tmp_path).join("c2").slot == 1
    assert volume.is_alive("c1") is False


@pytest.mark.parametrize(
    ("field", "value"),
    [("slot", value) for value in (-1, 10**9, True, "0", 1.0, None, [0])]
    + [("joined_at", value) for value in ("yesterday", "2026-01-31T12:00:00", 5, "x" * 99)]
    + [("purpose", value) for value in (5, "x" * 5000, None)]
    + [("pid", "1"), ("boot_id", {}), ("mount_namespace", -5), ("worker", 0)],
)
def test_one_bad_field_is_unknown_and_the_others_stay(names: Path, tmp_path: Path, field: str, value: object) -> None:
    (names / "c1.json").write_text(json.dumps({**GOOD, field: value}))
    (found,) = Volume(tmp_path).replicas()
    expected = {**GOOD, field: "" if field == "purpose" else None, "alive": False}
    assert found.as_dict() == expected


def test_information_that_says_so_makes_nobody_alive(names: Path, tmp_path: Path) -> None:
    (names / "c1.json").write_text(json.dumps({**GOOD, "alive": True, "pid": os.getpid()}))
    assert [one.alive for one in Volume(tmp_path).replicas()] == [False]


@pytest.mark.parametrize("put", NO_FILES)
def test_a_name_whose_lock_is_no_file_is_dead_and_refused(
    names: Path, put: Callable[[Path], None], tmp_path: Path
) -> None:
    (names / "c1.lock").unlink()
    put(names / "c1.lock")
    volume = Volume(tmp_path)
    assert volume.is_alive("c1") is False
    with pytest.raises(SharedVolError, match=r"c1\.lock"):
        volume.join("c1")
    assert volume.join("c2").slot == 0


@pytest.mark.parametrize("put", [*NO_FILES, pytest.param(Path.mkdir, id="directory")])
def test_a_slot_whose_lock_is_no_file_is_passed_over(names: Path, put: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / ".replicas/slots/0.lock").unlink()
    put(tmp_path / ".replicas/slots/0.lock")
    with Volume(tmp_path).join("c1") as membership:
        assert membership.slot == 1
        assert Volume(tmp_path).slots() == [1]


def test_a_directory_in_the_place_of_information_is_named(names: Path, tmp_path: Path) -> None:
    (names / "c1.json").unlink()
    (names / "c1.json").mkdir()
    for refused in (lambda: Volume(tmp_path).join("c1"), lambda: Volume(tmp_path).forget("c1")):
        with pytest.raises(PresenceError, match=r"c1\.json"):
            refused()
    assert Volume(tmp_path).slots() == []


def test_a_lock_that_something_else_holds_alone_is_no_replica(names: Path, tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    with FileLock(names / "c1.lock"):
        assert volume.is_alive("c1") is False
        with pytest.raises(PresenceError, match="not a replica"):
            volume.join("c1")
        with volume.hold_dead("c1") as dead:
            assert dead is False
    with FileLock(tmp_path / ".replicas/slots/0.lock"):
        assert volume.join("c1").slot == 1


@pytest.mark.parametrize(
    "name", ["\x1b[31mred.lock", "a b.json", "-rf.json", "plain", ".hidden.json", "x" * 80 + ".json"]
)
def test_a_file_that_is_not_named_like_ours_is_nobody(names: Path, tmp_path: Path, name: str) -> None:
    (names / name).write_text("{}")
    (tmp_path / ".replicas/slots" / name).write_text("")
    (tmp_path / ".replicas/slots" / "99999999999999999999.lock").write_text("")
    assert [one.name for one in Volume(tmp_path).replicas()] == ["c1"]
    assert Volume(tmp_path).slots() == []


@pytest.mark.parametrize("which", [".replicas", ".replicas/names", ".replicas/slots"])
@pytest.mark.parametrize("what", ["link", "dangling", "file"])
def test_a_register_that_is_no_directory_is_refused(tmp_path: Path, which: str, what: str) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    Volume(volume).join("c1").leave()
    (volume / which).rename(tmp_path / "moved")
    if what == "file":
        (volume / which).write_text("")
    else:
        (volume / which).symlink_to(tmp_path / ("moved" if what == "link" else "nowhere"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PresenceError, match=r"\.replicas"):
        Volume(volume).join("c2")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_register_with_a_part_missing_is_told(tmp_path: Path) -> None:
    Volume(tmp_path).join("c1").leave()
    for file in (tmp_path / ".replicas/slots").iterdir():
        file.unlink()
    (tmp_path / ".replicas/slots").rmdir()
    with pytest.raises(PresenceError, match="not a whole register"):
        Volume(tmp_path).join("c1")
    assert os.listdir(tmp_path) == [".replicas"]


def test_an_empty_register_is_made_whole(tmp_path: Path) -> None:
    (tmp_path / ".replicas").mkdir(0o700)
    assert Volume(tmp_path).join("c1").slot == 0
    assert (tmp_path / ".replicas").stat().st_mode & 0o7777 == 0o1777


def test_what_lies_there_does_not_end_the_status(names: Path, tmp_path: Path) -> None:
    (names / "c1.json").write_text(json.dumps({**GOOD, "purpose": "\x1b[31m\ud800\n"}))
    code = "import sys; from sharedvol.cli import main; sys.exit(main(['status', sys.argv[1]]))"
    out = run_python(code, str(tmp_path), PYTHONIOENCODING="ascii")
    assert "\x1b" not in out
    assert "\\x1b[31m\\ud800\\n" in out
