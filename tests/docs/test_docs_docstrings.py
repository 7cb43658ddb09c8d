"""The examples in docstrings, which the reference shows, are run, each with what it takes for granted."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from support.doc_pages import docstring_example
from support.redis_servers import RedisServer
from support.servers import Server

import sharedvol.migrations.sql.mysql_script
from sharedvol import migrations

LIMIT = 60.0
COORDINATOR = "from sharedvol import MigrationCoordinator\n"
VOLUME = "from sharedvol import Volume\nvolume = Volume('/app/shared')\n"
CACHE = "from sharedvol import Cache\ncache = Cache('/app/shared/cache', version='1', max_bytes=10**6)\n"
REVISIONS = """
import contextlib, io, pathlib
from alembic import command
from alembic.config import Config
with contextlib.redirect_stdout(io.StringIO()):
    command.init(Config("alembic.ini"), "revisions")
    command.revision(Config("alembic.ini"), "orders")
pathlib.Path("revisions/env.py").write_text('''
from alembic import context
context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
''')
from sharedvol.migrations import AlembicMigrations
"""
EXAMPLES = {
    "sharedvol.publish": "import json\nfrom sharedvol import publish\nresult = 42\n",
    "sharedvol.Volume": VOLUME,
    "sharedvol.Volume.hold_dead": VOLUME + "name = '3f9c0d1e2b4a'\n",
    "sharedvol.Cache": "from sharedvol import Cache\nuser, make_report = 'ann', str.upper\n",
    "sharedvol.Cache.open": CACHE + "def download_to(file): file.write(b'1')\ndef load(file): return file.read()\n",
    "sharedvol.Cache.memoize": CACHE,
    "sharedvol.open_lock": "from sharedvol import open_lock\n",
    "sharedvol.FileLock": "from sharedvol import FileLock\n",
    "sharedvol.Semaphore": "from sharedvol import Semaphore\n",
    "sharedvol.locks.mysql.NamedLock": "from sharedvol.locks.mysql import NamedLock\n",
    "sharedvol.locks.redis.RedisLock": "from sharedvol.locks.redis import RedisLock\n",
    "sharedvol.locks.Watch": (
        "import threading\nfrom sharedvol import FileLock, watch\n"
        "lock, stop = FileLock('/app/shared/locks/a.lock'), threading.Event()\n"
    ),
    "sharedvol.MigrationCoordinator": COORDINATOR,
    "sharedvol.migrations.PythonMigrations": (
        "from sharedvol.migrations import PythonMigrations\ndef fill_totals(connection): ...\n"
    ),
    "sharedvol.migrations.AlembicMigrations": COORDINATOR + REVISIONS,
    "sharedvol.health.Health": COORDINATOR + "import threading\nfrom sharedvol.health import Health\n",
    "sharedvol.integrations.Service": (
        COORDINATOR + "from sharedvol.integrations import Service\nurl = 'mysql://app@db/shop'\n"
    ),
    "sharedvol.logs.ReplicaFileHandler": "import logging.config\n",
}
"""By the name of what the docstring is of: what stands before its example."""
OTHERS = ("sharedvol.migrations.split_script", "sharedvol.integrations.uvicorn")
"""Run below; and by tests/integrations."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for directory in ("shared/locks", "migrations", "results"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "migrations" / "001_orders.sql").write_text("CREATE TABLE orders (id INT PRIMARY KEY);\n")
    code = EXAMPLES[name] + docstring_example(name)
    code = code.replace("/app/", f"{tmp_path}/").replace("/shared/spool", f"{tmp_path}/shared")
    if "mysql://app@db/shop" in code:
        server: Server = request.getfixturevalue("_server_of")("mariadb")
        code = code.replace("mysql://app@db/shop", server.url(server.create_database()))
    if "redis://cache/0" in code:
        redis: RedisServer = request.getfixturevalue("redis_server")
        code = code.replace("redis://cache/0", redis.url)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{code}\n{done.stderr}"


def test_what_an_example_prints_is_so() -> None:
    found = [test for test in doctest.DocTestFinder().find(sharedvol.migrations.sql.mysql_script) if test.examples]
    assert [test.name for test in found] == ["sharedvol.migrations.sql.mysql_script.split_script"]
    assert doctest.testmod(sharedvol.migrations.sql.mysql_script).failed == 0
    assert migrations.split_script is sharedvol.migrations.sql.mysql_script.split_script
