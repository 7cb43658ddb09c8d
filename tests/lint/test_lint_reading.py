"""Compose files in all their forms are read as Compose reads them."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from support.lint.linted import look, of

from sharedvol.lint import LintError
from sharedvol.lint.compose.interpolation import interpolate, read_env
from sharedvol.lint.compose.reader import ReadProject, read


def write(place: Path, **files: str) -> list[str]:
    """Files by name, ``_`` standing for ``.`` in it; their paths."""
    paths = []
    for name, text in files.items():
        path = place / name.replace("_", ".")
        path.write_text(dedent(text))
        paths.append(str(path))
    return paths


def source(place: Path, *texts: str, **environment: str) -> ReadProject:
    files = write(place, **{f"c{number}_yaml": text for number, text in enumerate(texts)})
    return read(files, environment)


def service(place: Path, *texts: str, **environment: str) -> dict[str, Any]:
    found: dict[str, Any] = source(place, *texts, **environment).project.get("services", "api").plain()
    return found


# Short and long forms


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("80", {"mode": "ingress", "target": 80, "protocol": "tcp"}),
        ("8080:80", {"mode": "ingress", "target": 80, "published": "8080", "protocol": "tcp"}),
        ("8000-8003:80", {"mode": "ingress", "target": 80, "published": "8000-8003", "protocol": "tcp"}),
        (
            "127.0.0.1:53:53/udp",
            {"mode": "ingress", "host_ip": "127.0.0.1", "target": 53, "published": "53", "protocol": "udp"},
        ),
        ("[::1]:53:53", {"mode": "ingress", "host_ip": "::1", "target": 53, "published": "53", "protocol": "tcp"}),
    ],
)
def test_ports(short: str, long: dict[str, Any], tmp_path: Path) -> None:
    assert service(tmp_path, f"services: {{api: {{ports: ['{short}']}}}}")["ports"] == [long]


def test_a_range_of_ports_is_as_many_ports(tmp_path: Path) -> None:
    ports = service(tmp_path, "services: {api: {ports: ['9000-9001:90-91']}}")["ports"]
    assert [(one["published"], one["target"]) for one in ports] == [("9000", 90), ("9001", 91)]


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("data:/vol", {"type": "volume", "source": "data", "target": "/vol", "volume": {}}),
        ("data:/vol:ro", {"type": "volume", "source": "data", "target": "/vol", "read_only": True, "volume": {}}),
        ("data:/vol:nocopy", {"type": "volume", "source": "data", "target": "/vol", "volume": {"nocopy": True}}),
        ("/anon", {"type": "volume", "target": "/anon", "volume": {}}),
        ("/a:/b/", {"type": "bind", "source": "/a", "target": "/b", "bind": {"create_host_path": True}}),
    ],
)
def test_volumes(short: str, long: dict[str, Any], tmp_path: Path) -> None:
    assert service(tmp_path, f"services: {{api: {{volumes: ['{short}']}}}}")["volumes"] == [long]


def test_a_relative_bind_mount_is_relative_to_the_project(tmp_path: Path) -> None:
    (volume,) = service(tmp_path, "services: {api: {volumes: ['./src:/app']}}")["volumes"]
    assert volume["source"] == str(tmp_path / "src")


def test_lists_and_mappings_of_variables_are_one(tmp_path: Path) -> None:
    first = service(tmp_path, "services: {api: {environment: [A=1, B=, C=x=y]}}")["environment"]
    assert first == {"A": "1", "B": "", "C": "x=y"}
    assert service(tmp_path, "services: {api: {environment: {A: '1', B: '', C: x=y}}}")["environment"] == first


def test_a_variable_without_a_value_has_the_callers(tmp_path: Path) -> None:
    text = "services: {api: {environment: [HOSTNAME, OTHER]}}"
    assert service(tmp_path, text, HOSTNAME="host")["environment"] == {"HOSTNAME": "host", "OTHER": None}


# Merging


def test_mappings_are_merged_and_lists_joined(tmp_path: Path) -> None:
    merged = service(
        tmp_path,
        """\
        services:
          api: {image: a, environment: {A: 1, B: 2}, ports: ["80:80"], volumes: ["one:/a", "two:/b"], command: [x, y]}
        """,
        """\
        services:
          api: {image: b, environment: [B=3], ports: ["80:80", "81:80"], volumes: ["new:/a:ro"], command: [z]}
        """,
    )
    assert (merged["image"], merged["command"]) == ("b", ["z"])
    assert merged["environment"] == {"A": 1, "B": "3"}
    assert [one["published"] for one in merged["ports"]] == ["80", "81"]
    assert [(one["source"], one["target"]) for one in merged["volumes"]] == [("new", "/a"), ("two", "/b")]


def test_reset_takes_away_and_override_replaces(tmp_path: Path) -> None:
    merged = service(
        tmp_path,
        "services: {api: {container_name: a, ports: ['80:80'], labels: {a: 1}, deploy: {replicas: 2, mode: global}}}",
        "services: {api: {container_name: !reset null, ports: !override ['81:81'], labels: !reset {},"
        " deploy: !override {replicas: 3}}}",
    )
    assert "container_name" not in merged
    assert "labels" not in merged
    assert [one["published"] for one in merged["ports"]] == ["81"]
    assert merged["deploy"] == {"replicas": 3}


def test_several_documents_of_one_file_are_merged(tmp_path: Path) -> None:
    merged = service(tmp_path, "services: {api: {image: a}}\n---\nservices: {api: {image: b, init: true}}\n")
    assert merged == {"image": "b", "init": True}


def test_a_finding_is_placed_in_the_file_that_says_it(tmp_path: Path) -> None:
    report = look(
        tmp_path,
        "services:\n  api:\n    image: a\n    container_name: api\n",
        "services:\n  api:\n    deploy: {replicas: 4}\n    hostname: api\n",
    )
    assert of(report, "SV002")[0].at.file.endswith("compose.yaml")
    assert (of(report, "SV002")[0].at.line, of(report, "SV002")[0].at.column) == (4, 5)
    assert of(report, "SV003")[0].at.file.endswith("compose.1.yaml")


# Anchors, extends, include


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    merged = service(
        tmp_path,
        """\
        x-one: &one {image: a, init: true}
        x-two: &two {image: b, restart: always}
        services:
          api:
            <<: [*one, *two]
            init: false
        """,
    )
    assert merged == {"image": "a", "init": False, "restart": "always"}


def test_extends_another_service_and_another_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "b.yaml").write_text(
        "services: {common: {volumes: ['./data:/data'], environment: {A: 1}}, other: {extends: common, init: true}}"
    )
    merged = service(
        tmp_path,
        "services: {api: {extends: {file: base/b.yaml, service: other}, environment: {B: 2}}}",
    )
    assert merged["environment"] == {"A": 1, "B": 2}
    assert merged["init"] is True
    assert merged["volumes"][0]["source"] == str(tmp_path / "base" / "data")


@pytest.mark.parametrize(
    "text",
    [
        "services: {api: {extends: api}}",
        "services: {api: {extends: b}, b: {extends: {service: api}}}",
        "services: {api: {extends: {file: c0.yaml, service: api}}}",
    ],
)
def test_extends_that_goes_round_is_an_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(LintError, match="extends itself"):
        source(tmp_path, text)


def test_extends_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LintError, match="extends the service 'base', which is not in"):
        source(tmp_path, "services: {api: {extends: base}}")


def test_what_is_included_is_looked_at_in_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / ".env").write_text("NAME=given\n")
    (tmp_path / "part" / "c.yaml").write_text(
        "services: {api: {image: '${NAME}', volumes: ['./x:/x']}}\nvolumes: {v: {}}\n"
    )
    found = source(tmp_path, "include: [part/c.yaml]\nservices: {web: {image: b}}")
    services = found.project.get("services")
    assert services.get("web", "image").text == "b"
    assert services.get("api", "image").text == "given"
    assert services.get("api", "volumes").items[0].get("source").text == str(tmp_path / "part" / "x")
    assert "v" in found.project.get("volumes").map


def test_what_is_included_goes_round_or_is_far_away(tmp_path: Path) -> None:
    with pytest.raises(LintError, match="includes itself"):
        source(tmp_path, "include: [c0.yaml]")
    (tmp_path / "there.yaml").write_text("include: [c0.yaml]\n")
    with pytest.raises(LintError, match="includes itself"):
        source(tmp_path, "include: [{path: there.yaml}]")
    found = source(tmp_path, "include: ['https://example.org/c.git']\nservices: {api: {image: a}}")
    assert any("is not fetched" in note for note in found.notes)


# Interpolation and env files


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("$A/${A}", "1/1"),
        ("$$A $${A}", "$A ${A}"),
        ("${N:-x}${N-x}${E:-x}${E-x}", "xxx"),
        ("${A:+y}${E:+y}${E+y}${N+y}", "yy"),
        ("${N:-${A:-z}}", "1"),
        ("${N:-a${E:-b}c}d", "abcd"),
        ("${A?m}", "1"),
        ("no", "no"),
    ],
)
def test_variables_are_replaced(text: str, replaced: str) -> None:
    problems: list[str] = []
    assert interpolate(text, {"A": "1", "E": ""}, problems.append) == replaced
    assert not problems


@pytest.mark.parametrize("text", ["$N", "${N}", "${N:?why}", "${N?}", "${", "${A", "$1", "${1}", "${A!}", "a$"])
def test_what_cannot_be_replaced_is_told(text: str) -> None:
    problems: list[str] = []
    interpolate(text, {"A": "1", "E": ""}, problems.append)
    assert len(problems) == 1


def test_env_files_in_their_forms() -> None:
    text = """\
