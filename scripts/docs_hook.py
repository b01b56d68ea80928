"""mkdocs hook: pages from outside docs/, and relative links that work on the repository host and on the site.

Documents link to files of the repository. On the site, a link to a document becomes a link to its page, a link to a
module becomes a link to its page of the API reference, and a link to any other file becomes the file's path as code.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Documents outside docs/ and their pages.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "QUALITY_DECLARATION.md": "quality.md",
    "decaf_tabletop/README.md": "tabletop/index.md",
    "decaf_tabletop/models/tabletop_mllm/README.md": "tabletop/mllm.md",
    "decaf_tabletop/models/tabletop_sam2/README.md": "tabletop/sam2.md",
}
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[`~]*\s*$", re.MULTILINE | re.DOTALL)
# Inline code, or [label](target) or ![label](target), where the label may hold code.
_LINK = re.compile(
    r"(?P<code>(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<image>!?)\[(?P<label>(?:`[^`]*`|[^\[\]`])*)\]\((?P<target>[^)\s]+)\)",
    re.DOTALL,
)
_MODULE = re.compile(r"^::: (\S+)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the documents outside docs/."""
    from mkdocs.structure.files import File

    for document, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / document)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page."""
    uri = page.file.src_uri
    return rewrite(markdown, document_of(uri), uri)


def document_of(page: str) -> str:
    """Path in the repository of a page's source."""
    return {uri: document for document, uri in PAGES.items()}.get(page, f"docs/{page}")


def rewrite(markdown: str, document: str, page: str) -> str:
    """The text with each relative link replaced. A link to a missing file stays, and fails the strict build.

    Args:
        document: path of the text in the repository.
        page: path of its page in the site's sources.
    """

    def replace(link: re.Match[str]) -> str:
        if link["code"] or is_external(link["target"]):
            return link[0]
        path, hash_sign, anchor = link["target"].partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(document), path)) if path else ""
        destination = page_of(file)
        if destination is not None:
            relative = posixpath.relpath(destination, posixpath.dirname(page) or ".")
            anchor = "" if "#" in relative else hash_sign + anchor
            return f"{link['image']}[{link['label']}]({relative}{anchor})"
        if file and (ROOT / file).exists():
            is_path = link["label"].strip("`") in (file, path, posixpath.basename(file))
            return f"`{file}`" if is_path else f"{link['label']} (`{file}`)"
        return link[0]

    return _outside_fences(markdown, lambda text: _LINK.sub(replace, text))


def links(markdown: str) -> list[str]:
    """Targets of all links outside code."""
    found: list[str] = []

    def collect(text: str) -> str:
        found.extend(link["target"] for link in _LINK.finditer(text) if not link["code"])
        return text

    _outside_fences(markdown, collect)
    return found


def is_external(target: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]*:|//", target) is not None


def page_of(file: str) -> str | None:
    """The site's source for a file of the repository; None if the file has no page."""
    if file in PAGES:
        return PAGES[file]
    if file.startswith("docs/") and (ROOT / file).is_file():
        return file.removeprefix("docs/")
    return api_pages().get(file)


@lru_cache(maxsize=1)
def api_pages() -> Mapping[str, str]:
    """Modules that the API reference shows, as paths in the repository, and their pages."""
    pages = {}
    for source in sorted((ROOT / "docs" / "api").glob("*.md")):
        for name in _MODULE.findall(source.read_text(encoding="utf-8")):
            path = name.replace(".", "/")
            file = f"{path}.py" if (ROOT / f"{path}.py").is_file() else f"{path}/__init__.py"
            pages[file] = f"api/{source.name}#{name}"
    return pages


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Applies `change` to the text between fenced code blocks."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])
