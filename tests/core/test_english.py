"""The check of the repository's English finds phrases in prose, and only there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_english  # noqa: E402

WORDS = check_english.WordList(
    {
        "instead": {"(nobod|somebod)y": "a process", "goes on": "continues"},
        "later": ["old", "new/one.py"],
        "allowed": {"quoted.md": ["nobody"]},
    }
)


@pytest.mark.parametrize(
    ("path", "source", "line"),
    [
        ("a.py", '"""One.\n\nNobody reads\nthis."""\n', 3),
        ("a.py", 'def f():\n    """One goes\n    on."""\n', 2),
        ("a.py", "one = 1\ntwo = 2  # nobody counts\n", 2),
        ("a.py", "# The process goes\n# on.\n", 1),
        ("a.py", 'one = 1\nraise ValueError(f"{one}: nobody can do that")\n', 2),
        ("a.md", "# Title\n\n```python\nx = 1\n```\n\nIt goes on.\n", 7),
        ("Makefile", "help: ## what nobody reads\n", 1),
    ],
)
def test_a_phrase_is_found_in_prose(path: str, source: str, line: int) -> None:
    assert [found.line for found in check_english.check(path, source, WORDS)] == [line]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("a.py", "nobody = 1\n"),
        ("a.py", '"""`nobody` is a user."""\n'),
        ("a.py", '"""The user nobody-1."""\n'),
        ("a.md", "```text\nnobody\n```\n\n`nobody` and ``nobody``\n"),
        ("quoted.md", "Nobody.\n"),
    ],
)
def test_code_and_quotations_do_not_count(path: str, source: str) -> None:
    assert check_english.check(path, source, WORDS) == []


def test_folders_that_are_not_rewritten_yet_are_left_out() -> None:
    checked = [path for path in ("old/a.py", "older.py", "new/one.py", "new/two.py") if WORDS.is_checked(path)]
    assert checked == ["older.py", "new/two.py"]
