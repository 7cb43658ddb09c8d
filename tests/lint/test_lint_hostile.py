"""Whatever the file holds, lint answers with a report or with one clear error."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.lint.linted import look

from sharedvol.lint import LintError, Options, Report, lint
from sharedvol.lint.compose.docker import with_positions
from sharedvol.lint.compose.node import EMPTY, Node
from sharedvol.lint.project import Project
from sharedvol.lint.rules import ALL
from sharedvol.lint.sarif import sarif

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("just text", "must be a mapping"),
        ("- a\n- b\n", "must be a mapping"),
        ("services: [a]", "services must be a mapping"),
        ("services: {api: {}}\nvolumes: 3\n", "volumes must be a mapping"),
        ("services:\n\tapi:\n", "not YAML.*tabs"),
        ("services: {api: ", "not YAML"),
        ("services: {api: *nowhere}", "not YAML.*undefined alias"),
        ("a: &a [*a]\n", "an alias that contains itself|not YAML"),
        (LAUGHS, "has more than 100,000 values"),
        ("a: " + "[" * 300 + "]" * 300, "nested"),
        ("a: " + "{a: " * 200 + "}" * 200, "nested"),
        ("services: {api: {image: a, image: b}}", "duplicate key 'image', first at line 1"),
        ("services:\n  api: {}\n  api: {}\n", "duplicate key 'api', first at line 2"),
        ("{[a]: b}", "a key must be a text"),
        ("services: {api: {<<: text}}", "<< takes a mapping"),
        ("a: \x00b", "not YAML"),
        ("%YAML 9.9\n---\na: b\n", "not YAML.*incompatible"),
        ("services: {api: !!python/object/apply:os.system [echo]}", None),
        ("services: {api: !!timestamp 2020-99-99}", None),
        ("services: {api: null}", None),
        ("services: null", None),
        ("services: {'': {image: a}}", None),
    ],
)
def test_hostile_texts(text: str, error: str | None, tmp_path: Path) -> None:
    try:
        look(tmp_path, text)
    except LintError as raised:
        assert error is not None, raised
        assert re.search(error, str(raised)), raised
        assert "compose.yaml" in str(raised)
    else:
        assert error is None


def test_what_cannot_be_read_is_told_with_its_name(tmp_path: Path) -> None:
    for content in (b"\xff\xfe\x00", b"\xc3"):
        (tmp_path / "bad.yaml").write_bytes(content)
        with pytest.raises(LintError, match=r"bad\.yaml' is not UTF-8"):
            look(tmp_path, "services: {api: {extends: {file: bad.yaml, service: x}}}")
    with pytest.raises(LintError, match=r"cannot read .*no file or directory \(ENOENT\)|no such file"):
        look(tmp_path, "include: [gone.yaml]")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(LintError, match="it is not a file"):
        look(tmp_path, "include: [folder.yaml]")
    for device in ("/dev/zero", "/dev/stdin"):
        with pytest.raises(LintError, match="it is not a file"):
            look(tmp_path, f"include: [{device}]")
    with pytest.raises(LintError, match="larger than"):
        look(tmp_path, "# " + "x" * 3_000_000)
    (tmp_path / "compose.yaml").write_text("services: {}")
    with pytest.raises(LintError, match=r"cannot read 'none\.sh'"):
        lint([str(tmp_path / "compose.yaml")], Options(scripts=["none.sh"], reader="files"))


@pytest.mark.parametrize("name", ["compose.yaml", "include.yaml", "service.yaml"])
def test_an_env_file_is_read_only_where_it_is_a_file_of_a_bearable_size(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.env")
    for target, error in (
        ("pipe.env", "it is not a file"),
        ("/dev/zero", "it is not a file"),
        ("large.env", "larger than"),
    ):
        (tmp_path / "large.env").write_text("A=b\n" * 300_000)
        (tmp_path / ".env").unlink(missing_ok=True)
        texts = {
            "include.yaml": f"include: [{{path: other.yaml, env_file: {target}}}]",
            "service.yaml": f"services: {{api: {{env_file: {target}}}}}",
        }
        if name == "compose.yaml":
            (tmp_path / ".env").symlink_to(target)
        (tmp_path / "other.yaml").write_text("services: {db: {image: mysql}}")
        try:
            told = "".join(look(tmp_path, texts.get(name, "services: {api: {}}")).notes)
        except LintError as raised:
            told = str(raised)
        assert error in told
        assert target in told or ".env" in told


def test_variables_that_double_each_other_are_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("V0=xxxxxxxxxx\n" + "".join(f"V{n + 1}=$V{n}$V{n}\n" for n in range(60)))
    (note,) = look(tmp_path, "services: {api: {}}").notes
    assert re.search(r"\.env': its variables make it longer than", note)
    (tmp_path / ".env").write_text(f"A={'x' * 100_000}\n")
    with pytest.raises(LintError, match=r"compose\.yaml:1:\d+: its variables make it longer than"):
        look(tmp_path, "services: {api: {image: $A$A}}")
    with pytest.raises(LintError, match="with its variables it is longer than"):
        look(tmp_path, f"services: {{api: {{command: [{'$A, ' * 50}]}}}}")
    (tmp_path / ".env").write_text(f"A={'x' * 100_000}\n" + "".join(f"V{n}=$A\n" for n in range(50)))
    assert "expand to more than" in look(tmp_path, "services: {api: {}}").notes[0]


def test_files_that_include_each_other_again_and_again_are_an_error(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"include: [{number + 1}.yaml, {number + 1}.yaml]")
    (tmp_path / "30.yaml").write_text("services: {api: {image: a}}")
    with pytest.raises(LintError, match="too many times"):
        look(tmp_path, "include: [0.yaml]")


def test_a_long_row_of_services_that_extend_each_other_is_an_error(tmp_path: Path) -> None:
    row = "".join(f"  s{n}: {{extends: s{n + 1}}}\n" for n in range(2000))
    with pytest.raises(LintError, match="more than 50 services extend each other"):
        look(tmp_path, f"services:\n{row}  s2000: {{image: a}}\n")
    row = "".join(f"  s{n}: {{extends: s{n + 1}}}\n" for n in range(40))
    assert len(look(tmp_path, f"services:\n{row}  s40: {{image: a}}\n").services) == 41


def test_a_size_of_any_length_is_no_size(tmp_path: Path) -> None:
    look(tmp_path, f"services: {{api: {{scale: 2, mem_limit: '{'9' * 400}'}}}}")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes("\ufeffservices:\r\n  x:\r\n    hostname: a\r\n".encode())
    report = look(tmp_path, "include: [b.yaml]\nservices: {}")
    assert [(one.rule.id, one.at.line, one.at.column) for one in report.findings] == [("SV003", 3, 5)]


@pytest.mark.parametrize("name", ["ports", "volumes", "environment", "deploy", "healthcheck", "depends_on", "command"])
def test_a_field_of_the_wrong_type_is_told_and_left(name: str, tmp_path: Path) -> None:
    report = look(tmp_path, f"services:\n  api:\n    {name}: 3.5\n")
    assert len(report.notes) == 1
    assert re.search(rf":3:5: {name} must be", report.notes[0])


# Anything at all

WORDS = """
    services volumes networks api db image command entrypoint environment env_file ports labels deploy replicas scale
    healthcheck test start_period depends_on condition extends include file service path container_name hostname
    network_mode user tmpfs post_start stop_grace_period restart init update_config order parallelism resources limits
    memory mem_limit driver_opts type source target published read_only volume nocopy x-sharedvol pool_size workers
    max_connections HOSTNAME SHAREDVOL_FROM SHAREDVOL_TO UPLOAD_DIR SESSION_TYPE configs secrets profiles <<
