"""Training and measurement clips are kept apart by their seeds."""

from __future__ import annotations

import pytest

from decaf_tabletop.training.clips import training_clips, validation_clips


def test_training_refuses_measurement_clips(tmp_path):
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


def test_measurement_refuses_training_clips(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected clips of"):
        validation_clips(tmp_path / "nowhere")
    for name in ("clip_00900000.npz", "clip_01000003_crossing.npz"):
        (tmp_path / name).touch()
    assert len(validation_clips(tmp_path)) == 2
    (tmp_path / "clip_00899999.npz").touch()
    with pytest.raises(ValueError, match="clip_00899999.npz: expected seeds from 900000 on"):
        validation_clips(tmp_path)
