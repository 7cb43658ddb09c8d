"""What lies on a project's shared volume, and the database's ledger, as its containers see them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from support.containers.compose_images import ROOT
from support.containers.compose_project import Container, Project
from support.containers.container_engine import Engine, wait_until

READ = "import sys, tarfile; tarfile.open(fileobj=sys.stdout.buffer, mode='w|').add('/shared', '.')"
NOT_COLLECTED = """
import os
print([os.path.join(top, name) for top, _, names in os.walk("/shared/spool") for name in names
       if "/." not in top and top != "/shared/spool/locks" and not name.startswith(".")])
"""
LEDGER = """
import json, os
from pathlib import Path
import pymysql
password = Path("/run/secrets/db_password").read_text().rstrip()
cursor = pymysql.connect(host="db", user="app", password=password, database="jobs").cursor()
cursor.execute("SELECT filename, success FROM schema_version ORDER BY filename")
ledger = cursor.fetchall()
cursor.execute("SELECT id, replica, file FROM jobs WHERE file IS NOT NULL")
print(json.dumps([ledger, cursor.fetchall()]))
"""


def example(directory: Path) -> Path:
    """A copy of docs/examples/compose with a password, as a user makes it."""
    shutil.copytree(ROOT / "docs" / "examples" / "compose", directory)
    secret = directory / "secrets" / "db_password"
    secret.write_text("correct horse battery staple\n")
    secret.chmod(0o444)
    return directory


@dataclass(frozen=True)
class Database:
    """The ledger's rows, and of each finished job who did it and its file."""

    ledger: list[tuple[str, int]]
    jobs: dict[str, tuple[str, str]]


def database(project: Project, replica: Container) -> Database:
    """Asked in a replica, by the account that it uses."""
    ledger, jobs = json.loads(project.exec(replica, "python", "-c", LEDGER))
    return Database([tuple(row) for row in ledger], {id: (replica, file) for id, replica, file in jobs})


def await_collected(project: Project, sidecar: Container) -> None:
    """Until nothing that is to be collected is in the spool."""
    left = "?"

    def empty() -> bool:
        nonlocal left
        left = project.exec(sidecar, "python", "-c", NOT_COLLECTED)
        return left == "[]"

    wait_until(empty, lambda: f"all is collected, but {left}")


def collected(engine: Engine, sidecar: Container, kind: str) -> dict[str, dict[str, bytes]]:
    """By container: its collected files of a kind, by path."""
    archive = engine.call("exec", sidecar.id, "python", "-c", READ)
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if (member.isreg() or member.islnk()) and name.startswith(f"collected/{kind}/"):
                container = name.split("/")[3]
                found.setdefault(container, {})[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found
