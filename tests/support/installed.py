"""The database servers on this machine, as scripts/install-servers leaves them, and how to run their programs."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from support.processes import LIMIT

FLAVOURS = ("mariadb", "mysql")
MYSQL_MISSING = "MySQL 9 is not tested"
R_MISSING = "R is not tested"
FUSE_MISSING = "Lying file systems are not tested"
"""How every reason to skip its tests begins."""

NO_AUTHORITIES = {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": os.devnull}
"""Environment in which OpenSSL trusts no authority: else PyMySQL reads all of them for each connection, in 20 ms."""

# The kernel kills what is run so when the thread that started it ends: prctl(2), PR_SET_PDEATHSIG.
DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]

# Count it up when the way to make a data directory changes: the cached ones are then not used any more.
_SETTINGS = 1

# A user's PATH lacks the directory of the servers.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])


class NotInstalled(Exception):
    """A server that the tests need is not here; the message says what to do."""


@dataclass(frozen=True)
class Programs:
    """The commands of one flavour, and the server's options that say where its files are."""

    server: list[str]
    client: list[str]
    initialise: list[str]
    """Makes a data directory with a root user who has no password; wants --datadir."""


def cache() -> Path:
    """Where the tests keep what is slow to make."""
    if own := os.environ.get("SHAREDVOL_TEST_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sharedvol"


def programs(flavour: str) -> Programs:
    """The programs of ``flavour``.

    Raises:
        NotInstalled: there are none.
    """
    return {"mariadb": _mariadb, "mysql": _mysql}[flavour]()


def template(flavour: str) -> Path:
    """A data directory to copy, made once for each version of the server."""
    commands = programs(flavour)
    said = subprocess.run([*commands.server, "--version"], capture_output=True, text=True, timeout=LIMIT, check=True)
    version = re.search(r"Ver (\S+)", said.stdout)
    assert version is not None, said.stdout
    folder = cache() / "data"
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{flavour}-{version[1]}-{_SETTINGS}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            partial = folder / "partial"
            shutil.rmtree(partial, ignore_errors=True)
            done = subprocess.run(
                [*DIE_WITH_US, *commands.initialise, f"--datadir={partial}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT,
                check=False,
            )
            assert done.returncode == 0, done.stdout
            partial.rename(made)
    return made


def _mariadb() -> Programs:
    server, client, install = (shutil.which(name, path=_PATH) for name in ("mariadbd", "mariadb", "mariadb-install-db"))
    if not (server and client and install):
        raise NotInstalled("MariaDB is missing: run scripts/install-servers, as 'make test' does")
    settings = ["--no-defaults", *_as_root(), "--innodb-log-file-size=8M"]
    quick = ["--auth-root-authentication-method=normal", "--skip-test-db"]
    return Programs([server, *settings], [client, "--no-defaults"], [install, *settings, *quick])


def _mysql() -> Programs:
    """MySQL of another Debian release, run on this one by that release's dynamic loader and with its libraries.

    That needs neither root nor chroot(2), and leaves the data directory anywhere.
    """
    if os.environ.get("SHAREDVOL_TEST_MYSQL") == "no":
        raise NotInstalled(f"{MYSQL_MISSING}: SHAREDVOL_TEST_MYSQL=no")
    usr = cache() / "mysql" / "usr"
    loaders = sorted(usr.glob("lib/*-linux-gnu/ld-linux-*.so.*"))
    if not loaders or not (usr / "sbin/mysqld").is_file():
        raise NotInstalled(f"{MYSQL_MISSING}: no {usr}/sbin/mysqld: run scripts/install-servers, as 'make test' does")
    load = [str(loaders[0]), "--library-path", str(loaders[0].parent)]
    settings = [
        "--no-defaults",
        *_as_root(),
        f"--basedir={usr}",
        f"--lc-messages-dir={usr}/share/mysql",
        f"--character-sets-dir={usr}/share/mysql/charsets",
        f"--plugin-dir={usr}/lib/mysql/plugin",
        "--mysqlx=0",
        "--secure-file-priv=NULL",  # Debian's default is a directory that is not here
        "--innodb-redo-log-capacity=32M",
    ]
    server = [*load, f"{usr}/sbin/mysqld", *settings]
    client = [*load, f"{usr}/bin/mysql", "--no-defaults", f"--character-sets-dir={usr}/share/mysql/charsets"]
    return Programs(server, client, [*server, "--initialize-insecure"])


def _as_root() -> list[str]:
    """What makes the servers run as root, which they refuse unless told."""
    return ["--user=root"] if os.geteuid() == 0 else []
