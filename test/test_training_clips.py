"""Which clips may be trained on."""

from __future__ import annotations

import pytest

from training.clips import training_clips


def test_clips_of_the_evaluation_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected clips of"):
        training_clips(tmp_path / "nowhere")
    for name in ("clip_00000007.npz", "clip_00999999_crossing.npz"):
        (tmp_path / name).touch()
    assert len(training_clips(tmp_path)) == 2
    (tmp_path / "clip_01000003.npz").touch()
    with pytest.raises(ValueError, match="expected seeds below 1000000"):
        training_clips(tmp_path)
