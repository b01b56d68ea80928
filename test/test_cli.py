import argparse
import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import cv2
import numpy as np
import pytest

import decaf_ros
from decaf_ros.cli import main as main_module
from decaf_ros.cli.main import main
from decaf_ros.cli.options import add_config_arguments, read_config
from decaf_ros.cli.parameters import parameter_table
from decaf_ros.config import DecafConfig, options
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader, make_header, typestore
from decaf_ros.io.film import VideoWriter
from decaf_ros.io.video import read_video

ROOT = Path(__file__).parents[1]
START_NS = 1_700_000_000_000_000_000
FRAMES, STEP_NS = 8, 500_000_000
HEIGHT, WIDTH = 128, 192


def picture(index: int) -> np.ndarray:
    image = cv2.resize(np.random.default_rng(0).integers(0, 200, (8, 12, 3), dtype=np.uint8), (WIDTH, HEIGHT))
    return cv2.circle(image, (40 + 12 * index, 64), 24, (220, 60, 30), -1)


@pytest.fixture
def video(tmp_path) -> Path:
    with VideoWriter(tmp_path / "ball.webm") as file:
        for index in range(FRAMES):
            file.write(picture(index), START_NS + index * STEP_NS)
    return tmp_path / "ball.webm"


@pytest.fixture
def bag(tmp_path) -> Path:
    with BagWriter(tmp_path / "ball_bag") as file:
        for index in range(FRAMES):
            file.write_image("/camera/image", picture(index), START_NS + index * STEP_NS, "optical")
    return tmp_path / "ball_bag"


@pytest.fixture
def cameras(tmp_path) -> Path:
    """A parameter file of two nodes."""
    section = "/{}/segmenter: {{ros__parameters: {{window.size: {}}}}}\n"
    (tmp_path / "cameras.yaml").write_text(section.format("a", 6) + section.format("b", 7))
    return tmp_path / "cameras.yaml"


@pytest.fixture
def models(tiny_mllm_dir, tiny_sam2_dir) -> list[str]:
    """Random models find nothing convincing, so these settings accept every answer."""
    always = ["--set", "presence.threshold=0", "--set", "segmentation.fallback=best"]
    return ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir), *always]


def test_offline_video_to_all_outputs(video, models, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["segment", str(video), "--query", "the red ball", "--out", str(out), "--format", "both", *models]
    assert main([*args, "--set", "window.size=4"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["query"], summary["state"], summary["frames"]) == ("the red ball", "TRACKING", FRAMES)
    assert [state["state"] for state in summary["states"]] == ["RECEIVED", "GROUNDING", "TRACKING"]
    coarse = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted((out / "coarse_masks").iterdir())]
    assert len(coarse) == 4 and all(set(np.unique(mask)) <= {0, 255} for mask in coarse)
    assert summary["parameters"]["window.size"] == 4 and summary["presence"]["score"] >= 0
    assert {"video_object", "tracklets", "dense"} <= set(summary["stage_ms"])
    masks = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in sorted((out / "masks").iterdir())]
    assert len(masks) == FRAMES and {mask.shape for mask in masks} == {(HEIGHT, WIDTH)}
    assert summary["frames_with_target"] == sum(mask.any() for mask in masks) > 0
    assert len(list(read_video(out / "overlay.webm"))) == FRAMES
    assert cv2.imread(str(out / "contact_sheet.png")).shape[1] > 4 * WIDTH
    with BagReader(out / "outputs_bag") as outputs:
        written = [outputs.deserialize(message) for message in outputs.messages(["/decaf/masks"])]
        topics = outputs.topics
    np.testing.assert_array_equal([message.data.reshape(HEIGHT, WIDTH) for message in written], masks)
    assert topics["/decaf/heatmaps"].message_count == 4 and topics["/decaf/status"].message_count == 3
    assert str(out) in capsys.readouterr().err


