"""Parts of an HTML page in one file: it loads nothing from outside, runs no script, and works from file://."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np

# A larger film stays a file beside the page.
EMBEDDED_MIB = 48
# Nothing but what is in the file, or beside it for a large film, even if a text in it were taken for markup.
_POLICY = "default-src 'none'; img-src data:; media-src data: 'self' file:; style-src 'unsafe-inline'"
# With a unit, or "-" for none.
_NUMBER = re.compile(r"-|[+-]?[\d.,]+( ?(%|ms|s|px))?")
_STYLE = """
:root { color-scheme: light dark; --line: #d5d8dc; --soft: #f3f5f7; --faint: #68707a; --good: #00724f; --bad: #b8450a; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3b4147; --soft: #1f2428; --faint: #9aa4ae; --good: #45c99c; --bad: #ff9a5c; }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.6em; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin: 36px 0 10px; padding-bottom: 4px; border-bottom: 1px solid var(--line); }
p { max-width: 80ch; overflow-wrap: anywhere; }
.lead { font-size: 1.1em; margin: 0 0 18px; }
.good { color: var(--good); } .bad { color: var(--bad); } .faint { color: var(--faint); }
td .good, td .bad { white-space: nowrap; }
h3 { font-size: 1em; margin: 20px 0 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td { overflow-wrap: break-word; } th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
video, img { max-width: 100%; height: auto; display: block; background: var(--soft); border-radius: 4px; }
video { width: 100%; max-width: 860px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 14px; }
figure { margin: 0 0 12px; } figcaption { color: var(--faint); font-size: 0.9em; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.4em; }
details { margin: 8px 0; } summary { cursor: pointer; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: currentColor; } svg .axis { stroke: var(--line); stroke-width: 1; }
"""


class Markup(str):
    """Text that is markup already. Any other text is escaped."""


def text(value: object) -> Markup:
    """`value` as text of a page: escaped, unless it is Markup. "-" for None."""
    if isinstance(value, Markup):
        return value
    return Markup(escape("-" if value is None else str(value)))


def document(title: str, parts: Iterable[object]) -> str:
    """The whole page. title: plain text, also the first heading. parts: Markup, or plain texts for paragraphs."""
    body = "\n".join(part if isinstance(part, Markup) else paragraph(part) for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(title: object) -> Markup:
    """The heading of a section."""
    return Markup(f"<h2>{text(title)}</h2>")


def paragraph(content: object, style: str = "") -> Markup:
    """style: "", "lead", "good", "bad", "faint", or several of them."""
    return Markup(f'<p class="{escape(style)}">{text(content)}</p>')


def colored(content: object, style: str) -> Markup:
    """A part of a line. style: "good", "bad" or "faint"."""
    return Markup(f'<span class="{escape(style)}">{text(content)}</span>')


def swatch(rgb: Sequence[int]) -> Markup:
    """A small square of a colour."""
    return Markup(f'<span class="swatch" style="background:rgb({",".join(str(int(value)) for value in rgb)})"></span>')


def table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """A table; without headings the first column has them. Columns of numbers are aligned to the right."""
    cells = [[text(value) for value in row] for row in rows]
    width = len(headings) or max(map(len, cells), default=0)
    right = [bool(cells) and all(_is_number(row[column]) for row in cells) for column in range(width)]
    if not headings:
        right = [False] * width

    def line(row: Sequence[str], tag: str) -> str:
        parts = []
        for column, value in enumerate(row):
            kind = "th" if not headings and column == 0 else tag
            style = ' class="number"' if right[column] else ""
            parts.append(f"<{kind}{style}>{value}</{kind}>")
        return f"<tr>{''.join(parts)}</tr>"

    head = f"<thead>{line([text(value) for value in headings], 'th')}</thead>" if headings else ""
    body = "\n".join(line(row, "td") for row in cells)
    return Markup(f'<div class="scroll"><table>{head}<tbody>\n{body}\n</tbody></table></div>')


def picture(image: np.ndarray, caption: object = "", lossless: bool = False) -> Markup:
    """image: (H, W, 3) uint8, RGB; a JPEG in the page, or a PNG if `lossless`."""
    suffix, kind = (".png", "png") if lossless else (".jpg", "jpeg")
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, bgr, [] if lossless else [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise ValueError(f"picture: expected an (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    label = escape(str(caption)) if not isinstance(caption, Markup) else ""
    tag = f'<img alt="{label}" width="{width}" height="{height}" src="{_data_uri(f"image/{kind}", data.tobytes())}">'
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return Markup(f"<figure>{tag}{below}</figure>")


def grid(figures: Iterable[Markup]) -> Markup:
    """Figures side by side, as many as fit."""
    return Markup(f'<div class="grid">{"".join(figures)}</div>')


def film(path: Path) -> Markup:
    """A WebM film: in the page, or named by the page if it is larger than `EMBEDDED_MIB`."""
    size = path.stat().st_size
    source = _data_uri("video/webm", path.read_bytes()) if size <= EMBEDDED_MIB << 20 else escape(path.name)
    note = (
        ""
        if size <= EMBEDDED_MIB << 20
        else f"<figcaption>The film is the file {source} beside this page.</figcaption>"
    )
    return Markup(
        f'<figure><video controls loop muted playsinline preload="auto" src="{source}"></video>{note}</figure>'
    )


def foldable(title: object, content: Markup) -> Markup:
    """A part that is closed at first."""
    return Markup(f"<details><summary>{text(title)}</summary>{content}</details>")


def parameters(values: Mapping[str, object]) -> Markup:
    """A closed table of parameters."""
    return foldable(f"All {len(values)} parameters", table((), [(name, value) for name, value in values.items()]))


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None
