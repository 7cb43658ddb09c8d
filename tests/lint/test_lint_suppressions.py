"""A comment accepts what it is about and nothing else, and is told when it accepts nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.lint.linted import ids, look, of

BAD = """\
services:
  api:
    image: a
    container_name: api
    deploy: {replicas: 2}
"""


def accepted(place: Path, text: str, *more: str, **options: object) -> list[tuple[str, str | None]]:
    report = look(place, text, *more, **options)
    assert not {"SV900", "SV901"} & ids(report), report
    return [(one.rule.id, one.reason) for one in report.suppressed]


@pytest.mark.parametrize(
    "text",
    [
        BAD.replace("container_name: api", "container_name: api  # sharedvol: ignore SV002 one host each"),
        BAD.replace("    container_name", "    # sharedvol: ignore SV002 one host each\n    container_name"),
        BAD.replace(
            "    container_name", "    # sharedvol: ignore SV002 one host each\n    # more\n    container_name"
        ),
        BAD.replace("    container_name", "    # sharedvol: ignore SV002 one host each\n\n\n    container_name"),
        BAD.replace("    container_name", "    # sharedvol: ignore SV002: one host each\n    container_name"),
        BAD.replace("    container_name", "    # sharedvol: ignore SV002 - one host each\n    container_name"),
        BAD.replace("  api:", "  api:  # sharedvol: ignore SV002 one host each"),
        BAD.replace("  api:", "  # sharedvol: ignore SV002 one host each\n  api:"),
        "# sharedvol: ignore SV002 one host each\n" + BAD,
        "# a title\n\n#sharedvol:ignore sv002 one host each\n\n" + BAD,
    ],
)
def test_where_a_comment_may_stand(text: str, tmp_path: Path) -> None:
    assert accepted(tmp_path, text) == [("SV002", "one host each")]


@pytest.mark.parametrize(
    "text",
    [
        BAD.replace("image: a", "image: a  # sharedvol: ignore SV002 wrong line"),
        BAD.replace("  api:", "  other:  # sharedvol: ignore SV002 other service\n    image: b\n  api:"),
        BAD + "# sharedvol: ignore SV002 after the end\n",
        BAD.replace("    image: a", "    image: a\n    # sharedvol: ignore SV002 a line too early\n\n    init: false"),
    ],
)
def test_where_it_accepts_nothing_it_is_told(text: str, tmp_path: Path) -> None:
    report = look(tmp_path, text)
    assert of(report, "SV002")
    (told,) = of(report, "SV901")
    assert "sharedvol: ignore" in text.splitlines()[told.at.line - 1]


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("sharedvol: ignore SV002", "it gives no reason"),
        ("sharedvol: ignore SV002: -", "it gives no reason"),
        ("sharedvol: ignore", "it names no rule"),
        ("sharedvol: ignore everything", "it names no rule"),
        ("sharedvol: ignore SV999 because", "there is no rule SV999"),
    ],
)
def test_a_comment_that_is_incomplete_accepts_nothing(comment: str, message: str, tmp_path: Path) -> None:
    report = look(tmp_path, BAD.replace("container_name: api", f"container_name: api  # {comment}"))
    assert of(report, "SV002")
    (told,) = of(report, "SV900")
    assert message in told.message
    assert (told.at.line, told.at.column) == (4, 26)


def test_several_rules_in_one_comment_each_used_or_told(tmp_path: Path) -> None:
    text = BAD.replace("container_name: api", "container_name: api  # sharedvol: ignore SV002, SV003 why")
    report = look(tmp_path, text)
    assert [one.rule.id for one in report.suppressed] == ["SV002"]
    assert "there is no finding of SV003 here" in of(report, "SV901")[0].message


def test_a_comment_at_a_services_head_covers_what_another_file_says_of_it(tmp_path: Path) -> None:
    over = "services:\n  api:\n    hostname: api\n"
    first = BAD.replace("  api:", "  api:  # sharedvol: ignore SV002,SV003 one host each")
    assert {rule for rule, _ in accepted(tmp_path, first, over)} == {"SV002", "SV003"}


def test_a_comment_at_a_files_head_covers_that_file_only(tmp_path: Path) -> None:
    report = look(
        tmp_path,
        BAD.replace("container_name", "hostname"),
        "# sharedvol: ignore SV003 x\nservices: {b: {hostname: b}}\n",
    )
    assert [one.service for one in of(report, "SV003")] == ["api"]
    assert [one.service for one in report.suppressed] == ["b"]


@pytest.mark.parametrize(
    "text",
    [
        'services:\n  api:\n    hostname: "x # sharedvol: ignore SV003 y"\n',
        "services:\n  api:\n    hostname: 'x\n      # sharedvol: ignore SV003 y'\n",
        "services:\n  api:\n    hostname: |\n      # sharedvol: ignore SV003 y\n",
        "services:\n  api:\n    hostname: x#sharedvol:ignore SV003 y\n",
    ],
)
def test_what_stands_in_a_text_is_no_comment(text: str, tmp_path: Path) -> None:
    report = look(tmp_path, text)
    assert not report.suppressed
    assert of(report, "SV003")


def test_a_comment_behind_a_text_with_a_hash_and_behind_a_block(tmp_path: Path) -> None:
    text = """\
    services:
      api:
        image: "a # b"  # sharedvol: ignore SV999 unknown
        command: |
          serve
        # sharedvol: ignore SV003 behind a block
        hostname: api
    """
    report = look(tmp_path, text)
    assert [one.rule.id for one in report.suppressed] == ["SV003"]
    assert len(of(report, "SV900")) == 1


def test_comments_in_scripts(tmp_path: Path) -> None:
    text = BAD.replace("    container_name: api\n", "")
    script = """\
    #!/bin/sh
    docker exec api a  # sharedvol: ignore SV070 on this line
    # sharedvol: ignore SV070 on the next

    docker exec api b
    docker exec api c
    # sharedvol: ignore SV070
    true  # sharedvol: ignore SV071 not here
    """
    report = look(tmp_path, text, scripts=[script])
    assert [(one.at.line, one.reason) for one in report.suppressed] == [(2, "on this line"), (5, "on the next")]
    assert [one.at.line for one in of(report, "SV070")] == [6]
    assert [one.at.line for one in of(report, "SV900")] == [7]
    assert [one.at.line for one in of(report, "SV901")] == [8]
