"""RVL: bytes written by hand, a round trip with a writer in plain Python, damaged data."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from rvl_writer import encode_rvl

from decaf_ros.space.rvl import decode_rvl


def test_bytes_written_by_hand():
    # Two zeros; two values: +5 is 10 (nibbles 2 + 8 and 1), +2 is 4; one zero; no value; one nibble to fill the word.
    by_hand = bytes([0x00, 0x41, 0xA1, 0x22])
    np.testing.assert_array_equal(decode_rvl(by_hand, 5), np.array([0, 0, 5, 7, 0], np.uint16))
    # No zero; three values: +1 is 2, -1 + 1 = 0 is no value of a run, so 1 then 9: +8 is 16, then 4: -5 is 9.
    by_hand = struct.pack("<I", 0x0_3_2_82_91_0)
    np.testing.assert_array_equal(decode_rvl(by_hand, 3), np.array([1, 9, 4], np.uint16))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_round_trip(share: float):
    rng = np.random.default_rng(3)
    values = rng.integers(1, 65536, 997).astype(np.uint16)
    values[rng.uniform(size=997) < share] = 0
    decoded = decode_rvl(encode_rvl(values.tolist()), 997)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, values)


def test_damaged_data_is_refused():
    values = [0] * 20 + list(range(500, 900)) + [0] * 30 + list(range(900, 1200))
    code = encode_rvl(values)
    with pytest.raises(ValueError, match="expected 750 pixels, got data that ends"):
        decode_rvl(code[: len(code) // 8 * 4], 750)
    with pytest.raises(ValueError, match="expected 751 pixels, got data that ends after 750"):
        decode_rvl(code, 751)
    with pytest.raises(ValueError, match="expected 700 pixels, got a run up to pixel 750"):
        decode_rvl(code, 700)
    with pytest.raises(ValueError, match="expected 20 pixels, got a run up to pixel 420"):
        decode_rvl(code, 20)
    with pytest.raises(ValueError, match=r"expected 750 pixels in \d+ bytes, got"):
        decode_rvl(code + bytes(8), 750)
    with pytest.raises(ValueError, match="whole words of 4 bytes, got 7 bytes"):
        decode_rvl(code[:7], 750)
    with pytest.raises(ValueError, match="at most 10 nibbles"):
        decode_rvl(b"\xff" * 8 + bytes(4), 750)
    with pytest.raises(ValueError, match="expected 5 pixels, got data that ends after 0"):
        decode_rvl(bytes(8), 5)
    with pytest.raises(ValueError, match="expected 5 pixels, got data that ends after 0"):
        decode_rvl(b"", 5)
