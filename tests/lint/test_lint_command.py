"""``sharedvol lint``: exit codes, and what it prints for people and for programs."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sharedvol.cli import main
from sharedvol.cli.lint import EXIT_CODES, SEVERITIES
from sharedvol.lint import Severity
from sharedvol.lint.rules import EVERY

BAD = """\
services:
  api:
    image: jobs-api
    container_name: api
    hostname: api  # sharedvol: ignore SV003 somebody needs it
    deploy: {replicas: 2}
"""
NOTE = "services:\n  api:\n    image: a\n    container_name: api\n"
GOOD = "services:\n  api:\n    image: a\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in (("bad", BAD), ("note", NOTE), ("good", GOOD)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(["lint", *arguments])
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["good.yaml"], 0),
        (["good.yaml", "--fail-on", "note"], 0),
        (["note.yaml"], 0),
        (["note.yaml", "--fail-on", "note"], 1),
        (["note.yaml", "--replicas", "api=3"], 1),
        (["bad.yaml"], 1),
        (["bad.yaml", "--fail-on", "error"], 1),
        (["bad.yaml", "--fail-on", "never"], 0),
        (["none.yaml"], 2),
        (["good.yaml", "--script", "none.sh"], 2),
        (["good.yaml", "--env-file", "none.env"], 2),
        (["good.yaml", "--replicas", "nobody=2"], 2),
        (["good.yaml", "--replicas", "api"], 2),
        (["good.yaml", "--replicas", "api=-1"], 2),
        (["good.yaml", "--host-memory", "much"], 2),
        (["good.yaml", "--host-memory", "16"], 2),
        (["good.yaml", "--host-memory", "17179869184"], 2),
        (["good.yaml", "--host-memory", "16b"], 2),
        (["good.yaml", "--json", "--sarif"], 2),
        (["--explain", "SV999"], 2),
        ([], 2),
    ],
)
def test_exit_codes(arguments: list[str], code: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, _, told = run(capsys, *arguments, "--reader", "files")
    assert found == code
    assert bool(told) == (code == 2)
    assert "Traceback" not in told


def test_without_files_those_that_compose_takes_are_looked_at(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "compose.yaml").write_text(GOOD)
    (place / "compose.override.yaml").write_text("services: {api: {container_name: api, scale: 2}}\n")
    code, out, _ = run(capsys, "--reader", "files")
    assert code == 1
    assert "compose.override.yaml:1:18: error SV002" in out


def test_a_finding_is_a_line_that_editors_and_people_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "bad.yaml", "--reader", "files")
    lines = out.splitlines()
    line = "bad.yaml:4:5: error SV002: service 'api': only one container can have the container_name 'api'"
    assert line in lines
    assert lines[-1].startswith("1 error, ")
    assert lines[-1].endswith("1 accepted by comments; read by files")


def test_what_a_file_says_forges_no_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "forged.yaml").write_text('services: {api: {hostname: "a\\n\\e[31mok", scale: 2}}')
    _, out, _ = run(capsys, "forged.yaml", "--reader", "files")
    assert "\x1b" not in out


def test_json_is_as_documented(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "bad.yaml", "--json", "--reader", "files")
    told = json.loads(out)
    page = (Path(__file__).parents[2] / "docs" / "lint" / "index.md").read_text()
    shown = json.loads(page.partition("```json\n")[2].partition("```")[0])
    assert told.keys() == shown.keys()
    assert told["findings"][0].keys() == shown["findings"][0].keys()
    assert told["suppressed"][0].keys() == {*shown["findings"][0], "reason"}
    assert told["summary"].keys() == shown["summary"].keys()
    assert (told["version"], told["read_by"], told["services"]) == (1, "files", {"api": 2})
    assert told["summary"]["error"] == 1
    assert told["suppressed"][0]["reason"] == "somebody needs it"


# The part of the schema of SARIF 2.1.0 that this output uses; nothing else may appear, so that a name that SARIF does
# not have is found.
TEXT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text"],
    "properties": {"text": {"type": "string", "minLength": 1}},
}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["id"],
    "properties": {
        "id": {"type": "string"},
        "shortDescription": TEXT,
        "fullDescription": TEXT,
        "help": TEXT,
        "helpUri": {"type": "string", "format": "uri", "pattern": "^[a-z]+:"},
        "defaultConfiguration": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"level": LEVEL},
        },
    },
}
REGION = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "startLine": {"type": "integer", "minimum": 1},
        "startColumn": {"type": "integer", "minimum": 1},
    },
}
LOCATION = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "physicalLocation": {
            "type": "object",
            "additionalProperties": False,
            "required": ["artifactLocation"],
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"uri": {"type": "string", "format": "uri-reference", "pattern": "^[^ \\\\]*$"}},
                },
                "region": REGION,
            },
        }
    },
}
SUPPRESSION = {
    "type": "object",
    "additionalProperties": False,
    "required": ["kind"],
    "properties": {"kind": {"enum": ["inSource", "external"]}, "justification": {"type": "string"}},
}
RESULT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["message"],
    "properties": {
        "ruleId": {"type": "string"},
        "ruleIndex": {"type": "integer", "minimum": -1},
        "level": LEVEL,
        "message": TEXT,
        "locations": {"type": "array", "items": LOCATION},
        "partialFingerprints": {"type": "object", "additionalProperties": {"type": "string"}},
        "suppressions": {"type": "array", "uniqueItems": True, "items": SUPPRESSION},
    },
}
NOTIFICATION = {
    "type": "object",
    "additionalProperties": False,
    "required": ["message"],
    "properties": {"level": LEVEL, "message": TEXT},
}
RUN = {
    "type": "object",
    "additionalProperties": False,
    "required": ["tool"],
    "properties": {
        "tool": {
            "type": "object",
            "additionalProperties": False,
            "required": ["driver"],
            "properties": {
                "driver": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string"},
                        "semanticVersion": {"type": "string"},
                        "rules": {"type": "array", "uniqueItems": True, "items": RULE},
                    },
                }
            },
        },
        "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
        "invocations": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["executionSuccessful"],
                "properties": {
                    "executionSuccessful": {"type": "boolean"},
                    "toolExecutionNotifications": {"type": "array", "items": NOTIFICATION},
                },
            },
        },
        "results": {"type": "array", "items": RESULT},
    },
}
SARIF = {
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "runs"],
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {"type": "array", "items": RUN},
    },
}


@pytest.mark.parametrize(
    ("there", "read"),
    [
        (("docker-compose.yaml", "docker-compose.yml"), ["docker-compose.yml"]),
        (("docker-compose.yml", "compose.yml", "compose.yaml"), ["compose.yaml"]),
        (("compose.yml", "compose.override.yaml"), ["compose.yml", "compose.override.yaml"]),
        (("compose.yaml", "docker-compose.override.yml"), ["compose.yaml", "docker-compose.override.yml"]),
    ],
)
def test_without_names_it_reads_what_compose_would(
    there: tuple[str, ...], read: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in there:
        (place / name).write_text(GOOD)
    assert json.loads(run(capsys, "--json", "--reader", "files")[1])["files"] == read


def test_sarif_is_valid_and_knows_every_rule(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "more of it.yaml").write_text("services: {api: {ports: ['80:80'], env_file: none.env}}")
    _, out, _ = run(capsys, "bad.yaml", "more of it.yaml", "--sarif", "--reader", "files")
    told = json.loads(out)
    jsonschema.validate(told, SARIF)
    (one,) = told["runs"]
    rules = one["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in EVERY]
    pages = [rule["help"]["text"].rpartition(" See ")[2].rstrip(".") for rule in rules]
    assert all((Path(__file__).parents[2] / page).is_file() for page in pages)
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in one["results"])
    accepted = [result for result in one["results"] if "suppressions" in result]
    assert [(result["ruleId"], result["suppressions"][0]["justification"]) for result in accepted] == [
        ("SV003", "somebody needs it")
    ]
    assert "more%20of%20it.yaml" in out
    assert "none.env" in one["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]


def test_a_fingerprint_stays_when_lines_are_added_above(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def prints() -> dict[str, str]:
        results = json.loads(run(capsys, "bad.yaml", "--sarif", "--reader", "files")[1])["runs"][0]["results"]
        return {result["ruleId"]: result["partialFingerprints"]["sharedvol/v1"] for result in results}

    before = prints()
    (place / "bad.yaml").write_text("# a title\n\n" + BAD)
    assert prints() == before
    assert len(set(before.values())) == len(before)


def test_every_rule_is_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--list-rules")
    assert [line.split()[0] for line in out.splitlines()] == [rule.id for rule in EVERY]
    for rule in EVERY:
        code, out, _ = run(capsys, "--explain", rule.id.lower())
        assert code == 0
        assert rule.why in out
        assert rule.mend in out
        assert "\nBad:\n" in out and "\nGood:\n" in out
        assert "docs/lint" not in out, "an installed package has no pages"


def test_the_examples_are_those_of_the_pages() -> None:
    root = Path(__file__).parents[2]
    shipped = root / "sharedvol" / "lint" / "examples.json"
    made = runpy.run_path(str(root / "scripts" / "lint-examples"))["examples"]()
    assert shipped.read_text() == made, "run scripts/lint-examples"


def test_every_severity_can_be_failed_on() -> None:
    assert list(SEVERITIES) == [severity.name for severity in reversed(Severity)]


def test_exit_codes_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lint" / "index.md").read_text()
    for code in (0, 1, 2):
        assert f"| {code} | " in page
        assert f"\n  {code}    " in EXIT_CODES


def test_without_the_extra_it_says_what_to_install(place: Path) -> None:
    code = "import sys; sys.modules['ruamel.yaml'] = None; from sharedvol import cli; sys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "lint", "good.yaml"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'sharedvol[lint]'" in done.stderr
    assert done.stderr.count("\n") == 1
