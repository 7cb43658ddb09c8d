"""The built-in parser of compose files. It merges, extends, includes and interpolates as Compose does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sharedvol.errors import describe
from sharedvol.lint.compose.errors import LintError
from sharedvol.lint.compose.interpolation import MOST, TooMuch, interpolate, read_env
from sharedvol.lint.compose.merge import cleaned, merge, unique
from sharedvol.lint.compose.node import EMPTY, Node, Position
from sharedvol.lint.compose.normalize import assignments, normalize
from sharedvol.lint.compose.yaml_tree import MAX_BYTES, Tree, parse

MAX_FILES: Final = 100
MAX_READS: Final = 500  # if each file includes the next one twice, thirty files cause a billion reads
MAX_READ: Final = 5_000_000  # bytes of all reads
MAX_EXTENDED: Final = 50  # length of a chain of services that extend each other
_REMOTE: Final = ("http:", "https:", "git:", "git@", "ssh:", "oci:", "github.com/")
_SECTIONS: Final = ("services", "networks", "volumes", "secrets", "configs")


@dataclass
class ReadProject:
    """The result of reading a project.

    Attributes:
        project: all files merged, in the long form.
        trees: the tree of each file.
        notes: what was skipped, and what Compose would refuse.
        sizes: characters of each read; a file may be included several times.
        replaced: characters of all interpolated texts.
    """

    project: Node = EMPTY
    trees: dict[str, Tree] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    replaced: int = 0


def read(files: Sequence[str], environment: Mapping[str, str], env_files: Sequence[str] = ()) -> ReadProject:
    """Read compose files as ``docker compose -f FILE -f FILE`` does.

    Args:
        files: their names; the directory of the first one is that of the project.
        environment: variables that override those of the ``.env`` file.
        env_files: files to read instead of the ``.env`` next to the first file.

    Raises:
        LintError: a file cannot be read, is not YAML, or is not a compose file.
    """
    source = ReadProject()
    folder = os.path.dirname(os.path.abspath(files[0]))
    values = _variables(folder, env_files, environment, source, given=True)
    project = Node({}, Position(files[0]))
    for name in files:
        project = merge(project, _Reader(source, folder, values).file(name))
    services = {
        name: _with_env_files(_settled(service), folder, values, source)
        for name, service in project.get("services").map.items()
    }
    source.project = project.having(services=Node(dict(services), project.get("services").at))
    source.notes = list(dict.fromkeys(source.notes))
    return source


def _variables(
    folder: str, env_files: Sequence[str], environment: Mapping[str, str], source: ReadProject, *, given: bool = False
) -> dict[str, str]:
    values: dict[str, str] = dict(environment)
    beside = os.path.join(folder, ".env")
    for name in env_files or ([beside] if os.path.exists(beside) else []):
        try:
            text = _content(name, given and name != beside, "name a file of variables")
            found = _assigned(text.decode("utf-8-sig", "replace"), name, environment)
        except LintError as error:
            if env_files:
                raise
            source.notes.append(str(error))
            continue
        values = {**values, **found, **environment}
    return values


def _assigned(text: str, name: str, values: Mapping[str, str]) -> dict[str, str]:
    """Return the variables in the text of an env file."""
    try:
        return read_env(text, values)
    except TooMuch as error:
        raise LintError(f"cannot read {name!r}: {error}") from None


def read_text(name: str, *, given: bool = False) -> str:
    """Return the text of a file.

    Args:
        name: the file.
        given: whether the user named it, who may name a pipe. A compose file may name only regular files.

    Raises:
        LintError: it cannot be read, is not a file, or is too large.
    """
    try:
        return _content(name, given, "name a compose file or a script").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LintError(f"{name!r} is not UTF-8: {error.reason} at byte {error.start}") from None


def _content(name: str, given: bool, hint: str) -> bytes:
    try:
        if os.path.exists(name) and not os.path.isfile(name) and not (given and name.startswith("/dev/")):
            raise LintError(f"cannot read {name!r}: it is not a file")
        with open(name, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = describe(error) if isinstance(error, OSError) else str(error)
        raise LintError(f"cannot read {name!r}: {reason}; {hint}") from None
    if len(content) > MAX_BYTES:
        raise LintError(f"{name!r} is larger than {MAX_BYTES:,} bytes: {hint}")
    return content


class _Reader:
    """The reader for the files of one project directory."""

    def __init__(
        self, source: ReadProject, folder: str, values: Mapping[str, str], including: tuple[str, ...] = ()
    ) -> None:
        self._source, self._folder, self._values = source, folder, values
        self._including = including
        self._parsed: dict[str, Node] = {}

    def file(self, name: str) -> Node:
        """Read a file, with the services that it extends and the files that it includes."""
        documents = self._documents(name, given=not self._including)
        project: Node | None = None
        for document in documents:
            services = {
                service: self._service(name, service, (), document)
                for service, body in document.get("services").map.items()
                if self._is_mapping(service, body)
            }
            whole = document.without("include").having(services=Node(dict(services), document.at))
            # The first document keeps its tags, because they apply to the files before it.
            project = self._included(whole if project is None else merge(project, whole), document.get("include"))
        return project or Node({}, Position(name))

    def _is_mapping(self, name: str, body: Node) -> bool:
        if body.present and not isinstance(body.value, dict) and not body.tag:
            self._problem(body.at, f"the service {name!r} must be a mapping: not checked")
            return False
        return True

    def _documents(self, name: str, *, given: bool = False) -> list[Node]:
        if name not in self._source.trees and len(self._source.trees) >= MAX_FILES:
            raise LintError(f"more than {MAX_FILES} files include or extend each other")
        text = read_text(name, given=given)
        self._source.sizes.append(len(text))
        if len(self._source.sizes) > MAX_READS or sum(self._source.sizes) > MAX_READ:
            raise LintError("the files include or extend each other too many times", Position(name))
        tree = parse(text, name, scalar=self._replace)
        self._source.trees[name] = tree
        if not tree.documents:
            raise LintError("the file is empty: it must be a mapping with services", Position(name))
        for document in tree.documents:
            if not isinstance(document.value, dict):
                raise LintError("a compose file must be a mapping with services", document.at)
            for section in _SECTIONS:
                body = document.get(section)
                if body.present and not isinstance(body.value, dict):
                    raise LintError(f"{section} must be a mapping", body.at)
        return list(tree.documents)

    def _replace(self, text: str, at: Position) -> str:
        if "$" not in text:
            return text
        try:
            replaced = interpolate(text, self._values, lambda what: self._problem(at, what))
        except TooMuch as error:
            raise LintError(str(error), at) from None
        self._source.replaced += len(replaced)
        if self._source.replaced > MOST:
            raise LintError(f"with its variables it is longer than {MOST:,} characters", at)
        return replaced

    def _problem(self, at: Position, what: str) -> None:
        self._source.notes.append(f"{at}: {what}")

    # Extends

    def _service(self, file: str, name: str, chain: tuple[tuple[str, str], ...], document: Node) -> Node:
        body = document.get("services", name)
        key = (os.path.abspath(file), name)
        if key in chain:
            raise LintError(f"{name!r} extends itself, by {' and '.join(one for _, one in chain)}", body.at)
        if len(chain) > MAX_EXTENDED:
            raise LintError(f"more than {MAX_EXTENDED} services extend each other", body.at)
        folder = self._folder if not chain or chain[0][0] == key[0] else os.path.dirname(key[0])
        own = Node(dict(normalize(body.without("extends"), folder, self._problem).map), body.at, tag=body.tag)
        extends = body.get("extends")
        base = extends.get("service").text or extends.text
        if not base:
            return own
        inherited = self._base(file, base, extends, (*chain, key), document)
        return merge(inherited, own) if inherited.present else own

    def _base(self, file: str, name: str, extends: Node, chain: tuple[tuple[str, str], ...], document: Node) -> Node:
        other = extends.get("file").text
        if other.startswith(_REMOTE):
            self._problem(extends.at, f"{other!r} is not fetched: its service {name!r} is not checked")
            return EMPTY
        if other:
            near = self._folder if len(chain) == 1 else os.path.dirname(os.path.abspath(file))
            file = _near(other, near)
            if file not in self._parsed:
                merged = Node({}, Position(file))
                for one in self._documents(file):
                    merged = merge(merged, one)
                self._parsed[file] = merged
            document = self._parsed[file]
        if name not in document.get("services").map:
            raise LintError(f"extends the service {name!r}, which is not in {file!r}", extends.at)
        if not isinstance(document.get("services", name).value, dict):
            return EMPTY
        return self._service(file, name, chain, document)

    # Include

    def _included(self, project: Node, include: Node) -> Node:
        for one in include.items:
            paths = [path.text for path in one.get("path").items] or [one.get("path").text or one.text]
            if not paths[0]:
                self._problem(one.at, "an include without a path: not checked")
            elif any(path.startswith(_REMOTE) for path in paths):
                self._problem(one.at, f"{paths[0]!r} is not fetched: it is not checked")
            else:
                project = self._joined(project, self._of_include(one, paths), one.at)
        return project

    def _of_include(self, one: Node, paths: list[str]) -> Node:
        files = [_near(path, self._folder) for path in paths]
        if os.path.abspath(files[0]) in self._including:
            raise LintError(f"{files[0]!r} includes itself", one.at)
        folder = os.path.dirname(os.path.abspath(files[0]))
        if one.get("project_directory").text:
            folder = os.path.abspath(_near(one.get("project_directory").text, self._folder))
        given = one.get("env_file")
        env_files = [_near(each.text, self._folder) for each in given.items or ([given] if given.text else [])]
        values = _variables(folder, env_files, self._values, self._source)
        reader = _Reader(self._source, folder, values, (*self._including, os.path.abspath(files[0])))
        project = Node({}, one.at)
        for file in files:
            project = merge(project, reader.file(file))
        services = {
            name: _with_env_files(_settled(service), folder, values, self._source)
            for name, service in project.get("services").map.items()
        }
        return project.having(services=Node(dict(services), project.at))

    def _joined(self, project: Node, included: Node, at: Position) -> Node:
        """Combine both. If both define an object, the outer file is used, although Compose refuses this."""
        sections: dict[str, Node] = {}
        for section in _SECTIONS:
            ours, theirs = project.get(section), included.get(section)
            for name in ours.map.keys() & theirs.map.keys():
                if ours.get(name).plain() != theirs.get(name).plain():
                    self._problem(
                        at, f"{section}: {name!r} is in the included file and in this one: only this one is checked"
                    )
            if ours.map or theirs.map:
                sections[section] = Node({**theirs.map, **ours.map}, ours.at if ours.map else theirs.at)
        return project.having(**sections)


def _near(path: str, folder: str) -> str:
    """Return ``path`` below ``folder``, relative to the working directory if it is below that."""
    whole = os.path.normpath(os.path.join(folder, path))
    here = os.path.relpath(whole) if os.path.isabs(whole) else whole
    return whole if here.startswith("..") else here


def _settled(service: Node) -> Node:
    """Return the merged service with one list entry for each object."""
    lists = {
        name: Node(unique(list(child.items), name), child.at) for name, child in service.map.items() if child.items
    }
    return cleaned(service).having(**{name: cleaned(child) for name, child in lists.items()})


def _with_env_files(service: Node, folder: str, values: Mapping[str, str], source: ReadProject) -> Node:
    """Return the service with the variables of its ``env_file``, which ``environment`` overrides."""
    found: dict[str, Node] = {}
    for one in service.get("env_file").items:
        path = one.get("path").text or one.text
        if not path:
            continue
        try:
            assigned = _assigned(read_text(_near(path, folder)), path, values)
        except LintError as error:
            if one.get("required").value is not False:
                source.notes.append(f"{one.at}: env_file: {error.what}")
            continue
        found |= {name: Node(value, one.at) for name, value in assigned.items()}
    own = assignments(service.get("environment"))
    known = {
        name: Node(values[name], child.at, f"${{{name}}}") if not child.present and name in values else child
        for name, child in own.map.items()
    }
    if not found and not known:
        return service
    return service.having(environment=Node({**found, **known}, own.at if own.map else service.at)).without("env_file")
