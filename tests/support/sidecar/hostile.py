"""A spool whose writers are not to be trusted, and a sidecar that runs as root or as a plain user."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.processes import run_forked
from support.sidecar.volume import Volume

WRITER = 2000
SECRET = "the secret"


def become(user: int) -> None:
    """Be that user, for good, without any capability of root's."""
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


class Scene:
    """A volume, a sidecar of some user, and a secret of that user which no writer may read.

    Args:
        top: a directory that everybody may enter.
        user: the sidecar's user.
    """

    def __init__(self, top: Path, user: int) -> None:
        self.top, self.user = top, user
        self.volume = Volume(top / "spool", top / "collected")
        self.stash = top / "stash"
        self.stash.mkdir()
        self.outside = top / "outside"
        self.outside.mkdir()
        self.results, self.logs = self.directory("c1/results"), self.directory("c1/logs")
        self.secret = self.outside / "secret"
        self.secret.write_text(SECRET)
        self.secret.chmod(0o600)
        for path in (self.volume.spool, self.volume.collected, self.outside, self.secret):
            os.chown(path, user, user)
        self.stash.chmod(0o777)
        self._secret = self._status()

    def directory(self, path: str) -> Path:
        """A writer's directory, which the sidecar may write too."""
        made = self.volume.spool / path
        made.mkdir(parents=True, exist_ok=True)
        for one in (made, *made.parents[: len(Path(path).parts) - 1]):
            os.chown(one, WRITER, WRITER)
            one.chmod(0o777)
        return made

    def write(self, path: Path, text: str = "content", mode: int = 0o666) -> Path:
        """A writer's file."""
        path.write_text(text)
        os.chown(path, WRITER, WRITER)
        path.chmod(mode)
        return path

    def run(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns in a process of the sidecar's user; every wait for it is bounded."""

        def as_user() -> Any:
            become(self.user)
            return work()

        return run_forked(as_user)

    def collect(self, passes: int = 1, **changes: Any) -> dict[str, int]:
        """Passes of one sidecar; the counts of the last."""

        def work() -> dict[str, int]:
            collector = self.volume.collector(**changes)
            try:
                for _ in range(passes):
                    tally = collector.run_pass()
                return tally.as_dict()
            finally:
                collector.close()

        found: dict[str, int] = self.run(work)
        return found

    def collected(self) -> dict[str, str]:
        """Everything in the destination, live files too; fails where something is no regular file."""
        found = {}
        for directory, names, files in os.walk(self.volume.collected):
            if ".sharedvol" in names:
                names.remove(".sharedvol")
            for name in files + [name for name in names if Path(directory, name).is_symlink()]:
                path = Path(directory, name)
                assert stat.S_ISREG(path.lstat().st_mode), f"{path} is no regular file"
                found[str(path.relative_to(self.volume.collected))] = path.read_text()
        return found

    def assert_kept(self) -> None:
        """The secret is what and whose it was, and nowhere else."""
        assert self._status() == self._secret
        assert not [path for path, text in self.collected().items() if SECRET in text]

    def _status(self) -> tuple[int, int, int, str]:
        info = self.secret.lstat()
        return info.st_uid, info.st_gid, info.st_mode, self.secret.read_text()

    def put(self, what: str, path: Path) -> Path:
        """Something that a sidecar is not to take, at ``path``."""
        if what == "symlink":
            path.symlink_to(self.secret)
        elif what == "symlink to a directory":
            path.symlink_to(self.outside)
        elif what == "hard link":
            os.link(self.secret, path)
        elif what == "fifo":
            os.mkfifo(path, 0o666)
        elif what == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        else:
            kind = stat.S_IFCHR if what == "character device" else stat.S_IFBLK
            os.mknod(path, kind | 0o666, os.makedev(1, 3) if kind == stat.S_IFCHR else os.makedev(7, 250))
        return path


THINGS = (
    "symlink",
    "symlink to a directory",
    "hard link",
    "fifo",
    "socket",
    "character device",
    "block device",
)


@contextmanager
def scene(user: int) -> Iterator[Scene]:
    """A `Scene` that is removed at the end."""
    top = Path(tempfile.mkdtemp(prefix="sv-"))  # short: a socket's path must be
    try:
        top.chmod(0o755)
        yield Scene(top, user)
    finally:
        shutil.rmtree(top)
