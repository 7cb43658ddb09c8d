"""logrotate configurations that compress what the sidecar follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.lint.linted import look, of

COMPOSE = """
    services:
      api:
        image: jobs-api
        deploy: {replicas: 2}
        volumes:
          - {type: volume, source: shared, target: /srv/shared, volume: {nocopy: true}}
      sidecar:
        image: sharedvol-sidecar
        environment: {SHAREDVOL_FROM: /shared/spool, SHAREDVOL_TO: /shared/collected}
        volumes:
          - {type: volume, source: shared, target: /shared, volume: {nocopy: true}}
    volumes:
      shared:
"""
BLOCK = "/shared/spool/*/logs/*.log {\n    daily\n    compress\n}\n"


def lines(tmp_path: Path, config: str, compose: str = COMPOSE) -> list[int]:
    return [one.at.line for one in of(look(tmp_path, compose, scripts=[config]), "SV072")]


FOUND = {
    "in the block": (BLOCK, [3]),
    "for all that follow": ("compress\n/shared/spool/*/logs/*.log {\n    daily\n}\n", [1]),
    "the last one counts": ("nocompress\n" + BLOCK, [4]),
    "indented": ("  /shared/spool/*/logs/*.log  {\n\tcompress # to save space\n  }\n", [2]),
    "with delaycompress": ("/shared/spool/*/logs/*.log {\n    compress\n    delaycompress\n}\n", [2]),
    "quoted": ('"/shared/spool/c 1/logs/app.log" {\n    compress\n}\n', [2]),
    "several patterns": ("/var/log/x.log /shared/spool/*/logs/*.log {\n    compress\n}\n", [2]),
    "patterns on lines of their own": ("/var/log/x.log\n/shared/spool/c1/logs/app.log\n{\n    compress\n}\n", [4]),
    "the replicas' own path": ("/srv/shared/spool/*/logs/app.log {\n    compress\n}\n", [2]),
    "the host's path": ("/var/lib/docker/volumes/jobs_shared/_data/spool/*/logs/*.log {\n    compress\n}\n", [2]),
    "another engine's path": ("/home/a/docker/volumes/jobs_shared/_data/spool/*/logs/*.log {\n    compress\n}\n", [2]),
    "the flat directory": ("/shared/spool/logs/*.log {\n    compress\n}\n", [2]),
    "below it": ("/shared/spool/*/logs/web/*.log {\n    compress\n}\n", [2]),
    "wildcards": ("/shared/*/*/l*/*.log {\n    compress\n}\n", [2]),
    "a variable": ("cat > x <<EOF\n$SPOOL/*/logs/*.log {\n    compress\n}\nEOF\n", [3]),
    "after another block": ("/var/log/x.log {\n    compress\n}\n" + BLOCK, [6]),
    "after a script with words of ours": (
        "/shared/spool/*/logs/*.log {\n    postrotate\n        nocompress\n        }\n    endscript\n    compress\n}\n",
        [6],
    ),
}

NOT_FOUND = {
    "nocompress": "/shared/spool/*/logs/*.log {\n    nocompress\n}\n",
    "nothing": "/shared/spool/*/logs/*.log {\n    daily\n}\n",
    "nocompress after compress": "compress\n/shared/spool/*/logs/*.log {\n    compress\n    nocompress\n}\n",
    "commented out": "/shared/spool/*/logs/*.log {\n    # compress\n}\n",
    "other logs": "/var/log/nginx/*.log {\n    compress\n}\n",
    "results": "/shared/spool/*/results/*.json {\n    compress\n}\n",
    "collected logs": "/shared/collected/logs/*.log {\n    compress\n}\n",
    "a directory of a like name": "/shared/spools/c1/logs/*.log {\n    compress\n}\n",
    "a later default": BLOCK.replace("    compress\n", "") + "compress\n",
    "another block's": BLOCK.replace("    compress\n", "") + "/var/log/x.log {\n    compress\n}\n",
    "within a script": "/shared/spool/*/logs/*.log {\n    postrotate\n        compress\n    endscript\n}\n",
    "a shell function": "compress() {\n    gzip /shared/spool/c1/logs/app.log\n}\n",
    "other options": "/shared/spool/*/logs/*.log {\n    delaycompress\n    compresscmd /bin/xz\n}\n",
    "accepted": BLOCK.replace("compress", "compress # sharedvol: ignore SV072 the lines may be there twice"),
}


@pytest.mark.parametrize(("config", "wanted"), FOUND.values(), ids=FOUND)
def test_compressing_followed_logs_is_found_where_it_is_set(tmp_path: Path, config: str, wanted: list[int]) -> None:
    assert lines(tmp_path, config) == wanted


@pytest.mark.parametrize("config", NOT_FOUND.values(), ids=NOT_FOUND)
def test_other_configurations_are_not_found(tmp_path: Path, config: str) -> None:
    assert lines(tmp_path, config) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("image: sharedvol-sidecar", "image: another"),
        ("SHAREDVOL_TO: /shared/collected", "SHAREDVOL_TO: /shared/collected, SHAREDVOL_FOLLOW: events"),
        ("SHAREDVOL_FROM: /shared/spool", "SHAREDVOL_FROM: /elsewhere"),
    ],
)
def test_only_what_a_sidecar_follows_counts(tmp_path: Path, before: str, after: str) -> None:
    compose = COMPOSE.replace(before, after)
    if before.startswith("image"):
        compose = compose.replace("SHAREDVOL_FROM", "ANOTHER")
    assert lines(tmp_path, BLOCK, compose) == []


def test_the_spool_is_read_from_the_command_as_well(tmp_path: Path) -> None:
    compose = COMPOSE.replace(
        "environment: {SHAREDVOL_FROM: /shared/spool, SHAREDVOL_TO: /shared/collected}",
        "command: [run, --from, /shared/spool, --to=/shared/collected, --follow=logs]",
    )
    assert lines(tmp_path, BLOCK, compose) == [3]


def test_a_volume_with_a_name_of_its_own_is_known_by_it(tmp_path: Path) -> None:
    compose = COMPOSE.replace("      shared:\n", "      shared: {name: results}\n")
    for name, wanted in (("results", [2]), ("other", [])):
        config = f"/var/lib/docker/volumes/{name}/_data/spool/*/logs/*.log {{\n    compress\n}}\n"
        assert lines(tmp_path, config, compose) == wanted


def test_a_bind_mount_is_known_by_the_hosts_path(tmp_path: Path) -> None:
    compose = COMPOSE.replace("type: volume, source: shared,", "type: bind, source: /data/jobs,")
    assert lines(tmp_path, "/data/jobs/spool/*/logs/*.log {\n    compress\n}\n", compose) == [2]


@pytest.mark.parametrize("text", ["a/" * 50_000, '"' * 50_000, "/x " * 50_000 + "{", "{\n" * 50_000])
def test_a_long_script_is_read_in_a_moment(tmp_path: Path, text: str) -> None:
    assert lines(tmp_path, text) == []
