from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.points import attention_points, keypoints, negative_points


def fused(**values: float) -> np.ndarray:
    """A (2, 3, 4) map of zeros, except for tokens given as tTYX=value."""
    tokens = np.zeros((2, 3, 4), dtype=np.float32)
    for name, value in values.items():
        tokens[tuple(int(digit) for digit in name[1:])] = value
    return tokens


def test_threshold_points_are_token_centres_in_order():
    points = attention_points(fused(t112=0.8, t003=1.0, t020=0.79), SegmentationConfig())
    assert points.frame.tolist() == [0, 1]
    np.testing.assert_allclose(points.xy, [[3.5 / 4, 0.5 / 3], [2.5 / 4, 1.5 / 3]], atol=1e-6)
    np.testing.assert_allclose(points.value, [1.0, 0.8], atol=1e-6)


def test_weaker_points_count_where_several_objects_are_meant():
    # Two strong tokens, a weaker peak with a neighbour, and a weak one.
    fused = np.array([[[0.9, 0.85, 0.1, 0.65, 0.7, 0.1, 0.5, 0.0]]], dtype=np.float32)
    values = {
        number: attention_points(fused, SegmentationConfig(several_attention=0.6), number).value.tolist()
        for number in (None, False, True)
    }
    assert values[None] == values[False] == pytest.approx([0.9, 0.85])
    assert values[True] == pytest.approx([0.9, 0.85, 0.7])
    low = SegmentationConfig(point_threshold=0.4, several_attention=0.6)
    assert len(attention_points(fused, low, True)) == 5
    # Or where candidates are verified: the lower of both limits.
    verified = SegmentationConfig(several_attention=0.6, verify=True, verify_attention=0.45)
    for number in (None, False, True):
        assert attention_points(fused, verified, number).value.tolist() == pytest.approx([0.9, 0.85, 0.7, 0.5])
    high = SegmentationConfig(several_attention=0.6, verify=True, verify_attention=0.75)
    assert len(attention_points(fused, high, True)) == 3 and len(attention_points(fused, high, False)) == 2


def test_no_token_over_the_threshold_gives_no_points():
    assert len(attention_points(fused(), SegmentationConfig())) == 0


def test_top_k_takes_the_strongest_of_each_frame_and_never_an_empty_token():
    config = SegmentationConfig(points="top_k", top_k=2)
    points = attention_points(fused(t000=0.3, t001=0.2, t002=0.4, t123=0.1), config)
    assert points.frame.tolist() == [0, 0, 1]
    np.testing.assert_allclose(points.value, [0.3, 0.4, 0.1], atol=1e-6)


def test_max_points_keeps_the_strongest_in_order():
    values = fused(t000=0.9, t011=0.85, t100=1.0, t101=0.95)
    points = attention_points(values, SegmentationConfig(max_points=3))
    np.testing.assert_allclose(points.value, [0.9, 1.0, 0.95], atol=1e-6)
    assert points.left_out == 1 and attention_points(values, SegmentationConfig()).left_out == 0


def test_keypoints_are_peaks_apart_from_each_other_strongest_first():
    # (0, 0, 1) and (0, 1, 0) touch stronger tokens: no peaks. In frame 1 the token next to frame 0's peak is too close.
    values = fused(t000=0.9, t001=0.8, t010=0.7, t023=0.5, t101=0.6, t120=0.3)
    config = SegmentationConfig(top_k=3, keypoint_distance=0.3)
    points = keypoints(values, config, (300, 400))
    assert points.frame.tolist() == [0, 0, 1]
    np.testing.assert_allclose(points.value, [0.9, 0.5, 0.3], atol=1e-6)
    near = keypoints(values, SegmentationConfig(top_k=3, keypoint_distance=0.1), (300, 400))
    np.testing.assert_allclose(near.value, [0.9, 0.6, 0.5], atol=1e-6)


def test_keypoint_distance_is_measured_in_the_image_not_in_tokens():
    values = fused(t000=1.0, t002=0.9, t020=0.8)
    config = SegmentationConfig(keypoint_distance=0.3)
    # Two tokens are half the width or two thirds of the height.
    assert keypoints(values, config, (100, 1000)).value.tolist() == pytest.approx([1.0, 0.9])
    assert keypoints(values, config, (1000, 100)).value.tolist() == pytest.approx([1.0, 0.8])


def test_a_constant_map_has_no_keypoints():
    assert len(keypoints(fused(), SegmentationConfig(), (30, 40))) == 0


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.zeros((2, 3, 4)), TypeError, "float32"),
        (np.zeros((3, 4), dtype=np.float32), ValueError, r"\(3, 4\)"),
        (np.full((1, 2, 2), np.nan, dtype=np.float32), ValueError, "NaN"),
    ],
)
def test_bad_maps_are_named(bad, error, message):
    with pytest.raises(error, match=message):
        attention_points(bad, SegmentationConfig())
    with pytest.raises(error, match=message):
        keypoints(bad, SegmentationConfig(), (3, 4))


def test_negative_points_are_the_weakest_tokens_inside_the_mask():
    attention = np.array([[0.1, 0.25, 0.9], [0.0, 0.05, 0.31]], np.float32)
    mask = np.zeros((40, 60), bool)
    mask[:, 10:] = True  # half of the left column
    mask[20:, 30:40] = False  # and half of the lower middle

    def found(attention=attention, mask=mask, **options):
        return negative_points(attention, mask, SegmentationConfig(**options)).tolist()

    places = {"a": (1 / 6, 0.25), "b": (0.5, 0.25), "d": (1 / 6, 0.75)}
    centre = {name: pytest.approx(xy) for name, xy in places.items()}
    lower = pytest.approx((0.5, 0.75))
    assert found(negative_points=9) == [centre["a"], centre["b"], centre["d"], lower]
    assert found(negative_points=2) == [centre["d"], lower]
    assert found(negative_points=9, negative_attention=0.1) == [centre["a"], centre["d"], lower]
    less = mask.copy()
    less[20:, 29:41] = False
    assert found(mask=less, negative_points=2) == [centre["a"], centre["d"]]
    assert found(attention=attention + 1, negative_points=9) == found(mask=mask & False, negative_points=1) == []
