"""The settings that name files, kept with the claims that were made under them.

A sidecar that dies may have given a claimed file its final name already. The sidecar that finishes the claim finds that
name only by the settings that made it, and its own may be others. So each set of these settings is kept once in the
spool, and the directories of claims are named by it::

    .sharedvol/naming/<key>.json
    .sharedvol/claims/<slot>/<batch>.<key>.<day>/<path in the spool>
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from functools import cached_property

from sharedvol import AlreadyPublishedError, publish
from sharedvol_sidecar.config.collector_config import CollectorConfig
from sharedvol_sidecar.destination.template import Template
from sharedvol_sidecar.errors import FULL, ConfigError
from sharedvol_sidecar.fs.directory import Directory
from sharedvol_sidecar.fs.private import open_private
from sharedvol_sidecar.spool.layout import Layout
from sharedvol_sidecar.transfer.admission import Logs

_KEY = re.compile(r"[0-9a-f]{16}")
_MAX_FILE = 1_000_000


@dataclass(frozen=True)
class Naming:
    """The settings that name files; see `CollectorConfig`.

    Raises:
        ConfigError: the template is wrong; raised when it is first used.
    """

    template: str
    kinds: tuple[str, ...]
    pattern: str | None
    follow: tuple[str, ...]
    compress: str

    @classmethod
    def of(cls, job: CollectorConfig) -> Naming:
        """The naming settings of a job."""
        return cls(job.template, job.kinds, job.pattern, job.follow, job.compress)

    @classmethod
    def parse(cls, text: bytes) -> Naming:
        """Read what `text` gave.

        Raises:
            ValueError, TypeError, KeyError: it is damaged.
        """
        found = json.loads(text)
        pattern = found["pattern"]
        return cls(
            str(found["template"]),
            tuple(map(str, found["kinds"])),
            None if pattern is None else str(pattern),
            tuple(map(str, found["follow"])),
            str(found["compress"]),
        )

    @cached_property
    def text(self) -> str:
        """All of it, as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @cached_property
    def key(self) -> str:
        """A name for it: a hash."""
        return hashlib.blake2b(self.text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()

    @cached_property
    def layout(self) -> Layout:
        """What the directories of the spool mean."""
        return Layout(self.kinds, re.compile(self.pattern) if self.pattern else None)

    @cached_property
    def names(self) -> Template:
        """The final names."""
        return Template(self.template)

    @cached_property
    def logs(self) -> Logs:
        """Which files are compressed, and by what."""
        return Logs(self.follow, encoding=self.compress)


class NamingStore:
    """The naming settings that were ever used on a spool.

    Args:
        spool: its root.
        own: this sidecar's.

    Attributes:
        own: this sidecar's.
        own_key: the key of these; empty as long as a full spool does not take them, because only collecting makes room.

    Raises:
        OSError: they cannot be kept.
    """

    def __init__(self, spool: Directory, own: Naming) -> None:
        self.own, self.own_key = own, ""
        self._spool = spool
        self._known: dict[str, Naming | None] = {own.key: own}
        self._directory: Directory | None = None
        try:
            self.keep()
        except OSError:
            self.close()
            raise

    def keep(self) -> None:
        """Keep the own settings if they are not kept yet and there is room now.

        Raises:
            OSError: they cannot be kept for another reason than a full disk.
        """
        if self.own_key:
            return
        try:
            if self._directory is None:
                with open_private(self._spool) as private:
                    self._directory = private.make("naming", 0o700)[0]
            name = f"{self.own.key}.json"
            if self._directory.inode(name) is None:  # checked first: on a full disk nothing new can be written
                path = f"/proc/self/fd/{self._directory.fd}/{name}"
                with contextlib.suppress(AlreadyPublishedError), publish(path) as file:
                    file.write(self.own.text)
        except OSError as error:
            if error.errno not in FULL:
                raise
        else:
            self.own_key = self.own.key

    def close(self) -> None:
        """Close what is open."""
        if self._directory is not None:
            self._directory.close()

    def of_batch(self, name: str) -> Naming:
        """The settings under which a directory of claims was made; this sidecar's own where they are not known."""
        key = name.rpartition(".")[0].rpartition(".")[2]
        return (self._load(key) if _KEY.fullmatch(key) else None) or self.own

    def kinds(self) -> set[str]:
        """The kinds that are collected by these or by other settings."""
        found = set(self.own.kinds)
        if self._directory is None:
            return found
        with os.scandir(self._directory.fd) as entries:
            keys = [entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json")]
        for key in keys:
            naming = self._load(key)
            if naming is not None:
                found.update(naming.kinds)
        return found

    def _load(self, key: str) -> Naming | None:
        if key not in self._known:
            self._known[key] = self._read(key)
        return self._known[key]

    def _read(self, key: str) -> Naming | None:
        if self._directory is None:
            return None
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(f"{key}.json", flags, dir_fd=self._directory.fd)
        except OSError:
            return None
        try:
            naming = Naming.parse(os.read(fd, _MAX_FILE))
            _ = naming.names, naming.layout  # both are checked as they are made
        except (OSError, ValueError, TypeError, KeyError, re.error, ConfigError):
            return None
        finally:
            os.close(fd)
        return naming
