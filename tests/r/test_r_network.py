"""R's lock warns of a network file system as Python's does."""

from __future__ import annotations

from pathlib import Path

from support.doctor.doctor_scenes import mount_lying
from support.processes import LIMIT
from support.r.rprocess import R, RError
from support.torture.isolated import isolated

from sharedvol.mounts import DESKTOP, NETWORK, is_network

CAUGHT = "found <- character(); withCallingHandlers({{ {0} }}, sv_network_warning = function(w) {{ "
CAUGHT += "found <<- c(found, conditionMessage(w)); invokeRestart('muffleWarning') }}); found"


def test_the_kinds_are_pythons(shared_r: R) -> None:
    kinds = [*sorted(NETWORK | DESKTOP), "fuse", "fuse.sshfs", "fuse.fuse-overlayfs", "fuseblk", "ext4", "overlay"]
    code = "sapply(c({}), sv__is_network)".format(", ".join(f"'{kind}'" for kind in kinds))
    assert shared_r.ask(code).split() == [str(is_network(kind)).upper() for kind in kinds]


def test_a_network_file_system_is_a_warning_or_an_error(tmp_path: Path) -> None:
    def work() -> dict[str, str | list[str]]:
        (tmp_path / "back").mkdir()
        front = mount_lying(tmp_path / "back", tmp_path / "front", "honest", 0.0, "nfs")
        take = "sv_unlock(sv_lock('{0}/{1}.lock'{2}))"
        found: dict[str, str | list[str]] = {}
        with R(cwd=tmp_path) as r:
            found["silent"] = r.ask(CAUGHT.format(take.format(front, "x", ", allow_network = TRUE")))
            found["local"] = r.ask(CAUGHT.format(take.format(tmp_path, "x", "")))
            found["first"] = r.ask(CAUGHT.format(take.format(front, "x", "")))
            found["again"] = r.ask(CAUGHT.format(f"sv_purge_cache('{front}/cache', '1')"))
        with R(cwd=tmp_path, SHAREDVOL_STRICT="1") as r:
            try:
                r.ask(take.format(front, "x", ""))
            except RError as error:
                found["strict"] = error.classes
            found["free"] = r.ask(f"filelock::unlock(filelock::lock('{front}/x.lock', timeout = 0))")
        return found

    found = isolated(work, LIMIT)
    assert found["silent"] == found["local"] == found["again"] == ""
    assert f"front/x.lock' is on fuse.nfs (mounted at '{tmp_path}/front')" in found["first"]
    assert "sharedvol doctor" in found["first"]
    assert found["strict"] == ["sv_network_error", "sv_lock_error", "sv_error", "error", "condition"]
    assert found["free"] == "TRUE"
