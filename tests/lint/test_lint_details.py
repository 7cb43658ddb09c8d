"""Where rules hold and where they do not: what the pages' examples leave open."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.lint.linted import HOST, look, of

from sharedvol.lint import Options, Severity, lint
from sharedvol.lint.rules import capacity

NOCOPY = "volume: {nocopy: true}"


def one(*lines: str, service: str = "api", replicas: int = 2) -> str:
    """A compose file with one service of these lines."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"services:\n  {service}:\n    scale: {replicas}\n{body}"


BROKEN = [
    ("SV001", one("ports: ['8000-8001:80']", replicas=3)),
    ("SV001", one("ports: [{target: 80, published: 8000}]")),
    ("SV001", one("ports: ['127.0.0.1:53:53/udp']")),
    ("SV004", one("environment: [HOSTNAME=api]")),
    ("SV004", one("environment: [HOSTNAME]")),
    ("SV005", one("network_mode: service:db")),
    ("SV005", one("network_mode: container:db")),
    ("SV006", one("mac_address: 02:42:ac:11:65:43")),
    ("SV007", one("environment: {LOG: '/logs/${HOSTNAME}.log'}")),
    ("SV007", one("environment: ['LOG=/logs/$HOSTNAME']")),
    ("SV007", one("environment: {a: '$$$HOSTNAME'}")),
    ("SV007", one("volumes: ['./${HOSTNAME}:/x:ro']")),
    ("SV007", one("command: serve ${HOSTNAME:-a b}")),
    ("SV008", one("ipc: service:db")),
    ("SV008", one("pid: host")),
    ("SV010", one("volumes: [{type: bind, source: ./x, target: /x}]")),
    ("SV011", one("volumes: ['.:/opt/x']", "working_dir: /opt/x")),
    ("SV011", one("volumes: ['./main.py:/x/main.py:ro']")),
    ("SV013", one("volumes: [{type: volume, source: vol, target: /v}]")),
    ("SV014", one("volumes: [{type: tmpfs, target: /x/logs}]")),
    ("SV014", one("tmpfs: /results:size=1g")),
    ("SV017", one("command: [serve, --db, /shared/a.sqlite3]", "volumes: ['vol:/shared']")),
    ("SV017", one("environment: {U: 'sqlite+aiosqlite:////shared/a.db?x=1'}", "volumes: ['vol:/shared']")),
    ("SV019", one("command: uvicorn --access-logfile=/v/access.log x", "volumes: ['vol:/v']")),
    ("SV020", one("environment: {X: /v/a.sock}", "volumes: ['vol:/v']")),
    ("SV020", one("command: [a, --out=/v/result.csv]", "volumes: ['vol:/v']")),
    ("SV020", one("command: [a, --export, /v/result.csv]", "volumes: ['vol:/v']")),
    ("SV020", one("environment: {OUT: /v/result.json}", "volumes: ['vol:/v']")),
    ("SV030", one("labels: [traefik.http.routers.a.rule=x]", "healthcheck: {disable: true}")),
    ("SV030", one("labels: {traefik.enable: true}", "healthcheck: {test: [NONE]}", "image: x")),
    ("SV031", one("healthcheck: {test: x}")),
    ("SV031", one("healthcheck: {test: x, start_period: 30s}")),
    ("SV031", one("healthcheck: {test: x, start_period: 1m}", "x-sharedvol: {lock_timeout: 60}")),
    ("SV031", one("healthcheck: {test: x, start_period: 1m}", "labels: {sharedvol.lock_timeout: 2m}")),
    ("SV032", one("post_start: [{command: chown -R 1 /x}]")),
    ("SV034", one("command: sh -c 'python manage.py migrate && exec serve'")),
    ("SV034", one("entrypoint: [flyway, migrate]")),
    ("SV035", one("command: crond -f")),
    ("SV040", one("stop_grace_period: 10s", "x-sharedvol: {drain: 10}")),
    ("SV042", one("entrypoint: [/bin/bash, -ec]", "command: ['a; b']")),
    ("SV043", one("deploy: {update_config: {parallelism: 0, order: start-first}}")),
    ("SV043", one("deploy: {update_config: {parallelism: 2, order: start-first}}")),
    ("SV044", one("restart: 'no'")),
    ("SV052", one("deploy: {resources: {limits: {cpus: '1'}}}")),
    ("SV060", one("labels: [traefik.http.services.a.loadbalancer.sticky=true]")),
    ("SV061", one("environment: {SESSION_TYPE: filesystem}")),
    ("SV061", one("environment: {UPLOAD_FOLDER: /u}", "tmpfs: [/u]")),
]
SOUND = [
    ("SV001", one("ports: ['8000-8003:80']", replicas=4)),
    ("SV001", one("ports: ['80']")),
    ("SV001", one("ports: [{target: 80, published: '0'}]")),
    ("SV005", one("network_mode: none")),
    ("SV006", one("networks: {a: {aliases: [b]}}")),
    ("SV007", one("command: sh -c 'serve $$HOSTNAME'")),
    ("SV007", one("environment: {A: '${HOSTNAMES}'}")),
    ("SV007", one("labels: {a: 'Host(`${HOSTNAME}`)'}", "environment: {PUBLIC_URL: 'https://${HOSTNAME}/'}")),
    ("SV008", one("ipc: private")),
    ("SV010", one("volumes: ['/var/run/docker.sock:/var/run/docker.sock']")),
    ("SV010", one("volumes: ['./x:/x:ro']")),
    ("SV011", one("volumes: ['./x:/data']")),
    ("SV012", one("volumes: ['vol:/v:ro']")),
    ("SV012", one("volumes: ['/v']")),
    ("SV014", one("tmpfs: [/tmp, /run]")),
    ("SV017", one("environment: {U: 'sqlite:////tmp/a.db'}", "volumes: ['vol:/shared']")),
    ("SV017", one("environment: {U: /shared/a.db}", "volumes: ['vol:/shared:ro']")),
    ("SV019", one("environment: {L: /var/log/a.log}", "volumes: ['vol:/shared']")),
    ("SV019", one("environment: {L: '/shared/$$HOSTNAME.log'}", "volumes: ['vol:/shared']")),
    ("SV020", one("environment: {L: /shared/ca.json}", "volumes: ['./ca.json:/shared/ca.json']")),
    ("SV020", one("environment: {CONFIG: /v/a.json}", "command: a /v/b.csv", "volumes: ['vol:/v']")),
    ("SV030", one("image: x")),
    ("SV031", one("healthcheck: {test: x, start_period: 31s}")),
    ("SV031", one("healthcheck: {disable: true}")),
    ("SV032", one("post_start: [{command: ./tell-the-pager}]")),
    ("SV034", one("command: sharedvol lock /l -- alembic upgrade head")),
    ("SV034", one("command: alembic upgrade head", replicas=1)),
    ("SV035", one("command: celery -A a beat", replicas=1)),
    ("SV042", one("command: sh -c serve")),
    ("SV042", one("command: serve")),
    ("SV043", one("deploy: {update_config: {order: start-first}}")),
    ("SV052", one("mem_limit: 100m")),
    ("SV060", one("labels: [traefik.http.services.a.loadbalancer.sticky=false]")),
    ("SV061", one("environment: {UPLOAD_DIR: /u/x}", "volumes: ['vol:/u']")),
    ("SV061", one("environment: {UPLOAD_DIR: uploads, HOME: /root}")),
    ("SV062", one("environment: {U: 'http://api:80', V: /data/api-1.json}")),
]


