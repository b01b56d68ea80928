"""Charts as inline SVG: lines over an axis, and bars. They follow the page's light or dark colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from decaf_ros.pages.html import Markup

# Okabe and Ito's palette; yellow, which is too pale for lines on white, is left out.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 260, 56, 16, 12, 44
_BAR_HEIGHT, _BAR_GAP, _CHAR_PX = 16, 8, 7.4

Points = Sequence[tuple[float, float | None]]


class Mark(NamedTuple):
    """A dot at a point of a chart, and its text."""

    x: float
    y: float
    text: str


def line_chart(
    series: Mapping[str, Points],
    x_label: str,
    y_label: str,
    y_max: float | None = None,
    x_max: float | None = None,
    colors: Sequence[str] = COLORS,
    marks: Sequence[Mark] = (),
) -> Markup:
    """Lines through (x, y) points with x >= 0 and y >= 0; a y of None is a gap. Raises ValueError without any point.

    y_max, x_max: ends of the axes; None: from the points.
    """
    known = [(x, y) for points in series.values() for x, y in points if y is not None and math.isfinite(y)]
    if not known:
        raise ValueError("line_chart: expected points, got none")
    x_end = x_max or max(x for x, _ in known) or 1.0
    y_end = y_max or max(y for _, y in known) or 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return round(_LEFT + x / x_end * width, 1), round(_TOP + (1 - min(y / y_end, 1.0)) * height, 1)

    parts = []
    for value in _ticks(y_end):
        left, y = at(0, value)
        parts.append(f'<line class="axis" x1="{left}" y1="{y}" x2="{_LEFT + width}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{_number(value)}</text>')
    for value in _ticks(x_end):
        x, bottom = at(value, 0)
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{_number(value)}</text>')
    for number, points in enumerate(series.values()):
        color = colors[number % len(colors)]
        for run in _runs(points):
            path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in run))
            if len(run) == 1:
                x, y = at(*run[0])
                parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{color}"/>')
            else:
                parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
    for mark in marks:
        x, y = at(mark.x, mark.y)
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{COLORS[1]}"/>')
        parts.append(f'<text x="{x + 9}" y="{y + 14}">{escape(mark.text)}</text>')
    parts.append(
        f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(12 {_TOP + height / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    names = "".join(
        f'<span style="white-space:nowrap;margin-right:1.2em"><span class="swatch" '
        f'style="background:{colors[number % len(colors)]}"></span>{escape(name)}</span>'
        for number, name in enumerate(series)
    )
    legend = f"<figcaption>{names}</figcaption>" if len(series) > 1 else ""
    return _svg(_WIDTH, _HEIGHT, parts, f"{y_label} by {x_label}", legend)


def bar_chart(bars: Mapping[str, float | None], maximum: float | None = None, unit: str = "") -> Markup:
    """A horizontal bar for each name, with its value; None is left empty. Raises ValueError without any bar.

    maximum: the end of the axis; None: the largest value.
    """
    if not bars:
        raise ValueError("bar_chart: expected bars, got none")
    left = min(320.0, max(len(name) for name in bars) * _CHAR_PX + 12)
    end = maximum or max((value for value in bars.values() if value is not None), default=1.0) or 1.0
    width = _WIDTH - left - 80
    parts = []
    for number, (name, value) in enumerate(bars.items()):
        y = number * (_BAR_HEIGHT + _BAR_GAP)
        shown = name if len(name) * _CHAR_PX <= left else f"{name[: int(left / _CHAR_PX) - 2]}..."
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(shown)}</text>')
        length = 0.0 if value is None else round(min(value / end, 1.0) * width, 1)
        parts.append(f'<rect x="{left}" y="{y}" width="{length}" height="{_BAR_HEIGHT}" rx="2" fill="{COLORS[0]}"/>')
        label = "-" if value is None else f"{_number(value)}{unit}"
        parts.append(f'<text x="{left + length + 6}" y="{y + 13}">{escape(label)}</text>')
    return _svg(_WIDTH, len(bars) * (_BAR_HEIGHT + _BAR_GAP), parts, ", ".join(bars))


def _svg(width: int, height: int, parts: Sequence[str], label: str, legend: str = "") -> Markup:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return Markup(
        f'<figure><svg role="img" aria-label="{escape(label)}" {size}>{"".join(parts)}</svg>{legend}</figure>'
    )


def _runs(points: Points) -> Iterator[list[tuple[float, float]]]:
    """The stretches of points without a gap."""
    run: list[tuple[float, float]] = []
    for x, y in points:
        if y is not None and math.isfinite(y):
            run.append((x, y))
        elif run:
            yield run
            run = []
    if run:
        yield run


def _ticks(end: float) -> list[float]:
    """Four to ten round values from 0 to `end`."""
    step = 10.0 ** math.floor(math.log10(end))
    step = next(size for size in (step, step / 2, step / 5, step / 10) if end / size >= 4 - 1e-9)
    return [step * number for number in range(int(end / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
