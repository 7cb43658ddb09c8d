"""The identity of the calling process: its container, its worker token, and this run of the container.

A path is unique only if its parts are, so nothing here falls back to a constant.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from sharedvol import forks
from sharedvol.errors import IdentityError

MAX_CONTAINER_BYTES = 64
"""The longest container name: HOST_NAME_MAX of Linux, see gethostname(2)."""

_CLEAN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
# What `sanitize` appends, and the tail of a unique path. A raw name that looks like either is hashed as well, because
# otherwise two raw names could become the same name.
_RESERVED = re.compile(r"(.*_h[0-9a-f]{16}|(.*_)?u[a-z0-9]{13}-[0-9]+)", re.ASCII)
# Names that many machines share, so they identify none of them. "default" is what R code falls back to.
_CONSTANTS = frozenset({"default", "localhost", "localhost.localdomain", "(none)", "unknown"})
_CONTAINER_ID = re.compile(r"/containers/(?:[^/ ]+/)?([0-9a-f]{64})/")
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a process, from `whoami`.

    Attributes:
        container: the container's name, safe as part of a file name.
        source: where it came from: ``HOSTNAME``, ``hostname`` or ``mountinfo``.
        raw: the name before it was made safe.
        worker: this process's token, of 13 characters. It changes with a fork or a restart.
        pid: the process id in its own PID namespace, which is often 1.
        incarnation: a token of this run of the container. It is the same for all its processes and changes with a
            restart. None if ``/proc`` does not show it.
    """

    container: str
    source: str
    raw: str
    worker: str
    pid: int
    incarnation: str | None

    def as_dict(self) -> dict[str, str | int | None]:
        """Return the JSON object that ``sharedvol whoami --json`` prints."""
        return asdict(self)


def sanitize(raw: str) -> str:
    """Return ``raw`` as a safe part of a file name. Two different names never become the same.

    A name of ``[A-Za-z0-9._-]`` stays as it is if it has at most 64 bytes and does not start with ``.`` (a hidden file)
    or ``-`` (an option of a command). In any other name unsafe characters are replaced and a hash of the whole name is
    appended.

    Raises:
        IdentityError: ``raw`` is empty.
    """
    if not raw:
        raise IdentityError("an empty name identifies no container: set HOSTNAME")
    if _CLEAN.fullmatch(raw) and len(raw) <= MAX_CONTAINER_BYTES and not _RESERVED.fullmatch(raw):
        return raw
    digest = hashlib.blake2b(raw.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9-]+", "-", raw).strip("-")[: MAX_CONTAINER_BYTES - 18]
    return f"{readable or 'x'}_h{digest}"


def container_id() -> str:
    """Return the name of this container, safe as part of a file name.

    It is read from the environment variable ``HOSTNAME`` (the short container id under Docker), else from the kernel's
    host name, else from the container id in ``/proc/self/mountinfo``. Empty names and names that many machines share
    (``default``, ``localhost``) are skipped.

    Raises:
        IdentityError: none of the three names this container.
    """
    return _container()[0]


def worker_token() -> str:
    """Return a random token of this process: 13 characters of ``[0-9a-z]``, 64 bits.

    Two workers of a container never have the same token. A forked child and a restarted container get new ones.
    """
    return _worker.token()


def whoami() -> Identity:
    """Return everything that identifies the calling process.

    Raises:
        IdentityError: as `container_id`.
    """
    container, source, raw = _container()
    return Identity(container, source, raw, worker_token(), os.getpid(), incarnation())


def incarnation() -> str | None:
    """Return a token of this run of the container, from boot id, PID namespace and start time of its process 1.

    With ``pid: host``, process 1 is the host's, and a restart of the container does not change the token. See
    proc_pid_stat(5). None if ``/proc`` does not show it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        # The command name, field 2, may contain spaces and parentheses, so count fields after the last ")".
        started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
    return hashlib.blake2b(f"{boot} {namespace} {started}".encode(), digest_size=8).hexdigest()


def _container() -> tuple[str, str, str]:
    for source, read in (("HOSTNAME", _environment), ("hostname", _kernel_hostname), ("mountinfo", _mountinfo_id)):
        raw = read()
        if raw.strip() and raw.strip().lower() not in _CONSTANTS:
            return sanitize(raw), source, raw
    raise IdentityError(
        "nothing names this container: HOSTNAME and the host name are empty or shared by many "
        "machines, and /proc/self/mountinfo shows no container id; set HOSTNAME to a name of its own"
    )


def _environment() -> str:
    return os.environ.get("HOSTNAME", "")


def _kernel_hostname() -> str:
    return socket.gethostname()


def _mountinfo_id() -> str:
    """Return the short container id, from the files that an engine mounts over /etc (hostname, hosts, resolv.conf)."""
    try:
        text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return ""
    for line in text.splitlines():
        found = _CONTAINER_ID.search(line)
        if found and " /etc/" in line:
            return found[1][:12]
    return ""


class _WorkerState:
    """The token of this process."""

    _token: str

    def __init__(self) -> None:
        self.renew()

    def token(self) -> str:
        forks.notice()
        if not self._token:
            with self._lock:
                if not self._token:
                    self._token = _random_token()
        return self._token

    def renew(self) -> None:
        self._lock = threading.Lock()  # another thread may have held it when the process forked
        self._token = ""


def _random_token() -> str:
    number = int.from_bytes(os.urandom(8), "big")
    digits = []
    for _ in range(13):
        number, digit = divmod(number, 32)
        digits.append(_BASE32[digit])
    return "".join(digits)


_worker = _WorkerState()
forks.in_child(_worker.renew)
