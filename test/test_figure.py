"""`decaf figure`: its rows from a written answer, and the command with the real method on tiny random checkpoints."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from decaf_ros.cli.main import main
from decaf_ros.evaluation.figure import MAGENTA, figure, figure_rows, method_rows, spread
from decaf_ros.types import AttentionMaps, BranchMaps, Frame, Grounding, PointPrompts, Presence, Segmentation, Window

GREY = 120
TILE = (80, 60)  # width, height: frames are twice as large


def grey_frame(index: int) -> Frame:
    return Frame(np.full((120, 160, 3), GREY, np.uint8), 10**9 + index * 10**8, index=100 + index)


@pytest.fixture
def dense() -> list[Frame]:
    """Six frames, of which the indices do not begin at 0, as in a part of a clip."""
    return [grey_frame(index) for index in range(6)]


@pytest.fixture
def found(dense) -> Segmentation:
    """Key frames 0, 2 and 5. The video branch has two temporal pairs. A point in the third quarter of the second key
    frame; the target is in the left half of the last frame."""
    frames = BranchMaps(np.zeros((3, 6, 8), np.float32), np.zeros((3, 6, 8), np.float32))
    frames.object[1, 3, 5], frames.background[1, 1, 1] = 0.5, 0.5
    video = BranchMaps(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3, 4), np.float32))
    video.object[0, 1, 1] = 0.25
    fused = np.zeros((3, 6, 8), np.float32)
    fused[1, 3, 5] = 1
    coarse, labels = np.zeros((3, 120, 160), bool), np.zeros((6, 120, 160), np.uint8)
    coarse[0, 60:] = True
    labels[5, :, :80] = 1
    point = PointPrompts(np.array([1]), np.array([[0.6875, 0.25]], np.float32), np.ones(1, np.float32))
    window = Window((dense[0], dense[2], dense[5]))
    grounding = Grounding(AttentionMaps(fused, video, frames))
    return Segmentation(window, "it", grounding, point, point, (), (), Presence(*[1.0] * 7), coarse, labels)


def changed(image: np.ndarray) -> np.ndarray:
    return (image != GREY).any(axis=2)


def test_rows_in_the_order_of_the_paper(found, dense):
    rows = {row.label: row.images for row in figure_rows(found, dense, TILE[0])}
    assert list(rows) == [
        *("frames", "video attention", "frame attention", "fused attention"),
        *("attention mask", "query points (1)", "SAM mask"),
    ]
    assert {image.shape for images in rows.values() for image in images} == {(TILE[1], TILE[0], 3)}
    assert {len(images) for images in rows.values()} == {3}
    assert not any(changed(image).any() for image in rows["frames"])
    # The first pair is of the first two key frames.
    brightest = [int(image.max()) for image in rows["video attention"]]
    assert brightest[0] == brightest[1] > brightest[2]
    assert changed(rows["attention mask"][0])[33:].all() and not changed(rows["attention mask"][0])[:27].any()
    assert not changed(rows["attention mask"][1]).any()


def test_points_and_masks_are_at_their_places(found, dense):
    rows = {row.label: row.images for row in figure_rows(found, dense, TILE[0])}
    points = rows["query points (1)"]
    assert tuple(points[1][15, 55]) == MAGENTA  # 0.25 * 60, 0.6875 * 80
    assert changed(points[1]).sum() < 100 and not changed(points[0]).any() and not changed(points[2]).any()
    masks = [changed(image) for image in rows["SAM mask"]]
    assert not masks[0].any() and not masks[1].any()
    assert masks[2][:, :38].all() and not masks[2][:, 43:].any()


def test_maps_of_both_prompts_are_optional(found, dense):
    rows = {row.label: row.images for row in figure_rows(found, dense, TILE[0], contrasts=True)}
    assert [label for label in rows if "prompt" in label] == [
        *("video attention, object prompt", "video attention, background prompt"),
        *("frame attention, object prompt", "frame attention, background prompt"),
    ]

    def hottest(label: str) -> tuple[int, int]:
        image = rows[label][1]
        return np.unravel_index(int(image.astype(int).sum(axis=2).argmax()), image.shape[:2])

    # Tokens are 10 x 10 pixels.
    assert tuple(place // 10 for place in hottest("frame attention, object prompt")) == (3, 5)
    assert tuple(place // 10 for place in hottest("frame attention, background prompt")) == (1, 1)


def test_what_a_method_does_not_make_has_no_row(found, dense):
    maps = AttentionMaps(found.grounding.maps.fused)
    points_only = dataclasses.replace(found, grounding=Grounding(maps), coarse_masks=None)
    labels = [row.label for row in figure_rows(points_only, dense, TILE[0])]
    assert labels == ["frames", "fused attention", "query points (1)", "SAM mask"]
    labels = [row.label for row in method_rows("other", points_only, dense, TILE[0])]
    assert labels == ["other: attention, query points (1)", "other: SAM mask"]
    with pytest.raises(ValueError, match="expected an answer with dense masks"):
        figure_rows(dataclasses.replace(found, dense_labels=None), dense, TILE[0])


def test_columns_are_the_chosen_key_frames(found, dense):
    rows = figure_rows(found, dense, TILE[0])
    whole = figure(rows, [0, 1, 2], [0.0, 0.2, 0.5], "it")
    part = figure(rows, [2], [0.0, 0.2, 0.5], "it")
    assert whole.shape[1] - part.shape[1] == 2 * (TILE[0] + 4)
    # The point is on the second key frame.
    pointed = figure(rows, [1], [0.0, 0.2, 0.5], "it")
    counts = [int((picture == MAGENTA).all(axis=2).sum()) for picture in (part, pointed, whole)]
    assert counts[0] == 0 < counts[1] == counts[2]
    longer = figure(rows, [2], [0.0, 0.2, 0.5], "a longer caption " * 10)
    assert longer.shape[0] > part.shape[0] and longer.shape[1] == part.shape[1]
    assert spread(16, 4) == [0, 5, 10, 15] and spread(3, 8) == [0, 1, 2] == spread(3, 0)


@pytest.fixture
def given(tiny_mllm_dir, tiny_sam2_dir, tmp_path, monkeypatch) -> list[str]:
    folder = tmp_path / "ball"
    folder.mkdir()
    for index in range(5):
        image = cv2.circle(np.full((96, 128, 3), 90, np.uint8), (40 + 12 * index, 48), 20, (30, 60, 220), -1)
        cv2.imwrite(str(folder / f"{index:03}.png"), image)
    monkeypatch.chdir(tmp_path)
    small = ["--set", "window.size=4", "--set", "segmentation.max_points=3", "--set", "mllm.video_tokens=24"]
    models = ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir)]
    return ["figure", "ball", "--query", "the red ball", *models, *small]


def test_the_command(given, tmp_path, capsys):
    assert main([*given, "--methods", "rollout-mean", "--columns", "2"]) == 0
    picture = cv2.imread(str(tmp_path / "ball_figure.png"))[:, :, ::-1]
    assert picture.shape[1] == 132 + 2 * (160 + 4)
    assert picture.shape[0] > 10 * (120 + 4)  # seven rows of DecAF, three of the other
    assert "10 rows, 2 of 4 key frames" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--out", "figure.gif"], "--out: expected a file ending in .png, got figure.gif"),
        (["--out", "nowhere/figure.png"], "--out: expected a folder, got nowhere"),
        (["--columns", "-1"], "--columns: expected 0 or more, got -1"),
        (["--tile-width", "8"], "--tile-width: expected 32 or more, got 8"),
        (["--query", " "], "--query: expected a text"),
    ],
)
def test_bad_arguments_are_named_before_models_are_loaded(given, wrong, message, capsys):
    assert main([*given, *wrong]) == 1
    captured = capsys.readouterr().err
    assert message in captured and "loading" not in captured
