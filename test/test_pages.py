"""Every page in a real browser, and the parts of pages."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from browser import Page, launched
from evaluation_scenes import DrawnClips, KnownDecaf
from result_folders import FRAMES, SIZE_HW, STEP_NS, camera_frame, moving_ball, write_result
from test_evaluation_long import hand_made
from test_evaluation_run import ANSWERS

from decaf_ros.cli.main import main
from decaf_ros.config import DecafConfig, replace
from decaf_ros.evaluation.datasets.clips import ExpressionChoice
from decaf_ros.evaluation.jobs import Plan, clip_scores
from decaf_ros.evaluation.long_report import long_report_text, write_long_report
from decaf_ros.evaluation.long_summary import long_summary
from decaf_ros.evaluation.report import report_text, table, write_report
from decaf_ros.evaluation.report_page import from_markdown
from decaf_ros.evaluation.run import Evaluator
from decaf_ros.evaluation.summary import Collected, summary
from decaf_ros.io.film import VideoWriter
from decaf_ros.pages import charts, html

browser = pytest.fixture(scope="module")(launched)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Two results that differ from the tenth frame on, and the images."""
    root = tmp_path_factory.mktemp("results")
    for index in range(FRAMES):
        (root / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(root / "images" / f"{index:04d}.png"), camera_frame(index).image[..., ::-1])
    write_result(root / "a")
    write_result(root / "b", lambda index: moving_ball(index, 5 * (index >= 10)), score=0.7)
    return root


def test_the_page_of_a_result(browser, results):
    with Page(browser, results / "a" / "index.html") as page:
        state, width, height, duration, reached = page.play()
        assert state >= 2 and (width, height) == SIZE_HW[::-1]
        assert reached == pytest.approx(duration) and duration > (FRAMES - 1.5) * STEP_NS / 1e9
        assert page.count("img") == 3 and page.broken_images() == 0 and page.width() == 1200
        for words in ("the ball that <script>alert(1)</script> & moves", "TRACKING: the answer", "0.8", "video_object"):
            assert words in page.text
        assert "24 TRACKED" in page.text and "some/model" in page.text


def test_a_large_film_stays_beside_the_page(browser, results, monkeypatch):
    monkeypatch.setattr(html, "EMBEDDED_MIB", 0)
    folder = write_result(results / "large")
    assert (folder / "index.html").stat().st_size < (folder / "overlay.webm").stat().st_size + 60_000
    with Page(browser, folder / "index.html") as page:
        assert page.play()[1] == SIZE_HW[1] and "overlay.webm beside this page" in page.text


def test_the_page_of_a_comparison(browser, results, tmp_path):
    given = ["compare", str(results / "a"), str(results / "b"), "--out", str(tmp_path / "page"), "--min-iou", "0.99"]
    assert main([*given, "--max-id-changes", "0"]) == 3
    with Page(browser, tmp_path / "page" / "index.html") as page:
        assert "EXCEEDED" in page.text and "The images of the input are not known" in page.text
        assert page.count("img") > 1 and page.broken_images() == 0 and page.width() == 1200


def test_the_page_of_an_evaluation(browser, tmp_path):
    config = replace(DecafConfig(), {"window.size": 4, "presence.threshold": 0.5})
    collected = Collected()
    plan = Plan(ExpressionChoice(0, present=4, absent=2), segmenter=False)
    for scores in clip_scores(DrawnClips(2), plan, lambda: Evaluator(KnownDecaf(config, ANSWERS)), workers=0):
        collected.add(scores)
    numbers = summary(collected, ["explicit", "attribute", "motion", "several", "absent"], 0.5)
    settings = {"dataset": "drawn", "clips": 2, "parameters": {"mllm.checkpoint": "some/model"}}
    write_report(tmp_path, numbers | {"settings": settings, "version": "0.1.0"}, collected, report_text(numbers))
    with Page(browser, tmp_path / "report.html") as page:
        assert page.count("svg") == 3 and page.count("table") >= 5 and page.width() == 1200
        assert page.count("img") == 6 and page.broken_images() == 0
        assert "some/model" in page.text and "presence.threshold 0.5" in page.text


def test_the_page_of_long_clips(browser, tmp_path):
    watched = [hand_made(clip=name) for name in "abcde"]
    numbers = long_summary(watched)
    write_long_report(tmp_path, numbers, watched, long_report_text(numbers))
    with Page(browser, tmp_path / "report.html") as page:
        assert page.count("svg") == 2 and page.count("img") == 5 and page.broken_images() == 0
        assert "The worst clips" in page.text and "The best clips" in page.text and "250 ms" in page.text


