"""The training commands on a few clips for seconds: start, stop, resume, export, load."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from decaf_ros.config import MllmConfig, Sam2Config
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_tabletop.training import mllm, sam2
from decaf_tabletop.training.clips import VALIDATION_SEEDS
from decaf_tabletop.training.mllm_language import LanguageTrainer
from decaf_tabletop.world.store import clip_path, write_clip

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")]


def clips(folder, seeds):
    from decaf_tabletop.world.simulator import make_clip

    for seed in seeds:
        write_clip(clip_path(folder, seed), make_clip(seed))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return clips(tmp_path_factory.mktemp("clips"), range(8))


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    return clips(tmp_path_factory.mktemp("validation"), range(VALIDATION_SEEDS, VALIDATION_SEEDS + 4))


def entries(work):
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


def test_mllm(data, tmp_path, monkeypatch):
    monkeypatch.setattr(mllm, "CHECK_CLIPS", 2)
    work, out = tmp_path / "work", tmp_path / "out"
    options = ["--data", str(data), "--out", str(out), "--work", str(work), "--threads", "1"]
    with pytest.raises(FileNotFoundError, match="expected the state of stage tower"):
        mllm.main([*options, "--stage", "prompts"])
    with pytest.raises(FileNotFoundError, match="expected the state of stage tower"):
        mllm.main([*options, "--stage", "export"])
    assert not out.exists()

    short = ["--tower-minutes", "0.1", "--words-minutes", "0.05", "--prompts-minutes", "0.1"]
    with pytest.raises(SystemExit, match="words were not learnt"):
        mllm.main([*options, *short])
    # The tower stage is done; the words stage resumes, and any accuracy now suffices.
    monkeypatch.setattr(mllm, "WORDS_ACCURACY", -1)
    towers = (work / "tower.pt").stat().st_mtime_ns
    mllm.main([*options, *short[:2], "--words-minutes", "20", *short[4:]])
    assert (work / "tower.pt").stat().st_mtime_ns == towers
    assert any("remove tower.done" in entry.get("done", "") for entry in entries(work))
    assert load_mllm(MllmConfig(checkpoint=str(out), local_files_only=True)).layers == 6

    stopped = next(entry["step"] for entry in reversed(entries(work)) if "check" in entry)
    (work / "prompts.done").unlink()
    # More than the time already spent, so that at least one step runs on any machine.
    spent = torch.load(work / "prompts.pt", weights_only=True)["seconds"]
    mllm.main([*options, "--stage", "prompts", "--prompts-minutes", str(spent / 60 + 0.1)])
    assert entries(work)[-1]["step"] > stopped > 0

    # From finished weights instead of states: the tower does not change.
    later, end = tmp_path / "later", tmp_path / "end"
    options = ["--data", str(data), "--out", str(end), "--work", str(later), "--threads", "1"]
    prompts = ["--stage", "prompts"]
    going_on = ["--go-on-from", str(out)]
    for invalid in (going_on, [*prompts, "--excluding", "0.5"], [*prompts, *going_on, "--excluding", "1.5"]):
        with pytest.raises(SystemExit):
            mllm.main([*options, *invalid])
    minutes = ["--prompts-minutes", "0.5", "--excluding", "0.5"]
    step, excluded = LanguageTrainer.step, []

    def noted(trainer, batch, rate, looking, excluding):
        excluded.append(excluding)
        return step(trainer, batch, rate, looking, excluding)

    monkeypatch.setattr(LanguageTrainer, "step", noted)
    mllm.main([*options, "--stage", "prompts", "--go-on-from", str(out), *minutes])
    assert excluded == sorted(excluded, reverse=True) and set(excluded) == {True, False}
    before, after = (load_file(folder / "model.safetensors") for folder in (out, end))
    # Other weights are refused.
    with pytest.raises(ValueError, match="began from the same weights, got one from other weights"):
        mllm.main([*options, "--stage", "prompts", "--go-on-from", str(end)])
    visual = {name for name in before if "visual" in name}
    assert differences(before, after) == set(before) - visual < set(before)

    # The tower alone: it goes on from its weights, not from new filters, and nothing else changes.
    options = ["--data", str(data), "--out", str(end), "--work", str(tmp_path / "tower"), "--threads", "1"]
    mllm.main([*options, "--stage", "tower", *going_on, "--tower-minutes", "0.1"])
    after = load_file(end / "model.safetensors")
    assert differences(before, after) <= visual
    kernel = next(name for name in visual if "patch_embed" in name)
    change = float((after[kernel] - before[kernel]).norm() / before[kernel].norm())
    assert 0 < change < 0.05


def differences(one, other):
    """Names of the tensors that differ."""
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_sam2(data, validation, tmp_path, monkeypatch, capsys):
    work, out = tmp_path / "work", tmp_path / "out"
    options = ["sam2", "--data", str(data), "--validation", str(validation), "--out", str(out), "--work", str(work)]
    for minutes in ("0.3", "0.5"):
        monkeypatch.setattr("sys.argv", [*options, "--minutes", minutes])
        sam2.main()
        assert load_sam2(Sam2Config(str(out), device="cpu")).image_size == 256
        (out / "model.safetensors").unlink()
    assert "resumes at step" in capsys.readouterr().out
    # Each run measures at its end, on any machine.
    assert sum("one_click_iou" in entry for entry in entries(work)) == 2

    source = "package://decaf_tabletop/models/tabletop_sam2"
    options = [*options[:-1], str(tmp_path / "later"), "--minutes", "0.2", "--go-on-from", source]
    monkeypatch.setattr("sys.argv", options)
    sam2.main()
    before, after = (load_sam2(Sam2Config(place, device="cpu")).model.state_dict() for place in (source, str(out)))
    changes = [float((after[name] - value).norm() / value.norm()) for name, value in before.items() if value.any()]
    assert 0 < max(changes) and sorted(changes)[len(changes) // 2] < 0.05, "not from nothing"
