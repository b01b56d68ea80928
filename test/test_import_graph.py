"""The floor plan: no circles, no way from the product to the simulated table, few files at the root."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("decaf_ros", "decaf_tabletop")


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


def imports(module: str) -> set[str]:
    """Modules of both packages that `module` imports: at its top, inside functions, or for type checkers."""
    tree = ast.parse(FILES[module].read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name in FILES and name not in PACKAGES and name != module}


def room(module: str) -> str:
    """The package of a module, or the module itself at the root of a package."""
    return ".".join(module.split(".")[:2])


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle of imports: {' <- '.join(error.args[1])}")


def test_modules_import_without_a_circle():
    assert_no_circle({module: imports(module) for module in FILES if module not in PACKAGES})


def test_rooms_import_without_a_circle():
    graph: dict[str, set[str]] = {}
    for module in FILES:
        if module not in PACKAGES:
            used = graph.setdefault(room(module), set())
            used.update(room(name) for name in imports(module) if room(name) != room(module))
    assert_no_circle(graph)


def test_the_product_does_not_know_the_table():
    for module in FILES:
        if module.startswith("decaf_ros"):
            assert not {name for name in imports(module) if name.startswith("decaf_tabletop")}, module


def test_world_and_training_know_no_ros():
    for module, file in FILES.items():
        if module.startswith(("decaf_tabletop.world", "decaf_tabletop.training")):
            assert "rclpy" not in file.read_text(), module


def test_the_root_of_the_product_is_small():
    files = [path.name for path in (ROOT / "decaf_ros").iterdir() if path.is_file()]
    assert len(files) <= 12, sorted(files)