def test_a_browser_notices_faults(browser, tmp_path):
    """The other tests rely on this: a film that is damaged, a script, a request to the network, a missing file."""
    with VideoWriter(tmp_path / "overlay.webm") as film:
        film.write(camera_frame(0).image, 0)
    data = (tmp_path / "overlay.webm").read_bytes()
    (tmp_path / "overlay.webm").write_bytes(data[: len(data) // 8])
    (tmp_path / "damaged.html").write_text(html.document("x", [html.film(tmp_path / "overlay.webm")]))
    with (
        pytest.raises(Exception, match="play|DEMUXER|supported|Error"),
        Page(browser, tmp_path / "damaged.html") as page,
    ):
        page.play()
    for number, content in enumerate(
        ("<script>console.log(1)</script>", '<img src="http://127.0.0.1:9/x.png">', '<img src="missing.png">')
    ):
        file = tmp_path / f"{number}.html"
        file.write_text(html.document("x", [html.Markup(content)]))
        with pytest.raises(AssertionError), Page(browser, file):
            pass


def test_text_is_escaped_and_markup_is_not():
    page = html.document("<a>", ["1 < 2", html.colored("<b>", "bad"), html.table(["<c>"], [["<d>"]])])
    for tag in "abcd":
        assert f"&lt;{tag}&gt;" in page and f"<{tag}>" not in page
    assert '<span class="bad">' in page and "1 &lt; 2" in page


def test_columns_of_numbers_are_on_the_right():
    table = html.table(["name", "count", "states"], [["a", "-", "3 TRACKED"], ["b", "1.5 ms", "4"]])
    assert table.count('class="number"') == 3 and '<td class="number">1.5 ms</td>' in table


def test_a_report_becomes_tables():
    parts = list(from_markdown("Words.\n\n| a | b |\n|---|---|\n| 1 | x <y> |"))
    assert parts[0] == '<p class="">Words.</p>' and "<td>x &lt;y&gt;</td>" in parts[1] and parts[1].count("<tr>") == 2


def test_queries_in_tables_of_a_report():
    """Bars and line breaks stay in their cell."""
    queries = ["cup | mug", "| a |", "two\nlines\r\n\nof it", "back \\| slash", ""]
    text = table(("query", "J"), [(query, "1.0") for query in queries])
    assert len(text.splitlines()) == 2 + len(queries)
    (found,) = from_markdown(text)
    for query in ["cup | mug", "| a |", "two lines  of it", "back \\| slash", ""]:
        assert f'<td>{query}</td><td class="number">1.0</td>' in found


@pytest.mark.parametrize("is_long", [False, True])
def test_the_numbers_are_written_before_the_page(is_long, tmp_path, monkeypatch):
    def fail(*_: object) -> str:
        raise ValueError("no page")

    if is_long:
        monkeypatch.setattr("decaf_ros.evaluation.long_report.long_page", fail)
        watched = [hand_made()]
        with pytest.raises(ValueError, match="no page"):
            write_long_report(tmp_path, long_summary(watched), watched, "Words.")
    else:
        monkeypatch.setattr("decaf_ros.evaluation.report.evaluation_page", fail)
        with pytest.raises(ValueError, match="no page"):
            write_report(tmp_path, {"by_type": {}, "absent_by_type": {}}, Collected(), "Words.")
    assert (tmp_path / "report.json").is_file()
    assert (tmp_path / ("watched.json" if is_long else "cases.json")).is_file()


def test_a_line_has_gaps():
    chart = charts.line_chart({"a": [(0, 0.0), (1, 1.0), (2, None), (3, 0.5)]}, "s", "y", y_max=1.0)
    assert chart.count("<polyline") == 1 and chart.count("<circle") == 1 and "swatch" not in chart
    # The axis ends at 3 s and 1: the point at (1, 1) is at the top, a third of the way.
    assert 'points="56.0,216.0 272.0,12.0"' in chart
    with pytest.raises(ValueError, match="expected points, got none"):
        charts.line_chart({"a": [(0, None), (1, np.nan)]}, "s", "y")


@pytest.mark.parametrize(("end", "ticks"), [(1.0, 6), (5.9, 6), (0.03, 7), (1257.0, 7), (4.0, 5)])
def test_ticks(end, ticks):
    chart = charts.line_chart({"a": [(0, 0.0), (1, end)]}, "s", "y", x_max=1.0)
    assert chart.count('class="axis"') == ticks


def test_bars():
    chart = charts.bar_chart({"half": 50.0, "none": None, "more": 300.0}, 100.0, " %")
    widths = [
        float(part.partition('"')[0]) for part in chart.split('<rect x="')[1:] for part in [part.split('width="')[1]]
    ]
    assert widths[0] == pytest.approx(widths[2] / 2, abs=0.1) and widths[1] == 0
    assert "50 %" in chart and "300 %" in chart
    with pytest.raises(ValueError, match="expected bars"):
        charts.bar_chart({})
