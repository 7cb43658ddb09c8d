"""``sharedvol status``, run as people run it: by hand, by scripts, on the host and in a container."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from support.namespaces import NAMESPACES, container
from support.processes import LIMIT, Child, has_permission_to_mount, run_forked, wait_blocked

from sharedvol import FileLock, LockTimeout, Volume, container_path, log_path, unique_path
from sharedvol.cli.status import EXIT_CODES, shown
from sharedvol.locks.file import proc_locks as holders
from sharedvol.volume import status

OTHER = "a process in another container"


def run(*arguments: str, before: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-m", "sharedvol.cli", "status", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, **environment},
    )


def found(volume: Path, *arguments: str, before: tuple[str, ...] = ()) -> dict[str, Any]:
    done = run(str(volume), "--json", *arguments, before=before)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def locks(answer: dict[str, Any]) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    return {lock["path"]: (lock["state"], lock["holders"]) for lock in answer["locks"]}


def write(path: Path, content: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


# Replicas and slots


def test_replicas_alive_and_dead_and_their_slots(tmp_path: Path) -> None:
    with container(tmp_path, "c1") as first, container(tmp_path, "c2") as second:
        assert (first.join("purpose='web'"), second.join()) == (0, 1)
        first.kill()
        answer = found(tmp_path)
        assert answer["directory"] == str(tmp_path)
        assert {one["name"]: (one["alive"], one["slot"], one["purpose"]) for one in answer["replicas"]} == {
            "c1": (False, 0, "web"),
            "c2": (True, 1, ""),
        }
        assert answer["slots"] == [{"slot": 1, "replica": "c2"}]
        assert answer["complete"] is True
        text = run(str(tmp_path)).stdout
        assert "1 alive, 1 dead" in text
        c1, c2 = (next(line.split() for line in text.splitlines() if line.startswith(f"  {c}")) for c in ("c1", "c2"))
        assert c1[:4] == ["c1", "dead", "slot", "0"] and c1[-1] == "web"
        assert c2[:4] == ["c2", "alive", "slot", "1"]


def test_a_slot_that_nobody_known_holds_is_told(tmp_path: Path) -> None:
    with Volume(tmp_path).join("c1"):
        (tmp_path / ".replicas/names/c1.json").unlink()
        assert found(tmp_path)["slots"] == [{"slot": 0, "replica": None}]
        text = run(str(tmp_path)).stdout
        assert "slots held by unknown replicas: 0" in text
        assert "slot ?" in text


def test_a_volume_that_nobody_joined_is_fine(tmp_path: Path) -> None:
    answer = found(tmp_path)
    assert (answer["replicas"], answer["slots"], answer["locks"], answer["backlog"]) == ([], [], [], [])
    assert "0 alive, 0 dead" in run(str(tmp_path)).stdout
    assert os.listdir(tmp_path) == []


# Locks


def test_locks_are_held_by_processes_of_replicas(tmp_path: Path) -> None:
    write(tmp_path / "locks/free.lock", "")
    with container(tmp_path, "c1") as one:
        one.join()
        one.ask(f"globals().update(lock=FileLock({str(tmp_path / 'locks/index.lock')!r})) or lock.acquire() is None")
        one.ask(f"globals().update(read=FileLock({str(tmp_path / 'r.lock')!r}, shared=True)) or read.acquire() is None")
        assert locks(found(tmp_path)) == {
            ".replicas/join.lock": ("free", []),
            "locks/free.lock": ("free", []),
            "locks/index.lock": ("exclusive", [{"pid": one.pid, "replica": "c1"}]),
            "r.lock": ("shared", [{"pid": one.pid, "replica": "c1"}]),
        }
        text = run(str(tmp_path)).stdout
        assert f"locks/index.lock  exclusive, by process {one.pid} of c1" in text
        assert "2 of 4 lock files are free" in text


@contextmanager
def holding(kind: str, path: Path) -> Iterator[None]:
    def work(connection: Connection) -> None:
        with open(path, "r+b") as file:
            if kind == "flock":
                fcntl.flock(file, fcntl.LOCK_EX)
            elif kind == "fcntl":
                fcntl.lockf(file, fcntl.LOCK_EX)
            else:
                lock = FileLock(path)
                lock.acquire()
            connection.send("held")
            connection.recv()

    path.write_text("")
    with Child(work) as child:
        assert child.receive() == "held"
        yield
        child.send("end")


@pytest.mark.parametrize("kind", ["flock", "fcntl", "both"])
def test_a_lock_that_another_pid_namespace_holds_is_held_by_a_process_that_is_not_seen(
    tmp_path: Path, kind: str
) -> None:
    if not has_permission_to_mount():
        pytest.skip("needs permission to make namespaces (root with CAP_SYS_ADMIN)")
    path = tmp_path / "a.lock"
    with holding(kind, path):
        outside = found(tmp_path)
        inside = found(tmp_path, before=("unshare", *NAMESPACES))
        text = run(str(tmp_path), before=("unshare", *NAMESPACES)).stdout
    assert locks(outside)["a.lock"][0] == "exclusive"
    assert len(locks(outside)["a.lock"][1]) == 1
    assert locks(inside)["a.lock"] == ("exclusive", [])
    assert f"exclusive, by {OTHER}" in text
    assert locks(found(tmp_path, before=("unshare", *NAMESPACES)))["a.lock"] == ("free", [])


def test_who_waits_for_a_lock_does_not_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with holding("both", path), Child(lambda connection: FileLock(path).acquire()) as waiter:
        wait_blocked(path)
        (holder,) = locks(found(tmp_path))["a.lock"][1]
        assert holder["pid"] != waiter.pid
        waiter.kill()


def test_looking_makes_nobodys_try_fail_where_the_kernel_tells_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.readlink("/proc/self/ns/pid") != holders._HOSTS_PIDS:
        monkeypatch.setattr(holders, "_HOSTS_PIDS", os.readlink("/proc/self/ns/pid"))
    write(tmp_path / "a.lock", "")
    tried = []
    monkeypatch.setattr(fcntl, "flock", lambda *_: tried.append("flock"))
    assert [(lock.path, lock.state) for lock in status.read_status(str(tmp_path)).locks] == [("a.lock", "free")]
    assert tried == []


def test_in_a_container_a_look_delays_nobody_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared lock that is tried there is dropped at once."""
    monkeypatch.setattr(holders, "_HOSTS_PIDS", "another")
    write(tmp_path / "a.lock", "")
    assert [lock.state for lock in status.read_status(str(tmp_path)).locks] == ["free"]

    def take() -> bool:
        try:
            FileLock(tmp_path / "a.lock", timeout=0).acquire()
        except LockTimeout:
            return False
        return True

    assert run_forked(take) is True


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_what_is_named_like_a_lock_and_is_no_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.lock"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        write(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    assert found(tmp_path)["locks"] == []


