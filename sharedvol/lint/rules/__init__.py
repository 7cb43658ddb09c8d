"""The rules, a module for each group."""

from sharedvol.lint.rules.comments import UNUSED, WRONG
from sharedvol.lint.rules.registry import ALL, EVERY

__all__ = ["ALL", "EVERY", "UNUSED", "WRONG"]
