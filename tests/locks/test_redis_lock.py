"""What is special to the lock that Redis keeps: other users of portalocker, its server, its accounts."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import portalocker.redis
import pytest
from support.processes import LIMIT, Child, wait_until
from support.redis_servers import RedisServer

from sharedvol import DatabaseError, LockError, LockLostError, LockTimeout, LockUnsafeError
from sharedvol.locks.redis import RedisLock
from sharedvol.locks.redis import lock as module
from sharedvol.locks.redis.server import NEEDED

SECRET = "s3cret"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name}-{os.urandom(4).hex()}"


@pytest.fixture
def private_redis() -> Iterator[RedisServer]:
    """A server of the test's own."""
    with RedisServer() as server:
        yield server


def lock_on(server: RedisServer, name: str, timeout: float | None = LIMIT, **options: Any) -> RedisLock:
    return RedisLock(server.url, name, timeout=timeout, **options)


def test_nothing_is_left_after_the_release(redis_server: RedisServer, name: str) -> None:
    threads, lock = threading.active_count(), lock_on(redis_server, name)
    with lock, redis_server.client() as client:
        assert [each["name"] for each in client.client_list(_type="pubsub") if name[:20] in each["name"]]
        assert not client.exists(f"{lock.name}-fence", f"{lock.name}-holder")  # it is not fenced
    with redis_server.client() as client:
        wait_until(lambda: len(client.client_list()) == 1, "its connections to end")
    assert threading.active_count() == threads


@pytest.mark.parametrize("text", ["a b", "größe", "%20", "a#b", "日本", "*", "x" * 300, "\udcff"])
def test_any_name_is_a_channel_of_its_own(redis_server: RedisServer, text: str) -> None:
    with lock_on(redis_server, text) as lock, lock_on(redis_server, text + ".", timeout=0):
        assert str(lock.name).isascii()
        with pytest.raises(LockTimeout):
            lock_on(redis_server, text, timeout=0).acquire()


@pytest.mark.parametrize("text", ["a b", "größe", "a\n", ""])
def test_a_literal_name_is_a_channel_as_it_is(redis_server: RedisServer, text: str) -> None:
    with pytest.raises(ValueError, match="lock n"):
        lock_on(redis_server, text, literal=True)


def test_users_of_portalocker_are_kept_out_and_keep_out(redis_server: RedisServer, name: str) -> None:
    lock = lock_on(redis_server, name, literal=True, fenced=True)
    with redis_server.client() as client:
        theirs = portalocker.redis.RedisLock(name, connection=client, interrupt_on_lost=False, fencing=True)
        with lock:
            token = lock.token
            with pytest.raises(portalocker.exceptions.AlreadyLocked):
                theirs.acquire(timeout=0, fail_when_locked=True)
        with theirs:
            assert theirs.fence_token == token + 1  # one order of tokens
            with pytest.raises(LockTimeout) as caught:
                lock.acquire(timeout=0)
            holder = lock.holder()
            assert holder is not None
            assert holder.holder_id == caught.value.holder.holder_id == theirs.holder_id
            assert (holder.token, holder.purpose) == (None, "")  # what an earlier holder wrote is not believed
        with lock:
            assert lock.token > token + 1


def test_who_only_waits_is_not_taken_for_the_holder(redis_server: RedisServer, name: str) -> None:
    with ThreadPoolExecutor(1) as pool, redis_server.client() as client:
        with lock_on(redis_server, name) as lock:
            waiter = lock_on(redis_server, name)
            taken = pool.submit(waiter.acquire)
            wait_until(lambda: client.pubsub_numsub(lock.name)[0][1] == 2, "somebody to wait")
            holder = lock.holder()
            assert holder is not None
            assert holder.address in {each["addr"] for each in client.client_list(_type="pubsub")}
        taken.result(LIMIT)
        pool.submit(waiter.release).result(LIMIT)


@pytest.mark.parametrize("harm", ["flush", "old snapshot", "clock set back"])
def test_no_harm_to_the_data_takes_tokens_back(private_redis: RedisServer, name: str, harm: str) -> None:
    lock = lock_on(private_redis, name, fenced=True)
    with lock:
        first = lock.token
    with private_redis.client() as client:
        assert client.get(f"{lock.name}-fence") == str(first)
        if harm == "flush":
            client.flushall()
        elif harm == "old snapshot":
            client.set(f"{lock.name}-fence", first - 5_000_000)
        else:  # the server's clock is behind the last token
            first += 86_400_000_000
            client.set(f"{lock.name}-fence", first)
    with lock:
        assert lock.token > first
        assert harm != "clock set back" or lock.token == first + 1


def test_a_key_that_is_somebody_elses_is_an_error_and_no_lock(redis_server: RedisServer, name: str) -> None:
    lock = lock_on(redis_server, name, fenced=True)
    with redis_server.client() as client:
        client.lpush(f"{lock.name}-fence", "theirs")
    with pytest.raises(DatabaseError, match="WRONGTYPE"):
        lock.acquire()
    assert not lock.held
    with lock_on(redis_server, name, timeout=0):
        pass


