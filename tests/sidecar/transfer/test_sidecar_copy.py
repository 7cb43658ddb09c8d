"""A destination on another file system, or behind another mount of the same one: copies stand for links."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.processes import has_permission_to_mount
from support.sidecar.volume import Volume, fail_once

from sharedvol_sidecar.catalog.catalog import Catalog, Filters
from sharedvol_sidecar.errors import DestinationError
from sharedvol_sidecar.transfer import staging
from sharedvol_sidecar.transfer.release import ClaimRelease


def test_copy_keeps_content_mode_and_time(across: Volume) -> None:
    path = across.write("c1/results/a.bin", "x" * 1000)
    path.chmod(0o4640)
    os.utime(path, ns=(10**18, 10**18 + 123_456_789))
    tally = across.one_pass(template="{name}")
    assert (tally.collected, tally.copied) == (1, 1)
    info = os.stat(across.collected / "a.bin")
    assert (info.st_mode & 0o7777, info.st_mtime_ns, info.st_nlink) == (0o640, 10**18 + 123_456_789, 1)
    assert across.files() == {"a.bin": "x" * 1000}
    assert across.waiting() == {} and across.claims() == [] and across.staged() == []


@pytest.mark.parametrize("count", [3, staging._FEW + 2], ids=["few", "many"])
def test_files_of_one_name_are_all_kept_though_they_are_equal(across: Volume, count: int) -> None:
    for number in range(count):
        os.utime(across.write(f"c{number}/results/a", "same"), (1, 1))
    tally = across.drain(template="{name}")
    assert (tally.collected, tally.kept_both) == (count, count - 1)
    assert across.bag() == Counter({"same": count})


def test_empty_and_larger_than_a_chunk(across: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sharedvol_sidecar.fs.content.CHUNK", 7)
    across.write("c1/results/empty")
    across.write("c1/results/large", "0123456789" * 10)
    across.drain()
    assert across.bag() == Counter(["", "0123456789" * 10])


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL])
def test_without_unnamed_files_a_named_part_is_used(
    across: Volume, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open
    refused: list[int] = []

    def without(path: str, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            refused.append(number)
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", without)
    across.write("c1/results/a", "x")
    assert across.one_pass().copied == 1
    assert refused and across.bag() == Counter(["x"])
    assert across.staged() == []


def fail_always(function: Callable[..., Any], number: int, when: Callable[..., bool]) -> Callable[..., Any]:
    def failing(*args: Any, **options: Any) -> Any:
        if when(*args, **options):
            raise OSError(number, os.strerror(number))
        return function(*args, **options)

    return failing


FAULTS: list[tuple[str, Callable[..., bool]]] = [
    ("write", lambda *a, **o: "/.sharedvol/" in os.readlink(f"/proc/self/fd/{a[0]}")),
    ("fchmod", lambda *a, **o: True),
    ("fsync", lambda *a, **o: True),
    ("link", lambda *a, **o: True),
    ("link", lambda *a, **o: "src_dir_fd" in o),
]


@pytest.mark.parametrize(("name", "when"), FAULTS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(FAULTS)])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_fault_of_the_destination_leaves_all_for_the_next_pass(
    across: Volume, name: str, when: Callable[..., bool], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = across.collector()
    across.write("c1/results/first", "first")
    collector.run_pass()  # makes the lock files
    written = {f"c1/results/{n}": str(n) * 10 for n in range(4)}
    for path, content in written.items():
        across.write(path, content)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail_always(getattr(os, name), number, when))
        with pytest.raises(DestinationError, match=errno.errorcode[number]):
            collector.run_pass()
    assert across.waiting() == written and across.bag() == Counter(["first"])
    assert collector.run_pass().collected == 4
    collector.close()
    assert across.bag() == Counter(["first", *written.values()])
    assert across.staged() == []


@pytest.mark.parametrize(("name", "when"), FAULTS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(FAULTS)])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EOVERFLOW])
@pytest.mark.parametrize("count", [4, staging._FEW + 2], ids=["few", "many"])
def test_fault_of_one_file_stops_no_other(
    across: Volume, name: str, when: Callable[..., bool], number: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = across.collector()
    across.write("c1/results/first", "first")
    collector.run_pass()  # makes the lock files
    written = {f"c1/results/{n}": str(n) * 10 for n in range(count)}
    for path, content in written.items():
        across.write(path, content)
    with monkeypatch.context() as patch:
        if name == "fsync":  # of a copy; where there are many, one call syncs them all, and fails
            patch.setattr(staging, "sync_filesystem", fail_always(staging.sync_filesystem, number, lambda *a: True))
            when = _is_of_a_copy
        patch.setattr(os, name, fail_once(getattr(os, name), OSError(number, os.strerror(number)), when))
        tally = collector.run_pass()
    assert (tally.collected, tally.failed) == (count - 1, 1)
    assert tally.no_room == (number == errno.ENOSPC)
    assert len(across.waiting()) == 1
    assert collector.run_pass().collected == 1
    collector.close()
    assert across.bag() == Counter(["first", *written.values()])
    assert across.staged() == [] and across.claims() == []


def _is_of_a_copy(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def test_copy_that_a_dead_mover_left_is_not_trusted_when_the_claim_has_changed(across: Volume) -> None:
    from support.processes import Child

    across.write("c1/results/a", "x")

    def die(_: Any) -> None:
        ClaimRelease._remove = lambda self, done: os.kill(os.getpid(), 9)  # type: ignore
        across.one_pass(template="{name}")

    child = Child(die)
    assert child.wait() == -9
    child.kill()
    with child:
        assert across.files() == {"a": "x"}
    (claim,) = (across.spool / ".sharedvol" / "claims").rglob("a")
    with open(claim, "a") as late:
        late.write("y")
    across.drain(template="{name}")
    assert across.files() == {"a": "xy"}
    assert across.claims() == [] and across.staged() == []


TWO_MOUNTS = """
import os, subprocess, sys
from pathlib import Path
from support.sidecar.volume import Volume

