"""What Compose says is believed, the places come from the files; where Compose is not there, the files say it all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from linted import look, of

from sharedvol.lint import LintError
from sharedvol.lint.compose_command import NoCompose, config, placed
from sharedvol.lint.files import read
from sharedvol.lint.node import EMPTY

CACHE = Path(os.environ.get("SHAREDVOL_TEST_CACHE") or Path.home() / ".cache" / "sharedvol") / "containers"

PROJECT = """\
x-common: &common
  restart: unless-stopped
  environment: {A: "1", B: two}
services:
  base:
    image: alpine
    ports: ["8080:80", "127.0.0.1:9000-9001:90-91/udp", "70"]
    healthcheck: {test: curl -f localhost, start_period: 120s}
  api:
    <<: *common
    extends: base
    command: uvicorn app:app --workers 2 "a b"
    environment: ["X=$${HOSTNAME}", "N="]
    env_file: [a.env]
    volumes:
      - data:/vol
      - ./src:/app:ro
      - {type: volume, source: data, target: /x, read_only: true, volume: {nocopy: true}}
      - /anon
      - data:/y:nocopy
    depends_on: [db]
    labels: [traefik.enable=true, "a.b=c=d"]
    deploy:
      replicas: ${REPLICAS:-4}
      resources: {limits: {memory: 512M}}
      update_config: {parallelism: 1, delay: 30s, order: start-first}
    stop_grace_period: 1m30s
    init: true
    x-sharedvol: {pool_size: 5}
  db:
    image: mysql
    profiles: [x]
    container_name: ${NAME:-db}
    command: --max_connections=200
volumes:
  data:
    x-sharedvol: {writes: cache}
"""
OVER = """\
services:
  api:
    ports: ["8081:80", "8080:80"]
    environment: {A: "3"}
    volumes: !override ["data:/vol:ro"]
    labels: !reset []
    command: [x]
    depends_on: {db: {condition: service_healthy}}
    deploy: !override {replicas: 2}
"""
KEYS = (
    "image",
    "command",
    "container_name",
    "environment",
    "labels",
    "init",
    "restart",
    "ports",
    "volumes",
    "depends_on",
)


def binary() -> str | None:
    """A docker-compose to compare with: a static binary runs where there is no engine."""
    found = shutil.which("docker-compose")
    kept = CACHE / "docker-compose"
    return found or (str(kept) if os.access(kept, os.X_OK) else None)


def fake(place: Path, script: str, name: str = "docker") -> str:
    """A directory with a program that stands for docker."""
    folder = place / f"{name}-bin"
    folder.mkdir()
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(folder)


@pytest.fixture
def project(tmp_path: Path) -> list[str]:
    (tmp_path / "compose.yaml").write_text(PROJECT)
    (tmp_path / "over.yaml").write_text(OVER)
    (tmp_path / "a.env").write_text('FROM_FILE="quoted ${NAME:-d}" # comment\n')
    return [str(tmp_path / "compose.yaml"), str(tmp_path / "over.yaml")]


@pytest.mark.parametrize("files", [1, 2])
def test_the_files_are_read_as_the_real_compose_reads_them(files: int, project: list[str]) -> None:
    compose = binary()
    if compose is None:
        pytest.skip("no docker-compose here: make test-containers gets one")
    names = [option for file in project[:files] for option in ("-f", file)]
    done = subprocess.run(
        [compose, *names, "--profile", "*", "config", "--format", "json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    theirs = placed(json.loads(done.stdout), EMPTY).get("services").plain()
    ours = read(project[:files], dict(os.environ)).project.get("services").plain()
    assert theirs.keys() == ours.keys()
    for name in theirs:
        assert _comparable(theirs[name]) == _comparable(ours[name])


def _comparable(service: dict[str, Any]) -> dict[str, Any]:
    """What the rules look at, numbers as texts: Compose casts what was interpolated."""
    found = {key: service[key] for key in KEYS if service.get(key)}
    deploy = service.get("deploy") or {}
    return {
        **json.loads(json.dumps(found), parse_int=str),
        "replicas": str(deploy.get("replicas")),
        "order": (deploy.get("update_config") or {}).get("order"),
    }


def test_compose_is_believed_and_the_places_are_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "services": {
            "api": {
                "container_name": "from-compose",
                "deploy": {"replicas": 4},
                "ports": [{"target": 80, "published": "8080", "protocol": "tcp", "mode": "ingress"}],
            }
        }
    }
    monkeypatch.setenv("PATH", fake(tmp_path, f"echo '{json.dumps(told)}'"), prepend=":")
    report = look(
        tmp_path,
        """\
        services:
          api:
            container_name: here
            ports:
              - "70"
              - "8080:80"
            x-sharedvol: {drain: 5}
            stop_grace_period: 3s
        """,
        reader="auto",
    )
    assert report.read_by == "docker compose"
    assert "'from-compose'" in of(report, "SV002")[0].message
    assert of(report, "SV002")[0].at.line == 3
    assert of(report, "SV001")[0].at.line == 6
    assert "no stop_grace_period" in of(report, "SV040")[0].message  # Compose does not tell of any


def test_fields_that_compose_leaves_out_are_taken_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"services": {"api": {"deploy": {"replicas": 2}, "stop_grace_period": "3s"}}}
    monkeypatch.setenv("PATH", fake(tmp_path, f"echo '{json.dumps(told)}'"), prepend=":")
    report = look(tmp_path, "services: {api: {x-sharedvol: {drain: 5}, stop_grace_period: 3s}}", reader="auto")
    assert "not longer than the drain of 5 s" in of(report, "SV040")[0].message


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo 'time=now level=warning' >&2; echo 'invalid compose project' >&2; exit 15", "invalid compose project"),
        ("echo nonsense", "prints no JSON"),
        ("echo '[]'", "prints no project"),
        ("exit 3", "ended with 3"),
        ("echo \"unknown shorthand flag: 'f' in -f\" >&2; exit 125", "there is no docker compose"),
    ],
)
def test_where_compose_does_not_answer_the_files_are_read_and_it_is_told(
    script: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", fake(tmp_path, script))
    text = "services: {api: {container_name: api, deploy: {replicas: 2}}}"
    report = look(tmp_path, text, reader="auto")
    assert report.read_by == "files"
    assert len(report.notes) == 1
    assert note in report.notes[0]
    assert of(report, "SV002")
    with pytest.raises(LintError, match=note):
        look(tmp_path, text, reader="compose")


def test_a_compose_that_hangs_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake(tmp_path, "exec /bin/sleep 600"))
    with pytest.raises(NoCompose, match=r"did not answer in 0\.1 s"):
        config(["compose.yaml"], patience=0.1)


def test_docker_without_compose_leaves_the_word_to_docker_compose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fake(tmp_path, "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1")
    second = fake(tmp_path, 'echo "{\\"services\\": {}, \\"asked\\": \\"$*\\"}"', "docker-compose")
    monkeypatch.setenv("PATH", f"{first}:{second}")
    found, command = config(["a.yaml", "b.yaml"], ["v.env"], ["x"])
    assert command == "docker-compose"
    assert found == {
        "services": {},
        "asked": "-f a.yaml -f b.yaml --env-file v.env --profile x config --format json",
    }
