"""A private Redis server: own process, port and data, gone when the process that started it is."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import redis

from support.installed import DIE_WITH_US, NotInstalled
from support.processes import LIMIT, wait_until
from support.servers import free_port


class RedisServer:
    """Start it from a thread that lives as long as it is to live, and close it in a ``with``.

    Args:
        options: more of the server's own, such as ``--appendonly``, ``yes``.

    Raises:
        NotInstalled: there is no such server here.
    """

    def __init__(self, *options: str) -> None:
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="sharedvol-redis-"))
        try:
            self._program = _program(self.directory)
            self._start_somewhere()
        except BaseException:
            self.close()
            raise

    def _start_somewhere(self) -> None:
        for _ in range(5):
            self.port = free_port()
            try:
                return self.start()
            except AssertionError as error:
                if "in use" not in str(error):
                    raise
        raise AssertionError("found no port that stays free")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers; after `kill` again, with the same data and port."""
        assert self.process is None, "runs already"
        log = self.directory / "log"
        settings = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*DIE_WITH_US, str(self._program), *settings, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )
        ended = self.process.poll
        with contextlib.suppress(AssertionError):
            # Its own word, because what answers on a port could be somebody else's server.
            wait_until(lambda: ended() is not None or b"Ready to accept connections" in log.read_bytes(), "a server")
        if b"Ready to accept connections" not in log.read_bytes():
            self.kill()
            raise AssertionError(f"Redis did not start:\n{log.read_text(errors='replace')}")

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.process is not None, "does not run"
        process, self.process = self.process, None
        process.kill()
        process.wait(LIMIT)

    def client(self) -> redis.Redis:
        """For the test's own questions, every wait bounded. To be closed."""
        return redis.Redis(
            "127.0.0.1", self.port, decode_responses=True, socket_timeout=LIMIT, socket_connect_timeout=LIMIT
        )

    def close(self) -> None:
        """End it, if it runs, and remove its data."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _program(directory: Path) -> Path:
    if found := shutil.which("redis-server"):
        return Path(found)
    if found := shutil.which("redis-check-rdb"):  # Debian's: one program, which goes by its name
        (directory / "redis-server").symlink_to(found)
        return directory / "redis-server"
    raise NotInstalled("redis-server is missing: run scripts/install-redis")
