"""Who am I: the container, the worker process, and this run of the container.

A path is unique only if its parts are, so nothing here ever falls back to a constant.
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
# What `sanitize` appends, and the tail of a unique path: raw names that look like either are hashed
# too, or two different raw names could meet in one.
_RESERVED = re.compile(r"(.*_h[0-9a-f]{16}|(.*_)?u[a-z0-9]{13}-[0-9]+)", re.ASCII)
# Names that many machines share: they identify nobody. "default" is what R code falls back to.
_CONSTANTS = frozenset({"default", "localhost", "localhost.localdomain", "(none)", "unknown"})
_CONTAINER_ID = re.compile(r"/containers/(?:[^/ ]+/)?([0-9a-f]{64})/")
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class Identity:
    """What `whoami` returns.

    Attributes:
        container: the container's name, safe as a part of a file name.
        source: where it came from: ``HOSTNAME``, ``hostname`` or ``mountinfo``.
        raw: the name before it was made safe.
        worker: this process's token: 13 characters, never the same after a fork or a restart.
        pid: the process id in its own PID namespace (so often 1).
        incarnation: this run of the container; the same for all its processes, another after a restart.
            None where ``/proc`` does not tell.
    """

    container: str
    source: str
    raw: str
    worker: str
    pid: int
    incarnation: str | None

    def as_dict(self) -> dict[str, str | int | None]:
        """The JSON of ``sharedvol whoami --json``."""
        return asdict(self)


def sanitize(raw: str) -> str:
    """``raw`` as a safe part of a file name; two different names never become one.

    A name of ``[A-Za-z0-9._-]`` that starts with none of ``.`` and ``-`` (hidden files, options of
    commands) and has at most 64 bytes stays as it is. Any other has what is unsafe replaced and a hash
    of the whole appended.

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
    """The name of this container, safe as a part of a file name.

    From the environment's ``HOSTNAME`` (the short container id under Docker), else the kernel's host
    name, else the container id in ``/proc/self/mountinfo``. Empty names and names that many machines
    share (``default``, ``localhost``) are passed over.

    Raises:
        IdentityError: none of the three names this container.
    """
    return _container()[0]


def worker_token() -> str:
    """A random token of this process: 13 characters of ``[0-9a-z]``, 64 bits.

    Two workers of a container, a restarted container whose process ids begin at 1 again, and a forked
    child never have the same.
    """
    return _worker.token()


def whoami() -> Identity:
    """All that identifies the caller.

    Raises:
        IdentityError: as `container_id`.
    """
    container, source, raw = _container()
    return Identity(container, source, raw, worker_token(), os.getpid(), incarnation())


def incarnation() -> str | None:
    """A token of this run of the container: boot id, PID namespace and start time of its process 1.

    With ``pid: host`` process 1 is the host's, and a restart is not told apart. See proc_pid_stat(5).
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        # The command name, field 2, may hold spaces and parentheses: count fields after the last ")".
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
    """The short container id, from the files an engine mounts over /etc (hostname, hosts, resolv.conf)."""
    try:
        text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return ""
    for line in text.splitlines():
        found = _CONTAINER_ID.search(line)
        if found and " /etc/" in line:
            return found[1][:12]
    return ""


class _Worker:
    """Holds the token of this process."""

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


_worker = _Worker()
forks.in_child(_worker.renew)
