"""Which URL names which lock; and what is refused, without a word of the password."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from sharedvol import DatabaseError, FileLock, open_lock
from sharedvol.locks.mysql import NamedLock
from sharedvol.locks.redis import RedisLock

SECRET = "s3cret"
REDIS = f"redis://app:{SECRET}@127.0.0.1:1/0"
MYSQL = f"mysql://app:{SECRET}@127.0.0.1:1/shop"

FILES = {
    "file:///app/x": (None, "/app/x"),
    "file:///app/x.lock": (None, "/app/x.lock"),
    "FILE://localhost/app/x": (None, "/app/x"),
    "file:///app/a%20b/%C3%A9%3F": (None, "/app/a b/é?"),
    "file:///app/%2523": (None, "/app/%23"),
    "file:///app": ("a b", "/app/a b.lock"),
    "file:///app/": ("x", "/app/x.lock"),
    "file:///": ("x", "/x.lock"),
    "file:///app#x": (None, "/app/x.lock"),
    "file:///app#a%20b": (None, "/app/a b.lock"),
}


@pytest.mark.parametrize("url", FILES)
def test_a_file_url_is_the_lock_file_or_with_a_name_its_directory(url: str) -> None:
    name, path = FILES[url]
    lock = open_lock(url, name)
    assert isinstance(lock, FileLock)
    assert lock.path == Path(path)


@pytest.mark.parametrize(
    "scheme", ["mysql", "mysql+pymysql", "mysql+mysqldb", "mariadb", "mariadb+pymysql", "MySQL", "redis", "rediss"]
)
def test_a_server_url_wants_a_name_beside_it_or_as_its_fragment(scheme: str) -> None:
    url = f"{scheme}://app@127.0.0.1:1/0"
    for lock in (open_lock(url, "a b"), open_lock(f"{url}#a%20b")):
        assert isinstance(lock, RedisLock if scheme.startswith("redis") else NamedLock)
        assert "a b" in repr(lock) or "a%20b" in repr(lock)
    with pytest.raises(ValueError, match="a lock on a server needs a name"):
        open_lock(url)


def test_what_is_said_reaches_the_lock(tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}", REDIS, MYSQL):
        with pytest.raises(ValueError, match="timeout -1"):
            open_lock(url, "x", timeout=-1)
        with pytest.raises(ValueError, match="purpose has 201 characters"):
            open_lock(url, "x", purpose="x" * 201, fenced=True)


BAD_URLS = {
    "": "begins with its scheme",
    "/app/x": "begins with its scheme",
    "app/x": "begins with its scheme",
    f"app:{SECRET}@host": "begins with its scheme",
    f"app:{SECRET}@host://x": "begins with its scheme",
    "file:x": "begins with its scheme",
    "file:/app/x": "begins with its scheme",
    "ftp://host/x": "no locks are known of 'ftp://'",
    f"postgresql://app:{SECRET}@host/x": "no locks are known of 'postgresql://'",
    "sqlite:///x": "no locks are known of 'sqlite://'",
    "file://": "too few slashes",
    "file://app": "too few slashes",
    "file://./x": "names a host",
    "file://host/x": "names a host",
    f"file://app:{SECRET}@host/x": "names a host",
    "file:///app/x?mode=1": "a file has no options",
    "file:///app/%00": "no control characters",
    "file:///app/%0A": "no control characters",
    "file:///app/%ff": "not UTF-8",
    "file:///app/": "is a directory",
    "file:///": "is a directory",
    "file:///app/a b": "spaces or control characters",
    "file:///app#": "name is empty",
    "file:///app#..": "must not begin with",
    "file:///app#a%2Fb": "without slashes",
    "file:///app#../x": "before an @ or a slash",
    f"{MYSQL}#": "name is empty",
    f"{MYSQL}#a%00b": "control characters",
    f"{MYSQL}#a%C2%9Bb": "control characters",
    f"{MYSQL}#a%ff": "not UTF-8",
    f"{MYSQL} #a": "spaces or control characters",
    f"mysql://app:#{SECRET}@host/shop": "write it as %23",
    f"redis://app:#{SECRET}@host": "write it as %23",
    f"redis://app:{SECRET}/x@host#a": "not a Redis URL",
    f"redis://app:{SECRET}@host:port/0#a": "not a Redis URL",
    f"redis://app:{SECRET}@host:1/zero#a": "not a Redis URL",
    f"redis://app:{SECRET}@host:1/0?socket_timeout=soon#a": "not a Redis URL",
    f"redis://app:{SECRET}@[host:1/0#a": "not a Redis URL",
    f"redis://app:{SECRET}@host:1/0?nonsense=1#a": "not a Redis URL",
    "unix://run/redis.sock#a": "not a Redis URL",
    "unix://#a": "not a Redis URL",
}


def said(error: BaseException) -> str:
    """All that a log could show of it."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=BAD_URLS[url]) as caught:
        open_lock(url)
    assert SECRET not in said(caught.value)


