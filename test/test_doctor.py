"""`decaf doctor` without ROS: real processes and checkpoints, and clashes in the words of the libraries."""

from __future__ import annotations

import importlib
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from doctor_runs import TABLETOP, named, parameters, run_doctor, run_text, without, wrong
from family_checks import noise

from decaf_ros.cli.main import main
from decaf_ros.config import DecafConfig, replace
from decaf_ros.doctor import checkpoint
from decaf_ros.doctor.files import check_caches, check_weights
from decaf_ros.doctor.findings import NOT_CHECKED, OK, WRONG, examine, run_trial
from decaf_ros.doctor.memory import check_memory, mllm_need, sam2_need
from decaf_ros.doctor.ros import CameraTopics, camera_topics
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.io.parameter_files import load_config
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import StageClock, finish, no_progress
from decaf_ros.types import Frame, Window
from hub_models.folder import write_settings
from hub_models.published import CHECKPOINTS
from tiny_models.internvl import write_tiny_internvl
from tiny_models.llava_onevision import write_tiny_llava_onevision
from tiny_models.qwen3_vl import write_tiny_qwen3_vl
from tiny_models.qwen_vl import write_tiny_mllm

FAMILIES = [write_tiny_mllm, write_tiny_qwen3_vl, write_tiny_internvl, write_tiny_llava_onevision]
ROS = ("rclpy", "ros_rclpy")


def test_a_good_set_up_without_ros(tmp_path):
    status, findings, _ = run_doctor("--params", TABLETOP, environment=without(tmp_path / "packages", *ROS))
    assert status == 0 and wrong(findings) == []
    found = named(findings)
    assert {finding.name for finding in findings if finding.state == NOT_CHECKED} == {"ROS"}
    assert "rclpy is not installed: messages, cv_bridge, RMW, images" in found["ROS"].text
    assert f"torch {torch.__version__.partition('+')[0]}" in found["packages"].text
    assert f"transformers {version('transformers')}" in found["packages"].text and "sam2 1." in found["packages"].text
    assert {"NumPy with torch", "NumPy with OpenCV", "NumPy with SciPy"} < set(found)
    assert "tabletop_mllm" in found["weights of the MLLM"].text and "tabletop_sam2" in found["weights of SAM 2"].text


def test_lines_for_people(tmp_path):
    environment = without(tmp_path / "packages", *ROS)
    result = run_text("--params", TABLETOP, "--mllm", "/nowhere", environment=environment)
    lines = result.stdout.splitlines()
    assert result.returncode == 1
    place = lines.index("wrong        weights of the MLLM: /nowhere is not on this machine")
    assert lines[place + 1].startswith("             mend: get these files again")
    assert all(
        line.startswith(("ok           ", "wrong        ", "not checked  ", "             mend: ")) for line in lines
    )


