"""The report in SARIF 2.1.0 (Static Analysis Results Interchange Format, OASIS), which code hosts understand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import quote

import sharedvol
from sharedvol.lint.report import Finding, Report
from sharedvol.lint.rule import Rule

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(report: Report, rules: Iterable[Rule]) -> dict[str, Any]:
    """Return the report as one run of the tool, with every rule."""
    known = list(rules)
    index = {rule.id: number for number, rule in enumerate(known)}
    results = [_result(one, index) for one in (*report.findings, *report.suppressed)]
    driver = {
        "name": "sharedvol lint",
        "semanticVersion": sharedvol.__version__,
        "rules": [_rule(rule) for rule in known],
    }
    invocation = {
        "executionSuccessful": True,
        "toolExecutionNotifications": [{"level": "note", "message": {"text": note}} for note in report.notes],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [invocation],
        "results": results,
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        # There is no helpUri: it must be absolute (3.49.12), and the address of the pages is unknown.
        "help": {"text": f"{rule.mend} See {rule.page}."},
        "defaultConfiguration": {"level": rule.severity.name},
    }


def _result(one: Finding, index: dict[str, int]) -> dict[str, Any]:
    result = {
        "ruleId": one.rule.id,
        "ruleIndex": index[one.rule.id],
        "level": one.severity.name,
        "message": {"text": f"{one.message}. {one.rule.mend}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(one.at.file)},
                    "region": {"startLine": one.at.line, "startColumn": one.at.column},
                }
            }
        ],
        # The fingerprint does not depend on the line, so a code host recognizes the finding when the file changes.
        "partialFingerprints": {"sharedvol/v1": _fingerprint(one)},
    }
    if one.reason is not None:
        result["suppressions"] = [{"kind": "inSource", "justification": one.reason}]
    return result


def _fingerprint(one: Finding) -> str:
    parts = "\0".join((one.rule.id, _uri(one.at.file), one.service, one.message))
    return hashlib.sha256(parts.encode(errors="replace")).hexdigest()[:32]


def _uri(file: str) -> str:
    path = os.fspath(PurePath(file))
    if PurePath(path).is_absolute():
        return "file://" + quote(path, errors="replace")
    return quote(path, errors="replace")
