"""Several compose files made one (Compose file reference, "Merge")."""

from __future__ import annotations

from typing import Final

from sharedvol.lint.compose.node import Node
from sharedvol.lint.compose.normalize import identity

_REPLACED: Final = {"command", "entrypoint", "test", "network_mode"}  # lists that a later file replaces whole


def merge(first: Node, second: Node, name: str = "") -> Node:
    """``second`` laid over ``first``; both in the long form.

    Mappings are merged by name and lists one after the other, where of two entries for one thing (a volume's target, a
    port) the later holds; ``!reset`` takes away, ``!override`` replaces whole.

    Args:
        first: the earlier file's value.
        second: the later file's value.
        name: what it is called in the file.
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
    """``node`` without its tags, and without what ``!reset`` takes away."""
    if isinstance(node.value, dict):
        return Node({key: cleaned(child) for key, child in node.value.items() if child.tag != "!reset"}, node.at)
    if isinstance(node.value, list):
        return Node([cleaned(child) for child in node.value if child.tag != "!reset"], node.at, node.raw)
    return Node(node.value, node.at, node.raw)


def unique(items: list[Node], name: str) -> list[Node]:
    """``items`` with one entry for each thing: the last, in the first's place."""
    found: dict[object, Node] = {}
    for index, one in enumerate(items):
        key = identity(name, one)
        found[(index,) if key is None else key] = one
    return list(found.values())