def test_online_bag_to_bag(bag, models, tmp_path):
    """The answer comes in the middle of the clip, and every frame has its mask."""
    out = tmp_path / "out"
    args = ["segment", str(bag), "--online", "--query", "the red ball", "--out", str(out), "--format", "bag", *models]
    assert main([*args, "--set", "window.min_frames=3"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [state["state"] for state in summary["states"]] == ["RECEIVED", "GROUNDING", "TRACKING"]
    assert [state["stamp_ns"] for state in summary["states"][1:]] == [START_NS + 2 * STEP_NS] * 2
    assert not (out / "masks").exists()
    with BagReader(out / "outputs_bag") as outputs:
        for topic in ("masks", "target_mask", "tracklets"):
            headers = [outputs.deserialize(message).header for message in outputs.messages([f"/decaf/{topic}"])]
            stamps = [header.stamp.sec * 10**9 + header.stamp.nanosec for header in headers]
            assert stamps == [START_NS + index * STEP_NS for index in range(FRAMES)]
            assert {header.frame_id for header in headers} == {"optical"}


def test_a_clip_too_short_for_an_answer_cancels_the_query(bag, models, tmp_path):
    out = tmp_path / "out"
    args = ["segment", str(bag), "--online", "--query", "the red ball", "--out", str(out), *models]
    assert main([*args, "--duration", "1"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["state"] == "CANCELLED" and "the clip ended before" in summary["answer"]


def test_a_failed_query_gives_exit_code_1(bag, models, tmp_path, capsys):
    args = ["segment", str(bag), "--online", "--query", "the red ball", "--out", str(tmp_path / "out"), *models]
    assert main([*args, "--set", "node.max_query_chars=5"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("decaf: query: expected at most 5 characters")


def test_a_failed_run_does_not_block_the_next(bag, models, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["segment", str(bag), "--query", "the red ball", "--out", str(out), "--duration", "1", *models]
    assert main([*args, "--online", "--set", "node.max_query_chars=5", "--format", "both"]) == 1
    assert f"unfinished results are left in {out}; the next run into it replaces them" in capsys.readouterr().err
    assert (out / "UNFINISHED").exists() and (out / "outputs_bag").exists()
    assert main([*args, "--format", "png"]) == 0
    assert f"replacing the unfinished results of an earlier run in {out}" in capsys.readouterr().err
    assert not (out / "UNFINISHED").exists() and not (out / "outputs_bag").exists()
    assert main(args) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_an_unfinished_run_with_other_files_is_kept(bag, tmp_path, capsys):
    for name in ("UNFINISHED", "notes.txt", "summary.json"):
        (tmp_path / name).write_text("mine")
    assert main(["segment", str(bag), "--query", "x", "--out", str(tmp_path)]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == "mine"


@pytest.mark.parametrize("mode", [[], ["--online"]])
def test_undecodable_images_are_skipped(models, tmp_path, capsys, mode):
    with BagWriter(tmp_path / "bag") as file:
        for index in range(FRAMES):
            stamp_ns = START_NS + index * STEP_NS
            if index in (1, 4):
                image = typestore().types["sensor_msgs/msg/Image"]
                data = np.zeros(100, np.uint8)
                message = image(make_header(stamp_ns, "cam"), HEIGHT, WIDTH, "rgb8", 0, 3 * WIDTH, data)
                file.write_message("/camera/image", message, stamp_ns)
            else:
                file.write_image("/camera/image", picture(index), stamp_ns, "cam")
    out = tmp_path / "out"
    args = ["segment", str(tmp_path / "bag"), "--query", "the red ball", "--out", str(out), *mode, *models]
    assert main([*args, "--set", "window.min_frames=3", "--set", "window.size=3"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["frames"], summary["frames_rejected"], summary["state"]) == (FRAMES - 2, 2, "TRACKING")
    assert [int(file.stem) for file in sorted((out / "masks").iterdir())] == [0, 2, 3, 5, 6, 7]
    log = capsys.readouterr().err
    assert "warn: image left out: " in log and "message 4: image: expected" in log
    assert "2 of the clip's images could not be decoded" in log


@pytest.fixture
def two_sizes(tmp_path) -> Path:
    with BagWriter(tmp_path / "two_sizes") as file:
        for index in range(FRAMES):
            image = picture(index) if index < 5 else cv2.resize(picture(index), (96, 96))
            file.write_image("/camera/image", image, START_NS + index * STEP_NS, "cam")
    return tmp_path / "two_sizes"


def test_online_a_new_image_size_resets_the_stream(two_sizes, models, tmp_path, capsys):
    out = tmp_path / "out"
    args = ["segment", str(two_sizes), "--online", "--query", "the red ball", "--out", str(out), *models]
    assert main([*args, "--set", "window.min_frames=3"]) == 0
    masks = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED).shape for file in sorted((out / "masks").iterdir())]
    assert masks == [(HEIGHT, WIDTH)] * 5 + [(96, 96)] * 3
    assert {frame.size_hw for frame in read_video(out / "overlay.webm")} == {(HEIGHT, WIDTH)}
    assert "stream reset: the image size changed" in capsys.readouterr().err


def test_offline_a_new_image_size_is_an_error_before_the_models_are_loaded(two_sizes, tmp_path, capsys):
    args = ["segment", str(two_sizes), "--query", "x", "--out", str(tmp_path / "out"), "--mllm", "nowhere"]
    assert main(args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "frame 5 (after 2.00 s): expected 192 x 128 px as before, got 96 x 96 px" in line
    assert not (tmp_path / "out").exists()


def test_offline_a_stamp_that_jumps_back_is_an_error(tmp_path, capsys):
    with BagWriter(tmp_path / "bag") as file:
        for index, step in enumerate((0, 1, 2, 2)):
            file.write_image("/camera/image", picture(index), START_NS + step * STEP_NS, "cam")
    args = ["segment", str(tmp_path / "bag"), "--query", "x", "--out", str(tmp_path / "out"), "--mllm", "nowhere"]
    assert main(args) == 1
    assert f"got {START_NS + 2 * STEP_NS} ns" in capsys.readouterr().err


def test_every_target_has_its_own_label(bag, models, tmp_path):
    """With a threshold of 0 the tiny model finds several objects."""
    out = tmp_path / "out"
    args = ["segment", str(bag), "--query", "the red ball", "--out", str(out), "--format", "both", *models]
    assert main([*args, "--set", "segmentation.tracklet_threshold=0", "--set", "window.size=4"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    masks = np.stack([cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in sorted((out / "masks").iterdir())])
    with BagReader(out / "outputs_bag") as outputs:
        arrays = [outputs.deserialize(message) for message in outputs.messages(["/decaf/tracklets"])]
    count = len(arrays[0].tracklets)
    assert count >= 2 and f"tracking {count} targets" in summary["answer"]
    for array, mask in zip(arrays, masks):
        assert [(target.id, target.label) for target in array.tracklets] == [(k, k) for k in range(1, count + 1)]
        assert [target.area for target in array.tracklets] == [(mask == k).sum() for k in range(1, count + 1)]
    assert len(np.unique(masks)) >= 3


def test_not_found_is_in_the_summary(video, models, tmp_path):
    out = tmp_path / "out"
    args = ["segment", str(video), "--query", "the red ball", "--out", str(out), *models]
    assert main([*args, "--set", "presence.threshold=1"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["state"], summary["frames_with_target"]) == ("NOT_FOUND", 0)
    assert "presence.threshold 1.00" in summary["answer"]


def test_part_of_a_clip(video, models, tmp_path):
    out = tmp_path / "out"
    part = ["--start", "1", "--duration", "1.5"]
    assert main(["segment", str(video), "--query", "the ball", "--out", str(out), *part, *models]) == 0
    assert sorted(file.name for file in (out / "masks").iterdir()) == [f"{index:06d}.png" for index in (2, 3, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4", "--query", "x"], "nowhere.mp4: no such file or folder"),
        (["{video}", "--query", "  "], "--query: expected a text, got an empty one"),
        (["{video}", "--query", "x", "--start", "100"], "no frame that can be decoded from 100.0 s on"),
        (["{bag}", "--query", "x", "--topic", "/up"], "no image topic /up; image topics: /camera/image"),
        (["{notes}", "--query", "x"], "expected a video file"),
        (["{video}", "--query", "x", "--out", "{full}"], "exists and is not empty"),
        (["{video}", "--query", "x", "--mllm", "{bag}", "--set", "mllm.local_files_only=true"], "ball_bag"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(arguments, message, video, bag, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no video")
    paths = {"video": video, "bag": bag, "notes": tmp_path / "notes.txt", "full": tmp_path}
    assert main(["segment", *(argument.format(**paths) for argument in arguments)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("decaf: ") and message in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["segment", "clip.mp4"], "the following arguments are required: --query"),
        (["segment", "clip.mp4", "--query", "x", "--format", "avi"], "invalid choice: 'avi'"),
        (["segment", "clip.mp4", "--query", "x", "--set", "window.size"], "expected STAGE.FIELD=VALUE"),
        (["segment", "clip.mp4", "--query", "x", "--set", "window.length=3"], "unknown option window.length"),
        (["segment", "clip.mp4", "--query", "x", "--set", "window.size=big"], "expected int, got 'big'"),
        (["segment", "clip.mp4", "--query", "x", "--set", "presence.threshold=2"], "in [0.0, 1.0], got 2.0"),
        (["segment", "clip.mp4", "--query", "x", "--set", "grounding.contrast=1"], "expected bool, got 1"),
        (["segment", "clip.mp4", "--query", "x", "--config", "{cameras}"], "expected one segmenter, got /a/segmenter"),
        (["segment", "clip.mp4", "--query", "x", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments, message, capsys, cameras):
    with pytest.raises(SystemExit) as ended:
        main([argument.format(cameras=cameras) for argument in arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_configuration_arguments(cameras):
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    given = ["grounding.contrast=off", "presence.threshold=5e-1", "mllm.max_new_tokens=0x10", "regrounding.policy=off"]
    config = read_config(
        parser.parse_args(["--config", str(cameras), "--node", "/b/segmenter", *(f"--set={one}" for one in given)])
    )
    assert (config.window.size, config.grounding.contrast, config.presence.threshold) == (7, False, 0.5)
    assert (config.mllm.max_new_tokens, config.regrounding.policy) == (16, "off")


def test_the_command_line_overrides_the_file(video, models, tmp_path):
    (tmp_path / "mine.yaml").write_text("/**: {ros__parameters: {window: {size: 5, min_frames: 2}}}")
    out = tmp_path / "out"
    args = ["segment", str(video), "--query", "x", "--out", str(out), "--config", str(tmp_path / "mine.yaml"), *models]
    assert main([*args, "--set", "window.size=3", "--set", "segmentation.point_threshold=9e-1"]) == 0
    parameters = json.loads((out / "summary.json").read_text())["parameters"]
    assert (parameters["window.size"], parameters["window.min_frames"]) == (3, 2)
    assert parameters["segmentation.point_threshold"] == 0.9


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"decaf {decaf_ros.__version__}\n"


def test_parameters_document_is_up_to_date(capsys):
    """If this fails: `decaf parameters > docs/parameters.md`."""
    assert main(["parameters"]) == 0
    table = capsys.readouterr().out
    assert table == parameter_table() == (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert all(f"| `{option.name}` | `" in table for option in options(DecafConfig()))


def test_help_does_not_import_torch():
    code = "import sys, decaf_ros.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_broken_plugin_leaves_the_other_commands(monkeypatch, capsys):
    """Whatever it raises, also on import."""
    broken = EntryPoint("broken", "test_cli:no_such_function", main_module.ENTRY_POINTS)
    raising = EntryPoint("raising", "broken_plugin:add_parser", main_module.ENTRY_POINTS)
    monkeypatch.setattr(main_module, "entry_points", lambda group: [broken, raising])
    monkeypatch.setattr(EntryPoint, "load", lambda point: {}["no plug-in"] if point is raising else pytest.x)
    assert main(["parameters"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("# Parameters")
    assert [line.split(" cannot be loaded")[0] for line in captured.err.splitlines()] == [
        "decaf: command broken (test_cli:no_such_function)",
        "decaf: command raising (broken_plugin:add_parser)",
    ]