@pytest.mark.parametrize(("rule", "text"), BROKEN)
def test_broken(rule: str, text: str, tmp_path: Path) -> None:
    assert len(of(look(tmp_path, text), rule)) == 1


@pytest.mark.parametrize(("rule", "text"), SOUND)
def test_sound(rule: str, text: str, tmp_path: Path) -> None:
    assert of(look(tmp_path, text), rule) == []


# Who is looked at


@pytest.mark.parametrize(
    "line", ["deploy: {replicas: 3}", "scale: 3", "labels: [sharedvol.replicas=3]", "x-sharedvol: {replicas: 3}"]
)
def test_what_makes_a_service_replicated(line: str, tmp_path: Path) -> None:
    report = look(tmp_path, f"services:\n  api:\n    container_name: a\n    {line}\n")
    assert report.services == {"api": 3}
    assert of(report, "SV002")[0].severity is Severity.error


def test_the_option_stands_above_the_file(tmp_path: Path) -> None:
    text = one("container_name: a", replicas=4)
    assert of(look(tmp_path, text, replicas={"api": 1}), "SV002")[0].severity is Severity.note
    assert of(look(tmp_path, one("container_name: a", replicas=1), replicas={"api": 2}), "SV002")[0].severity > 1


@pytest.mark.parametrize(
    "image", ["mysql:8.4", "registry:5000/library/mariadb", "postgres@sha256:0", "traefik", "nginx"]
)
def test_what_is_one_by_nature_gets_no_notes(image: str, tmp_path: Path) -> None:
    report = look(tmp_path, one("container_name: a", "ports: ['80:80']", f"image: {image}", replicas=1))
    assert not report.findings


