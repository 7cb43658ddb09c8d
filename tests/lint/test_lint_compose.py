"""What Compose says is believed, the places come from the files; where Compose is not there, the files say it all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from support.lint.linted import look, of

from sharedvol.lint import LintError
from sharedvol.lint.compose.docker import NoCompose, read_config, with_positions
from sharedvol.lint.compose.node import EMPTY, Node
from sharedvol.lint.compose.reader import read

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
ODD = {
    "compose.yaml": """\
        include: [inc/part.yaml]
        x-env: &env
          {A: 1, B: true, C: ~, D: 0o17, E: 0x1f, F: 1_000, G: 1.5, H: "yes", I: on, J: 12:30:45, K: $$x, L: 017,
           M: "${UNSET-}", N: "${UNSET:-a:b}", O: "${SET:+has ${SET}}", P: ""}
        services:
          api:
            image: x
            extends: {file: ext/base.yaml, service: web}
            environment: {<<: *env, Z: last}
            ports:
              - 80
              - "443:443/tcp"
              - "8000-8002:8000"
              - "3000-3001:4000-4001"
              - {target: 90, published: 9090, protocol: udp}
              - {target: 91, published: "9091-9093", host_ip: 127.0.0.1}
              - "0.0.0.0::6000"
            volumes:
              - ~/x:/home/x
              - ../up:/up:rw
              - named:/n:ro,nocopy
              - {type: bind, source: ./rel, target: /rel/, bind: {propagation: rslave}}
              - {type: volume, source: named, target: /n2}
            tmpfs: /run
            expose: ["1", "2"]
            cap_add: [CHOWN]
            secrets: [{source: s, target: /s}]
            env_file: a.env
            command: >
              serve --a "b c"
              'd'
            depends_on: {db: {condition: service_healthy, restart: true}}
            labels: {one: 1, two: true}
            scale: 3
          db: {image: mysql}
        volumes: {named: {}}
        secrets: {s: {environment: S}, t: {environment: T}}
        """,
    "over.yaml": """\
        services:
          api:
            environment: [A=over, "NEW="]
            ports: !reset []
            volumes: [{type: volume, source: other, target: /n}]
            tmpfs: [/run, /more]
            expose: ["2", "3"]
            cap_add: [CHOWN, FOWNER]
            secrets: [{source: t, target: /s}]
            env_file: [c.env]
            labels: ["three=3", "one=11"]
            command: null
            depends_on: [part]
        volumes: {other: {}}
        """,
    "inc/part.yaml": """\
        services:
          part: {image: p, env_file: p.env, volumes: ["./d:/d"], environment: {PV: "${PV:-none}"}}
        """,
    "ext/base.yaml": """\
        services:
          root: {volumes: ["./data:/data"], environment: [FROM=root, A=root], ports: ["80"]}
          web: {extends: {service: root}, labels: {base: "1"}, command: base, env_file: b.env, tmpfs: [/tmp]}
        """,
    "inc/.env": "PV=from-inc\n",
    "inc/p.env": "PE=1\n",
    "ext/b.env": "BE=1\n",
    "c.env": "CE=1\n",
    ".env": "PV=from-main\nSET=set\nSP = spaced\n# comment\nexport EXP=1\nHASH=a#b\nHC=a #b\n",
    "a.env": """\
        E1=plain
        E2='single $SET'
        E3="double $SET"
        E4=un $SET quoted
        E5=a#b
        E6=a # b
        export E8=x
        E9="multi
        line"
        E10="esc\\tq\\"x"
        E11=${SET:-d}
        E14= lead
        A=below
        """,
}
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
    "tmpfs",
    "scale",
    "expose",
    "cap_add",
    "secrets",
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


@pytest.fixture
def odd(tmp_path: Path) -> list[str]:
    for name, text in ODD.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(dedent(text))
    return [str(tmp_path / "compose.yaml"), str(tmp_path / "over.yaml")]


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("texts", ["project", "odd"])
def test_the_files_are_read_as_the_real_compose_reads_them(
    texts: str, files: int, request: pytest.FixtureRequest
) -> None:
    project = request.getfixturevalue(texts)
    compose = binary()
    if compose is None:
        pytest.skip("no docker-compose here: make test-containers gets one")
    names = [option for file in project[:files] for option in ("-f", file)]
    done = subprocess.run(
        [compose, *names, "--profile", "*", "config", "--format", "json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    theirs = with_positions(json.loads(done.stdout), EMPTY).get("services").plain()
    ours = read(project[:files], dict(os.environ)).project.get("services").plain()
    assert theirs.keys() == ours.keys()
    for name in theirs:
        assert _comparable(theirs[name]) == _comparable(ours[name])


def _comparable(service: dict[str, Any]) -> dict[str, Any]:
    """What the rules look at, scalars of mappings as texts: Compose casts them."""
    found = {key: service[key] for key in KEYS if service.get(key)}
    for key in ("environment", "labels"):
        found[key] = {name: value if value is None else Node(value).text for name, value in found.get(key, {}).items()}
    deploy = service.get("deploy") or {}
    return {
        **found,
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


def test_what_only_compose_knows_is_placed_at_what_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = {"target": 80, "published": "8080", "protocol": "tcp", "mode": "ingress"}
    told = {"services": {"api": {"scale": 2, "container_name": "x", "ports": [port, {**port, "published": "81"}]}}}
    monkeypatch.setenv("PATH", fake(tmp_path, f"echo '{json.dumps(told)}'"), prepend=":")
    report = look(tmp_path, "services:\n  api:\n    ports: ['70']\n", reader="auto")
    assert [found.at.line for found in of(report, "SV001")] == [3]
    assert [found.at.line for found in of(report, "SV002")] == [2]


def test_fields_that_compose_leaves_out_are_taken_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"services": {"api": {"deploy": {"replicas": 2}, "stop_grace_period": "3s"}}}
    monkeypatch.setenv("PATH", fake(tmp_path, f"echo '{json.dumps(told)}'"), prepend=":")
    text = "services: {api: {x-sharedvol: {drain: 5}, stop_grace_period: 3s, image: '${UNSET}'}}"
    report = look(tmp_path, text, reader="auto")
    assert not report.notes  # what this reader had to guess, Compose knows
    assert "not longer than the drain of 5 s" in of(report, "SV040")[0].message


@pytest.mark.parametrize(
    ("script", "note"),
    [
        ("echo 'time=now level=warning' >&2; echo 'invalid compose project' >&2; exit 15", "invalid compose project"),
        ("echo nonsense", "did not print JSON"),
        ("echo '[]'", "did not print a project"),
        ("exit 3", "ended with 3"),
        ("echo \"unknown shorthand flag: 'f' in -f\" >&2; exit 125", "docker compose is not installed"),
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
        read_config(["compose.yaml"], patience=0.1)


def test_docker_without_compose_leaves_the_word_to_docker_compose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fake(tmp_path, "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1")
    second = fake(tmp_path, 'echo "{\\"services\\": {}, \\"asked\\": \\"$*\\"}"', "docker-compose")
    monkeypatch.setenv("PATH", f"{first}:{second}")
    found, command = read_config(["a.yaml", "b.yaml"], ["v.env"], ["x"])
    assert command == "docker-compose"
    assert found == {
        "services": {},
        "asked": "-f a.yaml -f b.yaml --env-file v.env --profile x config --format json",
    }