def test_an_at_sign_in_a_password_is_refused_without_it() -> None:
    lock = open_lock(f"mysql://app:a@{SECRET}@127.0.0.1:1/shop#x", timeout=0)
    for use in (lock.acquire, lock.holder):
        with pytest.raises(ValueError, match="%40") as caught:
            use()
        assert SECRET not in said(caught.value) + repr(lock)


@pytest.mark.parametrize("name", ["", "a/b", "/", "a\nb", "a\0b", "a\x9bb"])
@pytest.mark.parametrize("url", ["file:///app", MYSQL, REDIS])
def test_a_name_that_cannot_be_used_is_refused(url: str, name: str) -> None:
    with pytest.raises(ValueError, match="name") as caught:
        open_lock(url, name)
    assert SECRET not in said(caught.value)


@pytest.mark.parametrize("name", [".", "..", ".hidden", "-x", "x" * 251])
def test_a_file_name_is_a_safe_one(name: str) -> None:
    with pytest.raises(ValueError, match="as a file name"):
        open_lock("file:///app", name)


@pytest.mark.parametrize("url", ["file:///app", MYSQL, REDIS])
def test_a_lock_is_not_named_twice(url: str) -> None:
    with pytest.raises(ValueError, match="named twice"):
        open_lock(f"{url}#a", "a")


@pytest.mark.parametrize("url", [MYSQL, REDIS, f"unix://app:{SECRET}@/nowhere/socket"])
def test_a_server_that_is_not_there_is_an_error_without_the_password(url: str) -> None:
    lock = open_lock(url, "x", timeout=0)
    for use in (lock.acquire, lock.holder):
        with pytest.raises(DatabaseError) as caught:
            use()
        assert caught.value.lost
        assert SECRET not in said(caught.value) + repr(lock)


MISSING = """
import sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
from sharedvol import DatabaseError, open_lock
try:
    open_lock(sys.argv[1], "x").acquire()
except DatabaseError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("url", "without", "extra"),
    [
        (MYSQL, "sqlalchemy", "mysql"),
        (MYSQL, "pymysql", "mysql"),
        (REDIS, "redis", "redis"),
        (REDIS, "portalocker", "redis"),
    ],
)
def test_a_missing_extra_is_named(url: str, without: str, extra: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", MISSING, url, without], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"install sharedvol[{extra}]" in ran.stdout, ran.stderr
    assert SECRET not in ran.stdout + ran.stderr


def test_a_lock_on_a_file_loads_no_driver(tmp_path: Path) -> None:
    code = (
        "import sys; from sharedvol import open_lock\n"
        "with open_lock(sys.argv[1], 'x'): pass\n"
        "print(sorted({'redis', 'portalocker', 'sqlalchemy', 'pymysql'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, f"file://{tmp_path}"], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "[]"
