"""Who am I: names that are safe, never shared and never a constant; tokens that no two processes have."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.processes import LIMIT, has_permission_to_mount, run_forked, run_python

from sharedvol import IdentityError, container_id, identity, whoami, worker_token
from sharedvol.identity import incarnation, sanitize

SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
TOKEN = re.compile(r"[0-9a-z]{13}", re.ASCII)
PRINT_TOKEN = "import sharedvol; print(sharedvol.worker_token())"

CLEAN = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,70}", fullmatch=True)
LOOKALIKE = st.one_of(
    st.from_regex(r"[a-z-]{0,5}_h[0-9a-f]{16}", fullmatch=True),
    st.from_regex(r"([a-z]{1,3}_)?u[a-z0-9]{13}-[0-9]{1,3}", fullmatch=True),
)
RAW = st.one_of(st.text(min_size=1, max_size=80), CLEAN, LOOKALIKE)

HOSTILE = [
    "../x",
    "a/b",
    "/etc/passwd",
    "..",
    ".",
    ".hidden",
    "-rf",
    "two\nlines",
    "nul\0byte",
    "tab\there",
    "a b",
    "$(reboot)",
    "x" * 300,
    "ü" * 300,
    "контейнер",
    "🦆",
    "~",
    "a\\b",
]


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No HOSTNAME, no host name, no container id."""
    monkeypatch.delenv("HOSTNAME", raising=False)
    monkeypatch.setattr(identity, "_kernel_hostname", lambda: "")
    monkeypatch.setattr(identity, "_mountinfo_id", lambda: "")
    return monkeypatch


def test_hostname_names_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "3f9c0d1e2b4a")
    assert container_id() == "3f9c0d1e2b4a"
    me = whoami()
    assert (me.container, me.source, me.raw) == ("3f9c0d1e2b4a", "HOSTNAME", "3f9c0d1e2b4a")
    assert (me.worker, me.pid, me.incarnation) == (worker_token(), os.getpid(), incarnation())
    assert me.as_dict()["container"] == "3f9c0d1e2b4a"


def test_hostname_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "one")
    assert container_id() == "one"
    monkeypatch.setenv("HOSTNAME", "two")
    assert container_id() == "two"


def test_a_set_hostname_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run() -> str:
        raise AssertionError("looked further")

    monkeypatch.setenv("HOSTNAME", "enough")
    monkeypatch.setattr(identity, "_kernel_hostname", must_not_run)
    monkeypatch.setattr(identity, "_mountinfo_id", must_not_run)
    assert container_id() == "enough"


SHARED_NAMES = ["", " ", "\t\n", "default", "Default", " default ", "localhost", "LOCALHOST", "localhost.localdomain"]


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_a_shared_name_is_passed_over_for_the_host_name(nothing_else: pytest.MonkeyPatch, name: str) -> None:
    nothing_else.setenv("HOSTNAME", name)
    nothing_else.setattr(identity, "_kernel_hostname", lambda: "web-1")
    me = whoami()
    assert (me.container, me.source) == ("web-1", "hostname")


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_a_shared_host_name_is_passed_over_for_mountinfo(nothing_else: pytest.MonkeyPatch, name: str) -> None:
    nothing_else.setattr(identity, "_kernel_hostname", lambda: name)
    nothing_else.setattr(identity, "_mountinfo_id", lambda: "0123456789ab")
    me = whoami()
    assert (me.container, me.source) == ("0123456789ab", "mountinfo")


def test_nothing_is_an_error_that_says_what_to_set(nothing_else: pytest.MonkeyPatch) -> None:
    with pytest.raises(IdentityError, match="set HOSTNAME"):
        container_id()
    nothing_else.setenv("HOSTNAME", "default")
    with pytest.raises(IdentityError, match="set HOSTNAME"):
        whoami()


