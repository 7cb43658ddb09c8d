"""Read the kind and the container of a collected file from its path, by the template that named it."""

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
    """The inverse of a template, as far as it exists.

    Only fields in directories are read, because a file's own name may have got its time, a hash or another suffix. And
    a field is read only if it is unambiguous. Every reading of a path is, field by field, between two: the one that
    takes as much as it can for the first field, then for the second and so on, and the one that takes as little as it
    can. So the fields before the first one in which these two differ have only one reading.

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
        self._readable = inside & {"kind", "container"}

    def read(self, path: str) -> tuple[str, str]:
        """Return kind and container of a file; empty if its path does not show them."""
        found = {"kind": "", "container": ""}
        directories, slash, name = path.rpartition("/")
        path = "/".join(map(own_name, directories.split("/"))) + slash + name
        longest, shortest = self._longest.fullmatch(path), self._shortest.fullmatch(path)
        if longest is None or shortest is None:
            return "", ""
        for field in self._fields:
            if longest[field] != shortest[field]:
                break
            if field in self._readable:
                found[field] = longest[field]
        return found["kind"], found["container"]

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
