"""The layout: imports go down, packages keep their private names, and modules stay small."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import architecture  # noqa: E402

MOST_MODULES = 15
MOST_LINES = 350
PUBLIC_TWICE = ("Finding", "Report")
"""Documented names of `sharedvol.doctor` and of `sharedvol.lint`: callers use them by their packages."""

both = pytest.mark.parametrize("package", architecture.PACKAGES)


@both
def test_every_part_has_a_floor(package: str) -> None:
    parts = {architecture.part_of(module, package) for module in architecture.modules(package)} - {package}
    assert parts == set(architecture.floors(package)) - {package}


@both
def test_imports_go_down(package: str) -> None:
    floors = architecture.floors(package)
    up = []
    for one in architecture.imports(package):
        above, below = (architecture.part_of(module, package) for module in (one.importer, one.imported))
        if above != below and below != package and above != package and floors[below] >= floors[above]:
            up.append(f"{one.importer}:{one.line} imports {one.imported} {one.name}")
    assert up == []


@both
def test_no_package_uses_the_private_names_of_another(package: str) -> None:
    private = [
        f"{one.importer}:{one.line} imports {one.imported}.{one.name}"
        for one in architecture.imports(package)
        if one.name.startswith("_") and not one.name.startswith("__")
    ]
    assert private == []


@both
def test_packages_and_modules_are_small(package: str) -> None:
    modules = architecture.modules(package)
    count: dict[Path, int] = {}
    for path in modules.values():
        count[path.parent] = count.get(path.parent, 0) + (path.name != "__init__.py")
    assert {str(path.relative_to(ROOT)): number for path, number in count.items() if number > MOST_MODULES} == {}
    long = {module: len(path.read_text().splitlines()) for module, path in modules.items()}
    assert {module: lines for module, lines in long.items() if lines > MOST_LINES} == {}


@both
def test_no_two_classes_of_a_package_have_one_name(package: str) -> None:
    where: dict[str, list[str]] = {}
    for module, path in architecture.modules(package).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                where.setdefault(node.name.lstrip("_"), []).append(module)
    assert {name: found for name, found in where.items() if len(found) > 1 and name not in PUBLIC_TWICE} == {}


@both
def test_a_face_holds_no_code(package: str) -> None:
    """Only the package's own face has a function: the one that imports names when they are first used."""
    for module, path in architecture.modules(package).items():
        if path.name == "__init__.py" and module:
            tree = ast.parse(path.read_text())
            allowed = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign)
            assert all(isinstance(node, allowed) for node in tree.body), module


def test_the_picture_is_of_todays_imports() -> None:
    """``python scripts/architecture.py`` draws it again."""
    page = architecture.PAGE.read_text()
    assert page == architecture.with_picture(page)
