"""Private MariaDB and MySQL servers: own process, port and data, gone when the process that started them is."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import pymysql

from support.general_log import GeneralLog
from support.installed import DIE_WITH_US, programs, template
from support.processes import LIMIT, wait_until

_PREFIX = "sharedvol-server-"
_OWNER = "owner"

# Its own word, because what answers on a port could be somebody else's server.
_READY = re.compile(rb"ready for connections.*port: \d+", re.DOTALL)


class Endpoint:
    """A port of this machine where a server answers, itself or through a `Link`."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, database: str = "", user: str = "root", password: str = "") -> str:
        """For SQLAlchemy."""
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"mysql+pymysql://{login}@127.0.0.1:{self.port}/{database}?charset=utf8mb4"

    def connect(
        self, database: str = "", user: str = "root", password: str = "", **options: Any
    ) -> pymysql.connections.Connection[Any]:
        """A connection in autocommit mode, every wait bounded; ``options`` as in ``pymysql.connect``.

        Without TLS, for which PyMySQL prepares at a cost of 20 ms each time, also where the server has none.
        """
        defaults = {"charset": "utf8mb4", "autocommit": True, "ssl_disabled": True}
        bounds = {"connect_timeout": LIMIT, "read_timeout": LIMIT, "write_timeout": LIMIT}
        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user=user,
            password=password,
            database=database or None,
            **{**defaults, **bounds, **options},
        )

    def query(self, sql: str, database: str = "") -> list[tuple[Any, ...]]:
        """The rows of one statement, run as root on a connection of its own."""
        with contextlib.closing(self.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())


class Server(Endpoint):
    """A server of its own; start it from a thread that lives as long as it is to live, and close it in a ``with``.

    Args:
        flavour: ``mariadb`` or ``mysql``.
        options: More of the server's own, such as ``--innodb-lock-wait-timeout=2``.

    Raises:
        NotInstalled: There is no such server here.
    """

    def __init__(self, flavour: str, *options: str) -> None:
        super().__init__(0)
        self.flavour = flavour
        self.options = options
        self.programs = programs(flavour)
        self.process: subprocess.Popen[bytes] | None = None
        self._logs = itertools.count()
        sweep()
        self.directory, self._owner = _directory()
        try:
            # cp knows copies that share their blocks, which shutil does not.
            subprocess.run(["cp", "-a", "--reflink=auto", template(flavour), self.data], check=True, timeout=LIMIT)
            self._start_somewhere()
        except BaseException:
            self.close()
            raise

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def _start_somewhere(self) -> None:
        for _ in range(5):
            self.port = free_port()
            try:
                return self.start()
            except AssertionError as error:
                if "in use" not in str(error):
                    raise
        raise AssertionError("found no port that stays free")

    def start(self) -> None:
        """Start, and wait until it answers; after `stop` or `kill` again, with the same data and port."""
        assert self.process is None, "runs already"
        log = self.directory / "error.log"
        for stale in ("s", "s.lock", "pid"):  # of a killed one: a new process with its number would count as it
            (self.data / stale).unlink(missing_ok=True)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*DIE_WITH_US, *self.programs.server, *self._settings(), *self.options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
            )
        ended = self.process.poll
        with contextlib.suppress(AssertionError):
            wait_until(lambda: ended() is not None or _READY.search(log.read_bytes()) is not None, "a server")
        if not _READY.search(log.read_bytes()):
            self.kill()
            raise AssertionError(f"{self.flavour} did not start:\n{log.read_text(errors='replace')}")

    def _settings(self) -> list[str]:
        return [
            f"--datadir={self.data}",
            f"--tmpdir={self.directory}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--socket=s",  # below the data directory: an absolute path could exceed the 107 bytes of unix(7)
            "--pid-file=pid",
            "--skip-log-bin",
            "--max-connections=200",
            "--table-open-cache=400",
            "--innodb-buffer-pool-size=64M",
            "--innodb-use-native-aio=0",  # the kernel's queues are few, and shared by all containers
        ]

    def stop(self) -> None:
        """Shut down in order."""
        assert self.process is not None, "does not run"
        self.process.terminate()
        self._reap()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.process is not None, "does not run"
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        assert self.process is not None
        try:
            self.process.wait(LIMIT)
        finally:
            self.process.kill()
            self.process.wait(LIMIT)
            self.process = None

    def close(self) -> None:
        """End it, if it runs, and remove its data."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._owner.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create_database(self) -> str:
        """A new one; its name."""
        name = f"test_{secrets.token_hex(4)}"
        self.query(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return name

    @contextlib.contextmanager
    def log(self) -> Iterator[GeneralLog]:
        """Log what the server is asked during the block."""
        path = self.directory / f"general-{next(self._logs)}.log"
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SET GLOBAL general_log_file = %s", (str(path),))
            cursor.execute("SET GLOBAL general_log = ON")
            try:
                yield GeneralLog(path, connection.thread_id())
            finally:
                cursor.execute("SET GLOBAL general_log = OFF")

    def client(self, script: bytes, database: str = "", *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Feed ``script`` to the stock command-line client of the flavour, which goes on after errors."""
        connection = ["--host=127.0.0.1", "--protocol=tcp", f"--port={self.port}", "--user=root"]
        mode = ["--batch", "--force", "--default-character-set=utf8mb4"]
        return subprocess.run(
            [*self.programs.client, *connection, *mode, *arguments, *([database] if database else [])],
            input=script,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )


@dataclass(frozen=True)
class Database:
    """A database of a test's own."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """For SQLAlchemy, as root."""
        return self.server.url(self.name)

    def connect(self, user: str = "root", password: str = "", **options: Any) -> pymysql.connections.Connection[Any]:
        """As `Endpoint.connect`."""
        return self.server.connect(self.name, user, password, **options)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """As `Endpoint.query`."""
        return self.server.query(sql, self.name)

    def drop(self) -> None:
        """Remove it, and first what a failed test left connected to it: DROP would wait for an open transaction."""
        for (connection,) in self.query(
            f"SELECT id FROM information_schema.processlist WHERE db = '{self.name}' AND id <> CONNECTION_ID()"
        ):
            with contextlib.suppress(pymysql.err.MySQLError):  # it ended meanwhile
                self.server.query(f"KILL {connection}")
        self.server.query(f"DROP DATABASE {self.name}")


def _directory() -> tuple[Path, IO[str]]:
    """A new directory, and a file whose lock says that it is in use as long as we live."""
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    owner = (directory / "new").open("w")
    fcntl.flock(owner, fcntl.LOCK_EX)
    (directory / "new").rename(directory / _OWNER)  # so that nobody finds it unlocked
    return directory, owner


def sweep() -> None:
    """Remove the directories of test runs that were killed."""
    for owner in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_OWNER}"):
        with contextlib.suppress(OSError), owner.open("r+") as file:  # in use, somebody else's, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent, ignore_errors=True)


def free_port() -> int:
    """A port that is free now, and not of those that the kernel gives to connecting sockets (ip(7))."""
    while True:
        port = 15000 + secrets.randbelow(17000)  # not `random`, which Hypothesis seeds alike in all workers
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
