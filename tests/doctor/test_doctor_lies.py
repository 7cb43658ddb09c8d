"""No line of the doctor is one that cannot fail: each is not ok where a lie is planted, and ok where none is."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.doctor.doctor_scenes import (
    Look,
    daemons,
    examined,
    lying,
    no_inotify,
    not_ok,
    on,
    only,
    open_to_all,
    read_only,
    small_tmpfs,
    synchronous,
    verdicts,
    with_foreign_files,
    with_mount_below,
)
from support.processes import wait_until

from sharedvol.doctor.advice import CATALOGUE
from sharedvol.doctor.examination import BETWEEN, EXPERIMENTS

FUSE = {"mount.type": "degraded", "publish.unnamed": "degraded"}
"""What even an honest file system of the library has."""

NOT_ATOMIC = "publish.rename"  # the library opens by path what the kernel found by inode: between the two it is gone

LIES: dict[str, tuple[Look, dict[str, str]]] = {
    "grants": (
        lying("grants"),
        {f"locks.{name}": "unsafe" for name in ("flock", "posix", "ofd", "both", "count", "wake", "kill")},
    ),
    "refuses": (
        lying("refuses"),
        {
            **{
                f"locks.{name}": "degraded"
                for name in ("flock", "posix", "ofd", "both", "families", "count", "wake", "kill")
            },
            "publish.link": "degraded",
            "owner.mode": "degraded",
            "names.unicode": "degraded",
            "names.special": "degraded",
            "names.long": "degraded",
            "clock.precision": "degraded",
            "data.mmap": "degraded",
        },
    ),
    "twists": (
        lying("twists"),
        {
            "space.bytes": "unsafe",
            "space.inodes": "unsafe",
            "owner.identity": "degraded",
            "owner.mode": "degraded",
            "names.case": "degraded",
            "names.unicode": "degraded",
            "names.special": "degraded",
            "names.symlink": "unsafe",
            "clock.precision": "degraded",
            "clock.skew": "unsafe",
            "clock.order": "degraded",
            "publish.link": "unsafe",
            "publish.rename": "unsafe",
            "publish.noreplace": "unsafe",
            "publish.visible": "degraded",
            "durable.file": "unsafe",
            "durable.directory": "unsafe",
            "data.append": "unsafe",
        },
    ),
    "forgets": (
        lying("forgets"),
        {"publish.visible": "unsafe", "names.unicode": "degraded", "names.special": "degraded"},
    ),
}

HANGS = {
    "mount.type": "degraded",
    "locks.families": "degraded",
    "locks.wake": "unsafe",
    "locks.kill": "unsafe",
    "durable.file": "unsafe",
}
"""Of the one that hangs."""

SCENES: dict[str, tuple[Look, dict[str, str]]] = {
    "mount below": (with_mount_below, {"mount.subdirectories": "degraded"}),
    "open to all": (open_to_all, {"owner.directory": "degraded", "owner.umask": "degraded"}),
    "no inotify": (no_inotify, {"events.inotify": "degraded"}),
    "sync": (synchronous, {"mount.writable": "degraded", "space.bytes": "degraded"}),
    "ext4": (on("ext4"), {"space.bytes": "degraded"}),
    "tmpfs": (on("tmpfs"), {"mount.type": "degraded"}),
    "overlay": (on("overlay"), {"mount.type": "degraded", "space.bytes": "degraded"}),
    "xfs": (on("xfs"), {}),
    "btrfs": (on("btrfs"), {"space.bytes": "degraded"}),
}
"""Each with exactly what is not ok; the file systems are small, so that few bytes are free."""

ROOMLESS: dict[str, tuple[Look, dict[str, str]]] = {
    "read-only": (read_only, {"mount.writable": "degraded", "owner.write": "degraded"}),
    "no inodes": (
        small_tmpfs("nr_inodes=2"),
        {"mount.type": "degraded", "owner.write": "degraded", "space.inodes": "unsafe"},
    ),
    "not ours": (with_foreign_files, {"owner.write": "degraded", "owner.foreign": "degraded"}),
}
"""Where the doctor can write nothing."""

THROUGH = {"through.events.inotify": "degraded", "through.events.lease": "unsafe", "through.locks.flock": "unsafe"}
ELSEWHERE = {
    "through.same": "test_another_directory_is_told_from_another_mount",
    "peer.identity": "test_two_of_one_name_are_unsafe",
    "peer.kernel": "test_another_kernel_is_degraded",
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_file_system_is_found_out(name: str, tmp_path: Path) -> None:
    look, expected = LIES[name]
    report, left = examined(tmp_path, look)
    found = not_ok(report)
    found.pop(NOT_ATOMIC, None) if NOT_ATOMIC not in expected else None
    tried = verdicts(report).keys()
    assert found == {id: verdict for id, verdict in (FUSE | expected).items() if id in tried}
    assert expected.keys() <= tried
    assert left == []


def test_a_file_system_that_hangs_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Its calls answer late, and so long a process waits in the kernel, whatever signal it gets."""
    for patience in (0.5, 2.0, 5.0):  # where the machine is so busy that honest steps take as long, once more
        place = tmp_path / str(patience)
        place.mkdir()
        report, left = examined(place, lying("clings", 2.4 * patience), patience=patience)
        found = not_ok(report)
        if found == HANGS:
            break
    assert found == HANGS
    assert left == []
    hung = report.of("durable.file")
    assert hung is not None
    assert "hangs in the kernel and cannot be killed" in hung.detail