def test_a_holder_that_does_not_answer_loses_it_and_is_told(
    redis_server: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)

    def hold(pipe: Pipe) -> None:
        lock = lock_on(redis_server, name, fenced=True)
        lock.acquire()
        pipe.send(lock.token)
        pipe.recv()
        with pytest.raises(LockLostError) as caught:
            lock.check()
        with pytest.raises(LockLostError):
            lock.release()
        pipe.send(str(caught.value))

    with Child(hold) as child:
        token = child.receive()
        os.kill(child.pid, signal.SIGSTOP)
        try:
            with lock_on(redis_server, name, fenced=True) as lock:
                assert lock.token > token
                os.kill(child.pid, signal.SIGCONT)
                assert "is lost" in child.ask("look")
                lock.check()
        finally:
            os.kill(child.pid, signal.SIGCONT)


def test_a_server_that_ends_is_told_to_who_holds_and_who_waits(private_redis: RedisServer, name: str) -> None:
    lock = lock_on(private_redis, name)
    lock.acquire()
    with ThreadPoolExecutor(1) as pool, private_redis.client() as client:
        waiter = lock_on(private_redis, name, timeout=1)
        taken = pool.submit(waiter.acquire)
        wait_until(lambda: client.pubsub_numsub(lock.name)[0][1] == 2, "somebody to wait")
        private_redis.kill()
        with pytest.raises(DatabaseError) as caught:
            taken.result(LIMIT)
        assert caught.value.lost
    with pytest.raises(LockLostError):
        lock.check()
    private_redis.start()
    with pytest.raises(LockLostError):
        lock.check()
    with lock_on(private_redis, name, timeout=0), pytest.raises(LockLostError):
        lock.release()
    with lock:
        lock.check()


def test_a_node_of_a_cluster_is_refused(name: str) -> None:
    with RedisServer("--cluster-enabled", "yes") as server:
        with pytest.raises(LockUnsafeError, match="the server is a cluster"):
            lock_on(server, name).acquire()
        with lock_on(server, name, allow_unsafe=True) as lock:
            lock.check()


def test_a_replica_of_another_server_is_refused(private_redis: RedisServer, name: str) -> None:
    with private_redis.client() as client:
        client.replicaof("127.0.0.1", 1)
    with pytest.raises(LockUnsafeError, match="the server is a replica"):
        lock_on(private_redis, name).acquire()
    with lock_on(private_redis, name, allow_unsafe=True) as lock:
        lock.check()


def test_an_account_wants_the_rights_that_are_named_and_no_more(private_redis: RedisServer, name: str) -> None:
    url = private_redis.url.replace("//", f"//app:{SECRET}@")
    everything = ["resetkeys", "~sharedvol:*", "resetchannels", "&sharedvol:*"]
    with private_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", f">{SECRET}", "-@all", *everything, *NEEDED.split())
        lock = RedisLock(url, name, timeout=LIMIT, fenced=True)
        with lock, pytest.raises(LockTimeout, match="held by the connection"):
            RedisLock(url, name, timeout=0).acquire()
        for right in ("+subscribe", "+client", "+info", "+eval", "+hset"):
            client.execute_command("ACL", "SETUSER", "app", right.replace("+", "-"))
            with pytest.raises(LockError, match="the account may not use Redis") as caught:
                lock.acquire()
            assert right in str(caught.value)
            assert SECRET not in str(caught.value)
            assert not lock.held
            client.execute_command("ACL", "SETUSER", "app", right)
        wrong = RedisLock(url.replace(SECRET, "wr0ng"), name)
        with pytest.raises(DatabaseError) as refused:
            wrong.acquire()
        assert "wr0ng" not in str(refused.value)


def test_a_unix_socket_will_do(tmp_path: Path, name: str) -> None:
    lock = RedisLock(f"unix://{tmp_path}/s?db=1", name, fenced=True, timeout=LIMIT)
    with RedisServer("--unixsocket", str(tmp_path / "s")) as server, lock:
        with pytest.raises(LockTimeout):
            lock_on(server, name, timeout=0).acquire()  # channels know no databases
        lock.check()


def test_an_interrupt_at_the_grant_leaves_nothing(
    redis_server: RedisServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = portalocker.redis.RedisLock.acquire

    def acquire(self: portalocker.redis.RedisLock, *args: Any, **options: Any) -> Any:
        real(self, *args, **options)
        raise KeyboardInterrupt

    lock = lock_on(redis_server, name)
    with monkeypatch.context() as patch:
        patch.setattr(portalocker.redis.RedisLock, "acquire", acquire)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    assert not lock.held
    assert lock.holder() is None
    with lock:
        lock.check()