from sharedvol_sidecar.catalog.catalog import Catalog, Filters
top = Path(sys.argv[1])
for name in ("one", "two"):
    (top / name).mkdir()
    subprocess.run(["mount", "--bind", top / "disk", top / name], check=True)
assert os.stat(top / "one").st_dev == os.stat(top / "two").st_dev
volume = Volume(top / "one" / "spool", top / "two" / "collected", template="{base}")
for number in range(3):
    volume.write(f"c{number}/results/a", str(number))
tally = volume.drain()
assert (tally.collected, tally.copied) == (3, 3), tally
assert sorted(volume.bag()) == ["0", "1", "2"]
assert not volume.claims() and not volume.staged() and not volume.waiting()
(top / "one/spool/c1/results/mount").mkdir()
(top / "more").mkdir()
(top / "more" / "deep").write_text("deep")
subprocess.run(["mount", "--bind", top / "more", top / "one/spool/c1/results/mount"], check=True)
(top / "one/spool/c1/results/ok").write_text("ok")
tally = volume.one_pass()
assert (tally.collected, tally.failed) == (1, 1), tally
assert "another mount" in volume.told("failed")[0].detail
assert (top / "more" / "deep").read_text() == "deep"
print("passed")
"""


@pytest.mark.skipif(not has_permission_to_mount(), reason="mounts need root")
def test_two_mounts_of_one_file_system(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", sys.executable, "-c", TWO_MOUNTS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip().endswith("passed"), done.stderr


@pytest.mark.parametrize("where", ["volume", "across"])
def test_a_claim_that_is_changed_on_another_day_keeps_its_one_name(where: str, request: pytest.FixtureRequest) -> None:
    """Its mover died after the name was given, and a late writer came past midnight."""
    from support.processes import Child

    volume: Volume = request.getfixturevalue(where)
    os.utime(volume.write("c1/results/a", "x"), (1_000_000_000, 1_000_000_000))

    def die(_: Any) -> None:
        ClaimRelease._remove = lambda self, done: os.kill(os.getpid(), 9)  # type: ignore
        volume.one_pass()

    child = Child(die)
    assert child.wait() == -9
    child.kill()
    with child:
        assert volume.files() == {"results/2001-09-09/c1/a": "x"}
    (claim,) = (volume.spool / ".sharedvol" / "claims").rglob("a")
    with open(claim, "a") as late:
        late.write("y")
    os.utime(claim, (1_100_000_000, 1_100_000_000))
    volume.drain()
    assert volume.files() == {"results/2001-09-09/c1/a": "xy"}
    assert [row.path for row in Catalog.open("", volume.collected).rows(Filters())] == ["results/2001-09-09/c1/a"]
    assert volume.claims() == [] and volume.staged() == []


def test_a_link_whose_answer_was_lost_is_not_made_again(across: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    across.write("c1/results/a", "x")
    collector = across.collector(template="{name}")
    real = os.link
    lost: list[str] = []

    def link(source: str, target: str, **options: Any) -> None:
        real(source, target, **options)
        if target == "a":
            lost.append(target)
            raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        assert collector.run_pass().collected == 1
    collector.run_pass()
    collector.close()
    assert lost == ["a"]
    assert across.files() == {"a": "x"} and across.waiting() == {}
