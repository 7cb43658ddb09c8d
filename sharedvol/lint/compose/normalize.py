"""The long form of a service, as ``docker compose config --format json`` prints it.

See the Compose file reference, "Services", for the short and the long syntax of each attribute.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from typing import Final

from sharedvol.lint.compose.node import Node, Position

Problem = Callable[[Position, str], None]

_PORT: Final = re.compile(
    r"(?:(?P<ip>\[[0-9a-fA-F:]+\]|\d+(?:\.\d+){3}|[0-9a-fA-F:]*::[0-9a-fA-F:]*):)?(?:(?P<published>\d*(?:-\d+)?):)?"
    r"(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>[a-z]+))?"
)
_MOST_PORTS: Final = 2000
_MODES: Final = {"ro", "rw", "z", "Z", "nocopy", "cached", "delegated", "consistent"}
_WINDOWS: Final = re.compile(r"[A-Za-z]:[\\/]")
_MAPS: Final = ("environment", "labels", "sysctls", "annotations")
_LISTS: Final = ("tmpfs", "env_file", "dns", "dns_search", "label_file")
_COMMANDS: Final = ("command", "entrypoint")


def normalize(service: Node, folder: str, problem: Problem) -> Node:
    """Return the service in its long form.

    Args:
        service: the service in the form of the file.
        folder: the directory that relative paths start from.
        problem: gets a message about each value that is not valid.
    """
    known = _without_nonsense(service, problem)
    changed = {name: assignments(known.get(name)) for name in _MAPS if name in known.map}
    changed |= {name: _listed(known.get(name)) for name in _LISTS if known.get(name).present}
    changed |= {name: command(known.get(name)) for name in _COMMANDS if known.get(name).present}
    if "env_file" in changed:
        changed["env_file"] = _env_files(changed["env_file"], folder)
    return known.having(**changed, **_long_forms(known, folder, problem))


def _long_forms(known: Node, folder: str, problem: Problem) -> dict[str, Node]:
    changed: dict[str, Node] = {}
    if known.get("ports").present:
        changed["ports"] = _each(known.get("ports"), _port, problem)
    if known.get("volumes").present:
        changed["volumes"] = _each(known.get("volumes"), lambda one, report: [_volume(one, folder, report)], problem)
    if known.get("depends_on").present:
        changed["depends_on"] = _depends_on(known.get("depends_on"))
    if known.get("networks").items:
        changed["networks"] = _names(known.get("networks"))
    if known.get("healthcheck", "test").present:
        health = known.get("healthcheck")
        changed["healthcheck"] = health.having(test=_test(health.get("test")))
    if known.get("deploy", "labels").present:
        changed["deploy"] = known.get("deploy").having(labels=assignments(known.get("deploy", "labels")))
    return changed


_WORDS: Final = {"list": "a list", "dict": "a mapping", "str": "a text"}
_SHAPES: Final[dict[str, tuple[type, ...]]] = {
    "ports": (list,),
    "volumes": (list,),
    "environment": (list, dict),
    "labels": (list, dict),
    "deploy": (dict,),
    "healthcheck": (dict,),
    "depends_on": (list, dict),
    "networks": (list, dict),
    "command": (str, list),
    "entrypoint": (str, list),
    "post_start": (list,),
    "tmpfs": (str, list),
    "x-sharedvol": (dict,),
}


def _without_nonsense(service: Node, problem: Problem) -> Node:
    wrong = []
    for name, child in service.map.items():
        shapes = _SHAPES.get(name)
        if shapes and child.present and not isinstance(child.value, shapes):
            kinds = " or ".join(_WORDS[shape.__name__] for shape in shapes)
            problem(child.at, f"{name} must be {kinds}: not checked")
            wrong.append(name)
    return service.without(*wrong)


def assignments(node: Node) -> Node:
    """Return a list of ``NAME=value``, or a mapping, as a mapping. A name without a value gets an absent one."""
    if not node.items:
        return Node(dict(node.map), node.at, tag=node.tag)
    found: dict[str, Node] = {}
    for one in node.items:
        name, equals, value = one.text.partition("=")
        raw = one.raw.partition("=")[2]
        if name:
            found[name] = Node(value if equals else None, one.at, raw, one.tag)
    return Node(found, node.at, tag=node.tag)


def _listed(node: Node) -> Node:
    return node if node.items or isinstance(node.value, list) else Node([node], node.at, tag=node.tag)


def command(node: Node) -> Node:
    """Return the words of a command, split as a shell would: Compose does not run a shell."""
    if isinstance(node.value, list) or not node.present:
        return node
    words, raw = _words(node.text), _words(node.raw)
    if len(raw) != len(words):  # a variable expands to several words, so the raw words do not correspond
        raw = [node.raw] + [""] * len(words)
    return Node([Node(word, node.at, was) for word, was in zip(words, raw, strict=False)], node.at, tag=node.tag)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _env_files(node: Node, folder: str) -> Node:
    """Return the files with absolute paths, because an extended service may be in another directory."""
    files = []
    for one in node.items:
        path = one.get("path") if one.map else one
        whole = Node(_absolute(path.text, folder), path.at, path.raw) if path.text else path
        files.append(one.having(path=whole) if one.map else Node(whole.value, one.at, one.raw, one.tag))
    return Node(files, node.at, tag=node.tag)


def _test(node: Node) -> Node:
    if isinstance(node.value, list):
        return node
    return Node([Node("CMD-SHELL", node.at), Node(node.text, node.at, node.raw)], node.at, tag=node.tag)


def _names(node: Node) -> Node:
    return Node({one.text: Node(None, one.at) for one in node.items if one.text}, node.at, tag=node.tag)


def _depends_on(node: Node) -> Node:
    waits: dict[str, Node] = {}
    given = dict(node.map) or {one.text: Node({}, one.at) for one in node.items if one.text}
    for name, one in given.items():
        waits[name] = Node(
            {"condition": Node("service_started", one.at), "required": Node(True, one.at), **one.map}, one.at
        )
    return Node(waits, node.at, tag=node.tag)


def _each(node: Node, form: Callable[[Node, Problem], list[Node]], problem: Problem) -> Node:
    found: list[Node] = []
    for one in node.items:
        found.extend(form(one, problem))
    return Node(found, node.at, tag=node.tag)


# Ports


def _port(one: Node, problem: Problem) -> list[Node]:
    if one.map:
        defaults = {"mode": Node("ingress", one.at), "protocol": Node("tcp", one.at)}
        return [Node({**defaults, **_as_texts(one)}, one.at, tag=one.tag)]
    match = _PORT.fullmatch(one.text)
    if match is None:
        problem(one.at, f"{one.text[:80]!r} is not a port: not checked")
        return []
    targets, published = _range(match["target"]), match["published"] or ""
    if len(targets) > _MOST_PORTS:
        problem(one.at, f"{one.text!r} is too many ports: not checked")
        return []
    hosts = _range(published) if published else []
    pairs = (
        [(target, str(hosts[index])) for index, target in enumerate(targets)]
        if len(hosts) == len(targets)
        else [(target, published) for target in targets]
    )
    return [
        _one_port(one, target, host, (match["ip"] or "").strip("[]"), match["protocol"] or "tcp")
        for target, host in pairs
    ]


def _as_texts(one: Node) -> dict[str, Node]:
    texts = dict(one.map)
    if one.get("published").present:
        texts["published"] = Node(one.get("published").text, one.get("published").at)
    return texts


def _one_port(one: Node, target: int, published: str, ip: str, protocol: str) -> Node:
    fields: dict[str, str | int] = {
        "mode": "ingress",
        "host_ip": ip,
        "target": target,
        "published": published,
        "protocol": protocol,
    }
    return Node({name: Node(value, one.at) for name, value in fields.items() if value}, one.at, one.raw, one.tag)


def _range(text: str) -> list[int]:
    first, _, last = text.partition("-")
    low, high = int(first[:6] or 0), int((last or first)[:6] or 0)
    return list(range(low, min(high, low + _MOST_PORTS) + 1))


# Volumes


def _volume(one: Node, folder: str, problem: Problem) -> Node:
    if one.map:
        return _long_volume(one, folder)
    parts = _split(one.text)
    if not one.text or len(parts) > 3:
        problem(one.at, f"{one.text[:80]!r} is not a volume: not checked")
        return Node({}, one.at)
    if len(parts) == 1:
        fields: dict[str, Node] = {"type": Node("volume", one.at), "target": Node(_clean(parts[0]), one.at)}
        return Node({**fields, "volume": Node({}, one.at)}, one.at, one.raw, one.tag)
    source, target = parts[0], parts[1]
    modes = set(parts[2].split(",")) if len(parts) == 3 else set()
    is_bind = source.startswith((".", "/", "~")) or bool(_WINDOWS.match(source))
    kind = "bind" if is_bind else "volume"
    fields = {
        "type": Node(kind, one.at),
        "source": Node(_absolute(source, folder) if is_bind else source, one.at, one.raw if "$" in one.raw else source),
        "target": Node(_clean(target), one.at),
    }
    if "ro" in modes:
        fields["read_only"] = Node(True, one.at)
    options: dict[str, Node] = {}
    if is_bind:
        options["create_host_path"] = Node(True, one.at)
    elif "nocopy" in modes:
        options["nocopy"] = Node(True, one.at)
    fields[kind] = Node(options, one.at)
    return Node(fields, one.at, one.raw, one.tag)


def _split(text: str) -> list[str]:
    if _WINDOWS.match(text):
        drive, rest = text[:2], text[2:].split(":")
        return [drive + rest[0], *rest[1:]]
    return text.split(":")


def _long_volume(one: Node, folder: str) -> Node:
    fields = dict(one.map)
    source, target = one.get("source"), one.get("target")
    if one.get("type").text == "bind" and source.text:
        fields["source"] = Node(_absolute(source.text, folder), source.at, source.text)
    if target.text:
        fields["target"] = Node(_clean(target.text), target.at, target.raw)
    return Node(fields, one.at, tag=one.tag)


def _absolute(path: str, folder: str) -> str:
    if _WINDOWS.match(path):
        return path
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))


def _clean(path: str) -> str:
    return os.path.normpath(path).replace("//", "/") if path.startswith("/") else path


def identity(name: str, one: Node) -> object:
    """Return the key that two list entries for the same object share, or None if entries have no key.

    Args:
        name: the list's name in the service.
        one: an entry in its long form.
    """
    if name == "ports":
        return tuple(one.get(part).text for part in ("host_ip", "published", "target", "protocol"))
    if name == "volumes":
        return one.get("target").text or None
    if name in {"tmpfs", "devices"}:
        return one.text.partition(":")[0] or None
    if name in {"secrets", "configs"}:
        return one.get("target").text or one.get("source").text or one.text or None
    if name in {"expose", "cap_add", "cap_drop", "security_opt", "dns", "profiles", "env_file"}:
        return one.get("path").text or one.text or None
    return None