MOUNTINFO_ID = "3f9c0d1e2b4a" + "5" * 52
PODMAN = "/var/lib/containers/overlay-containers"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"700 690 8:1 /var/lib/docker/containers/{MOUNTINFO_ID}/hostname /etc/hostname rw - ext4 d rw", MOUNTINFO_ID),
        (
            f"700 690 8:1 {PODMAN}/{MOUNTINFO_ID}/userdata/hosts /etc/hosts rw - ext4 d rw",
            MOUNTINFO_ID,
        ),
        (f"700 690 8:1 /docker/containers/{MOUNTINFO_ID}/resolv.conf /srv/resolv.conf rw - ext4 d rw", ""),
        ("700 690 8:1 / / rw - ext4 d rw", ""),
    ],
)
def test_the_container_id_is_found_in_mountinfo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, expected: str
) -> None:
    real = Path.read_text

    def read_text(path: Path, *args: str, **options: str) -> str:
        return line + "\n" if str(path) == "/proc/self/mountinfo" else real(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert identity._mountinfo_id() == expected[:12]


@pytest.mark.parametrize("raw", HOSTILE)
def test_a_hostile_name_becomes_a_safe_one(raw: str) -> None:
    assert SAFE.fullmatch(sanitize(raw))
    assert sanitize(raw) != raw


@pytest.mark.parametrize("raw", [raw for raw in HOSTILE if "\0" not in raw])
def test_a_hostile_hostname_becomes_a_safe_container(monkeypatch: pytest.MonkeyPatch, raw: str) -> None:
    monkeypatch.setenv("HOSTNAME", raw)
    assert container_id() == sanitize(raw)
    assert whoami().raw == raw


def test_bytes_that_are_no_text_become_a_safe_container() -> None:
    code = "import os; os.environb[b'HOSTNAME'] = b'\\xff\\xfe'; import sharedvol; print(sharedvol.container_id())"
    assert SAFE.fullmatch(run_python(code))


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(IdentityError):
        sanitize("")


@given(RAW)
def test_the_output_is_always_safe(raw: str) -> None:
    assert SAFE.fullmatch(sanitize(raw))


@given(RAW, RAW)
def test_two_names_never_become_one(one: str, other: str) -> None:
    assert (sanitize(one) == sanitize(other)) == (one == other)


@given(RAW)
def test_what_was_made_safe_is_no_other_name(raw: str) -> None:
    made = sanitize(raw)
    assert (sanitize(made) == made) == (made == raw), "a container whose raw name is `made` would collide"


@pytest.mark.parametrize("raw", ["web", "web-1", "3f9c0d1e2b4a", "my_host", "api.example.com", "x" * 64, "_x"])
def test_an_ordinary_name_stays(raw: str) -> None:
    assert sanitize(raw) == raw


def test_the_longest_name_has_64_bytes() -> None:
    assert sanitize("x" * 64) == "x" * 64
    assert len(sanitize("x" * 65)) <= 64
    assert sanitize("x" * 65) != sanitize("x" * 66)


def test_the_token_is_of_13_letters_and_stays() -> None:
    assert TOKEN.fullmatch(worker_token())
    assert worker_token() == worker_token()


def test_threads_share_the_token() -> None:
    identity._worker.renew()  # so that the threads race to make it
    found: list[str] = []
    barrier = threading.Barrier(8)

    def look() -> None:
        barrier.wait(LIMIT)
        found.append(worker_token())

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert len(found) == 8
    assert set(found) == {worker_token()}


@pytest.mark.usefixtures("any_fork")
def test_children_and_grandchildren_have_tokens_of_their_own() -> None:
    def family() -> list[str]:
        return [worker_token(), run_forked(worker_token), run_forked(worker_token)]

    tokens = [worker_token(), *run_forked(family), *run_forked(family)]
    assert len(set(tokens)) == 7
    assert worker_token() == tokens[0], "the parent's token changed with its children"


@pytest.mark.usefixtures("any_fork")
def test_a_fork_beside_a_thread_that_makes_the_token_does_not_hang() -> None:
    with identity._worker._lock:  # as a thread that was making it when the process forked
        token = run_forked(worker_token)
    assert token != worker_token()


def test_programs_with_one_hostname_have_tokens_of_their_own() -> None:
    tokens = {run_python(PRINT_TOKEN, HOSTNAME="same") for _ in range(3)}
    assert len(tokens | {worker_token()}) == 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pool_workers_have_tokens_of_their_own(method: str) -> None:
    context = multiprocessing.get_context(method)
    with context.Pool(1) as one, context.Pool(1) as other:
        tokens = {pool.apply_async(worker_token).get(LIMIT) for pool in (one, other)}
        for pool in (one, other):
            pool.close()
            pool.join()
    assert len(tokens | {worker_token()}) == 3


@pytest.mark.skipif(not has_permission_to_mount(), reason="needs root, to make a PID namespace")
def test_a_restart_with_the_same_pid_has_another_token() -> None:
    code = "import os, sharedvol; print(os.getpid(), sharedvol.worker_token())"
    runs = [
        subprocess.run(
            ["unshare", "--pid", "--fork", sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=LIMIT,
        ).stdout.split()
        for _ in range(2)
    ]
    assert [pid for pid, _ in runs] == ["1", "1"]
    assert runs[0][1] != runs[1][1]


def test_all_processes_of_one_run_have_its_incarnation() -> None:
    here = incarnation()
    assert here is None or re.fullmatch("[0-9a-f]{16}", here)
    assert run_forked(incarnation) == here
    assert run_python("from sharedvol.identity import incarnation; print(incarnation())") == str(here)


def test_no_incarnation_where_proc_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(path: Path) -> str:
        raise PermissionError(13, "hidden", str(path))

    monkeypatch.setattr(Path, "read_text", hidden)
    assert incarnation() is None
    assert whoami().incarnation is None