def test_what_is_declared_single_or_runs_once_gets_no_notes(tmp_path: Path) -> None:
    text = """\
    services:
      keeper: {container_name: a, x-sharedvol: {single: keeps the schedule}}
      prepare: {container_name: b, user: "0", volumes: ["vol:/v"]}
      api: {user: "1000", volumes: ["vol:/v"], depends_on: {prepare: {condition: service_completed_successfully}}}
    volumes: {vol: {}}
    """
    report = look(tmp_path, text)
    assert {finding.service for finding in report.findings} == {"api"}
    assert not of(report, "SV016")


# Volumes


def test_a_cache_that_nobody_declares_is_a_note(tmp_path: Path) -> None:
    text = one("environment: {CACHE_DIR: /c/x}", f"volumes: [{{type: volume, source: c, target: /c, {NOCOPY}}}]")
    assert [found.severity for found in of(look(tmp_path, text), "SV012")] == [Severity.note]
    other = text.replace("CACHE_DIR: /c/x", "CACHE_DIR: /x, DATA_DIR: /c")
    assert [found.severity for found in of(look(tmp_path, other), "SV012")] == [Severity.warning]
    assert not of(look(tmp_path, text + "volumes: {c: {x-sharedvol: {writes: cache}}}\n"), "SV012")


def test_a_job_with_the_sidecars_image_is_no_sidecar(tmp_path: Path) -> None:
    text = one("volumes: ['vol:/v']") + "  job: {image: sharedvol-sidecar, entrypoint: [sh], volumes: ['vol:/v']}\n"
    assert [found.service for found in of(look(tmp_path, text), "SV012")] == ["api", "job"]


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [("1000", "1000:1000", 0), ("1000:1", "1000:2", 1), ("1000", "1001", 1), ("", "1000", 0), ("app", "app", 0)],
)
def test_users_of_one_volume(first: str, second: str, count: int, tmp_path: Path) -> None:
    text = f"""\
    services:
      a: {{user: "{first}", volumes: ["vol:/v"]}}
      b: {{user: "{second}", volumes: ["vol:/v"]}}
      reader: {{user: "5", volumes: ["vol:/v:ro"]}}
    volumes: {{vol: }}
    """
    assert len(of(look(tmp_path, text), "SV016")) == count


