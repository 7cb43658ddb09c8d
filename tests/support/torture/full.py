"""A small disk that is really full while a mover works, until somebody makes room."""

from __future__ import annotations

from pathlib import Path

from support.torture.filesystems import LoopFileSystem, mount
from support.torture.judge import Violation
from support.torture.scene import Scene, Stand
from support.torture.sweeps import Sample, run_to
from support.torture.tracer import Traced, run

_KIB = 1024
SOURCES = {f"c{number}/results/{number}.json": b"%02d" % number * 12 * _KIB for number in range(12)}
"""More than fits beside `FILLER`, and less than fits without it."""

LOG = {"c9/logs/app.log": b"a line of a log\n" * 1000}
_SIZE = 1400 * _KIB


def small(kind: str, path: Path) -> Path:
    """Mount a small file system, ``ext4`` or ``tmpfs``.

    Raises:
        NotHere: this machine does not allow it.
    """
    if kind == "ext4":
        return LoopFileSystem(kind, path, _SIZE).path
    path.mkdir()
    mount("tmpfs", path, "tmpfs", f"size={_SIZE // _KIB}k")
    return path


def fill_everywhere(scene: Scene, disk: Path, left: int, sample: Sample) -> int:
    """Fill the disk before each call of a pass; look; pass again; look; make room; everything is there once.

    Args:
        scene: the volume, with its destination on the disk.
        disk: the small file system.
        left: bytes that are left free.
        sample: which points.

    Returns:
        How often the disk was filled.
    """
    times = 0
    for number in sample:
        with scene.stand() as stand:
            traced = Traced(stand.command, stand.said, hasty=True)
            where = run_to(traced, number, "disk full at")
            if not where:
                stand.recover("undisturbed")
                return times
            filler = disk / "filler"
            try:
                _fill(filler, left)
                while traced.next():
                    pass
                _check_full(stand, traced.status, where)
                _check_full(stand, run(stand.command, stand.said), f"{where}, once more")
            finally:
                filler.unlink()
            times += 1
            stand.recover(f"{where}, with room again")
    raise AssertionError("endless")


def _check_full(stand: Stand, status: int | None, where: str) -> None:
    assert status is not None
    stand.check_moment(where)
    stand.check_told(status, where)
    if "Errno" in stand.words():
        raise Violation(f"{where}: not said in words: {stand.words()}")


def _fill(filler: Path, left: int) -> None:
    """Until not a byte more can be written; then give back some."""
    written = 0
    with filler.open("wb", buffering=0) as file:
        for size in (64 * _KIB, _KIB, 1):
            try:
                while True:
                    written += file.write(bytes(size))
            except OSError:
                continue
        file.truncate(max(0, written - left))