def test_an_honest_file_system_in_user_space_is_believed(tmp_path: Path) -> None:
    report, left = examined(tmp_path, lying("honest"))
    found = not_ok(report)
    found.pop(NOT_ATOMIC, None)
    assert found == FUSE
    assert left == []
    # Its mount is in a namespace that it is in itself: nothing but its end takes both away.
    wait_until(lambda: daemons(tmp_path) == [], "the end of what was mounted")


@pytest.mark.parametrize("name", SCENES)
def test_each_file_system_has_exactly_these_lines(name: str, tmp_path: Path) -> None:
    look, expected = SCENES[name]
    report, left = examined(tmp_path, look)
    assert not_ok(report) == expected
    assert left == []


@pytest.mark.parametrize("name", ROOMLESS)
def test_where_nothing_can_be_written_the_rest_is_unknown_and_says_why(name: str, tmp_path: Path) -> None:
    look, expected = ROOMLESS[name]
    report, left = examined(tmp_path, look)
    assert not_ok(report) == {**expected, **{experiment.id: "unknown" for experiment in EXPERIMENTS}}
    finding = report.of("locks.flock")
    assert finding is not None
    assert "the directory is not writable" in finding.detail
    assert left == []


def test_a_full_volume_makes_what_needs_space_unknown_and_nothing_worse(tmp_path: Path) -> None:
    report, left = examined(tmp_path, small_tmpfs("size=16k"))
    found = not_ok(report)
    assert found["data.append"] == "unknown"
    assert found["space.bytes"] == "degraded"
    assert set(found.values()) <= {"degraded", "unknown"}
    assert verdicts(report)["locks.flock"] == "ok"
    assert left == []


def test_what_two_mounts_keep_from_each_other_is_found_out(tmp_path: Path) -> None:
    """Beneath a file system in user space nobody sees its locks, its events and its open files."""
    report, left = examined(tmp_path, lying("honest"), through=str(tmp_path / "back"))
    found = not_ok(report)
    assert THROUGH.items() <= found.items()
    assert verdicts(report)["through.same"] == "ok"
    assert left == []


def _one_with(ids: str) -> Look:
    def look(place: Path) -> Path:
        only(ids)
        return place / "one"

    return look


def test_another_bind_mount_is_the_same_to_every_experiment(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").symlink_to("one")
    report, _ = examined(tmp_path, _one_with("locks.wake"), through=str(tmp_path / "two"))
    assert not_ok(report) == {}
    assert {f"through.{experiment.id}" for experiment in BETWEEN} <= verdicts(report).keys()


def test_another_directory_is_told_from_another_mount(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    report, _ = examined(tmp_path, _one_with("owner.mode"), through=str(tmp_path / "two"))
    assert not_ok(report) == {"through.same": "unknown"}


def test_every_line_has_a_test_in_which_it_is_not_ok() -> None:
    planted: set[str] = set(FUSE)
    planted |= HANGS.keys()
    for _, expected in LIES.values():
        planted |= expected.keys()
    for _, expected in (*SCENES.values(), *ROOMLESS.values()):
        planted |= expected.keys()
    planted |= {id.removeprefix("through.") for id in THROUGH}
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_doctor_*.py"))
    assert all(f"def {test}(" in tests for test in ELSEWHERE.values())
    assert planted | ELSEWHERE.keys() == CATALOGUE.keys()
