"""Import rules: no cycles, no import of decaf_tabletop in decaf_ros, few files at the root."""

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
    """Modules of both packages that `module` imports, also inside functions or for type checkers."""
    tree = ast.parse(FILES[module].read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name in FILES and name != module}


def subpackage(module: str) -> str:
    """The subpackage of a module, or the module itself at the root of a package."""
    return ".".join(module.split(".")[:2])


def assert_acyclic(graph: dict[str, set[str]]) -> None:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_modules_have_no_import_cycle():
    assert_acyclic({module: imports(module) for module in FILES if module not in PACKAGES})


def test_subpackages_have_no_import_cycle():
    graph: dict[str, set[str]] = {}
    for module in FILES:
        if module not in PACKAGES:
            used = graph.setdefault(subpackage(module), set())
            used.update(subpackage(name) for name in imports(module) if subpackage(name) != subpackage(module))
    assert_acyclic(graph)


def test_decaf_ros_does_not_import_decaf_tabletop():
    for module in FILES:
        if module.startswith("decaf_ros"):
            assert not {name for name in imports(module) if name.startswith("decaf_tabletop")}, module


def test_world_and_training_do_not_use_ros():
    for module, file in FILES.items():
        if module.startswith(("decaf_tabletop.world", "decaf_tabletop.training")):
            assert "rclpy" not in file.read_text(), module


def test_decaf_ros_has_few_files_at_its_root():
    files = [path.name for path in (ROOT / "decaf_ros").iterdir() if path.is_file()]
    assert len(files) <= 12, sorted(files)
