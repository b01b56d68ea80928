"""The check of an array's dtype and shape, and values in the texts of errors."""

from __future__ import annotations

import numpy as np

# The bound of a quoted value: errors are lines of a log, and values come from messages.
_QUOTED_CHARS = 100


def quoted(value: object) -> str:
    """The value as in Python source, on one line; a long one is cut and its length appended."""
    return _cut(repr(value))


def shown(text: str) -> str:
    """As `quoted`, without quotation marks."""
    return _cut(repr(text)[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]}... ({len(text)} characters)"


def check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int | None, ...]) -> None:
    """name: for the message. shape: None allows any size.

    Raises TypeError for another dtype or no array, ValueError for another shape.
    """
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name}: expected a numpy array of {np.dtype(dtype)}, got {got}")
    fits = array.ndim == len(shape) and all(expected in (None, got) for expected, got in zip(shape, array.shape))
    if not fits:
        expected_shape = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({expected_shape}), got {array.shape}")