@pytest.mark.parametrize("argument", [["--watch", "0"], ["--image-size", "640"], ["--params", "/nowhere.yaml"]])
def test_bad_arguments(argument, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", *argument])
    assert end.value.code == 2 and "expected" in (text := capsys.readouterr().err) or "nowhere" in text


def test_messages_that_are_not_built(tmp_path):
    """With all installed packages, rclpy too where there is ROS, but not our own messages."""
    environment = without(tmp_path / "packages")
    status, findings, _ = run_doctor("--params", TABLETOP, environment=environment)
    if find_spec("rclpy") is None:
        assert status == 0
    else:
        assert status == 1 and wrong(findings) == ["ROS"]
        assert named(findings)["ROS"].text == "the messages of decaf_ros are not built"


def test_no_cuda(tmp_path):
    file = parameters(tmp_path / "cuda.yaml", mllm__device="cuda")
    environment = without(tmp_path / "packages", *ROS)
    status, findings, _ = run_doctor("--params", file, environment=environment, env={"CUDA_VISIBLE_DEVICES": ""})
    assert status == 1 and wrong(findings) == ["mllm.device"]
    found = named(findings)
    assert found["mllm.device"].text.startswith("cuda does not work: ")
    assert "or set mllm.device to auto or cpu" in found["mllm.device"].mend
    assert found["sam2.device"].state == OK
    assert found["memory of cuda"].state == NOT_CHECKED and "are needed" in found["memory of cuda"].text


def test_a_version_outside_the_tested_range_and_a_missing_package(tmp_path):
    """Another transformers as pip records it, and no OpenCV at all: `decaf doctor` itself still runs."""
    environment = without(tmp_path / "packages", *ROS, "transformers_", "cv2", "opencv")
    packages = next(environment.glob("lib/python3*/site-packages"))
    (packages / "transformers-4.40.0.dist-info").mkdir()
    text = "Metadata-Version: 2.1\nName: transformers\nVersion: 4.40.0\n"
    (packages / "transformers-4.40.0.dist-info" / "METADATA").write_text(text)
    status, findings, errors = run_doctor("--params", TABLETOP, environment=environment)
    found = named(findings)
    assert status == 1 and found["transformers"].text == "expected <6,>=4.57, got 4.40.0"
    assert "pip install 'transformers<6,>=4.57'" in found["transformers"].mend
    assert found["opencv-python-headless"].text == "expected <6,>=4.10, got none"
    assert found["NumPy with OpenCV"] == ("NumPy with OpenCV", NOT_CHECKED, "the Python package cv2 is missing", "")
    assert "decaf: command segment cannot be loaded: No module named 'cv2'" in errors


@pytest.mark.skipif(np.__version__.startswith("1."), reason="the installed NumPy is 1")
def test_numpy_clash(tmp_path):
    """An OpenCV that asks NumPy for the interface of NumPy 1, as code does that was compiled for it: NumPy's own
    error."""
    (tmp_path / "first" / "cv2").mkdir(parents=True)
    (tmp_path / "first" / "cv2" / "__init__.py").write_text("from numpy.core._multiarray_umath import _ARRAY_API\n")
    environment = without(tmp_path / "packages", *ROS)
    status, findings, _ = run_doctor("--params", TABLETOP, environment=environment, first=tmp_path / "first")
    found = named(findings)["NumPy with OpenCV"]
    assert status == 1 and found.state == WRONG
    assert found.text.startswith("ImportError: A module that was compiled using NumPy 1.x cannot be run in NumPy 2.")
    assert "requirements/ros-DISTRIBUTION.txt" in found.mend


def test_a_library_that_ends_the_process(tmp_path, monkeypatch):
    program = (
        "import os, signal, sys\nfrom decaf_ros.doctor.findings import OK, Finding, serve\n"
        "def crash():\n    sys.stderr.write('A module that was compiled using NumPy 1.x cannot be run\\n')\n"
        "    sys.stderr.flush()\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        "serve([('first', lambda: [Finding('first', OK, 'fine')]), ('second', crash), ('third', lambda: [])])\n"
    )
    (tmp_path / "crashing.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    first, second = run_trial("crashing", None, "start", "mend it", 60)
    assert first == ("first", OK, "fine", "")
    said = "A module that was compiled using NumPy 1.x cannot be run"
    assert second == (
        "second",
        WRONG,
        f"the process was ended by SIGSEGV: {said}; what comes after second is not checked",
        "mend it",
    )
    (late,) = run_trial("nothing_of_this_name", None, "start", "mend it", 60)
    assert late.name == "start" and late.state == WRONG and "No module named" in late.text


def test_errors_of_checks():
    def fails():
        raise RuntimeError("driver\n  is gone")

    assert list(examine("GPU", fails)) == [("GPU", WRONG, "RuntimeError: driver is gone", "")]
    (missing,) = examine("package", lambda: importlib.import_module("nothing_of_this_name"))
    assert missing == ("package", NOT_CHECKED, "the Python package nothing_of_this_name is missing", "")


# Weights


@pytest.fixture
def config(tiny_mllm_dir, tiny_sam2_dir, tmp_path):
    """Copies of the tiny checkpoints, with the MLLM in shards."""
    mllm, sam2 = tmp_path / "mllm", tmp_path / "sam2"
    shutil.copytree(tiny_mllm_dir, mllm)
    shutil.copytree(tiny_sam2_dir, sam2)
    changes = {"mllm.checkpoint": str(mllm), "sam2.checkpoint": str(sam2), "mllm.dtype": "float32"}
    config = replace(DecafConfig(), changes)
    whole = load_mllm(config.mllm).model
    (mllm / "model.safetensors").unlink()
    whole.save_pretrained(mllm, max_shard_size="200KB")
    return config


def test_whole_weights(config):
    assert [finding.state for finding in check_weights(config)] == [OK, OK]


def test_missing_weights(config):
    mllm = Path(config.mllm.checkpoint)
    shards = sorted(mllm.glob("model-*.safetensors"))
    size = shards[0].stat().st_size
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    shards[1].unlink()
    (Path(config.sam2.checkpoint) / "model.safetensors").write_bytes(b"\0" * 20)
    of_mllm, of_sam2 = check_weights(config)
    assert of_mllm.state == WRONG and of_mllm.text == (
        f"{mllm}: missing in the folder {mllm}: {shards[1].name}; "
        f"{shards[0].name}: expected {size} bytes by its header, got {size - 1}"
    )
    assert of_sam2.state == WRONG and "model.safetensors: expected a safetensors file, got 20 bytes" in of_sam2.text
    assert "decaf weights get" in of_mllm.mend and "decaf weights get" in of_sam2.mend


def test_weights_that_were_never_downloaded():
    config = replace(DecafConfig(), {"mllm.checkpoint": "tests/nothing", "sam2.checkpoint": "facebook/sam2-hiera-tiny"})
    of_mllm, of_sam2 = check_weights(config)
    assert of_mllm.text == "tests/nothing is not on this machine" and of_mllm.state == of_sam2.state == WRONG
    assert of_sam2.text == "facebook/sam2-hiera-tiny is not on this machine"
    assert of_mllm.mend == (
        "decaf weights get tests/nothing --to DIR, then set mllm.checkpoint to DIR/tests/nothing and "
        "mllm.local_files_only to true"
    )
    assert of_sam2.mend.startswith("decaf weights get facebook/sam2-hiera-tiny --to DIR")
    (of_mllm, of_sam2) = check_memory(config, (480, 640))
    missing = "the configuration of tests/nothing is not on this machine"
    assert of_mllm == ("memory of MLLM", NOT_CHECKED, missing, "")
    assert "SAM 2 weights 149 MiB" in of_sam2.text, "its configuration comes with the package"


# Memory


@pytest.mark.parametrize("write", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_computed_need_is_what_a_grounding_holds(write, dtype, tmp_path):
    """Visual tokens only: a prefix also has the few tokens before and between them."""
    changes = {"mllm.checkpoint": str(write(tmp_path)), "mllm.dtype": dtype, "mllm.video_tokens": 40}
    changes |= {"grounding.mode": "fast", "presence.ask": False, "window.size": 4, "mllm.device": "cpu"}
    config = replace(DecafConfig(), changes)
    need = mllm_need(config, (96, 128))
    mllm = load_mllm(config.mllm)
    assert need.weights == sum(weight.numel() * weight.element_size() for weight in mllm.model.parameters())
    grounder = Grounder(mllm)
    frames = tuple(Frame(image, number + 1) for number, image in enumerate(noise(4, (96, 128))))
    finish(grounder.ground(Window(frames), "the red ball", config, StageClock(STAGES, no_progress)))
    assert need.features == grounder.engine.features.held_bytes
    held = grounder.engine.prefixes
    visual = sum(int(held.peek(key).attention.visual.sum()) * len(key) for key in held)
    tokens = sum(held.peek(key).length * len(key) for key in held)
    assert need.prefixes * tokens == held.held_bytes * visual
    cameras = replace(config, {"cameras": ("left", "right")})
    assert mllm_need(cameras, (96, 128)).prefixes == 2 * need.prefixes


def test_the_need_of_a_7b(tmp_path):
    """Qwen2.5-VL-7B, from its published configuration alone: its files have 16,584,333,312 bytes of weights."""
    write_settings(tmp_path, CHECKPOINTS["Qwen2.5-VL-7B"])
    config = replace(DecafConfig(), {"mllm.checkpoint": str(tmp_path), "mllm.dtype": "bfloat16"})
    need = mllm_need(config, (480, 640))
    assert need.weights == 16_584_333_312
    # 28 layers with 4 key heads of 128; queries of 28 heads, and a statistic for each, in the upper 14 layers.
    video, frame = 8 * 17 * 23, 34 * 46
    assert need.prefixes == (video + 16 * frame) * (28 * 2 * 4 * 128 * 2 + 14 * 28 * (128 * 2 + 4))
    assert need.features == (video + 16 * frame) * 3584 * 2


def test_the_need_of_sam2(tiny_sam2_dir):
    config = replace(DecafConfig(), {"sam2.checkpoint": str(tiny_sam2_dir), "sam2.device": "cpu"})
    sam2 = load_sam2(config.sam2)
    need = sam2_need(config)
    assert need.weights == sum(weight.nbytes for weight in sam2.model.parameters())
    embedding = sam2.embed(Frame(noise(1, (96, 128))[0], 1))
    assert need.embeddings == config.sam2.embedding_cache * embedding.nbytes


def test_quantised_weights_need_less(tiny_mllm_dir):
    config = replace(DecafConfig(), {"mllm.checkpoint": str(tiny_mllm_dir), "mllm.dtype": "float32"})
    needs = [
        mllm_need(replace(config, {"mllm.quantization": kind}), (96, 128)).weights
        for kind in ("none", "bnb_8bit", "bnb_4bit")
    ]
    linear = sum(
        module.weight.numel()
        for name, module in load_mllm(config.mllm).model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.language_model")
    )
    assert needs[0] - needs[1] == 3 * linear and needs[0] - needs[2] == 4 * linear - round(0.5625 * linear)


def test_models_that_do_not_fit(tiny_mllm_dir, tiny_sam2_dir):
    """A window whose prefixes exceed any memory."""
    changes = {"mllm.checkpoint": str(tiny_mllm_dir), "sam2.checkpoint": str(tiny_sam2_dir), "mllm.device": "cpu"}
    changes |= {"sam2.device": "cpu", "window.size": 256, "mllm.video_tokens": 16384, "mllm.frame_scale": 8}
    (finding,) = check_memory(replace(DecafConfig(), changes), (3000, 4000))
    assert finding.state == WRONG and finding.mend.startswith("lower window.size")


# Checkpoint


@pytest.mark.parametrize("write", FAMILIES)
def test_checkpoints_equal_their_own_generate(write, tmp_path):
    config = replace(DecafConfig(), {"mllm.checkpoint": str(write(tmp_path)), "mllm.dtype": "float32"})
    found = named(checkpoint.check_checkpoint(config))
    assert found["end token"].text == "<|endoftext|>, <|im_end|>"
    assert found["next token after a text"].state == found["answer to a text"].state == OK
    # LLaVA-OneVision's adapter leaves out tokens that its processor adds.
    picture = NOT_CHECKED if write is write_tiny_llava_onevision else OK
    assert found["answer to a picture"].state == picture
    assert found["Triton against torch"].state == (OK if torch.cuda.is_available() else NOT_CHECKED)


def test_a_checkpoint_that_differs():
    """The model's own code gets another picture."""
    mllm = load_mllm(load_config(TABLETOP).mllm)
    view = checkpoint._view(mllm)
    dark = view._replace(frames=(Frame(np.zeros_like(view.frames[0].image), 1),))
    asked = "Is there a red ball? Answer yes or no."
    inputs = checkpoint._processed(mllm, dark, "Which object is it? Answer with one word.")
    findings = list(checkpoint._compared(mllm, view, asked, inputs, "picture"))
    assert [finding.state for finding in findings] == [WRONG, WRONG]
    assert findings[1].text.startswith("expected the model's own '")


def test_the_command_compares_a_checkpoint(tmp_path):
    environment = without(tmp_path / "packages", *ROS)
    status, findings, _ = run_doctor("--params", TABLETOP, "--checkpoint-check", environment=environment)
    assert status == 0 and named(findings)["answer to a picture"].state == OK


# Caches and topics


def test_a_cache_that_cannot_be_written_to(monkeypatch):
    (finding,) = check_caches()
    assert finding.state == OK
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/nowhere")
    bad, good = check_caches()
    assert bad.state == WRONG and bad.text.startswith("/proc/nowhere cannot be written to")
    assert "set TRITON_CACHE_DIR" in bad.mend and good.state == OK


def test_topics_of_the_cameras():
    config = DecafConfig()
    own = CameraTopics("/decaf/image", "/decaf/depth", "/decaf/camera_info", "/decaf/depth/camera_info")
    assert camera_topics(config, "/decaf/") == [own]
    cameras = camera_topics(replace(config, {"cameras": ["a", "b"]}), "x")
    assert [camera.image for camera in cameras] == ["/x/a/image", "/x/b/image"]
    assert [camera.depth_camera_info for camera in cameras] == ["/x/a/depth/camera_info", "/x/b/depth/camera_info"]
    compressed = replace(config, {"node.image_transport": "compressed", "space.depth_transport": "compressed"})
    (camera,) = camera_topics(compressed, "decaf")
    assert camera[:3] == ("/decaf/image/compressed", "/decaf/depth/compressedDepth", "/decaf/camera_info")
    named = camera_topics(compressed, "decaf", ["/c", "/e/d/compressed"], ["/depth"], ["/info"])
    assert named[0][:3] == ("/c/compressed", "/depth/compressedDepth", "/info")
    assert named[1][:3] == ("/e/d/compressed", "/decaf/depth/compressedDepth", "/e/camera_info")
    with pytest.raises(ValueError, match="--depth: expected at most one topic for each of 1 cameras, got 2"):
        camera_topics(config, "decaf", depths=["/a", "/b"])