def test_links_are_not_followed_and_the_depth_is_bounded(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    write(volume / "1/2/3/near.lock")
    write(volume / "1/2/3/4/5/far.lock")
    write(tmp_path / "outside/a.lock")
    write(tmp_path / "outside/results/r.json")
    (volume / "link").symlink_to(tmp_path / "outside")
    (volume / "results").symlink_to(tmp_path / "outside/results")
    answer = found(volume)
    assert [lock["path"] for lock in answer["locks"]] == ["1/2/3/near.lock"]
    assert answer["backlog"] == []


def test_the_volume_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    write(tmp_path / "volume/c1/results/a.json")
    (tmp_path / "link").symlink_to("volume")
    assert len(found(tmp_path / "link")["backlog"]) == 1


def test_too_much_to_look_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "LOCK_ENTRIES", 3)
    for number in range(5):
        write(tmp_path / f"{number}.lock")
    looked = status.read_status(str(tmp_path))
    assert (len(looked.locks), looked.complete) == (3, False)


# Backlog


def test_backlog_is_counted_by_container_in_both_layouts(tmp_path: Path) -> None:
    write(tmp_path / "c1/results/a.json", "12345")
    write(tmp_path / "c1/results/deep/er/b.json", "123")
    write(tmp_path / "c1/logs/a.log", "1")
    write(tmp_path / "c2/other/a.json", "1")
    write(container_path(tmp_path / "results", "job.json", container="c1"), "12")
    write(log_path(tmp_path / "logs", container="c3"), "1234")
    write(unique_path(tmp_path / "results", "job.json"), "")
    write(tmp_path / "results/plain.json", "1")
    write(tmp_path / "results/x_..json", "1")
    write(tmp_path / "results/.hidden_c1.json", "1")
    write(tmp_path / "c1/.hidden/results/a.json", "1")
    (tmp_path / "c1/results/link.json").symlink_to("a.json")
    os.mkfifo(tmp_path / "c1/results/fifo.json")
    counted = {(one["container"], one["kind"]): (one["files"], one["bytes"]) for one in found(tmp_path)["backlog"]}
    (own,) = [container for container, _ in counted if container not in ("c1", "c2", "c3", None)]
    assert counted == {
        ("c1", "logs"): (1, 1),
        ("c1", "results"): (3, 10),
        ("c3", "logs"): (1, 4),
        (own, "results"): (1, 0),
        (None, "results"): (2, 2),
    }
    assert [one["kind"] for one in found(tmp_path, "--kinds", "other")["backlog"]] == ["other"]
    text = run(str(tmp_path)).stdout
    assert "8 files wait" in text
    assert "(unknown container)" in text


