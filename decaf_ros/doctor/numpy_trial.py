"""Hands NumPy arrays to the packages that are compiled against it: `python -m decaf_ros.doctor.numpy_trial null`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from decaf_ros.doctor.findings import OK, WRONG, Finding, serve
from decaf_ros.doctor.packages import NUMPY_MEND


def _with_torch() -> Iterator[Finding]:
    import numpy as np
    import torch

    yield from _compared("torch", torch.from_numpy(np.arange(3.0)).add(1).numpy().tolist(), [1.0, 2.0, 3.0])


def _with_opencv() -> Iterator[Finding]:
    import cv2
    import numpy as np

    yield from _compared("OpenCV", cv2.flip(np.arange(3, dtype=np.uint8)[None], 1).tolist(), [[2, 1, 0]])


def _with_scipy() -> Iterator[Finding]:
    import numpy as np
    from scipy import ndimage

    yield from _compared("SciPy", ndimage.label(np.array([1, 0, 1]))[0].tolist(), [1, 0, 2])


def _compared(name: str, got: Sequence[object], expected: Sequence[object]) -> Iterator[Finding]:
    import numpy as np

    if got == expected:
        yield Finding(f"NumPy with {name}", OK, np.__version__)
    else:
        yield Finding(f"NumPy with {name}", WRONG, f"{np.__version__}: expected {expected}, got {got}", NUMPY_MEND)


if __name__ == "__main__":
    serve(
        [("NumPy with torch", _with_torch), ("NumPy with OpenCV", _with_opencv), ("NumPy with SciPy", _with_scipy)],
        NUMPY_MEND,
    )
