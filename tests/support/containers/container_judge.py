"""Compare what replicas say they wrote with what lies on the volume."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from support.containers.container_writer import content, line, name

READ_VOLUME = "import sys, tarfile; tarfile.open(fileobj=sys.stdout.buffer, mode='w|').add('/vol', '.')"
"""A program that prints the volume as a tar archive."""

Files = dict[str, bytes]


@dataclass(frozen=True)
class Written:
    """What one replica told on its standard output, until its end or its death."""

    host: str
    pid: int
    begun: int
    done: dict[int, str]
    taken: bool

    @classmethod
    def parse(cls, lines: Iterable[str]) -> Written:
        (_, host, pid), *told = (text.split() for text in lines)
        done = {int(words[1]): words[2] for words in told if words[0] == "done"}
        words = [words[0] for words in told]
        return cls(host, int(pid), words.count("begun"), done, "taken" in words)


def read_volume(archive: bytes) -> Files:
    """The regular files of the archive, also those that have two names."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [member for member in tar if member.isreg() or member.islnk()]
        return {member.name.removeprefix("./"): tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def faults(replicas: list[Written], files: Files, killed: int) -> list[str]:
    """All that is not as it should be, in words; empty when nothing was lost, doubled, cut or invented.

    Args:
        replicas: all that ever wrote.
        files: all that is on the volume, after the last pass.
        killed: how many of the replicas were killed: each may leave one hidden temporary file.
    """
    found = _left_behind(files, killed)
    by_host: dict[tuple[str, str], Files] = defaultdict(dict)
    for path, data in files.items():
        if path.startswith("collected/") and not path.startswith("collected/.sharedvol/"):
            kind, _date, host, *rest = path.split("/")[1:]
            by_host[kind, host]["/".join(rest)] = data
    for replica in replicas:
        found += _results(replica, by_host.pop(("results", replica.host), {}))
        found += _logs(replica, by_host.pop(("logs", replica.host), {}))
    found += [f"of no replica: {key} {sorted(names)}" for key, names in by_host.items()]
    return found


def _left_behind(files: Files, killed: int) -> list[str]:
    half_way = [
        path
        for path in files
        if path.startswith(("spool/.sharedvol/claims/", "collected/.sharedvol/staging/")) or path.endswith(".live")
    ]
    spool = [path for path in files if path.startswith("spool/") and not path.startswith("spool/.sharedvol/")]
    hidden = [path for path in spool if path.split("/")[-1].startswith(".")]
    found = [f"not collected: {path}" for path in half_way + spool if path not in hidden]
    if len(hidden) > killed:
        found.append(f"more temporary files than killed replicas: {hidden}")
    return found


def _results(replica: Written, files: Files) -> list[str]:
    digests: dict[str, list[str]] = defaultdict(list)
    for path, data in files.items():
        digests[hashlib.sha256(data).hexdigest()].append(path)
    found = [f"doubled: {paths}" for paths in digests.values() if len(paths) > 1]
    for number, digest in replica.done.items():
        if name(replica.host, number) not in digests.pop(digest, []):
            found.append(f"lost: {name(replica.host, number)} of {replica.host}")
    # What a replica was at when it was killed may be there, too: whole, or what it had written of the slow kind.
    last = replica.begun
    for paths in digests.values():
        for path in paths:
            begun = last not in replica.done and path == name(replica.host, last)
            whole = content(replica.host, last)
            if not begun or not (files[path] == whole or (last % 3 == 2 and whole.startswith(files[path]))):
                found.append(f"written by nobody, or in part: {path} of {replica.host}")
    return found


def _logs(replica: Written, files: Files) -> list[str]:
    kept_open = [data for path, data in files.items() if not path.startswith("appended")]
    appended = sorted(data for path, data in files.items() if path.startswith("appended"))
    found = [f"the log that {replica.host} had open was taken"] * replica.taken
    if len(kept_open) > 1:
        found.append(f"the log that {replica.host} kept open was collected in {len(kept_open)} pieces")
    least = b"".join(line(replica.host, number) for number in replica.done)
    most = b"".join(line(replica.host, number) for number in range(1, replica.begun + 1))
    for what, text in (("kept open", b"".join(kept_open)), ("appended to", b"".join(appended))):
        if not (text.startswith(least) and most.startswith(text)):
            found.append(f"the log that {replica.host} {what} has {len(text)} bytes, not {len(least)}, or others")
    return found
