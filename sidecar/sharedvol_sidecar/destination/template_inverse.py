"""Read a template backwards: which kind and container a collected file's path tells."""

from __future__ import annotations

import re
import string

from sharedvol_sidecar.destination.template import Template, own_name

_FORMS = {
    "date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "year": "[0-9]{4}",
    "month": "[0-9]{2}",
    "day": "[0-9]{2}",
    "name": r"[^\0]+%s",
}
_PART = "[^/]+%s"


class TemplateInverse:
    """The inverse of a template, as far as it has one.

    Only fields in the directories are read: a file's own name may have got the time it was written, a hash for
    its end or another suffix. And only what has no other reading. All readings of a path lie, field by field,
    between the one that takes as much as it can for the first field, then for the second and so on, and the one
    that takes as little. So up to the first field in which those two differ there is only one.

    Args:
        template: the template that the files were named by.
    """

    def __init__(self, template: Template) -> None:
        text = str(template)
        self._fields: list[str] = []
        self._longest = self._pattern(text, "")
        self._shortest = self._pattern(text, "?")
        directories = text.rpartition("/")[0]
        inside = {field for _, field, _, _ in string.Formatter().parse(directories) if field}
        self._told = inside & {"kind", "container"}

    def read(self, path: str) -> tuple[str, str]:
        """Kind and container of a file; empty where its path does not tell."""
        told = {"kind": "", "container": ""}
        directories, slash, name = path.rpartition("/")
        path = "/".join(map(own_name, directories.split("/"))) + slash + name
        longest, shortest = self._longest.fullmatch(path), self._shortest.fullmatch(path)
        if longest is None or shortest is None:
            return "", ""
        for field in self._fields:
            if longest[field] != shortest[field]:
                break
            if field in self._told:
                told[field] = longest[field]
        return told["kind"], told["container"]

    def _pattern(self, text: str, lazy: str) -> re.Pattern[str]:
        pattern, seen = "", []
        for literal, field, _, _ in string.Formatter().parse(text):
            pattern += re.escape(literal)
            if field is None:
                continue
            if field in seen:
                pattern += f"(?P={field})"
                continue
            seen.append(field)
            form = _FORMS.get(field, _PART)
            pattern += f"(?P<{field}>{form % lazy if '%' in form else form})"
        self._fields = seen
        return re.compile(pattern)
