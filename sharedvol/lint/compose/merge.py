"""The merge of several compose files into one (Compose file reference, "Merge")."""

from __future__ import annotations

from typing import Final

from sharedvol.lint.compose.node import Node
from sharedvol.lint.compose.normalize import identity

_REPLACED: Final = {"command", "entrypoint", "test", "network_mode"}  # lists that a later file replaces whole


def merge(first: Node, second: Node, name: str = "") -> Node:
    """Merge two values, both in the long form.

    Mappings are merged by name. Lists are concatenated; of two entries for the same object (a volume's target, a port)
    the later one is used. ``!reset`` removes a value, and ``!override`` replaces it as a whole.

    Args:
        first: the value in the earlier file.
        second: the value in the later file.
        name: its name in the file.
    """
    if second.tag == "!override" or name in _REPLACED:
        return cleaned(second)
    if isinstance(first.value, dict) and isinstance(second.value, dict):
        return Node(_merge_maps(first, second), first.at)
    if isinstance(first.value, list) and isinstance(second.value, list):
        return Node(unique([*first.value, *(cleaned(one) for one in second.value)], name), first.at)
    return cleaned(second) if second.present or not first.present else first


def _merge_maps(first: Node, second: Node) -> dict[str, Node]:
    merged = dict(first.map)
    for key, child in second.map.items():
        if child.tag == "!reset":
            merged.pop(key, None)
        elif key in merged:
            merged[key] = merge(merged[key], child, key)
        else:
            merged[key] = cleaned(child)
    return merged


def cleaned(node: Node) -> Node:
    """Return ``node`` without its tags and without the values that ``!reset`` removes."""
    if isinstance(node.value, dict):
        return Node({key: cleaned(child) for key, child in node.value.items() if child.tag != "!reset"}, node.at)
    if isinstance(node.value, list):
        return Node([cleaned(child) for child in node.value if child.tag != "!reset"], node.at, node.raw)
    return Node(node.value, node.at, node.raw)


def unique(items: list[Node], name: str) -> list[Node]:
    """Return ``items`` with one entry for each object: the last entry, at the position of the first."""
    found: dict[object, Node] = {}
    for index, one in enumerate(items):
        key = identity(name, one)
        found[(index,) if key is None else key] = one
    return list(found.values())