# comment
A=1
export B = two words  # comment
C='it''s $A'
D="a\\n${A} \\"q\\""
E=
F=x#y
G="first
second"
not a line
H: colon
"""
    assert read_env(text, {}) == {
        "A": "1",
        "B": "two words",
        "C": "it",
        "D": 'a\n1 "q"',
        "E": "",
        "F": "x#y",
        "G": "first\nsecond",
        "H": "colon",
    }


def test_the_environment_stands_above_the_env_file_beside_the_project(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=file\nB=file\n")
    text = "services: {api: {image: '${A}', user: '${B}'}}"
    assert service(tmp_path, text, A="environment") == {"image": "environment", "user": "file"}


def test_env_file_of_a_service_stands_below_its_environment(tmp_path: Path) -> None:
    write(tmp_path, one_env="A=1\nHOSTNAME=api\n", two_env="B=2\nA=3\n")
    text = "services: {api: {env_file: [one.env, {path: two.env}], environment: {B: own}}}"
    assert service(tmp_path, text)["environment"] == {"A": "3", "HOSTNAME": "api", "B": "own"}


def test_a_missing_env_file_is_told_unless_it_need_not_be_there(tmp_path: Path) -> None:
    found = source(tmp_path, "services: {api: {env_file: [no.env, {path: opt.env, required: false}]}}")
    assert len(found.notes) == 1
    assert "no.env" in found.notes[0]


def test_hostname_in_an_env_file_is_found_where_it_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_env="HOSTNAME=api\n")
    report = look(tmp_path, "services:\n  api:\n    deploy: {replicas: 2}\n    env_file:\n      - a.env\n")
    assert of(report, "SV004")[0].at.line == 5


def test_profiles_are_all_looked_at_unless_one_is_named(tmp_path: Path) -> None:
    text = "services: {api: {image: a}, job: {image: b, profiles: [x]}, other: {image: b, profiles: [y]}}"
    assert set(look(tmp_path, text).services) == {"api", "job", "other"}
    assert set(look(tmp_path, text, profiles=["x"]).services) == {"api", "job"}


def test_the_working_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, c_yaml="services: {api: {env_file: a.env}}", a_env="HOSTNAME=x")
    monkeypatch.chdir("/")
    found = read([os.path.relpath(tmp_path / "c.yaml")], {})
    assert found.project.get("services", "api", "environment", "HOSTNAME").text == "x"
    assert not found.notes
