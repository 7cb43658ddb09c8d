"""Check compose files for hazards of replicas (``sharedvol lint``)."""

from sharedvol.lint.check import Options, lint
from sharedvol.lint.compose.errors import LintError
from sharedvol.lint.compose.node import Position
from sharedvol.lint.report import Finding, Report
from sharedvol.lint.rule import Rule, Severity

__all__ = ["Finding", "LintError", "Options", "Position", "Report", "Rule", "Severity", "lint"]
