"""Logs that are open while a mover follows them: what happens to them, and what must come of it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from support.torture.judge import PRIVATE, Found, Look, Violation, check_catalog, check_catalog_moment
from support.torture.scene import Scene, Stand
from support.torture.sweeps import Sample
from support.torture.tracer import Traced, run

LOG = "c9/logs/app.log"
_ENOUGH = 4  # passes after which a mover that stays has ended every log that is gone


@dataclass
class Part:
    """A file that must be there in the end, once.

    Attributes:
        whole: all that was ever written to it.
        seen: how much of that a whole pass had before it, or can still be read in the spool: none of it may be lost.
    """

    whole: bytes = b""
    seen: int = 0


@dataclass
class Writer:
    """A log, its writer, and what rotates it.

    Attributes:
        spool: below which it lies.
        parts: what must come of it.
    """

    spool: Path
    parts: list[Part] = field(default_factory=lambda: [Part()])
    fd: int = -1
    deleted: bool = False

    @property
    def path(self) -> Path:
        return self.spool / LOG

    def write(self, content: bytes) -> None:
        """Append, as a process does that keeps its log open."""
        if self.fd < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        os.write(self.fd, content)
        part = self.parts[0]
        part.whole += content
        if not self.deleted:
            part.seen = len(part.whole)

    def cut(self, content: bytes) -> None:
        """What copytruncate does: what was there is a file of its own by now, if a pass has seen it."""
        os.truncate(self.path, 0)
        self.parts.insert(0, Part())
        self.write(content)

    def rotate(self, content: bytes) -> None:
        """It has another name, and its writer goes on in it for a while; a new file has its name."""
        os.rename(self.path, f"{self.path}.1")
        self.path.write_bytes(content)
        self.parts.append(Part(content, len(content)))

    def delete(self, seen: int | None = None) -> None:
        """It has no name any more. What no pass had seen may be gone with it.

        Args:
            seen: how much passes have seen; None for all of it.
        """
        self.path.unlink()
        self.deleted = True
        if seen is not None:
            self.parts[0].seen = seen

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(frozen=True)
class Story:
    """What happens to a log.

    Attributes:
        first: before a whole pass.
        then: after it, and before the passes that are killed.
        between: between those, in their process, by paths alone.
    """

    first: Callable[[Writer], object] | None
    then: Callable[[Writer], object]
    between: Sequence[Callable[[Path], object]] = ()


_A, _B, _C = b"the first line\n" * 3, b"and another\n" * 2, b"the last one"


def _write(content: bytes) -> Callable[[Writer], object]:
    return lambda writer: writer.write(content)


def _and_delete(writer: Writer) -> None:
    seen = len(writer.parts[0].whole)
    writer.write(_B)
    writer.delete(seen)


def _and_close(act: Callable[[Writer], object]) -> Callable[[Writer], object]:
    def both(writer: Writer) -> None:
        act(writer)
        writer.close()

    return both


def _may_go(writer: Writer) -> None:
    """It is deleted once the pass that is killed has come that far, or by the one who looks afterwards."""
    seen = len(writer.parts[0].whole)
    writer.write(_B)
    writer.parts[0].seen = seen


STORIES = {
    "begins": Story(None, _write(_A)),
    "grows": Story(_write(_A), _write(_B)),
    "cut": Story(_write(_A), lambda writer: writer.cut(_B)),
    "cut-and-grown-beyond": Story(_write(_A), lambda writer: writer.cut(_B * 4)),
    "renamed": Story(_write(_A), lambda writer: (writer.write(_B), writer.rotate(b"a new log\n"))),
    "deleted": Story(_write(_A), _and_delete),
    "deleted-meanwhile": Story(_write(_A), _may_go, [lambda spool: (spool / LOG).unlink()]),
    "closed": Story(_write(_A), _and_close(_write(_B))),
    "cut-and-closed": Story(_write(_A), _and_close(lambda writer: writer.cut(_B))),
    "deleted-and-closed": Story(_write(_A), _and_close(_and_delete)),
}


def kill_the_follower(scene: Scene, story: Story, sample: Sample, compress: str = "") -> int:
    """Kill a mover that follows a log before each of its calls; look; let another go on; look. Returns the kills.

    Args:
        scene: the volume, without logs.
        story: what happens to the log.
        sample: which points.
        compress: what finished logs are compressed by.
    """
    kills = 0
    for number in sample:
        with scene.stand() as stand:
            stand.compress = compress
            writer = Writer(stand.spool)
            if story.first is not None:
                story.first(writer)
                _pass(stand, "before")
            story.then(writer)
            acts = [partial(act, stand.spool) for act in story.between]
            traced = Traced(partial(stand.passes, [*acts, lambda: None]), stand.said)
            ended = not all(traced.next() for _ in range(number + 1))
            where = f"killed before call {number}, {'its end' if ended else traced.call}"
            if not ended:
                traced.kill()
                kills += 1
            elif traced.status != 0:
                raise Violation(f"{where}: status {traced.status}: {stand.words()}")
            _check_moment(stand, writer, where)
            if writer.fd >= 0:
                _last_words(writer)
            writer.close()
            _pass(stand, where)
            _check_end(stand, writer, where)
        if ended:
            return kills
    raise AssertionError("endless")


def _last_words(writer: Writer) -> None:
    """The writer writes once more: it is lost only where the log has no name, and nobody holds it open."""
    seen = writer.parts[0].seen
    gone = not os.stat(writer.fd).st_nlink
    writer.write(_C)
    if gone:
        writer.parts[0].seen = seen


def _pass(stand: Stand, where: str) -> None:
    status = run(lambda: stand.passes([lambda: None] * (_ENOUGH - 1)), stand.said)
    stand.check_said(where)
    if status != 0:
        raise Violation(f"{where}: an undisturbed mover ends with status {status}: {stand.words()}")


def _check_moment(stand: Stand, writer: Writer, where: str) -> None:
    """Finals and live files hold bytes of the log and no others, and nothing that a pass had seen is gone."""
    seen = stand.look()
    finals = [file for file in seen.final if file.path not in stand.expected.before]
    _assign(finals, writer.parts, f"{where}: doubled or wrong")
    for file in seen.live:
        if not any(part.whole.startswith(file.content) for part in writer.parts):
            raise Violation(f"{where}: wrong: {file.path} holds {file.content!r}")
    everywhere = {file.inode: _decoded(file) for file in (*finals, *seen.live, *seen.waiting, *seen.claims)}
    everywhere.update({file.inode: file.content for file in seen.live})
    for part in writer.parts:
        if not any(content.startswith(part.whole[: part.seen]) for content in everywhere.values()):
            raise Violation(f"{where}: lost: {part}, of {list(everywhere.values())}")
    if not stand.compress:  # else the digest is that of what is stored, and the claim has another
        check_catalog_moment(stand.collected, seen, stand.expected, where)


def _check_end(stand: Stand, writer: Writer, where: str) -> None:
    seen = stand.look()
    finals = [file for file in seen.final if file.path not in stand.expected.before]
    left = _assign(finals, writer.parts, f"{where}: doubled or wrong")
    if left:
        raise Violation(f"{where}: lost: {left}, of {[_decoded(file) for file in finals]}")
    check_nothing_left(stand.collected, seen, where)
    check_catalog(stand.collected, seen, stand.expected, where)


def check_nothing_left(collected: Path, seen: Look, where: str) -> None:
    """Nothing is on its way, and nothing is known of logs that were followed."""
    left = [file.path for file in (*seen.live, *seen.waiting, *seen.claims, *seen.staged)]
    left += [str(path) for path in (collected / PRIVATE / "follow").glob("*/*")]
    if left:
        raise Violation(f"{where}: left behind: {left}")


def _assign(files: Sequence[Found], parts: Sequence[Part], what: str) -> list[Part]:
    """Each file is one of the parts: as much as was seen of it, or more. Returns the parts without a file."""
    left = list(parts)
    for file in files:
        content = _decoded(file)
        for part in left:
            if part.whole.startswith(content) and len(content) >= part.seen:
                left.remove(part)
                break
        else:
            raise Violation(f"{what}: {file.path} holds {content!r}, and what is left is {left}")
    return left


def _decoded(file: Found) -> bytes:
    return gzip.decompress(file.content) if file.path.endswith(".gz") and file.content else file.content
