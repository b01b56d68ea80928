"""Every variant is the real method under its configuration; sharing work does not change results."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from evaluation_scenes import evaluation_clip

from decaf_ros.config import DecafConfig, MllmConfig, Sam2Config, replace
from decaf_ros.evaluation import ablation
from decaf_ros.evaluation.ablation import FULL, VARIANTS, Variant, ablate, sharing_grounder, variant_config
from decaf_ros.evaluation.metrics import mask_score, pointing
from decaf_ros.evaluation.run import always_answering
from decaf_ros.evaluation.truth import Truth
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.offline import key_frames
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import StageClock, finish

LAYERS = 4
# The tiny model's maps are noise: with few candidates, of which several pass, the scores differ.
CONFIG = always_answering(
    replace(
        DecafConfig(),
        {
            "segmentation.point_threshold": 0.7,
            "segmentation.max_points": 6,
            "segmentation.tracklet_threshold": 0.8,
            "mllm.max_new_tokens": 16,
        },
    )
)


@pytest.fixture(scope="module")
def models(tiny_mllm_dir, tiny_sam2_dir):
    mllm = load_mllm(MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, video_tokens=24, dtype="float32"))
    # The random model ends no answer; this way it does, and has a category.
    mllm.model.generation_config.eos_token_id = list(range(0, len(mllm.tokenizer), 3))
    return mllm, load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True))


@pytest.fixture(scope="module")
def clip():
    return evaluation_clip(frames=4)


@pytest.fixture(scope="module")
def window(clip):
    return key_frames(clip.frames, 2)


def test_start_layers_of_the_variants():
    def layers(count, configured=-1):
        config = replace(DecafConfig(), {"grounding.start_layer": configured})
        configs = {name: variant_config(config, variant, count) for name, variant in VARIANTS.items()}
        starts = ("0", "quarter", "half", "three_quarters", "last")
        return (
            [configs[f"start_layer_{start}"].grounding.start_layer for start in starts],
            configs["object_only"].grounding.start_layer,
        )

    assert layers(28) == ([0, 7, 14, 21, 27], 14)
    assert layers(4, configured=1) == ([0, 1, 2, 3, 3], 1)


def test_variants_cover_the_tables_of_the_paper():
    base = variant_config(CONFIG, Variant("", ""), LAYERS)
    same = [name for name, variant in VARIANTS.items() if variant_config(CONFIG, variant, LAYERS) == base]
    assert same == ["start_layer_half"]
    # All rows of the paper's tables except the full method; variants without a table are not in the paper.
    counts = Counter(variant.table for variant in VARIANTS.values())
    assert counts == {"4a": 1, "4b": 2, "5a": 2, "5b": 3, "7": 4, "": 2}


@pytest.mark.parametrize("fits", [True, False])
def test_shared_passes_do_not_change_results(models, window, fits, monkeypatch):
    mllm, _ = models
    if not fits:
        monkeypatch.setattr(ablation, "PREFIXES_MIB", 0)
    shared, alone = sharing_grounder(mllm), Grounder(mllm)
    passes: list[int] = []
    new_prefix = shared.engine._new_prefix
    monkeypatch.setattr(shared.engine, "_new_prefix", lambda *args: passes.append(1) or new_prefix(*args))
    for variant in (Variant("", ""), *VARIANTS.values()):
        config = variant_config(CONFIG, variant, LAYERS)
        ours, theirs = (
            finish(grounder.ground(window, "the red ball", config, StageClock(STAGES))) for grounder in (shared, alone)
        )
        assert (ours.category, ours.answers) == (theirs.category, theirs.answers)
        np.testing.assert_allclose(ours.maps.fused, theirs.maps.fused, atol=1e-5)
        for branch in ("video", "frames"):
            first, second = getattr(ours.maps, branch), getattr(theirs.maps, branch)
            assert (first is None) == (second is None)
            if first is not None:
                np.testing.assert_allclose(first.object, second.object, atol=1e-7)
                np.testing.assert_allclose(first.background, second.background, atol=1e-7)
    # All variants share one pass over the video and one over the frames.
    assert len(passes) == len(shared.engine.prefixes) == 2 if fits else len(passes) > 2 > len(shared.engine.prefixes)


def test_the_prefixes_of_a_window_fit(models):
    """Keys, values and queries of all layers of Qwen2.5-VL-7B in 16 bits, and the memory of its rollout."""
    config = DecafConfig()
    heads, kv_heads, head_size, layers = 28, 4, 128, 28
    bytes_per_token = layers * (2 * (heads + 2 * kv_heads) * head_size + 4 * heads)
    tokens_per_frame = config.mllm.video_tokens * config.mllm.frame_scale**2
    window = config.window.size * (config.mllm.video_tokens // 2 + tokens_per_frame) * bytes_per_token
    kept = sharing_grounder(models[0]).engine.prefixes.max_bytes
    assert window < kept < 1.3 * window


def test_every_variant_is_the_real_method_under_its_configuration(models, clip, window):
    mllm, sam2 = models
    expression = clip.expressions[3]
    truth = clip.mask(expression.targets)
    truth_at_key_frames = truth[[frame.index for frame in window.frames]]
    decaf = Decaf(mllm, sam2, CONFIG)
    found = decaf.segment(window, expression.text, clip.frames)
    decaf.grounder = sharing_grounder(mllm)
    scores = ablate(decaf, clip, Truth.of(clip, expression, window), found, mask_score(found.dense_labels > 0, truth))
    assert list(scores) == [FULL, *VARIANTS]
    for name, score in scores.items():
        config = variant_config(CONFIG, VARIANTS.get(name, Variant("", "")), LAYERS)
        real = Decaf(mllm, sam2, config).segment(window, expression.text, clip.frames)
        assert score.masks == pytest.approx(mask_score(real.dense_labels > 0, truth), abs=1e-3), name
        assert score.attention == pytest.approx(mask_score(real.coarse_masks, truth_at_key_frames), abs=1e-3), name
        assert score.pointing == pytest.approx(pointing(real.grounding.maps.fused, truth_at_key_frames)), name
        assert score.decoded_category == real.grounding.category
    assert scores["start_layer_half"] == scores[FULL]
    # Otherwise the checks above could not tell the variants apart.
    assert len({score.masks for score in scores.values()}) >= 4
    assert len({scores[name].masks for name in (FULL, "no_consistency", "consistency_otsu", "no_penalty")}) >= 2
