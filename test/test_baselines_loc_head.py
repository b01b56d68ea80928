"""Loc-Head by hand, its head search, files and pairs, and on a tiny model."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from decaf_ros.cli.main import main
from decaf_ros.config import DecafConfig, EngineConfig, MllmConfig, replace
from decaf_ros.evaluation.baselines.head_files import Head, HeadFile, check_fits, find_heads, read_heads, write_heads
from decaf_ros.evaluation.baselines.head_search import Evidence, Search, choose
from decaf_ros.evaluation.baselines.loc_head import LocHead
from decaf_ros.evaluation.baselines.loc_head_maps import elbow, entropies, head_maps, looks_at_edge, votes
from decaf_ros.evaluation.baselines.loc_head_maps import spatial_entropy as entropy_of
from decaf_ros.evaluation.baselines.method import Models
from decaf_ros.evaluation.baselines.pairs import Pair, read_pairs, sample
from decaf_ros.evaluation.baselines.registry import MethodSpec, make_method
from decaf_ros.grounding.attention_tap import record_attention
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.fusion import smooth
from decaf_ros.grounding.grounder import frame_views
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.prompts import object_prompt
from decaf_ros.pipeline import STAGES
from decaf_ros.resources import resolve_path
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import Frame, Window

HEADS = (Head(3, 1, 0.9, 0.5), Head(1, 2, 0.8, 0.4))
FOUND = HeadFile("tiny", "qwen2_5_vl", 4, 4, 2, "by hand", ("bottom",), "original", 0.25, HEADS)


def grid(*rows: str) -> np.ndarray:
    """Digits as a map."""
    return np.array([[float(digit) for digit in row] for row in rows], np.float32)


def test_entropy_of_the_sizes_of_regions():
    """Three regions above the mean, of 1, 1 and 2 cells: 1/4, 1/4 and 1/2 give 2 (1/4 log 4) + 1/2 log 2."""
    spread = grid("900000", "000000", "000090", "000000", "099000")
    assert entropy_of(spread) == pytest.approx(2 * math.log(4) / 4 + math.log(2) / 2)
    # Cells that touch at a corner are one region; how strong they are makes no difference.
    assert entropy_of(grid("9000", "0400", "0000")) == 0.0
    assert entropy_of(np.ones((3, 4), np.float32)) == math.inf


def test_heads_that_look_at_an_edge_are_left_out():
    bottom, right, left = grid("0010", "0090"), grid("0009", "0010"), grid("9010", "0000")
    maps = np.stack([bottom, right, left, grid("0900", "0000")])[None]
    assert [looks_at_edge(one, ("bottom",)) for one in maps[0]] == [True, False, False, False]
    assert np.isinf(entropies(maps, ("right", "left"))).tolist() == [[False, True, True, False]]
    assert entropies(maps, ()).tolist() == [[0.0] * 4]


def test_elbow_is_farthest_below_the_chord():
    """Sorted 0, 1, 2, 10, 12; the chord is at 0, 3, 6, 9, 12: the 2 lies 4 below it."""
    assert elbow(np.array([10.0, 0.0, 12.0, 1.0, 2.0])) == 2.0


def test_the_lowest_entropies_get_the_votes():
    entropy = np.array([0.7, 0.0, 0.0, math.inf, 0.1, 0.0])
    sums = np.array([0.9, 0.2, 0.4, 0.9, 0.9, 0.9])
    passed = np.array([True, True, True, True, True, False])
    assert votes(entropy, sums, passed, 1).nonzero()[0].tolist() == [2], "of equals the larger sum"
    assert votes(entropy, sums, passed, 3).nonzero()[0].tolist() == [1, 2, 4]
    assert votes(entropy, sums, passed, 9).nonzero()[0].tolist() == [0, 1, 2, 4], "an excluded one never"


def test_heads_are_chosen_by_their_share_of_votes():
    """Mean sums 0.01, 0.02, 0.5, 0.9, 0.7: the elbow is 0.02, so head 0 is out, however compact its maps are. Of the
    others, two in each image get a vote: heads 3, 2; 3, 4; 3, 2."""
    sums = np.array([[0.01, 0.02, 0.5, 0.9, 0.7]] * 3)
    entropy = np.array([[0, 2, 0.6, 0.5, 1.0], [0, 2, 0.9, 0.1, 0.2], [0, 2, 0.3, 0.2, math.inf]])
    threshold, chosen = choose(Evidence(sums, entropy), Search(per_image=2, used=3))
    assert threshold == 0.02
    assert [(index, round(frequency, 3)) for index, frequency, _ in chosen] == [(3, 1.0), (2, 0.667), (4, 0.333)]
    assert chosen[0][2] == pytest.approx(0.9)
    with pytest.raises(ValueError, match="expected 4 heads with a compact map .* got 3 with --exclude right"):
        choose(Evidence(sums, entropy), Search(("right",), per_image=2, used=4))


@pytest.fixture(scope="module")
def models(tiny_mllm_dir):
    config = MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, video_tokens=48, dtype="float32")
    return Models(load_mllm(config), None)


@pytest.fixture(scope="module")
def window():
    rng = np.random.default_rng(0)
    return Window(tuple(Frame(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), i + 1, "cam", i) for i in range(3)))


def test_maps_are_the_last_row_of_the_heads_attention(models, window):
    """Against one pass over the whole prompt of each frame."""
    mllm, text = models.mllm, object_prompt("the red ball", "original", "paper")
    expected = []
    for view in frame_views(mllm, window):
        prompt = mllm.prompt(view.layout, text)
        features = mllm.encode(view.layout, np.stack([[frame.image for frame in unit] for unit in view.units]))
        with torch.inference_mode(), record_attention(0) as recording:
            inputs = mllm.embed(prompt.ids, prompt.slots, [features])
            mllm.model.get_decoder()(**inputs, position_ids=prompt.positions[:, None])
        total = np.zeros((1, *prompt.grid[1:]), np.float32)
        for head in HEADS:
            query, key, scaling = recording.layers[head.layer]
            scores = query[0, head.head, -1] @ key[0, head.head // 2].T * scaling
            total += smooth(scores.softmax(-1)[prompt.cells].reshape(prompt.grid).numpy(), 7)
        expected.append((total[0] - total.min()) / np.ptp(total))
    method = LocHead(mllm, EngineConfig(), FOUND)
    found = finish(method.ground(window, "the red ball", DecafConfig(), StageClock(STAGES)))
    np.testing.assert_allclose(found.maps.fused, expected, atol=1e-4)
    # Recordings of more layers, such as shared ones, change nothing.
    method.engine = Engine(mllm, EngineConfig(), record_from=0)
    again = finish(method.ground(window, "the red ball", DecafConfig(), StageClock(STAGES)))
    np.testing.assert_allclose(again.maps.fused, expected, atol=1e-4)
    assert found.answers == () and found.maps.video is None and found.means_several is None


def test_a_family_without_recorded_attention_is_told():
    with pytest.raises(ValueError, match="loc-head: expected recorded attention, got 0 and 0 layers"):
        head_maps(SimpleNamespace(), [], [])


def test_files_are_read_as_written_and_faults_are_named(models, tiny_mllm_dir, tmp_path):
    file = tmp_path / "heads.yaml"
    with pytest.raises(FileNotFoundError, match=r"heads.yaml: expected a file .* decaf heads --mllm"):
        read_heads(file)
    write_heads(file, FOUND)
    assert replace_lists(read_heads(file)) == FOUND
    good = file.read_text()
    for bad, words in (
        ("[]", "expected localization heads as"),
        (good.replace("layer: 3", "layer: 4"), "expected heads of 4 layers with 4 heads each, got Head"),
        (good[: good.index("heads:")] + "heads: []", "expected at least one head"),
    ):
        file.write_text(bad)
        with pytest.raises(ValueError, match=f"heads.yaml: {words}"):
            read_heads(file)
    # By the checkpoint's name in a folder; of another model.
    config = replace(DecafConfig(), {"mllm.checkpoint": str(tiny_mllm_dir)})
    with pytest.raises(FileNotFoundError, match="loc_head.yaml"):
        make_method(models, config, MethodSpec("loc-head"))
    named = tmp_path / f"{tiny_mllm_dir.name}.yaml"
    named.write_text(good)
    assert make_method(models, config, MethodSpec("loc-head", tmp_path)).grounder.heads == HEADS
    named.write_text(good.replace("layers: 4", "layers: 28"))
    with pytest.raises(ValueError, match="expected heads of a model of type qwen2_5_vl with 4 layers .* got those of"):
        make_method(models, config, MethodSpec("loc-head", tmp_path))
    with pytest.raises(ValueError, match="--heads: the method tam reads none"):
        MethodSpec("tam", tmp_path)


def replace_lists(found: HeadFile) -> HeadFile:
    return HeadFile(**{**vars(found), "exclude": tuple(found.exclude)})


def write_pairs(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(1)
    with (folder / "pairs.jsonl").open("w") as file:
        for number in range(count):
            cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
            box = {"box": [1, 2, 60, 80]} if number else {}
            file.write(json.dumps({"image": f"{number}.png", "phrase": f"the ball {number}"} | box) + "\n\n")
    return folder


def test_heads_are_found_by_a_command_and_used_by_another(tiny_mllm_dir, tmp_path, capsys):
    write_pairs(tmp_path, 4)
    out = tmp_path / "found.yaml"
    command = ["heads", "--mllm", str(tiny_mllm_dir), "--set", "mllm.dtype=float32", "--set", "mllm.video_tokens=48"]
    command += ["--pairs", str(tmp_path), "--count", "3", "--used", "2"]
    assert main([*command, "--exclude", "bottom,left", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = read_heads(out)
    assert (found.layers, found.heads_per_layer, found.pairs, found.model_type) == (4, 4, 3, "qwen2_5_vl")
    assert tuple(found.exclude) == ("bottom", "left") and len(found.heads) == 2
    assert all(0 < one.frequency <= 1 and one.attention_sum >= found.threshold for one in found.heads)
    assert (
        f"layer {found.heads[0].layer}, head {found.heads[0].head}: " in printed
        and "strongest token in the box" in printed
    )
    for more, words in (
        (["--exclude", "top", "--out", "x.yaml"], "--exclude: expected some of bottom, right, left, or none, got top"),
        (["--out", str(out)], "expected a new file"),
        (["--out", "x.yaml", "--count", "0"], "--count: expected 1 or more, got 0"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *more])
        assert words in capsys.readouterr().err


def write_refcoco(folder: Path) -> Path:
    """Two references, the second of the split val, in the published layout."""
    refs = [
        {"ref_id": 1, "ann_id": 7, "image_id": 5, "split": "train", "file_name": "other_name_7.jpg", "category_id": 1,
         "sent_ids": [0, 1], "sentences": [{"sent": "left dog", "raw": "Left dog"}, {"sent": "dog", "raw": "dog"}]},
        {"ref_id": 2, "ann_id": 8, "image_id": 5, "split": "val", "sentences": [{"sent": "cat", "raw": "cat"}]},
    ]  # fmt: skip
    inside = folder / "refcoco"
    inside.mkdir()
    (inside / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [{"id": 5, "file_name": "COCO_train2014_5.jpg"}],
        "annotations": [{"id": 7, "bbox": [10, 20, 30, 40]}, {"id": 8, "bbox": [0, 0, 5, 5]}],
    }
    (inside / "instances.json").write_text(json.dumps(instances))
    (folder / "images/mscoco/images/train2014").mkdir(parents=True)
    return inside


def test_refcoco_is_read_as_published(tmp_path):
    folder = write_refcoco(tmp_path)
    image = folder / "../images/mscoco/images/train2014/COCO_train2014_5.jpg"
    box = (10.0, 20.0, 40.0, 60.0)
    assert read_pairs(folder) == [Pair(image, "left dog", box), Pair(image, "dog", box)]
    assert [pair.phrase for pair in read_pairs(folder, images=tmp_path, split="val")] == ["cat"]
    with pytest.raises(ValueError, match="expected image-text pairs, got none of the split test"):
        read_pairs(folder, split="test")
    with pytest.raises(FileNotFoundError, match="expected COCO's train2014 images"):
        read_pairs(folder, images=tmp_path / "nowhere")


class Harmful:
    def __reduce__(self):
        return print, ("this was run",)


def test_a_pickle_with_anything_but_values_is_refused(tmp_path, capsys):
    folder = write_refcoco(tmp_path)
    (folder / "refs(unc).p").write_bytes(pickle.dumps([Harmful()]))
    with pytest.raises(ValueError, match=r"refs\(unc\).p: expected RefCOCO's layout .* plain values, got .*print"):
        read_pairs(folder)
    assert "this was run" not in capsys.readouterr().out
    (folder / "instances.json").unlink()
    with pytest.raises(FileNotFoundError, match="instances.json"):
        read_pairs(folder)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "0.png"}', 'line 1: expected {"image": FILE'),
        ("no json", "line 1: expected"),
        ('{"image": "0.png", "phrase": "it", "box": [1, 2, 3]}', "line 1: expected"),
        ('{"image": "0.png", "phrase": "it", "box": [9, 2, 3, 4]}', "line 1: expected"),
        ('{"image": "gone.png", "phrase": "it"}', "gone.png: no such image"),
    ],
)
def test_bad_pairs_are_named(tmp_path, line, words):
    write_pairs(tmp_path, 1)
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_pairs(tmp_path)


def test_a_sample_is_the_same_for_a_seed():
    pairs = [Pair(Path(str(number)), "", None) for number in range(20)]
    assert sample(pairs, 5, 3) == sample(pairs, 5, 3) != sample(pairs, 5, 4)
    assert sorted(sample(pairs, 50, 0)) == sorted(pairs) and len(set(sample(pairs, 5, 3))) == 5


def test_attention_weights_of_a_layer():
    """Two query heads share a key head; the prefix has three tokens, of which two are visual, the suffix two."""
    rng = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 2, 2, 4, generator=rng), torch.randn(1, 1, 5, 4, generator=rng)
    prefix = SimpleNamespace(query=None, key=key[:, :, :3], scaling=0.5)
    suffix = SimpleNamespace(query=query, key=key[:, :, 3:], scaling=0.5)
    prompt = SimpleNamespace(cells=torch.tensor([1, 2]), grid=(1, 1, 2))
    (maps,) = head_maps(prompt, [prefix], [suffix])
    whole = F.softmax(query[0, :, -1] @ key[0, 0].T * 0.5, dim=-1)
    np.testing.assert_allclose(maps[0, :, 0, 0], whole[:, 1:3], rtol=1e-5)


def test_the_simulated_tables_model_has_heads():
    folder = resolve_path("package://decaf_tabletop/models/tabletop_mllm")
    found = read_heads(find_heads(None, Path(folder)))
    model = json.loads((Path(folder) / "config.json").read_text())
    check_fits(Path("loc_head.yaml"), found, model["model_type"], *_shape(model))
    assert found.object_prompt == "original" and found.checkpoint == Path(folder).name


def _shape(model: dict) -> tuple[int, int]:
    text = model.get("text_config", model)
    return text["num_hidden_layers"], text["num_attention_heads"]
