"""Spool and destination on two volumes, so on two mounts: files are copied, and a sidecar is killed meanwhile."""

from __future__ import annotations

import json

import pytest
from support.containers.container_engine import Engine, wait_until

pytestmark = pytest.mark.timeout(300)

FILES, TRIES = 3, 5
OWN = ("spool/", "collected/.sharedvol/")

# Large, so that the copy is under way for longer than it takes the engine to kill the sidecar.
WRITE = f"""
import hashlib, os
for number in range({FILES}):
    digest, part = hashlib.sha256(), f"/vol/spool/r1/results/.part"
    os.makedirs(os.path.dirname(part), exist_ok=True)
    with open(part, "wb") as file:
        for _ in range(16):
            data = os.urandom(1 << 20) * 8
            file.write(data)
            digest.update(data)
    os.rename(part, f"/vol/spool/r1/results/{{digest.hexdigest()}}")
    print(digest.hexdigest())
"""

DIGESTS = """
import hashlib, json, pathlib
files = [path for path in pathlib.Path("/vol").rglob("*") if path.is_file()]
def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
print(json.dumps({str(path.relative_to("/vol")): digest(path) for path in files}))
"""

WAIT_FOR_CLAIM = """
import os, time
while not any(files for _, _, files in os.walk("/vol/spool/.sharedvol/claims")):
    time.sleep(0.002)
"""


def test_a_copy_to_another_volume_that_sigkill_cut_short_is_finished_by_another_sidecar(
    engine: Engine, image: str
) -> None:
    spool, archive = (engine.text("volume", "create", f"--label={engine.label}") for _ in range(2))
    engine.run(f"--volume={archive}:/vol", image, "--version")  # an empty volume gets its owner from the image
    sidecar = [f"--volume={spool}:/vol", f"--volume={archive}:/archive", "--env=SHAREDVOL_TO=/archive/collected", image]
    # It has the first slot, and nothing to do: so who comes after it has to look after the slot of the dead one.
    idle = engine.start("--env=SHAREDVOL_KINDS=other", *sidecar)
    wait_until(lambda: engine.logs(idle) != [], lambda: "the first sidecar has started")
    written: set[str] = set()
    for _ in range(TRIES):
        written |= set(engine.run(f"--volume={spool}:/vol", "--entrypoint=python", image, "-c", WRITE).decode().split())
        victim = engine.start(*sidecar)
        engine.call("exec", victim, "python", "-c", WAIT_FOR_CLAIM)
        engine.kill(victim)
        claimed = [path for path in _files(engine, image, spool) if "/claims/" in path]
        _check_names(_files(engine, image, archive), written)  # also now: nothing is visible in part
        if claimed:
            break
    else:
        pytest.fail(f"{TRIES} sidecars had finished before they were killed: make the files larger")
    assert engine.stop(idle) == 0

    summary = json.loads(engine.run(*sidecar, "once", "--json"))

    assert summary["recovered"] == len(claimed)
    assert summary["failed"] == 0
    assert [path for path in _files(engine, image, spool) if "/.sharedvol/" not in path] == []
    collected = _files(engine, image, archive)
    assert sorted(_check_names(collected, written)) == sorted(written)
    assert [path for path in collected if "/staging/" in path] == []


def _files(engine: Engine, image: str, volume: str) -> dict[str, str]:
    """The files of the volume, each with its digest."""
    return dict(json.loads(engine.run(f"--volume={volume}:/vol:ro", "--entrypoint=python", image, "-c", DIGESTS)))


def _check_names(files: dict[str, str], written: set[str]) -> list[str]:
    """The digests of what was collected; each file is named by its own."""
    collected = {path: digest for path, digest in files.items() if not path.startswith(OWN)}
    assert [path.split("/")[-1] for path in collected] == list(collected.values())
    assert set(collected.values()) <= written
    return list(collected.values())
