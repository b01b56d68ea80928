"""The documents: links, anchors, paths and names in them exist. Needs no mkdocs."""

from __future__ import annotations

import ast
import importlib.util
import posixpath
import re
from pathlib import Path
from types import ModuleType

import pytest

import decaf_ros

ROOT = Path(__file__).parents[1]


def load_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hook", ROOT / "scripts" / "docs_hook.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    return hook


HOOK = load_hook()
DOCUMENTS = sorted({*HOOK.PAGES, *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))})
# Paths in backticks: at least one slash, and a suffix of a source file or a slash at the end.
PATH = re.compile(r"`([\w.-]+/(?:[\w.-]+/)*(?:[\w-]+\.(?:py|md|yaml|yml|txt|xml|sh|toml|cff|msg|action))?)`")
# "`decaf_ros/pipeline.py`: `Decaf`, `STAGES`"
NAMES = re.compile(r"`(decaf_\w+/[\w/]+\.py)`: (`\w+`(?:, `\w+`)*)")
FOLDERS = ("", "decaf_ros", "decaf_tabletop")


def generated() -> set[str]:
    """Names at the root that set-up, tests and commands make."""
    return {line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines()}


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def without_fences(markdown: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def anchors(markdown: str) -> set[str]:
    """Anchors of the headings, as the repository host makes them."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.+?) *#*$", without_fences(markdown), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(f"{anchor}-{found.count(anchor)}" if anchor in found else anchor)
    return set(found)


def broken_links(document: str, markdown: str) -> list[str]:
    broken = []
    for target in HOOK.links(markdown):
        if HOOK.is_external(target):
            continue
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(document), path)) if path else document
        if not (ROOT / file).exists():
            broken.append(target)
        elif anchor and file.endswith(".md"):
            linked = markdown if file == document else text_of(file)
            if anchor not in anchors(linked):
                broken.append(target)
    return broken


def broken_paths(document: str, markdown: str) -> list[str]:
    places = (*FOLDERS, posixpath.dirname(document))
    return [
        path
        for path in PATH.findall(without_fences(markdown))
        if path.split("/")[0] not in generated() and not any((ROOT / place / path).exists() for place in places)
    ]


def defined(file: str) -> set[str]:
    """Names that a module defines at its top."""
    names = set()
    for node in ast.parse(text_of(file)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_anchors_exist(document: str):
    assert broken_links(document, text_of(document)) == []


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if document != "CHANGELOG.md"])
def test_paths_exist(document: str):
    """Not of the changelog, which names paths of the past."""
    assert broken_paths(document, text_of(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_names_are_defined(document: str):
    for file, names in NAMES.findall(text_of(document)):
        assert set(re.findall(r"\w+", names)) <= defined(file), f"{file}: {names}"


def test_broken_references_are_found():
    markdown = (
        "# One `a.b` thing\n[a](docs/none.md) [b](#one-ab-thing) [c](#two) `[d](none.md)`\n```\n[e](none.md)\n```\n"
    )
    assert broken_links("README.md", markdown) == ["docs/none.md", "#two"]
    markdown = "`decaf_ros/none.py` `decaf_ros/pipeline.py` `grounding/` `none/` `demo_output/summary.md` `torch/cuda`"
    assert broken_paths("README.md", markdown) == ["decaf_ros/none.py", "none/"]


def test_architecture_names_definitions():
    assert len(NAMES.findall(text_of("docs/architecture.md"))) > 20


def test_api_reference_names_the_public_api():
    text = text_of("docs/api/index.md")
    assert [name for name in decaf_ros.__all__ if f"`{name}`" not in text] == []


def test_api_reference_names_existing_modules():
    pages = HOOK.api_pages()
    assert "decaf_ros/pipeline.py" in pages
    assert [file for file in pages if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize(
    ("document", "page", "markdown", "expected"),
    [
        ("README.md", "index.md", "[x](docs/limits.md#data)", "[x](limits.md#data)"),
        ("README.md", "index.md", "![x](docs/images/demo.png)", "![x](images/demo.png)"),
        ("docs/limits.md", "limits.md", "[x](../CONTRIBUTING.md)", "[x](contributing.md)"),
        ("docs/api/index.md", "api/index.md", "[x](../../README.md)", "[x](../index.md)"),
        (
            "decaf_tabletop/README.md",
            "tabletop/index.md",
            "[x](models/tabletop_sam2/README.md) [y](../docs/limits.md)",
            "[x](sam2.md) [y](../limits.md)",
        ),
        (
            "README.md",
            "index.md",
            "[x](decaf_ros/pipeline.py)",
            "[x](api/pipeline.md#decaf_ros.pipeline)",
        ),
        ("README.md", "index.md", "[CITATION.cff](CITATION.cff)", "`CITATION.cff`"),
        ("README.md", "index.md", "[the licence](LICENSE)", "the licence (`LICENSE`)"),
        ("README.md", "index.md", "[x](docs/none.md)", "[x](docs/none.md)"),
        ("README.md", "index.md", "[x](https://ros.org) [y](#data)", "[x](https://ros.org) [y](#data)"),
        ("README.md", "index.md", "`[x](LICENSE)`\n```\n[y](LICENSE)\n```", "`[x](LICENSE)`\n```\n[y](LICENSE)\n```"),
    ],
)
def test_links_are_rewritten_for_the_site(document: str, page: str, markdown: str, expected: str):
    assert HOOK.rewrite(markdown, document, page) == expected


def fault_rows() -> list[str]:
    table = text_of("docs/reliability.md").partition("\n| Fault |")[2].partition("\n\n")[0]
    return table.splitlines()[2:]


def test_every_fault_names_tests_that_exist():
    rows = fault_rows()
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named and row.count("::") == len(named), row
        for file, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / "test" / file).read_text(), re.MULTILINE), f"{file}::{name}"
