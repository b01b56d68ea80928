"""Fusion against the published implementation's results."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import GOLDEN_DIR

from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, coarse_masks, contrast, fuse
from decaf_ros.types import BranchMaps

GOLDEN = np.load(GOLDEN_DIR / "postprocessing.npz")
CASES = sorted(name[: -len("_fused")] for name in GOLDEN.files if name.endswith("_fused"))


def test_golden_has_fusion_cases():
    assert CASES, f"no fusion case in {GOLDEN_DIR / 'postprocessing.npz'}"


@pytest.mark.parametrize("case", CASES)
def test_golden_fusion(case):
    maps = {key[len(case) + 1 :]: GOLDEN[key] for key in GOLDEN.files if key.startswith(f"{case}_")}
    video = contrast(BranchMaps(maps["obj_video"], maps["bg_video"]), VIDEO_KERNEL, per_frame=False)
    frames = contrast(BranchMaps(maps["obj_frame"], maps["bg_frame"]), FRAME_KERNEL, per_frame=True)
    fused = fuse(video, frames, len(frames))
    np.testing.assert_allclose(video, maps["ctr_video"], atol=1e-5)
    np.testing.assert_allclose(frames, maps["ctr_frame"], atol=1e-5)
    np.testing.assert_allclose(fused, maps["fused"], atol=1e-5)
    (otsu,) = (name for name in maps if name.startswith("otsu_"))
    size_hw = tuple(int(side) for side in otsu.split("_")[1].split("x"))
    shape = (len(frames), *size_hw)
    expected = np.unpackbits(maps[otsu], count=int(np.prod(shape))).reshape(shape).astype(bool)
    assert (coarse_masks(fused, size_hw) == expected).mean() > 0.9999