def test_backlog_says_whether_its_container_lives(tmp_path: Path) -> None:
    for name in ("c1", "c2", "c3"):
        write(tmp_path / name / "results/a.json")
    Volume(tmp_path).join("c2").leave()
    with Volume(tmp_path).join("c1"):
        lines = [line.split() for line in run(str(tmp_path)).stdout.splitlines() if line.endswith("bytes")]
    assert [line[:2] for line in lines] == [["c1", "alive"], ["c2", "dead"], ["c3", "never"]]


def test_a_file_that_is_collected_meanwhile_is_left_out(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / f"c1/results/{number}.json")

    def collect() -> None:
        shutil.rmtree(tmp_path / "c1", ignore_errors=True)

    looked = status.read_status(str(tmp_path), tick=collect)
    assert looked.complete is True
    assert sum(one.files for one in looked.backlog) < 5


def test_a_directory_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "c1/results/a.json")
    write(tmp_path / "c2/results/a.json")
    opened = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("c1/results"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    looked = status.read_status(str(tmp_path))
    assert ([one.container for one in looked.backlog], looked.complete) == (["c2"], False)


# Words


def test_names_are_never_printed_raw(tmp_path: Path) -> None:
    bad = "\x1b[31mred\n\u202e\udcff"
    write(tmp_path / bad / "results/a.json")
    write(tmp_path / f"{bad}.lock", "")
    write(tmp_path / "café\\x1b/results/a.json")
    done = run(str(tmp_path), PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout) & {"\x1b", "\u202e"}
    assert "\\x1b[31mred\\n\\u202e\\udcff" in done.stdout
    assert "café\\\\x1b" in done.stdout
    assert run(str(tmp_path), PYTHONIOENCODING="ascii").returncode == 0
    assert {one["container"] for one in found(tmp_path)["backlog"]} == {bad, "café\\x1b"}


def test_shown_is_reversible() -> None:
    for text in ("plain", "é", "a\\nb", "a\nb", "\x1b\u202e\U000e0001"):
        assert shown(text).isprintable()
        assert shown(text).encode("latin-1", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize("missing", ["missing", "file", "file/below"])
def test_a_directory_that_is_none_is_66(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "file")
    done = run(str(tmp_path / missing))
    assert done.returncode == 66
    assert missing in done.stderr and "Traceback" not in done.stderr
    assert "\n  66 " in EXIT_CODES


@pytest.mark.parametrize("arguments", [(), ("a", "b"), (".", "--kinds", ""), (".", "--kinds", "a/b"), (".", "--nope")])
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).returncode == 2


def test_a_register_that_cannot_be_read_is_1(tmp_path: Path) -> None:
    write(tmp_path / ".replicas")
    done = run(str(tmp_path))
    assert done.returncode == 1
    assert ".replicas" in done.stderr and "Traceback" not in done.stderr


def test_every_exit_code_is_in_the_help_and_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs/presence.md").read_text()
    for code in ("0", "1", "2", "66"):
        assert f"\n  {code} " in run("--help").stdout
        assert f"| {code} |" in page


def test_many_replicas_are_listed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for number in range(30):
            stack.enter_context(Volume(tmp_path).join(f"c{number}"))
        answer = found(tmp_path)
    assert [one["slot"] for one in answer["slots"]] == list(range(30))
    assert {one["replica"] for one in answer["slots"]} == {f"c{number}" for number in range(30)}