@pytest.mark.parametrize(
    ("volume", "count"),
    [
        ("{driver: local, driver_opts: {type: cifs}}", 1),
        ("{driver: rclone}", 1),
        ("{driver_opts: {type: fuse.sshfs}}", 1),
        ("{driver_opts: {type: none, o: bind, device: /x}}", 0),
        ("{driver: local}", 0),
    ],
)
def test_network_volumes(volume: str, count: int, tmp_path: Path) -> None:
    assert len(of(look(tmp_path, one("volumes: ['vol:/v']") + f"volumes: {{vol: {volume}}}\n"), "SV018")) == count
    assert not of(look(tmp_path, one("image: a") + f"volumes: {{vol: {volume}}}\n"), "SV018")


def test_code_in_a_file_for_development_is_meant(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(one("image: a"))
    (tmp_path / "compose.override.yaml").write_text("services: {api: {volumes: ['./src:/app']}}")
    report = lint([str(tmp_path / "compose.yaml"), str(tmp_path / "compose.override.yaml")], Options(reader="files"))
    assert not of(report, "SV011")


@pytest.mark.parametrize("below", ["logs", "results", "cache", "upload", "output/x"])
def test_what_is_written_below_the_code_is_no_code(below: str, tmp_path: Path) -> None:
    report = look(tmp_path, one(f"volumes: ['./{below}:/app/{below}']"))
    assert of(report, "SV010")
    assert not of(report, "SV011")


# Connections and memory


def database(limit: str, *lines: str, replicas: int = 4) -> str:
    return one("depends_on: [db]", *lines, replicas=replicas) + f"  db: {{image: 'mysql:8', {limit}}}\n"


@pytest.mark.parametrize(
    ("text", "total"),
    [
        (database("command: --max_connections=19", "environment: {POOL_SIZE: '5'}"), 20),
        (database("command: --max_connections=20", "environment: {POOL_SIZE: '5'}"), None),
        (database("command: [mysqld, --max-connections, '39']", "environment: {POOL_SIZE: 5, WEB_CONCURRENCY: 2}"), 40),
        (database("x-sharedvol: {max_connections: 59}", "x-sharedvol: {pool_size: 5, max_overflow: 10}"), 60),
        (database("labels: {sharedvol.max_connections: '20'}", "labels: [sharedvol.pool_size=6]"), 24),
        (database("environment: {MYSQL_MAX_CONNECTIONS: 20}", "x-sharedvol: {pool_size: 3, workers: 2}"), 24),
        (database("x-a: 0", "environment: {POOL_SIZE: '38'}"), 152),
        (database("x-a: 0", "environment: {POOL_SIZE: '37'}"), None),
        (
            database(
                "command: --max_connections=24",
                "environment: {POOL_SIZE: 5}",
                *["deploy: {update_config: {order: start-first}}"],
            ),
            25,
        ),
        (database("command: --max_connections=79", "command: gunicorn -w 4 app", "environment: {POOL_SIZE: 5}"), 80),
        (
            database("command: --max_connections=79", "environment: {POOL_SIZE: 5, GUNICORN_CMD_ARGS: '--workers=4'}"),
            80,
        ),
    ],
)
def test_connections_are_counted(text: str, total: int | None, tmp_path: Path) -> None:
    found = of(look(tmp_path, text), "SV050")
    assert [f": {total} connections" in one.message for one in found] == ([True] if total else [])


def test_connections_of_all_services_are_added(tmp_path: Path) -> None:
    text = database("command: --max_connections=30", "environment: {POOL_SIZE: '5'}")
    text += "  worker: {environment: {URL: 'mysql://app@db/x', POOL_SIZE: 11}}\n"
    (found,) = of(look(tmp_path, text), "SV050")
    assert "31 connections" in found.message
    assert found.service == "db"


def test_connections_that_nobody_declares_are_unknown(tmp_path: Path) -> None:
    (found,) = of(look(tmp_path, database("x-a: 0", "environment: {MAX_CONNECTIONS: 5}")), "SV050")
    assert (found.severity, found.service) == (Severity.note, "api")
    assert not of(look(tmp_path, one("image: a")), "SV050")


def test_many_databases_are_looked_at_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(
        capacity, "_limit", lambda service, true=capacity._limit: looked.append(service) or true(service)
    )
    look(tmp_path, "services:\n" + "".join(f"  s{n}: {{image: mysql, scale: 2}}\n" for n in range(50)))
    assert len(looked) == 50


@pytest.mark.parametrize(("memory", "severity"), [(HOST, None), (HOST - 1, Severity.error), (None, Severity.note)])
def test_memory_is_counted_against_the_host(memory: int | None, severity: Severity | None, tmp_path: Path) -> None:
    limit = "3G" if memory else "900T"
    text = one(f"mem_limit: {limit}") + "  db: {deploy: {resources: {limits: {memory: 2048M}}}}\n"
    found = of(look(tmp_path, text, host_memory=memory), "SV051")
    assert [one.severity for one in found] == ([severity] if severity else [])


# Start


def test_a_database_without_a_healthcheck_is_not_waited_for(tmp_path: Path) -> None:
    wait = one("depends_on: {db: {condition: service_healthy}}")
    assert "that has no healthcheck" in of(look(tmp_path, wait + "  db: {image: postgres}\n"), "SV033")[0].message
    assert not of(look(tmp_path, wait + "  db: {image: postgres, healthcheck: {test: x}}\n"), "SV033")
    assert not of(look(tmp_path, wait + "  db: {image: something}\n"), "SV033")


# Scripts

SCRIPTS = [
    ("docker exec -it api sh", "SV070"),
    ("docker exec -e A=b -u 0 --workdir /x fixed sh", "SV070"),
    ("sudo docker container exec shop-api-1 sh", "SV070"),
    ("docker logs -f api_2", "SV070"),
    ("docker cp api:/x .", "SV070"),
    ("docker cp ./x api:/x", "SV070"),
    ("for a in b; do docker exec \\\n  api sh; done", "SV070"),
    ("docker exec alone sh", "SV070"),
    ("docker exec twice sh", "SV070"),
    ("docker stop -t 30 api", "SV070"),
    ("docker kill --signal HUP api", "SV070"),
    ("docker restart -t 5 db api", "SV070"),
    ("docker --context prod exec -it api sh", "SV070"),
    ("docker restart api; docker ps", "SV070"),
    ("docker ps && docker start db && docker logs api", "SV070"),
    ("docker ps; docker compose ps && docker compose exec api sh", "SV071"),
    ("docker exec db sh; echo api", None),
    ("docker exec -e A=api db sh", None),
    ("docker stop -t 30 db | tee api", None),
    ("docker exec db sh", None),
    ("docker exec other sh", None),
    ('docker exec "$id" sh', None),
    ("docker exec $(docker compose ps -q api) sh", None),
    ("# docker exec api sh", None),
    ("echo done # docker exec api sh", None),
    ("docker run api sh", None),
    ("docker compose exec api sh", "SV071"),
    ("docker-compose -f a.yaml exec -T -u 0 api sh", "SV071"),
    ("docker compose exec --index 2 api sh", None),
    ("docker compose exec --index=2 api sh", None),
    ("docker compose exec db sh", None),
    ("docker compose run api exec", None),
    ("docker exec 'unended", None),
]


@pytest.mark.parametrize(("line", "rule"), SCRIPTS)
def test_scripts(line: str, rule: str | None, tmp_path: Path) -> None:
    text = one("image: a") + "  keeper: {container_name: fixed, scale: 3}\n  one: {container_name: alone}\n"
    text += "  two: {image: mysql, container_name: twice, scale: 2}\n  db: {image: mysql, container_name: db}\n"
    report = look(tmp_path, text, scripts=[f"#!/bin/sh\n{line}\n"])
    found = [(one.rule.id, one.at.line) for one in report.findings if one.at.file.endswith(".sh")]
    assert found == ([(rule, 2)] if rule else [])
