"""Which clips may be trained on."""

from __future__ import annotations

import pytest

from training.clips import training_clips


def test_clips_to_measure_on_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected clips of"):
        training_clips(tmp_path / "nowhere")
    for name in ("clip_00000007.npz", "clip_00899999_crossing.npz"):
        (tmp_path / name).touch()
    assert len(training_clips(tmp_path)) == 2
    for name in ("clip_00900000.npz", "clip_01000003_crossing.npz"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"{name}: expected seeds below 900000"):
            training_clips(tmp_path)
        (tmp_path / name).unlink()