"""
NAMES = st.sampled_from(WORDS.split())
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=True)
    | st.text(max_size=12)
    | NAMES
    | st.sampled_from(
        [
            "mysql:8",
            "8000-8003:80",
            "data:/vol",
            "./a:/app",
            "${A:-${B}}",
            "$",
            "1m30s",
            "5G",
            "1e400",
            "99999999999-1:1",
        ]
    )
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6), max_leaves=25
)
PROJECTS = st.fixed_dictionaries(
    {"services": st.dictionaries(NAMES, st.dictionaries(NAMES, ANYTHING, max_size=8), max_size=3)},
    optional={"volumes": ANYTHING, "networks": ANYTHING, "include": ANYTHING, "x-a": ANYTHING},
)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FAST
@given(document=ANYTHING | PROJECTS)
def test_any_document_gives_a_report_or_an_error(document: Any, tmp_path: Path) -> None:
    text = json.dumps(document).replace("\\ud", "\\u0")  # a lone surrogate is no text in YAML
    try:
        report = look(tmp_path, text)
    except LintError:
        return
    assert isinstance(report, Report)
    assert list(report.lines())
    json.dumps(report.as_dict())
    json.dumps(sarif(report, ALL))


@FAST
@given(document=ANYTHING | PROJECTS)
def test_any_answer_of_compose_gives_findings(document: Any) -> None:
    """What Compose prints is taken as it is, not through the reader that mends."""
    project = Project(with_positions(document, EMPTY))
    for rule in ALL:
        for found in rule.check(project):
            assert isinstance(found.message, str)


@FAST
@given(text=st.text(alphabet="{}[]:,&*!|>'\"#%@`-\n\t \\ab<~$?0", max_size=60))
def test_any_text_gives_a_report_or_an_error(text: str, tmp_path: Path) -> None:
    try:
        look(tmp_path, text)
    except LintError:
        return


@given(st.text(max_size=30) | st.integers() | st.floats() | st.booleans() | st.none())
@settings(max_examples=100, deadline=None)
def test_sizes_durations_and_numbers_are_read_or_none(value: Any) -> None:
    node = Node(value)
    for read in (node.bytes, node.seconds, node.number):
        assert read is None or read >= 0 or isinstance(value, int)
