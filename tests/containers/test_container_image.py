"""What the image promises, and that it runs with nothing but its volume."""

from __future__ import annotations

import json

import pytest
from support.containers.container_engine import Engine, wait_until

from sharedvol import __version__

LOOK_AROUND = """
import importlib.util, json, os
print(json.dumps({
    "tools": [name for name in ("pip", "hatchling", "setuptools") if importlib.util.find_spec(name)],
    "places": [place for place in ("/build", "/pinned", "/source", "/root/.cache", "/root/.config/pip")
               if os.path.exists(place)],
    "settings": [name for name in os.environ if name.startswith("PIP_") or "INDEX" in name],
}))
"""
WRITABLE = """
import json, os
print(json.dumps([os.getuid(), os.getgid(), [top for top, _, _ in os.walk("/opt") if os.access(top, os.W_OK)]]))
"""


def test_the_image_says_how_it_is_run(engine: Engine, image: str) -> None:
    about = engine.inspect_image(image)
    config = about["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["sharedvol-sidecar"]
    assert config["Cmd"] == ["run"]
    assert config["StopSignal"] == "SIGTERM"
    assert _health_check(engine, image) == ["sharedvol-sidecar", "health"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["title"] == "sharedvol-sidecar"
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"


def test_the_program_is_the_version_that_the_label_says(engine: Engine, image: str) -> None:
    assert engine.run(image, "--version").decode().split()[-1] == __version__


def test_nothing_of_the_build_is_left_in_the_image(engine: Engine, image: str) -> None:
    seen = json.loads(engine.run("--user=0", "--entrypoint=python", image, "-c", LOOK_AROUND))
    assert seen == {"tools": [], "places": [], "settings": []}


def test_the_program_cannot_be_changed_by_its_user(engine: Engine, image: str) -> None:
    seen = engine.run("--entrypoint=python", image, "-c", WRITABLE)
    assert json.loads(seen) == [65532, 65532, []]


@pytest.mark.parametrize("user", ["", "1234:1234"])
def test_sigterm_ends_a_read_only_container_within_its_grace_period(
    engine: Engine, image: str, volume: str, user: str
) -> None:
    options = [f"--volume={volume}:/vol"]
    if user:  # another user than the image's: the volume is to be theirs
        engine.call("run", "--rm", "--user=0", "--entrypoint=chown", *options, image, "-R", user, "/vol")
        options.append(f"--user={user}")
    sidecar = engine.start(*options, image)
    wait_until(lambda: any('"started"' in line for line in engine.logs(sidecar)), lambda: "the sidecar has started")
    assert engine.stop(sidecar) == 0
    assert json.loads(engine.logs(sidecar)[-1])["event"] == "stopped"


def test_the_health_check_tells_a_working_sidecar_from_none(engine: Engine, image: str, volume: str) -> None:
    sidecar = engine.start(f"--volume={volume}:/vol", image)
    check = ["exec", sidecar, *_health_check(engine, image)]
    wait_until(lambda: engine.succeeds(*check), lambda: "the sidecar is healthy")
    idle = engine.start("--entrypoint=python", image, "-c", "import signal; signal.pause()")
    assert not engine.succeeds("exec", idle, *_health_check(engine, image))


def _health_check(engine: Engine, image: str) -> list[str]:
    about = engine.inspect_image(image)
    check = about["Config"].get("Healthcheck") or about["Healthcheck"]  # Docker, Podman
    assert check["Test"][0] == "CMD", "it needs a shell"
    return list(check["Test"][1:])
